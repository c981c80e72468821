// SPDX-License-Identifier: Apache-2.0
// Table to selected tokens on the host: a task is one list, from its table to its indices.
#pragma once

#include <cmath>

#include "../../search/retrieve.hpp"
#include "cell_index.hpp"
#include "scan.hpp"
#include "top_k.hpp"

namespace pqkv {
namespace detail {

/// Scratch of one list beside its scorer's.
struct selection_scratch {
  float* scores;           // of items
  float* values;           // [cells + select_slack] products, then scores of cells
  std::uint32_t* picks;    // [cells + select_slack] weights, then cells
  std::uint64_t* bits;     // a bit for a token
  std::uint64_t* summary;  // a bit for a word of those
};

/// The threshold of the cells that hold the k best tokens. As in row_selection: a sample brackets it, one pass over the cells keeps those
/// inside, and counts verify it.
/// @param weights  [n] tokens of a cell, `tokens` in all
template <class Leaf>
selection_threshold cell_threshold(const float* scores, const std::uint32_t* weights, std::size_t n, std::uint64_t tokens, std::uint64_t k,
                                   float* kept, std::uint32_t* kept_weights) {
  using key_type = select_key<float>;
  const auto weigh = [](const float* x, const std::uint32_t* w, std::size_t count, std::uint32_t key) {
    return Leaf::weight_at_least(x, w, count, key_type::bound(key));
  };
  key_interval interval{0, std::uint64_t{key_type::top} + 1, tokens, 0};
  constexpr std::size_t least = 1024, step = 16;  // cells worth a sample, and of how many it takes one
  if (n >= least) {
    const std::size_t size = n / step;
    double total = 0, squares = 0;
    std::uint32_t draw = 1;
    for (std::size_t i = 0; i < size; ++i, draw = draw * 1664525u + 1013904223u) {
      const std::size_t cell = i * step + (draw >> 28);
      kept[i] = scores[cell];
      kept_weights[i] = weights[cell];
      total += weights[cell];
      squares += static_cast<double>(weights[cell]) * weights[cell];
    }
    const double rank = static_cast<double>(k) / static_cast<double>(tokens) * total;
    const double deviation = total > 0 ? std::sqrt(rank * squares / total) + 1 : 0;
    const auto at_least = [&](std::uint32_t key) { return weigh(kept, kept_weights, size, key); };
    const std::uint64_t low = suggest(rank + 4 * deviation, rank + 7 * deviation, key_type::bottom, interval.high, at_least);
    std::uint64_t high = interval.high;
    if (rank > 4 * deviation + 1) high = suggest(rank - 7 * deviation, rank - 4 * deviation, low, high, at_least);
    if (high > low) {
      const interval_counts found = Leaf::keep_between(scores, weights, n, key_type::bound(static_cast<std::uint32_t>(low)),
                                                       key_type::bound(static_cast<std::uint32_t>(high)), kept, kept_weights);
      interval.cut(high, found.above, k);
      if (interval.high == high) interval.cut(low, found.above + weigh(kept, kept_weights, found.kept, key_type::bottom), k);
      if (interval.high == high && interval.low == low)
        narrow<float>(interval, k, 0, [&](std::uint32_t key) { return found.above + weigh(kept, kept_weights, found.kept, key); });
    }
  }
  narrow<float>(interval, k, 0, [&](std::uint32_t key) { return weigh(scores, weights, n, key); });
  return interval.threshold(k);
}

/// Positions of tokens below `size`, put in order by a bit for each. A list much shorter than the bits marks the words that it
/// touches, so that what is cleared and read grows with the list and not with n.
template <class Leaf>
class token_bitmap {
 public:
  token_bitmap(std::uint64_t* bits, std::uint64_t* summary, std::size_t size, std::size_t expected)
      : bits_(bits), summary_(summary), words_((size + 63) / 64), sparse_(words_ > sparse_words * expected) {
    clear();
  }
  void clear() { sparse_ ? std::fill_n(summary_, (words_ + 63) / 64, std::uint64_t{0}) : std::fill_n(bits_, words_, std::uint64_t{0}); }

