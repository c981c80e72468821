// SPDX-License-Identifier: Apache-2.0
// What is scored, and the canonical score of one item. Items are tokens or the cells of a joint-code index; both go through the same
// functions, which is why the two paths agree to the bit.
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
    float p = e[code(0, i)];
    for (unsigned j = 1; j < m; ++j) p = canonical::mul(p, e[(std::size_t{j} << bits) + code(j, i)]);
    return p;
  }
  /// The same with sums.
  __device__ float sum(const float* u, std::uint32_t i) const {
    float z = u[code(0, i)];
    for (unsigned j = 1; j < m; ++j) z = canonical::add(z, u[(std::size_t{j} << bits) + code(j, i)]);
    return z;
  }
};

__device__ inline bool uses_probabilities(group_reduction reduction) {
  return reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
}

/// Whether a table can be used: its entries are finite, and its bias where the reduction needs it. Called by a whole warp.
/// @param entries  [m, c], subspaces `stride` apart
__device__ inline bool table_is_finite(const float* entries, std::size_t stride, unsigned m, unsigned c, float bias,
                                       group_reduction reduction) {
  bool finite = is_finite(bias) || reduction != group_reduction::logit_max;
  for (unsigned at = threadIdx.x % 32; at < m * c; at += 32) finite &= is_finite(entries[at / c * stride + at % c]);
  return __all_sync(0xffffffffu, finite) != 0;
}

/// Maximum over [0, c) of finite entries, by a whole warp.
__device__ inline float largest_entry(const float* entries, unsigned c) {
  float top = entries[threadIdx.x % 32 < c ? threadIdx.x % 32 : 0];
  for (unsigned x = threadIdx.x % 32; x < c; x += 32) top = canonical::max(entries[x], top);
  for (int step = 16; step > 0; step /= 2) top = canonical::max(__shfl_xor_sync(0xffffffffu, top, step), top);
  return top;
}

/// What a query head that is left out looks up: it adds 0, or loses every maximum.
__device__ inline float nothing(group_reduction reduction) {
  return reduction == group_reduction::logit_max ? float_from_bits(0xff800000u) : 0.0f;
}

/// @param e       [g, m, c] exponentials, or the table's entries for the logits
/// @param factor  [g] R, or the bias
__device__ inline float group_score(group_reduction reduction, const float* e, const float* factor, unsigned g, const scored_items& items,
                                    std::uint32_t i) {
  const std::size_t table = std::size_t{items.m} << items.bits;
  float score = reduction == group_reduction::logit_max ? float_from_bits(0xff800000u) : 0.0f;
  for (unsigned q = 0; q < g; ++q) {
    const float* own = e + q * table;
    switch (reduction) {
      case group_reduction::probability_sum:
        score = canonical::fma(items.product(own, i), factor[q], score);
        break;
      case group_reduction::probability_max:
        score = canonical::max(canonical::mul(items.product(own, i), factor[q]), score);
        break;
      case group_reduction::logit_max:
        score = canonical::max(canonical::add(items.sum(own, i), factor[q]), score);
        break;
      case group_reduction::logit_sum:
      case group_reduction::none:
        score = canonical::add(score, items.sum(own, i));
        break;
    }
  }
  return score;
}

}  // namespace pqkv::detail::block
