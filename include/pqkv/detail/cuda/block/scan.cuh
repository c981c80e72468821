// SPDX-License-Identifier: Apache-2.0
// What is scored, and the canonical score of one item. Items are tokens or the cells of a joint-code index; the same steps on
// both are why the two paths agree to the bit. block/retrieve.cuh takes them for several query heads at once.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "../../../search/scan.hpp"

namespace pqkv::detail::block {

/// n items of one head. A token's codes stand in planes, a cell's are its digits; a cell stands for counts[i] tokens.
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

  /// e[0][code 0] * e[1][code 1] * ..., each product rounded; e [m, c]
  __device__ float product(const float* e, std::uint32_t i) const {
    if (m == 2) return canonical::mul(e[code(0, i)], e[(1u << bits) + code(1, i)]);
    float p = e[code(0, i)];
    for (unsigned j = 1; j < m; ++j) p = canonical::mul(p, e[(std::size_t{j} << bits) + code(j, i)]);
    return p;
  }
  /// The same with sums.
  __device__ float sum(const float* u, std::uint32_t i) const {
    if (m == 2) return canonical::add(u[code(0, i)], u[(1u << bits) + code(1, i)]);
    float z = u[code(0, i)];
    for (unsigned j = 1; j < m; ++j) z = canonical::add(z, u[(std::size_t{j} << bits) + code(j, i)]);
    return z;
  }
};

__device__ inline bool uses_probabilities(group_reduction reduction) {
  return reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
}

/// One subspace of one table.
struct table_row {
  bool is_finite;
  float top;  // the largest entry, where all are finite
};

/// By a whole warp.
__device__ inline table_row look_at_row(const float* entries, unsigned c) {
  bool finite = true;
  float top = float_from_bits(0xff800000u);
  for (unsigned x = threadIdx.x % 32; x < c; x += 32) {
    const float entry = entries[x];
    finite &= is_finite(entry);
    top = canonical::max(entry, top);
  }
  for (int step = 16; step > 0; step /= 2) top = canonical::max(__shfl_xor_sync(0xffffffffu, top, step), top);
  return {__all_sync(0xffffffffu, finite) != 0, top};
}

/// What a query head that is left out looks up: it adds 0, or loses every maximum.
__device__ inline float nothing(group_reduction reduction) {
  return reduction == group_reduction::logit_max ? float_from_bits(0xff800000u) : 0.0f;
}

/// What a score is before the first query head.
__device__ inline float first_score(group_reduction reduction) {
  return reduction == group_reduction::logit_max ? float_from_bits(0xff800000u) : 0.0f;
}

/// The score of item i over g more query heads, in their order.
/// @param e       [g, m, c] exponentials, or the table's entries for the logits
/// @param factor  [g] R, or the bias
__device__ inline float add_queries(float score, group_reduction reduction, const float* e, const float* factor, unsigned g,
                                    const scored_items& items, std::uint32_t i) {
  const std::size_t table = std::size_t{items.m} << items.bits;
  switch (reduction) {
    case group_reduction::probability_sum:
#pragma unroll 4
      for (unsigned q = 0; q < g; ++q) score = canonical::fma(items.product(e + q * table, i), factor[q], score);
      break;
    case group_reduction::probability_max:
      for (unsigned q = 0; q < g; ++q) score = canonical::max(canonical::mul(items.product(e + q * table, i), factor[q]), score);
      break;
    case group_reduction::logit_max:
      for (unsigned q = 0; q < g; ++q) score = canonical::max(canonical::add(items.sum(e + q * table, i), factor[q]), score);
      break;
    case group_reduction::logit_sum:
    case group_reduction::none:
      for (unsigned q = 0; q < g; ++q) score = canonical::add(score, items.sum(e + q * table, i));
      break;
  }
  return score;
}

}  // namespace pqkv::detail::block
