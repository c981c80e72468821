// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of matrices: blocks of 6 x 16 sums in 12 registers.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct matrix_kernels<isa::avx2> : matrix_kernels<isa::scalar> {
  using below = matrix_kernels<isa::scalar>;

  template <matrix_result Result>
  PQKV_TARGET_AVX2 static void matrix_product(const float* a, std::size_t a_row, std::size_t a_step, std::size_t rows, const float* b,
                                              std::size_t b_stride, std::size_t inner, std::size_t columns, float* out,
                                              std::size_t out_stride) {
    for (std::size_t x = 0; x < columns; x += 16) {
      std::size_t r = 0;
      for (; r + 6 <= rows; r += 6)
        product_block<Result, 6>(a + r * a_row, a_row, a_step, b + x, b_stride, inner, out + r * out_stride + x, out_stride);
      for (; r + 2 <= rows; r += 2)
        product_block<Result, 2>(a + r * a_row, a_row, a_step, b + x, b_stride, inner, out + r * out_stride + x, out_stride);
      if (r < rows) product_block<Result, 1>(a + r * a_row, a_row, a_step, b + x, b_stride, inner, out + r * out_stride + x, out_stride);
    }
  }

  PQKV_TARGET_AVX2 static void column_tops(const float* x, std::size_t n, float* tops, std::uint32_t* broken) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 some = _mm256_loadu_ps(x + i);
      const __m256i bad = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(some), exponent), exponent);
      auto* const marks = reinterpret_cast<__m256i*>(broken + i);
      _mm256_storeu_si256(marks, _mm256_or_si256(_mm256_loadu_si256(marks), bad));
      _mm256_storeu_ps(tops + i, _mm256_max_ps(some, _mm256_loadu_ps(tops + i)));
    }
    below::column_tops(x + i, n - i, tops + i, broken + i);
  }

  PQKV_TARGET_AVX2 static void column_lower(float* x, std::size_t n, const float* tops) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(tops + i)));
    below::column_lower(x + i, n - i, tops + i);
  }

  PQKV_TARGET_AVX2 static void column_totals(const float* x, std::size_t n, float* totals) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(totals + i, _mm256_add_ps(_mm256_loadu_ps(totals + i), _mm256_loadu_ps(x + i)));
    below::column_totals(x + i, n - i, totals + i);
  }

 private:
  /// Rows x 16. Single loops: g++ 12 unrolls only innermost loops early enough.
  template <matrix_result Result, std::size_t Rows>
  PQKV_TARGET_AVX2 static PQKV_INLINE void product_block(const float* a, std::size_t a_row, std::size_t a_step, const float* b,
                                                         std::size_t b_stride, std::size_t inner, float* out, std::size_t out_stride) {
    __m256 acc[2 * Rows];
#pragma GCC unroll 12
    for (std::size_t s = 0; s < 2 * Rows; ++s) acc[s] = _mm256_setzero_ps();
    for (std::size_t i = 0; i < inner; ++i) {
      const __m256 low = _mm256_loadu_ps(b + i * b_stride), high = _mm256_loadu_ps(b + i * b_stride + 8);
      __m256 factor;
#pragma GCC unroll 12
      for (std::size_t s = 0; s < 2 * Rows; ++s) {
        if (s % 2 == 0) factor = _mm256_set1_ps(a[s / 2 * a_row + i * a_step]);
        acc[s] = _mm256_fmadd_ps(factor, s % 2 == 0 ? low : high, acc[s]);
      }
    }
#pragma GCC unroll 12
    for (std::size_t s = 0; s < 2 * Rows; ++s) {
      float* const to = out + s / 2 * out_stride + s % 2 * 8;
      _mm256_storeu_ps(to, Result == matrix_result::added ? _mm256_add_ps(_mm256_loadu_ps(to), acc[s]) : acc[s]);
    }
  }
};

}  // namespace pqkv::detail