  /// Marks ids[i * stride] - first.
  void mark(const std::int32_t* ids, std::size_t stride, std::size_t count, std::uint32_t first) {
    if (sparse_) {
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t at = static_cast<std::uint32_t>(ids[i * stride]) - first, word = at / 64;
        const std::uint64_t seen = summary_[word / 64] >> word % 64 & 1;
        bits_[word] = (bits_[word] & (0 - seen)) | std::uint64_t{1} << at % 64;
        summary_[word / 64] |= std::uint64_t{1} << word % 64;
      }
    } else {
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t at = static_cast<std::uint32_t>(ids[i * stride]) - first;
        bits_[at / 64] |= std::uint64_t{1} << at % 64;
      }
    }
  }

  /// Writes first + position, ascending; returns how many, at most `room`.
  std::size_t emit(std::uint32_t first, std::int32_t* out, std::size_t room) const {
    const auto from = static_cast<std::int32_t>(first);
    if (!sparse_) return Leaf::emit_bits(bits_, words_, from, out, room);
    constexpr std::size_t at_once = 8;
    std::int32_t touched[at_once * 64 + select_slack];
    std::size_t count = 0;
    for (std::size_t i = 0; i < (words_ + 63) / 64; i += at_once) {
      const std::size_t words = std::min(at_once, (words_ + 63) / 64 - i);
      const std::size_t found =
          Leaf::emit_bits(summary_ + i, words, static_cast<std::int32_t>(i * 64), touched, at_once * 64 + select_slack);
      count += Leaf::emit_words(bits_, touched, found, from, out + count, room - count);
    }
    return count;
  }

 private:
  static constexpr std::size_t sparse_words = 2;
  std::uint64_t *bits_, *summary_;
  std::size_t words_;
  bool sparse_;
};

/// Emits whole cells above the threshold, then the lowest tokens of all cells that equal it, in the order of tokens.
template <class Leaf>
class cell_emission {
 public:
  cell_emission(cell_index_view<> index, std::size_t head, codes_view<> codes, middle_range range, const selection_scratch& scratch)
      : index_(index), head_(head), codes_(codes), range_(range), scratch_(scratch), offsets_(&index.offsets(head, 0)) {}

  std::uint32_t emit(selection_threshold threshold, std::uint32_t k, std::int32_t* out) {
    const std::size_t picked = pick(threshold.key);
    token_bitmap<Leaf> tokens(scratch_.bits, scratch_.summary, range_.size(), k);
    std::uint64_t of_equal = threshold.of_equal;
    if (of_equal != all_equal) of_equal -= mark_equal(tokens, threshold.key, of_equal, picked, out);
    for (std::size_t i = 0; i < picked; ++i) {
      prefetch(i, picked);
      const std::uint32_t cell = scratch_.picks[i];
      if (of_equal == all_equal || canonical::order_key(scratch_.scores[cell]) != threshold.key) mark(tokens, cell, all_equal);
    }
    std::size_t count = tokens.emit(range_.begin, out, k);
    // The tail's tokens lie behind all those in lists.
    const auto digits = cell_digits::of(index_);
    for (std::uint32_t t = index_.merged(head_); t < index_.last(head_); ++t) {
      const std::uint32_t key = canonical::order_key(scratch_.scores[digits.cell(&codes_(head_, 0, t), codes_.stride(1))]);
      if (key < threshold.key || (key == threshold.key && of_equal == 0)) continue;
      if (key == threshold.key && of_equal != all_equal) --of_equal;
      out[count++] = static_cast<std::int32_t>(t);
    }
    return static_cast<std::uint32_t>(count);
  }

 private:
  /// The cells at or above the threshold, empty ones too.
  std::size_t pick(std::uint32_t key) {
    auto* picks = reinterpret_cast<std::int32_t*>(scratch_.picks);
    if (key != 0)
      return Leaf::emit_at_least(scratch_.scores, index_.cells(), select_key<float>::bound(key), 0, picks, index_.cells() + select_slack);
    for (std::size_t cell = 0; cell < index_.cells(); ++cell) picks[cell] = static_cast<std::int32_t>(cell);
    return index_.cells();
  }

