// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of centroids (F, BW, DQ, VL). Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct centroid_kernels<isa::avx512> : centroid_kernels<isa::avx2> {
  using base = centroid_kernels<isa::avx2>;

  PQKV_TARGET_AVX512 static void accumulate(const float* y, float scale, std::size_t n, std::int64_t* sum) {
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m512i fixed = _mm512_maskz_cvtps_epi32(all16, _mm512_mul_ps(_mm512_loadu_ps(y + i), _mm512_set1_ps(scale)));
      add64(sum + i, _mm512_maskz_cvtepi32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, fixed, 0)));
      add64(sum + i + 8, _mm512_maskz_cvtepi32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, fixed, 1)));
    }
    base::accumulate(y + i, scale, n - i, sum + i);
  }

  PQKV_TARGET_AVX512 static void transfer(const float* y, float scale, std::size_t n, std::int64_t* from, std::int64_t* to) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i fixed = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(scale)));
      const __m512i term = _mm512_maskz_cvtepi32_epi64(0xff, fixed);
      _mm512_storeu_si512(from + i, _mm512_sub_epi64(_mm512_loadu_si512(from + i), term));
      add64(to + i, term);
    }
    base::transfer(y + i, scale, n - i, from + i, to + i);
  }

  PQKV_TARGET_AVX512 static void inner_products(const float* q, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    std::size_t x = 0;
    for (; x + 64 <= c; x += 64) inner_product_block<4>(q, centroids + x, c, ds, out + x);
    for (; x < c; x += 16) inner_product_block<1>(q, centroids + x, c, ds, out + x);
  }

 private:
  static constexpr __mmask16 all16 = 0xffff;
  PQKV_TARGET_AVX512 static PQKV_INLINE void add64(std::int64_t* sum, __m512i term) {
    _mm512_storeu_si512(sum, _mm512_add_epi64(_mm512_loadu_si512(sum), term));
  }

  template <std::size_t Vectors>
  PQKV_TARGET_AVX512 static PQKV_INLINE void inner_product_block(const float* q, const float* centroids, std::size_t c, std::size_t ds,
                                                                 float* out) {
    __m512 acc[Vectors];
    for (__m512& one : acc) one = _mm512_setzero_ps();
    for (std::size_t i = 0; i < ds; ++i)
      for (std::size_t v = 0; v < Vectors; ++v)
        acc[v] = _mm512_fmadd_ps(_mm512_set1_ps(q[i]), _mm512_loadu_ps(centroids + i * c + 16 * v), acc[v]);
    for (std::size_t v = 0; v < Vectors; ++v) _mm512_storeu_ps(out + 16 * v, acc[v]);
  }
};

}  // namespace pqkv::detail
