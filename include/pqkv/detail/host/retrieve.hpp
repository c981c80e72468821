// SPDX-License-Identifier: Apache-2.0
// Retrieval on the host: from the queries' tables to the selected tokens. One task computes one list.
#pragma once

#include <algorithm>
#include <cmath>

#include "../../search/partial_ranking.hpp"
#include "../../search/retrieve.hpp"
#include "cell_index.hpp"
#include "quantized_scan.hpp"
#include "scan.hpp"
#include "top_k.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Scores listed tokens.
/// @param positions  [count] of tokens.codes
/// @param scores     [count], written
template <class Scorer>
void score_listed(const Scorer& scorer, const token_items& tokens, std::size_t m, const std::int32_t* positions, std::size_t count,
                  float* scores) {
  constexpr std::size_t at_once = 256;
  std::uint8_t codes[max_quantized_subspaces * at_once];
  for (std::size_t begin = 0; begin < count; begin += at_once) {
    const std::size_t listed = std::min(at_once, count - begin);
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t i = 0; i < listed; ++i)
        codes[j * at_once + i] = tokens.codes[j * tokens.stride + static_cast<std::size_t>(positions[begin + i])];
    scorer.score(token_items{codes, at_once, listed}, scores + begin);
  }
}

/// The prefilter's memory for one list.
struct prefilter_scratch {
  std::uint16_t* sums;      // [tokens]
  std::int32_t* positions;  // [room + select_slack]
  std::size_t room;         // the most candidates that are worth scoring canonically
};

/// A prefilter for the scan path, for reductions that add logits. The tables of the whole group are added to one table of 16-bit integers,
/// so a token costs m look-ups of integers instead of g * m look-ups of floats. From the k-th largest integer sum and the bound of the
/// rounding error, most tokens are known to be selected or not. Only the others are scored canonically, so the selected set is that of the
/// canonical scores.
///
/// The probability reductions have no such filter. Their scores need the normaliser, a sum of canonical products over all tokens; once
/// every product is computed, a filter saves little. logit_max would need a sum for each query head.
template <class Kernels>
class logit_prefilter {
 public:
  static constexpr std::size_t least_tokens = 2048;  // with fewer tokens, rounding the tables costs more than it saves. Not tuned

  static bool serves(std::size_t m, std::size_t tokens) { return m <= max_quantized_subspaces && tokens >= least_tokens; }

  logit_prefilter(const token_items& tokens, std::size_t m, std::size_t c, const prefilter_scratch& scratch)
      : tokens_(tokens), m_(m), c_(c), scratch_(scratch) {}

  /// Writes first + position, ascending, for the k best of the tokens; 0 < k < n. If too many tokens would have to be scored canonically,
  /// writes nothing and returns false.
  ///
  /// Let v be a token's integer sum, whose score is within `bound` of offset + step * v, and K a sum that at least k tokens reach. The k-th
  /// best score is then at least offset + step * K - bound, so a token with v < K - 2 bound / step is not selected. At most k tokens reach
  /// K + 1 (and at most k reach K if no sum equals the k-th), so a token with v > K + 2 bound / step is selected.
  ///
  /// @param scores  [n], scratch
  template <class Scorer>
  bool select(const Scorer& scorer, std::uint32_t k, float* scores, std::int32_t first, std::int32_t* out) {
    std::uint16_t entries[max_quantized_subspaces * max_centroids];
    const table_quantization scaling = scorer.quantize_group(entries);
    const double margin = std::floor(2 * scaling.bound / scaling.step) + 1;
    if (!(scaling.step > 0) || !(margin < 32768)) return false;
    for (std::size_t t = 0; t < tokens_.n; t += quantized_tile_tokens)
      Kernels::quantized_sums(entries, 1, m_, c_, tokens_.codes + t, tokens_.stride, std::min(quantized_tile_tokens, tokens_.n - t),
                              scratch_.sums + t, tokens_.n);
    const auto doubt = static_cast<std::uint32_t>(margin);
    const std::uint32_t middle = threshold(k);
    if (middle <= doubt) return false;
    const std::size_t candidates = Kernels::count_at_least(scratch_.sums, tokens_.n, static_cast<std::uint16_t>(middle - doubt));
    if (candidates > scratch_.room) return false;
    Kernels::emit_at_least(scratch_.sums, tokens_.n, static_cast<std::uint16_t>(middle - doubt), 0, scratch_.positions, candidates);
    std::size_t certain = 0, open = 0;
    for (std::size_t i = 0; i < candidates; ++i) {
      const std::int32_t position = scratch_.positions[i];
      if (scratch_.sums[position] > middle + doubt)
        out[certain++] = first + position;
      else
        scratch_.positions[open++] = position;
    }
    PQKV_ASSERT(certain <= k && certain + open >= k);
    keep_best(scorer, k - certain, open, scores, out + certain);
    merge(certain, k - certain, first, out);
    return true;
  }

