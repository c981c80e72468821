// SPDX-License-Identifier: Apache-2.0
// Kernels of matrices in plain C++: a product one side of which is read at any strides, and what a softmax does down the columns of a tile.
// Not canonical: ISAs agree within rounding.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// Whether a product replaces what was there or is added to it.
enum class matrix_result { replaced, added };

template <class Isa>
struct matrix_kernels : matrix_kernels<typename Isa::fallback> {};

template <>
struct matrix_kernels<isa::scalar> {
  /// out[r * out_stride + x] = or += sum over i of a[r * a_row + i * a_step] * b[i * b_stride + x]; i ascending, summed separately first
  ///
  /// @param columns  a multiple of 16
  template <matrix_result Result>
  static void matrix_product(const float* a, std::size_t a_row, std::size_t a_step, std::size_t rows, const float* b, std::size_t b_stride,
                             std::size_t inner, std::size_t columns, float* out, std::size_t out_stride) {
    constexpr std::size_t block = 16;
    for (std::size_t x = 0; x < columns; x += block)
      for (std::size_t r = 0; r < rows; ++r) {
        float acc[block] = {};
        for (std::size_t i = 0; i < inner; ++i) {
          const float factor = a[r * a_row + i * a_step];
          for (std::size_t c = 0; c < block; ++c) acc[c] += factor * b[i * b_stride + x + c];
        }
        float* const to = out + r * out_stride + x;
        for (std::size_t c = 0; c < block; ++c) to[c] = Result == matrix_result::added ? to[c] + acc[c] : acc[c];
      }
  }

  /// Raises each top to x; marks in `broken` where x is not finite.
  static void column_tops(const float* x, std::size_t n, float* tops, std::uint32_t* broken) {
    for (std::size_t i = 0; i < n; ++i) {
      broken[i] |= is_finite(x[i]) ? 0u : 1u;
      tops[i] = std::max(tops[i], x[i]);
    }
  }

  /// x[i] -= tops[i]
  static void column_lower(float* x, std::size_t n, const float* tops) {
    for (std::size_t i = 0; i < n; ++i) x[i] -= tops[i];
  }

  /// totals[i] += x[i]
  static void column_totals(const float* x, std::size_t n, float* totals) {
    for (std::size_t i = 0; i < n; ++i) totals[i] += x[i];
  }
};

}  // namespace pqkv::detail
