// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of centroids (with FMA and F16C).
// Lanes are centroids or tokens, never the axis that is summed, so every lane repeats the scalar kernel's operations in their order.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct centroid_kernels<isa::avx2> : centroid_kernels<isa::scalar> {
  using base = centroid_kernels<isa::scalar>;

  PQKV_TARGET_AVX2 static nearest_centroid nearest(const float* y, const float* centroids, std::size_t c, std::size_t ds) {
    __m256 best = _mm256_set1_ps(0), block = _mm256_set1_ps(0);
    const std::size_t width = c < 32 ? 16 : 32;  // c is a power of two, at least 16
    for (std::size_t x = 0; x < c; x += width) {
      __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
      if (width == 32)
        distances<4>(y, centroids + x, c, ds, acc);
      else
        distances<2>(y, centroids + x, c, ds, acc);
      for (std::size_t v = 0; v < width / 8; ++v) {
        const __m256 number = _mm256_set1_ps(static_cast<float>(x / 8 + v));  // exact: at most 32 blocks
        const __m256 closer = x + v == 0 ? _mm256_castsi256_ps(_mm256_set1_epi32(-1)) : _mm256_cmp_ps(acc[v], best, _CMP_LT_OQ);
        best = _mm256_blendv_ps(best, acc[v], closer);
        block = _mm256_blendv_ps(block, number, closer);
      }
    }
    alignas(32) float distance[8], number[8];
    _mm256_store_ps(distance, best);
    _mm256_store_ps(number, block);
    nearest_centroid found{static_cast<std::uint32_t>(number[0]) * 8, distance[0]};
    for (std::uint32_t lane = 1; lane < 8; ++lane) {
      const std::uint32_t index = static_cast<std::uint32_t>(number[lane]) * 8 + lane;
      if (distance[lane] < found.distance || (distance[lane] == found.distance && index < found.index)) found = {index, distance[lane]};
    }
    return found;
  }

  PQKV_TARGET_AVX2 static void accumulate(const float* y, float scale, std::size_t n, std::int64_t* sum) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      // The product with a power of two is exact, so this rounds once, as the scalar kernel does.
      const __m256i fixed = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(scale)));
      add64(sum + i, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(fixed)));
      add64(sum + i + 4, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(fixed, 1)));
    }
    base::accumulate(y + i, scale, n - i, sum + i);
  }

  PQKV_TARGET_AVX2 static void transfer(const float* y, float scale, std::size_t n, std::int64_t* from, std::int64_t* to) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i fixed = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(scale)));
      const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(fixed)),
                    high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(fixed, 1));
      subtract64(from + i, low);
      subtract64(from + i + 4, high);
      add64(to + i, low);
      add64(to + i + 4, high);
    }
    base::transfer(y + i, scale, n - i, from + i, to + i);
  }

  PQKV_TARGET_AVX2 static void inner_products(const float* q, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
      for (std::size_t i = 0; i < ds; ++i) {
        const __m256 element = _mm256_set1_ps(q[i]);
        low = _mm256_fmadd_ps(element, _mm256_loadu_ps(centroids + i * c + x), low);
        high = _mm256_fmadd_ps(element, _mm256_loadu_ps(centroids + i * c + x + 8), high);
      }
      _mm256_storeu_ps(out + x, low);
      _mm256_storeu_ps(out + x + 8, high);
    }
  }

  PQKV_TARGET_AVX2 static void negative_distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      distances<2>(y, centroids + x, c, ds, acc);
      _mm256_storeu_ps(out + x, _mm256_xor_ps(acc[0], _mm256_set1_ps(-0.0f)));
      _mm256_storeu_ps(out + x + 8, _mm256_xor_ps(acc[1], _mm256_set1_ps(-0.0f)));
    }
  }

 private:
  template <std::size_t Vectors>
  PQKV_TARGET_AVX2 static PQKV_INLINE void distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, __m256* acc) {
    for (std::size_t i = 0; i < ds; ++i) {
      const __m256 element = _mm256_set1_ps(y[i]);
      for (std::size_t v = 0; v < Vectors; ++v) {
        const __m256 e = _mm256_sub_ps(element, _mm256_loadu_ps(centroids + i * c + v * 8));
        acc[v] = _mm256_fmadd_ps(e, e, acc[v]);
      }
    }
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE void subtract64(std::int64_t* sum, __m256i term) {
    __m256i* at = reinterpret_cast<__m256i*>(sum);
    _mm256_storeu_si256(at, _mm256_sub_epi64(_mm256_loadu_si256(at), term));
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE void add64(std::int64_t* sum, __m256i term) {
    __m256i* at = reinterpret_cast<__m256i*>(sum);
    _mm256_storeu_si256(at, _mm256_add_epi64(_mm256_loadu_si256(at), term));
  }
};

}  // namespace pqkv::detail
