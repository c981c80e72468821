// SPDX-License-Identifier: Apache-2.0
// AVX-512 leaves of centroids (F, BW, DQ, VL). Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::detail {

template <>
struct centroid_leaf<isa::avx512> : centroid_leaf<isa::avx2> {
  using base = centroid_leaf<isa::avx2>;

  PQKV_TARGET_AVX512 static void half_distances(const float* const* y, const float* centroids, const float* half_norms, std::size_t c,
                                                std::size_t ds, float* out) {
    std::size_t x = 0;
    for (; x + 64 <= c; x += 64) half_distance_block<4>(y, centroids + x, half_norms + x, c, ds, out + x);
    for (; x + 32 <= c; x += 32) half_distance_block<2>(y, centroids + x, half_norms + x, c, ds, out + x);
    for (; x < c; x += 16) half_distance_block<1>(y, centroids + x, half_norms + x, c, ds, out + x);
  }

  PQKV_TARGET_AVX512 static std::size_t only_closest(const float* values, std::size_t c, float slack) {
    __m512 least = _mm512_loadu_ps(values);
    for (std::size_t x = 16; x < c; x += 16) least = _mm512_maskz_min_ps(all16, least, _mm512_loadu_ps(values + x));
    __m256 eight = _mm256_min_ps(_mm512_maskz_extractf32x8_ps(0xff, least, 0), _mm512_maskz_extractf32x8_ps(0xff, least, 1));
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    four = _mm_min_ss(four, _mm_movehdup_ps(four));
    const __m512 reach = _mm512_set1_ps(_mm_cvtss_f32(four) + slack);
    // All comparisons before the one branch: which block holds the minimum is as good as random.
    std::size_t found = 0, count = 0;
    for (std::size_t x = 0; x < c; x += 16) {
      const unsigned near = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + x), reach, _CMP_NGT_UQ);
      count += static_cast<std::size_t>(__builtin_popcount(near));
      found = near != 0 ? x + static_cast<std::size_t>(__builtin_ctz(near | 0x10000u)) : found;
    }
    return count == 1 ? found : c;
  }

  PQKV_TARGET_AVX512 static void accumulate(const float* y, float scale, std::size_t n, std::int64_t* sum) {
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m512i fixed = _mm512_maskz_cvtps_epi32(all16, _mm512_mul_ps(_mm512_loadu_ps(y + i), _mm512_set1_ps(scale)));
      add64(sum + i, _mm512_maskz_cvtepi32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, fixed, 0)));
      add64(sum + i + 8, _mm512_maskz_cvtepi32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, fixed, 1)));
    }
    base::accumulate(y + i, scale, n - i, sum + i);
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
  PQKV_TARGET_AVX512 static PQKV_INLINE void half_distance_block(const float* const* y, const float* centroids, const float* half_norms,
                                                                 std::size_t c, std::size_t ds, float* out) {
    __m512 acc[tile_rows][Vectors];
    for (std::size_t r = 0; r < tile_rows; ++r)
      for (std::size_t v = 0; v < Vectors; ++v) acc[r][v] = _mm512_loadu_ps(half_norms + 16 * v);
    for (std::size_t i = 0; i < ds; ++i) {
      __m512 centroid[Vectors];
      for (std::size_t v = 0; v < Vectors; ++v) centroid[v] = _mm512_loadu_ps(centroids + i * c + 16 * v);
      for (std::size_t r = 0; r < tile_rows; ++r) {
        const __m512 element = _mm512_set1_ps(y[r][i]);
        for (std::size_t v = 0; v < Vectors; ++v) acc[r][v] = _mm512_fnmadd_ps(element, centroid[v], acc[r][v]);
      }
    }
    for (std::size_t r = 0; r < tile_rows; ++r)
      for (std::size_t v = 0; v < Vectors; ++v) _mm512_storeu_ps(out + r * c + 16 * v, acc[r][v]);
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
