// SPDX-License-Identifier: Apache-2.0
// One call of scan() or retrieve(), as its kernels see it: which items a list scores. Items are tokens or the cells of a joint-code index.
// Both go through the same steps, those of list_scorer, so the two paths agree to the bit.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "../../../search/retrieve.hpp"
#include "../arena.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// n items of one head. A token's codes are in planes; a cell's codes are its digits, and it stands for counts[i] tokens.
struct scored_items {
  const std::uint8_t* codes = nullptr;
  std::size_t stride = 0;
  const std::uint32_t* counts = nullptr;  // null: tokens
  std::uint32_t n = 0;
  unsigned m = 0, bits = 0;

  __device__ bool are_cells() const { return counts != nullptr; }
  __device__ std::uint32_t weight(std::uint32_t i) const { return counts != nullptr ? counts[i] : 1u; }
  __device__ std::uint32_t code(unsigned j, std::uint32_t i) const {
    return counts != nullptr ? (i >> (bits * (m - 1 - j))) & ((1u << bits) - 1u) : codes[j * stride + i];
  }
  /// The cell of token i.
  __device__ std::uint32_t cell(std::uint32_t i) const {
    std::uint32_t value = 0;
    for (unsigned j = 0; j < m; ++j) value = value << bits | codes[j * stride + i];
    return value;
  }
};

PQKV_HD inline bool uses_probabilities(group_reduction reduction) {
  return reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
}

/// What is looked up for a query head that is left out: it adds 0, or loses every maximum.
__device__ inline float nothing(group_reduction reduction) {
  return reduction == group_reduction::logit_max ? float_from_bits(0xff800000u) : 0.0f;
}

/// The score before the first query head is added.
__device__ inline float first_score(group_reduction reduction) {
  return reduction == group_reduction::logit_max ? float_from_bits(0xff800000u) : 0.0f;
}

/// The score with one query head's value more.
__device__ inline float add_query(group_reduction reduction, float score, float value, float factor) {
  switch (reduction) {
    case group_reduction::probability_sum:
      return canonical::fma(value, factor, score);
    case group_reduction::probability_max:
      return canonical::max(canonical::mul(value, factor), score);
    case group_reduction::logit_max:
      return canonical::max(canonical::add(value, factor), score);
    case group_reduction::logit_sum:
    case group_reduction::none:
      break;
  }
  return canonical::add(score, value);
}

/// The score of an item so far. Until the last query head is added, an unsigned score holds the bits of a float. store_score() returns what
/// an unsigned score is set to, otherwise 0.
__device__ inline float so_far(float score) { return score; }
__device__ inline float so_far(std::uint32_t score) { return float_from_bits(score); }
template <bool Products>
__device__ std::uint32_t store_score(float* to, float score, bool) {
  *to = score;
  return 0;
}
template <bool Products>
__device__ std::uint32_t store_score(std::uint32_t* to, float score, bool is_last) {
  // A sum of probabilities is not negative, so its order key is its bits with the highest bit set.
  return *to = !is_last ? float_bits(score) : Products ? float_bits(score) | 0x80000000u : canonical::order_key(score);
}

/// The numbers of one query head that come from passes over all items.
struct head_numbers {
  float factor;  // R, or the bias
  float centre;  // A, for a recentred head
  std::uint32_t is_recentred;

  __device__ static head_numbers of(const normaliser& given) {
    return {canonical::inverse_normaliser(given.sum), given.centre, given.centre != 0 ? 1u : 0u};
  }
};

/// The range of one head's index; zeros without an index.
struct index_extent {
  std::uint32_t first = 0, merged = 0, last = 0;
};

/// The attended tokens of one query head, and the bias of its table.
struct attended_head {
  attended_sum sum{};
  float bias = 0;
};

/// One call, passed to every kernel by value.
struct scoring {
  distance_table_view<space::device> table;
  codes_view<space::device> codes;
  cell_index_view<space::device> index{};               // empty: tokens alone
  view<const middle_range, 1, space::device> ranges{};  // empty: all tokens
  group_reduction reduction{};
  search_path path = search_path::scan;
  head_map<space::device> map{};  // from row heads to heads of codes and index
  bool counts_own = false;        // whether the kernel has its own copy of the counts, in which tokens after the range are not counted
  unsigned lists{}, g{}, m{}, c{}, bits{}, lists_per_head{};
  canonical::softmax_scale scale{};
  std::uint64_t* totals{};         // [hq, scan_device_runs] scratch: Z of each run of items
  head_numbers* numbers{};         // [hq] scratch
  const normaliser* given{};       // [hq] over the tokens of several places, of which this is one; null: over the list's items
  const attended_sum* attended{};  // [hq] sums over tokens that are added to the normalisers, which needs table.bias; null: none
  std::uint32_t* summed{};         // [lists] g once the list's `attended` and biases are there; null: they were there before the launch