 private:
  std::uint32_t threshold(std::uint32_t k) const {
    row_selection<Kernels, std::uint16_t> selection(scratch_.sums, tokens_.n);
    return selection.threshold(k).key;
  }

  /// Keeps the `wanted` best of the first `open` positions, ascending. @param chosen  [wanted], scratch
  template <class Scorer>
  void keep_best(const Scorer& scorer, std::size_t wanted, std::size_t open, float* scores, std::int32_t* chosen) {
    if (wanted == 0 || wanted == open) return;
    score_listed(scorer, tokens_, m_, scratch_.positions, open, scores);
    row_selection<Kernels, float> selection(scores, open);
    selection.emit(selection.threshold(wanted), 0, chosen, wanted);
    for (std::size_t i = 0; i < wanted; ++i) scratch_.positions[i] = scratch_.positions[chosen[i]];
  }

  /// Merges the first `added` positions into the tokens that are certain to be selected, beginning at the end of both.
  void merge(std::size_t certain, std::size_t added, std::int32_t first, std::int32_t* out) const {
    while (added != 0) {
      const std::int32_t last = first + scratch_.positions[added - 1];
      const bool ours = certain == 0 || out[certain - 1] < last;
      out[certain + added - 1] = ours ? last : out[certain - 1];
      --(ours ? added : certain);
    }
  }

  token_items tokens_;
  std::size_t m_, c_;
  prefilter_scratch scratch_;
};

}  // namespace detail

