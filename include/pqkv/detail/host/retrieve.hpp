// SPDX-License-Identifier: Apache-2.0
// Table to selected tokens on the host: a task is one list, from its table to its indices.
#pragma once

#include <bit>

#include "../../search/retrieve.hpp"
#include "cell_index.hpp"
#include "scan.hpp"
#include "top_k.hpp"

namespace pqkv {
namespace detail {

/// Scratch of one list beside its scorer's: scores of items, products of cells, and two bitmaps of tokens.
struct selection_scratch {
  float* scores;
  float* values;  // [cells]
  std::uint64_t* chosen;
  std::uint64_t* equal;
};

/// The threshold of the cells that hold the k best tokens, by radix on the keys: three histogram passes, whatever the values.
inline selection_threshold find_cell_threshold(const float* scores, const std::uint32_t* weights, std::size_t n, std::uint64_t k) {
  std::uint32_t prefix = 0, fixed_bits = 0;
  const unsigned digits[3] = {11, 11, 10};
  unsigned shift = 32;
  for (const unsigned width : digits) {
    shift -= width;
    std::uint64_t histogram[2048] = {};
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t key = canonical::order_key(scores[i]);
      if ((key & fixed_bits) == prefix) histogram[(key >> shift) & ((1u << width) - 1)] += weights[i];
    }
    std::uint32_t digit = (1u << width) - 1;
    while (digit > 0 && histogram[digit] < k) k -= histogram[digit--];
    prefix |= digit << shift;
    fixed_bits |= ((1u << width) - 1) << shift;
  }
  return {prefix, k};
}

/// Emits whole cells above the threshold, then the lowest tokens of all cells that equal it. A bitmap puts them in order.
class cell_emission {
 public:
  cell_emission(cell_index_view<> index, std::size_t head, codes_view<> codes, middle_range range, const selection_scratch& scratch)
      : index_(index), head_(head), codes_(codes), range_(range), scratch_(scratch), words_((range.size() + 63) / 64) {
    std::fill_n(scratch.chosen, words_, std::uint64_t{0});
    std::fill_n(scratch.equal, words_, std::uint64_t{0});
  }

  std::uint32_t emit(selection_threshold threshold, std::int32_t* out) {
    for (std::size_t cell = 0; cell < index_.cells(); ++cell) {
      if (index_.counts(head_, cell) == 0) continue;
      if (std::uint64_t* bits = bitmap(cell, threshold.key); bits != nullptr)
        for (std::uint32_t i = index_.offsets(head_, cell); i < index_.offsets(head_, cell + 1); ++i)
          mark(bits, static_cast<std::uint32_t>(index_.ids(head_, i)));
    }
    const auto digits = cell_digits::of(index_);
    for (std::uint32_t t = index_.merged(head_); t < index_.last(head_); ++t)
      if (std::uint64_t* bits = bitmap(digits.cell(&codes_(head_, 0, t), codes_.stride(1)), threshold.key); bits != nullptr) mark(bits, t);
    std::uint32_t count = 0;
    for (std::size_t word = 0; word < words_; ++word) {
      std::uint64_t bits = scratch_.chosen[word];
      for (std::uint64_t equal = scratch_.equal[word]; equal != 0 && threshold.of_equal != 0; equal &= equal - 1, --threshold.of_equal)
        bits |= equal & (~equal + 1);
      for (; bits != 0; bits &= bits - 1)
        out[count++] = static_cast<std::int32_t>(range_.begin + word * 64 + static_cast<unsigned>(std::countr_zero(bits)));
    }
    return count;
  }

 private:
  /// Where a cell's tokens are marked; null if they are not selected.
  std::uint64_t* bitmap(std::size_t cell, std::uint32_t threshold) const {
    const std::uint32_t key = canonical::order_key(scratch_.scores[cell]);
    return key > threshold ? scratch_.chosen : key == threshold ? scratch_.equal : nullptr;
  }
  void mark(std::uint64_t* bits, std::uint32_t token) const {
    const std::uint32_t at = token - range_.begin;
    bits[at / 64] |= std::uint64_t{1} << at % 64;
  }

  cell_index_view<> index_;
  std::size_t head_;
  codes_view<> codes_;
  middle_range range_;
  selection_scratch scratch_;
  std::size_t words_;
};

}  // namespace detail

