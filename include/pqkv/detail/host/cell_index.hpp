// SPDX-License-Identifier: Apache-2.0
// The joint-code index on the host, one task for each head; and the joint path of retrieve(): it finds the threshold score, then lists the
// tokens of the cells at or above it.
#pragma once

#include <algorithm>
#include <cmath>

#include "../../exec/host.hpp"
#include "../../search/cell_index.hpp"
#include "../../search/retrieve.hpp"
#include "scan.hpp"
#include "top_k.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The codes that make up a cell's number: cell = sum over j of code j * c^(m - 1 - j).
struct cell_digits {
  std::size_t m;
  unsigned bits;

  template <class Index>
  static cell_digits of(const Index& index) {
    const std::size_t m = index.cell_codes.extent(0);
    unsigned joint = 0;
    while ((std::size_t{1} << joint) < index.cells()) ++joint;
    return {m, joint / static_cast<unsigned>(m)};
  }
  std::size_t cell(const std::uint8_t* code, std::size_t stride) const {
    std::size_t value = 0;
    for (std::size_t j = 0; j < m; ++j) value = value << bits | code[j * stride];
    return value;
  }
};

/// Scratch of the joint path for one list. The scorer has its own.
struct cell_scratch {
  float* scores;           // [cells]
  float* values;           // [cells + select_slack] products; later the scores that a selection keeps
  std::uint32_t* picks;    // [cells + select_slack] their weights; later the places of the picked cells
  std::uint64_t* bits;     // one bit for each token
  std::uint64_t* summary;  // one bit for each word of `bits`
  std::int32_t* cells;     // [cells + select_slack] numbers of the cells that hold tokens
  std::uint32_t* weights;  // [cells + select_slack] how many tokens each of them holds
  std::uint8_t* codes;     // [m, cells] the codes of these cells
};

/// Lists the cells that hold tokens, as items. With long codes most cells are empty, and real keys leave many empty even with short codes.
/// The product of a listed cell is computed from look-ups by its codes, as for a token. When all cells are scored in order, products of
/// shared prefixes save look-ups.
template <class Kernels>
class occupied_cells {
 public:
  /// @param counts  [cells] of one head
  occupied_cells(cell_index_view<> index, const std::uint32_t* counts, const cell_scratch& scratch) : index_(index), scratch_(scratch) {
    if (index.cells() >= least) count_ = Kernels::keep_occupied(counts, index.cells(), scratch.cells, scratch.weights);
  }
  /// Whether so few cells hold tokens that skipping the empty ones saves more than the extra look-ups cost.
  bool sparse() const { return index_.cells() >= least && count_ <= index_.cells() / dense; }

  token_items items() const {
    const cell_digits digits = cell_digits::of(index_);
    const unsigned mask = (1u << digits.bits) - 1;
    unsigned shift = 0;
    for (std::size_t j = digits.m; j-- > 0; shift += digits.bits)
      Kernels::digits(scratch_.cells, count_, shift, mask, scratch_.codes + j * index_.cells());
    return {scratch_.codes, index_.cells(), count_, scratch_.weights};
  }

 private:
  static constexpr std::size_t least = 1024, dense = 2;
  cell_index_view<> index_;
  cell_scratch scratch_;
  std::size_t count_ = 0;
};

