// SPDX-License-Identifier: Apache-2.0
// Kernels of shortlists in plain C++: scores of chosen tokens for four query heads at once, whose table entries are contiguous. All are
// canonical: the same bits on every ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// The tables that the sums of chosen tokens are looked up in; entries [m, c, 4] and [m2, c2, 4].
struct shortlist_tables {
  const float* coarse;
  std::size_t m, c;
  const float* fine;
  std::size_t m2, c2;
};

/// Codes of one head: planes, and rows of m2.
struct shortlist_codes {
  const std::uint8_t* coarse;
  std::size_t plane;
  const std::uint8_t* fine;
  std::size_t row;
};

/// Least and greatest of many floats.
struct float_bounds {
  float least, greatest;
};

template <class Isa>
struct shortlist_kernels : shortlist_kernels<typename Isa::fallback> {};

template <>
struct shortlist_kernels<isa::scalar> {
  /// out[4 x + q] = rows[q][x]
  static void interleave_four(const float* const* rows, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; ++x)
      for (std::size_t q = 0; q < 4; ++q) out[4 * x + q] = rows[q][x];
  }

  /// z[q][i] = sum over the coarse codes of tokens[i], then over its fine ones, ascending; z [4, stride]
  static void sums_of_four(const shortlist_tables& of, const shortlist_codes& codes, const std::int32_t* tokens, std::size_t n, float* z,
                           std::size_t stride) {
    for (std::size_t i = 0; i < n; ++i) {
      const auto t = static_cast<std::size_t>(tokens[i]);
      for (std::size_t q = 0; q < 4; ++q) {
        float sum = of.coarse[4 * std::size_t{codes.coarse[t]} + q];
        for (std::size_t j = 1; j < of.m; ++j) sum = canonical::add(sum, of.coarse[4 * (j * of.c + codes.coarse[j * codes.plane + t]) + q]);
        for (std::size_t j = 0; j < of.m2; ++j) sum = canonical::add(sum, of.fine[4 * (j * of.c2 + codes.fine[t * codes.row + j]) + q]);
        z[q * stride + i] = sum;
      }
    }
  }

  /// The least and greatest of n >= 1 values, none a NaN.
  static float_bounds bounds(const float* z, std::size_t n) {
    float_bounds found{z[0], z[0]};
    for (std::size_t i = 1; i < n; ++i) {
      found.greatest = z[i] > found.greatest ? z[i] : found.greatest;
      found.least = z[i] < found.least ? z[i] : found.least;
    }
    return found;
  }

  /// z[i] = 2^((z[i] - top) * scale), z[i] <= top finite; returns the sum over i of F of them
  static std::uint64_t weights(float* z, std::size_t n, float top, canonical::softmax_scale s) {
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < n; ++i) {
      z[i] = canonical::exponential(canonical::sub(z[i], top), s);
      total += canonical::to_fixed(z[i]);
    }
    return total;
  }
};

}  // namespace pqkv::detail
