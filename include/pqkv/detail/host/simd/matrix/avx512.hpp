// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of matrices (F): blocks of 6 x 64 sums in 24 registers, four more hold the row of b. Zero-masked forms stand where
// g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct matrix_kernels<isa::avx512> : matrix_kernels<isa::avx2> {
  template <matrix_result Result>
  PQKV_TARGET_AVX512 static void matrix_product(const float* a, std::size_t a_row, std::size_t a_step, std::size_t rows, const float* b,
                                                std::size_t b_stride, std::size_t inner, std::size_t columns, float* out,
                                                std::size_t out_stride) {
    std::size_t x = 0;
    for (; x + 64 <= columns; x += 64) product_columns<Result, 4>(a, a_row, a_step, rows, b + x, b_stride, inner, out + x, out_stride);
    for (; x + 32 <= columns; x += 32) product_columns<Result, 2>(a, a_row, a_step, rows, b + x, b_stride, inner, out + x, out_stride);
    if (x < columns) product_columns<Result, 1>(a, a_row, a_step, rows, b + x, b_stride, inner, out + x, out_stride);
  }

  PQKV_TARGET_AVX512 static void column_tops(const float* x, std::size_t n, float* tops, std::uint32_t* broken) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 some = columns_of(n - i);
      const __m512 lane = _mm512_maskz_loadu_ps(some, x + i);
      const __mmask16 bad = _mm512_mask_cmpeq_epi32_mask(some, _mm512_maskz_and_epi32(some, _mm512_castps_si512(lane), exponent), exponent);
      _mm512_mask_storeu_epi32(broken + i, bad, _mm512_set1_epi32(1));
      _mm512_mask_storeu_ps(tops + i, some, _mm512_maskz_max_ps(some, lane, _mm512_maskz_loadu_ps(some, tops + i)));
    }
  }

  PQKV_TARGET_AVX512 static void column_lower(float* x, std::size_t n, const float* tops) {
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 some = columns_of(n - i);
      _mm512_mask_storeu_ps(x + i, some, _mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_maskz_loadu_ps(some, tops + i)));
    }
  }

  PQKV_TARGET_AVX512 static void column_totals(const float* x, std::size_t n, float* totals) {
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 some = columns_of(n - i);
      _mm512_mask_storeu_ps(totals + i, some, _mm512_add_ps(_mm512_maskz_loadu_ps(some, totals + i), _mm512_maskz_loadu_ps(some, x + i)));
    }
  }

 private:
  PQKV_TARGET_AVX512 static PQKV_INLINE __mmask16 columns_of(std::size_t n) {
    return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u);
  }

  template <matrix_result Result, std::size_t Vectors>
  PQKV_TARGET_AVX512 static PQKV_INLINE void product_columns(const float* a, std::size_t a_row, std::size_t a_step, std::size_t rows,
                                                             const float* b, std::size_t b_stride, std::size_t inner, float* out,
                                                             std::size_t out_stride) {
    std::size_t r = 0;
    for (; r + 6 <= rows; r += 6)
      product_block<Result, 6, Vectors>(a + r * a_row, a_row, a_step, b, b_stride, inner, out + r * out_stride, out_stride);
    for (; r + 2 <= rows; r += 2)
      product_block<Result, 2, Vectors>(a + r * a_row, a_row, a_step, b, b_stride, inner, out + r * out_stride, out_stride);
    if (r < rows) product_block<Result, 1, Vectors>(a + r * a_row, a_row, a_step, b, b_stride, inner, out + r * out_stride, out_stride);
  }

  /// Rows x 16 * Vectors. Single loops: g++ 12 unrolls only innermost loops early enough.
  template <matrix_result Result, std::size_t Rows, std::size_t Vectors>
  PQKV_TARGET_AVX512 static PQKV_INLINE void product_block(const float* a, std::size_t a_row, std::size_t a_step, const float* b,
                                                           std::size_t b_stride, std::size_t inner, float* out, std::size_t out_stride) {
    constexpr std::size_t sums = Rows * Vectors;
    __m512 acc[sums];
#pragma GCC unroll 24
    for (std::size_t s = 0; s < sums; ++s) acc[s] = _mm512_setzero_ps();
    for (std::size_t i = 0; i < inner; ++i) {
      __m512 row[Vectors], factor;
#pragma GCC unroll 4
      for (std::size_t v = 0; v < Vectors; ++v) row[v] = _mm512_loadu_ps(b + i * b_stride + 16 * v);
#pragma GCC unroll 24
      for (std::size_t s = 0; s < sums; ++s) {
        if (s % Vectors == 0) factor = _mm512_set1_ps(a[s / Vectors * a_row + i * a_step]);
        acc[s] = _mm512_fmadd_ps(factor, row[s % Vectors], acc[s]);
      }
    }
#pragma GCC unroll 24
    for (std::size_t s = 0; s < sums; ++s) {
      float* const to = out + s / Vectors * out_stride + 16 * (s % Vectors);
      _mm512_storeu_ps(to, Result == matrix_result::added ? _mm512_add_ps(_mm512_loadu_ps(to), acc[s]) : acc[s]);
    }
  }
};

}  // namespace pqkv::detail