  scoring(distance_table_view<space::device> of, codes_view<space::device> from, group_reduction how, std::size_t head_dim,
          float logit_scale = 0, const head_map<space::device>& heads = {})
      : table(of), codes(from), reduction(how), map(heads), scale(canonical::softmax_scale::of(head_dim, logit_scale)) {
    const std::size_t hq = table.entries.extent(0), h = map.heads(codes.extent(0));
    lists = static_cast<unsigned>(score_lists(how, h, hq));
    g = static_cast<unsigned>(hq / lists);
    m = static_cast<unsigned>(codes.extent(1));
    c = static_cast<unsigned>(table.entries.extent(2));
    while ((1u << bits) < c) ++bits;
    lists_per_head = static_cast<unsigned>(lists / h);
  }

  unsigned query_heads() const { return lists * g; }
  /// Whether this is the usual call: codes of two subspaces, probabilities summed over the query heads of a KV head.
  bool is_usual() const { return m == 2 && reduction == group_reduction::probability_sum && lists_per_head == 1 && given == nullptr; }
  /// The same call, where the compiler knows that it is the usual one.
  __device__ scoring as_usual() const {
    scoring own = *this;
    own.m = 2, own.reduction = group_reduction::probability_sum, own.lists_per_head = 1, own.given = nullptr;
    return own;
  }
  void carve(arena& memory) {
    totals = memory.take<std::uint64_t>(query_heads() * scan_device_runs);
    numbers = memory.take<head_numbers>(query_heads());
  }

  /// The row head of a list. Nearly always it is the list itself; testing this saves the twenty instructions of a division at the start of
  /// each kernel.
  __device__ unsigned row_head_of(unsigned list) const { return lists_per_head == 1 ? list : list / lists_per_head; }
  /// The head of codes and index that a list belongs to.
  __device__ std::size_t head_of(unsigned list) const { return map.head(row_head_of(list)); }
  /// What list `list` ranks, limited to what exists, since an error cannot be reported from here.
  __device__ middle_range range(unsigned list) const {
    const std::uint32_t n = static_cast<std::uint32_t>(codes.extent(2));
    return ranges.data == nullptr ? middle_range{0, n, 0} : limited(ranges(row_head_of(list)));
  }
  __device__ middle_range limited(middle_range r) const {
    const std::uint32_t n = static_cast<std::uint32_t>(codes.extent(2));
    r.end = r.end < n ? r.end : n;
    r.begin = r.begin < r.end ? r.begin : r.end;
    return r;
  }
  /// Whether a list scores cells. The counts must then be those of its range. If the index has tokens after the range, a kernel with its
  /// own copy of the counts subtracts them.
  __device__ bool is_joint(const middle_range& r, const index_extent& held) const {
    return !index.empty() && resolve_path(path, index.cells(), r.size()) == search_path::joint && held.first == r.begin &&
           (counts_own ? r.end <= held.last : r.end == held.last);
  }
  __device__ bool is_joint(const middle_range& r, std::size_t head) const { return is_joint(r, extent_of(head)); }
  __device__ index_extent extent_of(std::size_t head) const {
    return index.empty() ? index_extent{} : index_extent{index.first(head), index.merged(head), index.last(head)};
  }
  __device__ scored_items items(unsigned list) const {
    const std::size_t head = head_of(list);
    const middle_range r = range(list);
    return items(r, head, is_joint(r, head));
  }
  __device__ scored_items items(const middle_range& r, std::size_t head, bool are_cells) const {
    scored_items of{codes.data + head * codes.stride(0) + r.begin, codes.stride(1), nullptr, r.size(), m, bits};
    if (are_cells) {
      of.counts = &index.counts(head, 0);
      of.n = static_cast<std::uint32_t>(index.cells());
    }
    return of;
  }
  /// What is added to a query head's normaliser.
  __device__ attended_head beside(unsigned q) const {
    return attended == nullptr ? attended_head{} : attended_head{attended[q], table.bias(q)};
  }
  /// Z of a query head with the attended tokens. @param tops  [m] the largest entries of its table; centre: of Z's exponents
  __device__ std::uint64_t with_attended(const attended_head& more, std::uint64_t z, const float* tops, float centre) const {
    if (z == 0 || more.sum.weight == 0) return z;
    float zero = more.bias;  // the logit whose product is 1
    for (unsigned j = 0; j < m; ++j) zero = canonical::add(zero, tops[j]);
    zero = canonical::add(zero, centre);
    return is_finite(zero) ? z + more.sum.relative_to(zero, scale) : z;
  }
  __device__ const float* row(unsigned q, unsigned j) const {
    return table.entries.data + q * table.entries.stride(0) + j * table.entries.stride(1);
  }
  /// A. @param best  the order key of the best item's sum; 0 if there was no item
  __device__ float recentring(std::uint32_t best) const {
    return canonical::recentring(best == 0 ? float_from_bits(0xff800000u) : canonical::from_order_key(best), scale);
  }
};

}  // namespace pqkv::detail::block