template <>
struct kernel<op::retrieve, backend::host> {
  template <class P>
  static void run(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                  view<const middle_range, 1> ranges, view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts,
                  const retrieve_params& params, view<std::uint8_t, 1> skipped) {
    check(codes, index, ranges, indices, params);
    const std::size_t h = codes.extent(0), m = codes.extent(1), c = table.entries.extent(2), hq = table.entries.extent(0);
    const std::size_t lists = indices.extent(0), g = hq / lists, lists_per_head = lists / h, cells = index.empty() ? 0 : index.cells();
    std::size_t longest = 0;
    for (std::size_t head = 0; head < h; ++head) longest = std::max<std::size_t>(longest, ranges(head).size());
    const std::size_t scored = std::max(longest, cells), words = longest / 64 + 2;

    workspace memory(policy.scratch, retrieve_scratch_bytes(lists, hq, m, c, longest, cells), "retrieve");
    const detail::scorer_scratch tables = detail::scorer_scratch::carve(memory, hq, m, c);
    float* scores = memory.take<float>(lists * scored);
    float* values = memory.take<float>(lists * cells);
    std::uint64_t* bitmaps = memory.take<std::uint64_t>(2 * lists * words);

    isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
      using leaf = detail::leaf<decltype(isa)>;
      using scorer_type = detail::group_scorer<leaf>;
      policy.runner.run(lists, [&](std::size_t list) {
        const detail::float_environment rounding;
        const std::size_t head = list / lists_per_head, first = list * g;
        const detail::scorer_scratch own{tables.shifted + first * m * c, tables.entries + first * m * c, tables.factor + first};
        scorer_type scorer(own, params.reduction, g, m, c, params.head_dim);
        const detail::selection_scratch scratch{scores + list * scored, values + list * cells, bitmaps + 2 * list * words,
                                                bitmaps + (2 * list + 1) * words};
        std::int32_t* out = indices.data + list * indices.stride(0);
        std::uint8_t* flags = skipped.data == nullptr ? nullptr : &skipped(first);
        counts(list) = select<leaf>(scorer, table, first, codes, index, head, ranges(head), params.path, scratch, out, flags);
        detail::pad(out, counts(list), indices.extent(1));
      });
    });
  }

 private:
  static void check(codes_view<> codes, cell_index_view<> index, view<const middle_range, 1> ranges, view<std::int32_t, 2> indices,
                    const retrieve_params& params) {
    for (std::size_t head = 0; head < codes.extent(0); ++head) {
      const middle_range range = ranges(head);
      detail::checks checks("retrieve");
      checks.at_most("ranges.end", range.end, static_cast<double>(codes.extent(2)), "n, from codes, at most")
          .at_most("ranges.begin", range.begin, range.end, "ranges.end, at most");
      if (range.begin <= range.end)
        checks.at_most("ranges.retrieve", range.selected(), static_cast<double>(indices.extent(1)), "k_max, from indices, at most");
      if (!index.empty() && range.begin < range.end && resolve_path(params.path, index.cells(), range.size()) == search_path::joint)
        checks.extent("ranges.begin", range.begin, index.first(head), "index.first")
            .extent("ranges.end", range.end, index.last(head), "index.last");
      require_ok(checks);
    }
  }

  template <class Leaf, class Scorer>
  static std::uint32_t select(Scorer& scorer, distance_table_view<> table, std::size_t first, codes_view<> codes, cell_index_view<> index,
                              std::size_t head, middle_range range, search_path path, const detail::selection_scratch& scratch,
                              std::int32_t* out, std::uint8_t* skipped) {
    const std::uint32_t k = range.selected();
    const std::uint8_t* head_codes = codes.data + head * codes.stride(0);
    const bool joint = !index.empty() && resolve_path(path, index.cells(), range.size()) == search_path::joint;
    if (joint) {
      const detail::cell_items cells{&index.counts(head, 0), index.cells(), scratch.values};
      if (!rank(scorer, table, first, cells, range, k, scratch.scores, out, skipped)) return k;
      const auto threshold = detail::find_cell_threshold(scratch.scores, cells.weights, cells.n, k);
      return detail::cell_emission(index, head, codes, range, scratch).emit(threshold, out);
    }
    const detail::token_items tokens{head_codes + range.begin, codes.stride(1), range.size()};
    if (!rank(scorer, table, first, tokens, range, k, scratch.scores, out, skipped)) return k;
    detail::row_selection<Leaf, float> selection(scratch.scores, tokens.n);
    return static_cast<std::uint32_t>(selection.emit(selection.threshold(k), static_cast<std::int32_t>(range.begin), out, k));
  }

  /// Scores the items; false where there is nothing to choose: then all k of the range are written to `out`.
  template <class Scorer, class Items>
  static bool rank(Scorer& scorer, distance_table_view<> table, std::size_t first, const Items& items, middle_range range, std::uint32_t k,
                   float* scores, std::int32_t* out, std::uint8_t* skipped) {
    scorer.prepare(table, first, items, range.size(), skipped);
    if (k == 0 || k == range.size()) {
      for (std::uint32_t i = 0; i < k; ++i) out[i] = static_cast<std::int32_t>(range.begin + i);
      return false;
    }
    scorer.score(items, scores);
    return true;
  }
};

}  // namespace pqkv