/// The threshold score of the cells that hold the k best tokens. As in row_selection, a sample gives an interval around it, one pass over
/// the cells keeps the scores inside, and counts verify the result.
/// @param weights  [n] tokens in each cell; `tokens` is their sum
template <class Kernels>
selection_threshold cell_threshold(const float* scores, const std::uint32_t* weights, std::size_t n, std::uint64_t tokens, std::uint64_t k,
                                   float* kept, std::uint32_t* kept_weights) {
  using key_type = select_key<float>;
  const auto weigh = [](const float* x, const std::uint32_t* w, std::size_t count, std::uint32_t key) {
    return Kernels::weight_at_least(x, w, count, key_type::bound(key));
  };
  key_interval interval{0, std::uint64_t{key_type::top} + 1, tokens, 0};
  constexpr std::size_t least = 1024, step = 16;  // sample from this many cells on; one cell of each `step` is sampled
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
      const interval_counts found = Kernels::keep_between(scores, weights, n, key_type::bound(static_cast<std::uint32_t>(low)),
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

/// Sorts token positions below `size` by setting one bit for each. For a list much shorter than the bitmap, a summary records which words
/// of the bitmap are used, so that clearing and reading take time proportional to the list and not to n.
template <class Kernels>
class token_bitmap {
 public:
  token_bitmap(std::uint64_t* bits, std::uint64_t* summary, std::size_t size, std::size_t expected)
      : bits_(bits), summary_(summary), words_((size + 63) / 64), sparse_(words_ > sparse_words * expected) {
    clear();
  }
  void clear() { sparse_ ? std::fill_n(summary_, (words_ + 63) / 64, std::uint64_t{0}) : std::fill_n(bits_, words_, std::uint64_t{0}); }

  /// Marks the tokens at ids[i * stride] - first.
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

  /// Writes first + position of each mark, ascending. Returns how many it wrote, at most `room`.
  std::size_t emit(std::uint32_t first, std::int32_t* out, std::size_t room) const {
    const auto from = static_cast<std::int32_t>(first);
    if (!sparse_) return Kernels::emit_bits(bits_, words_, from, out, room);
    constexpr std::size_t at_once = 8;
    std::int32_t touched[at_once * 64 + select_slack];
    std::size_t count = 0;
    for (std::size_t i = 0; i < (words_ + 63) / 64; i += at_once) {
      const std::size_t words = std::min(at_once, (words_ + 63) / 64 - i);
      const std::size_t found =
          Kernels::emit_bits(summary_ + i, words, static_cast<std::int32_t>(i * 64), touched, at_once * 64 + select_slack);
      count += Kernels::emit_words(bits_, touched, found, from, out + count, room - count);
    }
    return count;
  }

 private:
  static constexpr std::size_t sparse_words = 2;
  std::uint64_t *bits_, *summary_;
  std::size_t words_;
  bool sparse_;
};

/// Emits all tokens of the cells above the threshold; then, in order of position, the lowest tokens of all cells whose score equals it.
template <class Kernels>
class cell_emission {
 public:
  /// @param n      number of scored cells
  /// @param cells  [n] their numbers, ascending; null: all cells
  cell_emission(cell_index_view<> index, std::size_t head, middle_range range, const cell_scratch& scratch, std::size_t n,
                const std::int32_t* cells)
      : index_(index),
        head_(head),
        range_(range),
        scratch_(scratch),
        n_(n),
        cells_(cells),
        offsets_(&index.offsets(head, 0)),
        listed_(std::min(index.merged(head), range.end)),
        has_void_ids_(offsets_[index.cells()] > listed_ - std::min(listed_, index.first(head))) {}

  /// @param score  score(first, count, scores) writes the scores of `count` tokens from `first` on
  template <class Score>
  std::uint32_t emit(selection_threshold threshold, std::uint32_t k, Score score, std::int32_t* out) {
    const std::size_t picked = pick(threshold.key);
    token_bitmap<Kernels> tokens(scratch_.bits, scratch_.summary, range_.size(), k);
    std::uint64_t of_equal = threshold.of_equal;
    if (of_equal != all_equal) of_equal -= mark_equal(tokens, threshold.key, of_equal, picked, out);
    for (std::size_t i = 0; i < picked; ++i) {
      prefetch(i, picked);
      const std::uint32_t place = scratch_.picks[i];
      if (of_equal == all_equal || canonical::order_key(scratch_.scores[place]) != threshold.key) mark(tokens, place, all_equal);
    }
    std::size_t count = tokens.emit(range_.begin, out, k);
    // Tokens that are not yet in the id lists have higher positions than all those that are.
    constexpr std::uint32_t at_once = 256;
    float scores[at_once];
    const std::uint32_t last = std::min(index_.last(head_), range_.end);
    for (std::uint32_t first = listed_; first < last; first += at_once) {
      const std::uint32_t size = std::min(at_once, last - first);
      score(first, size, scores);
      for (std::uint32_t i = 0; i < size; ++i) {
        const std::uint32_t key = canonical::order_key(scores[i]);
        if (key < threshold.key || (key == threshold.key && of_equal == 0)) continue;
        if (key == threshold.key && of_equal != all_equal) --of_equal;
        out[count++] = static_cast<std::int32_t>(first + i);
      }
    }
    return static_cast<std::uint32_t>(count);
  }

 private:
  std::size_t cell(std::size_t place) const { return cells_ == nullptr ? place : static_cast<std::size_t>(cells_[place]); }

  /// Writes to `picks` the places of the cells with scores at or above the threshold, empty cells included.
  std::size_t pick(std::uint32_t key) {
    auto* picks = reinterpret_cast<std::int32_t*>(scratch_.picks);
    if (key != 0) return Kernels::emit_at_least(scratch_.scores, n_, select_key<float>::bound(key), 0, picks, n_ + select_slack);
    for (std::size_t place = 0; place < n_; ++place) picks[place] = static_cast<std::int32_t>(place);
    return n_;
  }

  /// Marks the first `wanted` tokens in the id lists of cells whose score equals the threshold; returns how many it marked.
  std::size_t mark_equal(token_bitmap<Kernels>& tokens, std::uint32_t key, std::uint64_t wanted, std::size_t picked, std::int32_t* out) {
    std::size_t equal = 0, one = 0;
    for (std::size_t i = 0; i < picked; ++i) {
      const std::uint32_t place = scratch_.picks[i];
      if (canonical::order_key(scratch_.scores[place]) == key && offsets_[cell(place) + 1] != offsets_[cell(place)]) ++equal, one = place;
    }
    if (equal <= 1) return equal == 0 ? 0 : mark(tokens, one, wanted);
    for (std::size_t i = 0; i < picked; ++i)
      if (canonical::order_key(scratch_.scores[scratch_.picks[i]]) == key) mark(tokens, scratch_.picks[i], all_equal);
    const std::size_t found = tokens.emit(range_.begin, out, wanted);
    tokens.clear();
    tokens.mark(out, 1, found, range_.begin);
    return found;
  }

  /// Marks the first `most` tokens of a cell's id list; returns how many. Skips ids from listed_ on: these tokens were cut off or come
  /// later.
  std::size_t mark(token_bitmap<Kernels>& tokens, std::size_t place, std::uint64_t most) {
    const std::uint32_t* const list = offsets_ + cell(place);
    std::size_t there = list[1] - list[0];
    while (has_void_ids_ && there != 0 && static_cast<std::uint32_t>(ids(place)[(there - 1) * index_.ids.stride(1)]) >= listed_) --there;
    const std::size_t count = std::min<std::uint64_t>(there, most);
    tokens.mark(ids(place), index_.ids.stride(1), count, range_.begin);
    return count;
  }
  void prefetch(std::size_t at, std::size_t picked) const {
    constexpr std::size_t ahead = 4;
    if (at + ahead < picked) __builtin_prefetch(ids(scratch_.picks[at + ahead]));
  }
  const std::int32_t* ids(std::size_t place) const {
    return index_.ids.data + head_ * index_.ids.stride(0) + offsets_[cell(place)] * index_.ids.stride(1);
  }

  cell_index_view<> index_;
  std::size_t head_;
  middle_range range_;
  cell_scratch scratch_;
  std::size_t n_;
  const std::int32_t* cells_;
  const std::uint32_t* offsets_;
  std::uint32_t listed_;  // tokens below this are in the id lists
  bool has_void_ids_;     // whether the id lists also hold tokens that were cut off
};

/// How many tokens below `end` each cell of a head has. Returns the index's own counts if they hold no later token, otherwise a corrected
/// copy in `earlier` [cells].
inline const std::uint32_t* counts_up_to(cell_index_view<> index, codes_view<> codes, std::size_t head, std::uint32_t end,
                                         std::uint32_t* earlier) {
  const std::uint32_t* const counts = &index.counts(head, 0);
  if (index.last(head) <= end) return counts;
  std::copy_n(counts, index.cells(), earlier);
  const cell_digits digits = cell_digits::of(index);
  for (std::uint32_t t = end; t < index.last(head); ++t) --earlier[digits.cell(&codes(head, 0, t), codes.stride(1))];
  return earlier;
}

}  // namespace detail

template <>
struct kernel<op::count_cells, backend::host> {
  template <class P>
  static void run(const P& policy, codes_view<> codes, std::size_t first, std::size_t last, mutable_cell_index_view<> index);
};

template <class P>
void kernel<op::count_cells, backend::host>::run(const P& policy, codes_view<> codes, std::size_t first, std::size_t last,
                                                 mutable_cell_index_view<> index) {
  static_assert(exec::runs_whole_call<typename P::runner_type>,
                "pqkv: count_cells changes an index once per call; give it a runner of whole calls, not exec::slice");
  for (std::size_t head = 0; head < codes.extent(0); ++head) {
    const bool fresh = index.first(head) == index.last(head);
    const std::size_t counted = last - (fresh ? first : index.first(head)), room = index.ids.extent(1);
    require_ok(detail::checks("count_cells")
                   .that(fresh || index.last(head) == first, status::code::value, "first", relation::equal,
                         "index.last, where the counted tokens end", index.last(head), first)
                   .that(counted <= room, status::code::capacity, "index.ids.extent(1)", relation::at_least, "tokens counted, room for",
                         counted, room));
  }
  const auto digits = detail::cell_digits::of(index);
  policy.runner.run(codes.extent(0), [&](std::size_t head) {
    if (index.first(head) == index.last(head))
      index.first(head) = index.merged(head) = index.last(head) = static_cast<std::uint32_t>(first);
    for (std::size_t t = first; t < last; ++t) ++index.counts(head, digits.cell(&codes(head, 0, t), codes.stride(1)));
    index.last(head) = static_cast<std::uint32_t>(last);
  });
}

template <>
struct kernel<op::merge_tails, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::merge_tails::sizes&) { return 0; }

  template <class P>
  static void run(const P& policy, codes_view<> codes, mutable_cell_index_view<> index);
};