template <>
struct kernel<op::retrieve, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::retrieve::sizes& sizes) { return detail::retrieve_scratch_bytes(sizes); }

  template <class P>
  static void run(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                  view<const middle_range, 1> ranges, view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts,
                  const retrieve_params& params, view<std::uint8_t, 1> skipped, const head_map<>& map,
                  view<const attended_sum, 1> attended = {}, const partial_ranking& part = {});

 private:
  /// The query heads of one list.
  struct query_group {
    distance_table_view<> table;
    std::size_t first;
    std::uint8_t* skipped;         // or null
    const attended_sum* attended;  // or null
    const normaliser* given;       // or null
  };

  /// Scratch of one list.
  struct list_scratch {
    detail::cell_scratch cells;
    std::uint32_t* earlier;  // [cells] counts of the tokens below the end of the range
  };

  static void check_arguments(codes_view<> codes, cell_index_view<> index, view<const middle_range, 1> ranges,
                              view<std::int32_t, 2> indices, const retrieve_params& params, const head_map<>& map) {
    for (std::size_t row_head = 0; row_head < ranges.extent(0); ++row_head) {
      const middle_range range = ranges(row_head);
      const std::size_t head = map.head(row_head);
      detail::checks checks("retrieve");
      checks.at_most("ranges.end", range.end, codes.extent(2), "n, from codes")
          .at_most("ranges.begin", range.begin, range.end, "ranges.end");
      if (range.begin <= range.end) checks.at_most("ranges.retrieve", range.selected(), indices.extent(1), "k_max, from indices");
      if (!index.empty() && range.begin < range.end && resolve_path(params.path, index.cells(), range.size()) == search_path::joint)
        checks.extent("ranges.begin", range.begin, index.first(head), "index.first")
            .at_most("ranges.end", range.end, index.last(head), "index.last");
      require_ok(checks);
    }
  }

  template <class Kernels, class Scorer>
  static std::uint32_t select(Scorer& scorer, const query_group& group, codes_view<> codes, cell_index_view<> index, std::size_t head,
                              middle_range range, search_path path, const list_scratch& of_list, const detail::prefilter_scratch& filtering,
                              std::int32_t* out) {
    const std::uint32_t k = range.selected();
    const std::uint8_t* head_codes = codes.data + head * codes.stride(0);
    const detail::cell_scratch& scratch = of_list.cells;
    const bool joint = range.begin < range.end && !index.empty() && resolve_path(path, index.cells(), range.size()) == search_path::joint;
    if (joint) {
      const std::uint32_t* const counts = detail::counts_up_to(index, codes, head, range.end, of_list.earlier);
      const auto select_cells = [&](const auto& cells, const std::int32_t* which) {
        if (!prepare(scorer, group, cells, range, k, out)) return k;
        scorer.score(cells, scratch.scores);
        const auto threshold =
            detail::cell_threshold<Kernels>(scratch.scores, cells.weights, cells.n, range.size(), k, scratch.values, scratch.picks);
        const auto score = [&](std::uint32_t from, std::size_t count, float* scores) {
          scorer.score(detail::token_items{head_codes + from, codes.stride(1), count}, scores);
        };
        return detail::cell_emission<Kernels>(index, head, range, scratch, cells.n, which).emit(threshold, k, score, out);
      };
      const detail::occupied_cells<Kernels> occupied(index, counts, scratch);
      if (occupied.sparse()) return select_cells(occupied.items(), scratch.cells);
      return select_cells(detail::cell_items{counts, range.size(), index.cells(), scratch.values}, nullptr);
    }
    const detail::token_items tokens{head_codes + range.begin, codes.stride(1), range.size()};
    if (!prepare(scorer, group, tokens, range, k, out)) return k;
    detail::logit_prefilter<Kernels> filter(tokens, codes.extent(1), group.table.entries.extent(2), filtering);
    if (scorer.adds_logits() && filter.serves(codes.extent(1), tokens.n) &&
        filter.select(scorer, k, scratch.scores, static_cast<std::int32_t>(range.begin), out))
      return k;
    scorer.score(tokens, scratch.scores);
    detail::row_selection<Kernels, float> selection(scratch.scores, tokens.n);
    return static_cast<std::uint32_t>(selection.emit(selection.threshold(k), static_cast<std::int32_t>(range.begin), out, k));
  }

  /// Prepares the scorer and returns true. If every token of the range or none is selected, writes `out` and returns false instead.
  template <class Scorer, class Items>
  static bool prepare(Scorer& scorer, const query_group& group, const Items& items, middle_range range, std::uint32_t k,
                      std::int32_t* out) {
    scorer.prepare(group.table, group.first, items, range.size(), group.skipped, group.attended, group.given);
    if (k == 0 || k == range.size()) {
      for (std::uint32_t i = 0; i < k; ++i) out[i] = static_cast<std::int32_t>(range.begin + i);
      return false;
    }
    return true;
  }
};

