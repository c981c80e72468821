// SPDX-License-Identifier: Apache-2.0
// The products of a token's exponentials, rounded down to 8 bits each. The look-ups for the normalisers store them, so that most tokens
// need no second look-up: with the normalisers, they say between which two numbers the token's score is.
#pragma once

#include "../../../core/canonical.hpp"
#include "scan_items.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Products of four query heads in one word. Each has the five lower bits of its float's exponent and the three upper bits of its mantissa:
/// of numbers in [2^-31, 2). Smaller ones become 0.
struct rounded_products {
  /// A product is less than its rounded number times `next`, plus `least`.
  static constexpr float next = 1.125f, least = 0x1p-30f;
  /// What `scaled` multiplies by. Normalisers up to `most` do not overflow.
  static constexpr float scale = 0x1p96f, most = 0x1p30f;

  /// @param of  in [0, 2)
  __device__ static std::uint32_t word(const query_pack<4>& of) {
    constexpr unsigned smallest = 0x30003000;  // upper halves of two floats 2^-31
    const std::uint32_t first = __vmaxu2(__byte_perm(float_bits(of.of[0]), float_bits(of.of[1]), 0x7632), smallest) >> 4,
                        last = __vmaxu2(__byte_perm(float_bits(of.of[2]), float_bits(of.of[3]), 0x7632), smallest) >> 4;
    return __byte_perm(first, last, 0x6420);
  }
  /// Normalisers for score().
  __device__ static query_pack<4> scaled(query_pack<4> factors) {
#pragma unroll
    for (unsigned q = 0; q < 4; ++q) factors.of[q] *= scale;
    return factors;
  }
  /// `before` and the score of the rounded products, by one reduction. Rounding errors of the floats aside, it is not above the token's.
  template <bool Sums>
  __device__ static float score(float before, std::uint32_t word, const query_pack<4>& scaled_factors) {
    constexpr std::uint32_t mask = 0x0ff00000;  // of the float 2^-96 times the number; below 2^-30 it is a subnormal one, and less
    const std::uint32_t bits[4] = {word << 20 & mask, word << 12 & mask, word << 4 & mask, word >> 4 & mask};
#pragma unroll
    for (unsigned q = 0; q < 4; ++q) {
      const float number = float_from_bits(bits[q]), factor = scaled_factors.of[q];
      before = Sums ? fmaf(number, factor, before) : fmaxf(number * factor, before);
    }
    return before;
  }
};

/// Where the word of a token's rounded products is. Of the 256 positions that a warp takes, eight a thread, first come the first four of
/// each thread, then the others: so a warp writes and reads runs.
/// @{
inline constexpr unsigned rounded_group = 256, rounded_half = rounded_group / 2;
__device__ inline std::uint32_t rounded_place(std::uint32_t position) {
  const std::uint32_t within = position % rounded_group;
  return position - within + within % 8 / 4 * rounded_half + within / 8 * 4 + within % 4;
}
/// @}

}  // namespace pqkv::detail::block