template <class P>
void kernel<op::merge_tails, backend::host>::run(const P& policy, codes_view<> codes, mutable_cell_index_view<> index) {
  const auto digits = detail::cell_digits::of(index);
  const std::size_t cells = index.cells();
  policy.runner.run(codes.extent(0), [&](std::size_t head) {
    if (index.merged(head) == index.last(head)) return;
    // During the counting sort, offset[cell + 1] is the place of the cell's next id. So after the sort offset[cell + 1] is the end of the
    // cell's list, and offset[cell] its beginning.
    std::uint32_t* offset = &index.offsets(head, 0);
    offset[0] = 0;
    std::uint32_t total = 0;
    for (std::size_t cell = 0; cell < cells; ++cell) {
      offset[cell + 1] = total;
      total += index.counts(head, cell);
    }
    for (std::size_t t = index.first(head); t < index.last(head); ++t)
      index.ids(head, offset[digits.cell(&codes(head, 0, t), codes.stride(1)) + 1]++) = static_cast<std::int32_t>(t);
    index.merged(head) = index.last(head);
  });
}

PQKV_HOST_OPERATION(op::count_cells, codes_view<>, std::size_t, std::size_t, mutable_cell_index_view<>)
PQKV_HOST_OPERATION(op::merge_tails, codes_view<>, mutable_cell_index_view<>)

}  // namespace pqkv