  /// Marks the first `wanted` tokens in lists of cells that equal the threshold; returns how many there were.
  std::size_t mark_equal(token_bitmap<Leaf>& tokens, std::uint32_t key, std::uint64_t wanted, std::size_t picked, std::int32_t* out) {
    std::size_t equal = 0, one = 0;
    for (std::size_t i = 0; i < picked; ++i) {
      const std::uint32_t cell = scratch_.picks[i];
      if (canonical::order_key(scratch_.scores[cell]) == key && offsets_[cell + 1] != offsets_[cell]) ++equal, one = cell;
    }
    if (equal <= 1) return equal == 0 ? 0 : mark(tokens, one, wanted);
    for (std::size_t i = 0; i < picked; ++i)
      if (canonical::order_key(scratch_.scores[scratch_.picks[i]]) == key) mark(tokens, scratch_.picks[i], all_equal);
    const std::size_t found = tokens.emit(range_.begin, out, wanted);
    tokens.clear();
    tokens.mark(out, 1, found, range_.begin);
    return found;
  }

  /// Marks the first `most` tokens of a cell's list; returns how many.
  std::size_t mark(token_bitmap<Leaf>& tokens, std::size_t cell, std::uint64_t most) {
    const std::size_t count = std::min<std::uint64_t>(offsets_[cell + 1] - offsets_[cell], most), stride = index_.ids.stride(1);
    tokens.mark(ids(cell), stride, count, range_.begin);
    return count;
  }
  void prefetch(std::size_t at, std::size_t picked) const {
    constexpr std::size_t ahead = 4;
    if (at + ahead < picked) __builtin_prefetch(ids(scratch_.picks[at + ahead]));
  }
  const std::int32_t* ids(std::size_t cell) const {
    return index_.ids.data + head_ * index_.ids.stride(0) + offsets_[cell] * index_.ids.stride(1);
  }

  cell_index_view<> index_;
  std::size_t head_;
  codes_view<> codes_;
  middle_range range_;
  selection_scratch scratch_;
  const std::uint32_t* offsets_;
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
    const std::size_t scored = std::max(longest, cells), words = longest / 64 + 1, summary = words / 64 + 1;

    workspace memory(policy.scratch, retrieve_scratch_bytes(lists, hq, m, c, longest, cells), "retrieve");
    const detail::scorer_scratch tables = detail::scorer_scratch::carve(memory, hq, m, c);
    float* scores = memory.take<float>(lists * scored);
    const std::size_t kept = cells == 0 ? 0 : cells + detail::select_slack;
    float* values = memory.take<float>(lists * kept);
    std::uint32_t* picks = memory.take<std::uint32_t>(lists * kept);
    std::uint64_t* bits = memory.take<std::uint64_t>(lists * (words + summary));

    isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
      using leaf = detail::leaf<decltype(isa)>;
      using scorer_type = detail::group_scorer<leaf>;
      policy.runner.run(lists, [&](std::size_t list) {
        const detail::float_environment rounding;
        const std::size_t head = list / lists_per_head, first = list * g;
        const detail::scorer_scratch own{tables.shifted + first * m * c, tables.entries + first * m * c, tables.factor + first};
        scorer_type scorer(own, params.reduction, g, m, c, params.head_dim);
        const detail::selection_scratch scratch{scores + list * scored, values + list * kept, picks + list * kept,
                                                bits + list * (words + summary), bits + list * (words + summary) + words};
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
      const detail::cell_items cells{&index.counts(head, 0), range.size(), index.cells(), scratch.values};
      if (!rank(scorer, table, first, cells, range, k, scratch.scores, out, skipped)) return k;
      const auto threshold =
          detail::cell_threshold<Leaf>(scratch.scores, cells.weights, cells.n, range.size(), k, scratch.values, scratch.picks);
      return detail::cell_emission<Leaf>(index, head, codes, range, scratch).emit(threshold, k, out);
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