template <class P>
void kernel<op::retrieve, backend::host>::run(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                                              view<const middle_range, 1> ranges, view<std::int32_t, 2> indices,
                                              view<std::uint32_t, 1> counts, const retrieve_params& params, view<std::uint8_t, 1> skipped,
                                              const head_map<>& map, view<const attended_sum, 1> attended, const partial_ranking& part) {
  check_arguments(codes, index, ranges, indices, params, map);
  const std::size_t h = ranges.extent(0), m = codes.extent(1), c = table.entries.extent(2), hq = table.entries.extent(0);
  const std::size_t lists = indices.extent(0), g = hq / lists, lists_per_head = lists / h, cells = index.empty() ? 0 : index.cells();
  std::size_t longest = 0;
  for (std::size_t head = 0; head < h; ++head) longest = std::max<std::size_t>(longest, ranges(head).size());
  const std::size_t scored = std::max(longest, cells), words = longest / 64 + 1, summary = words / 64 + 1;

  workspace memory(policy.scratch, scratch_bytes({lists, hq, m, c, longest, cells, params.reduction}), "retrieve");
  const detail::scorer_scratch tables = detail::scorer_scratch::carve(memory, hq, m, c);
  float* scores = memory.take<float>(lists * scored);
  const std::size_t kept = cells == 0 ? 0 : cells + detail::select_slack;
  float* values = memory.take<float>(lists * kept);
  std::uint32_t* picks = memory.take<std::uint32_t>(lists * kept);
  std::uint64_t* bits = memory.take<std::uint64_t>(lists * (words + summary));
  std::int32_t* occupied = memory.take<std::int32_t>(lists * kept);
  std::uint32_t* weights = memory.take<std::uint32_t>(lists * kept);
  std::uint8_t* occupied_codes = memory.take<std::uint8_t>(lists * m * cells);
  const bool filters = adds_logits(params.reduction);
  const std::size_t summed = filters ? longest : 0, doubtful = summed / 2, room = filters ? doubtful + detail::select_slack : 0;
  std::uint16_t* sums = memory.take<std::uint16_t>(lists * summed);
  std::int32_t* positions = memory.take<std::int32_t>(lists * room);
  std::uint32_t* earlier = memory.take<std::uint32_t>(lists * cells);

  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    using scorer_type = detail::group_scorer<kernels>;
    detail::run_tasks(policy, lists, [&](std::size_t list) {
      const std::size_t row_head = list / lists_per_head, head = map.head(row_head), first = list * g;
      const detail::scorer_scratch own = tables.from(first, m, c);
      scorer_type scorer(own, params.reduction, g, m, c, canonical::softmax_scale::of(params.head_dim, params.scale));
      std::uint64_t* own_bits = bits + list * (words + summary);
      const detail::cell_scratch scratch{
          scores + list * scored, values + list * kept,   picks + list * kept,   own_bits,
          own_bits + words,       occupied + list * kept, weights + list * kept, occupied_codes + list * m * cells};
      const list_scratch own_scratch{scratch, earlier + list * cells};
      const detail::prefilter_scratch filter{sums + list * summed, positions + list * room, doubtful};
      std::int32_t* out = indices.data + list * indices.stride(0);
      std::uint8_t* flags = skipped.data == nullptr ? nullptr : &skipped(first);
      const query_group group{table, first, flags, attended.data == nullptr ? nullptr : &attended(first),
                              part.normalisers.data == nullptr ? nullptr : &part.normalisers(first)};
      counts(list) = select<kernels>(scorer, group, codes, index, head, ranges(row_head), params.path, own_scratch, filter, out);
      if (part.scores.data != nullptr)
        detail::score_listed(scorer, {codes.data + head * codes.stride(0), codes.stride(1), codes.extent(2)}, m, out, counts(list),
                             part.scores.data + list * part.scores.stride(0));
      detail::pad(out, counts(list), indices.extent(1));
    });
  });
}

PQKV_HOST_OPERATION(op::retrieve, distance_table_view<>, codes_view<>, cell_index_view<>, view<const middle_range, 1>,
                    view<std::int32_t, 2>, view<std::uint32_t, 1>, const retrieve_params&, view<std::uint8_t, 1>, const head_map<>&,
                    view<const attended_sum, 1>, const partial_ranking&)

}  // namespace pqkv
