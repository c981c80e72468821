// SPDX-License-Identifier: Apache-2.0
// AVX2 leaves of centroids (with FMA and F16C).
// Lanes are centroids or tokens, never the axis that is summed, so every lane repeats the scalar leaf's operations in its order.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::detail {

template <>
struct centroid_leaf<isa::avx2> : centroid_leaf<isa::scalar> {
  using base = centroid_leaf<isa::scalar>;

  static constexpr std::size_t tile_rows = 6;

  /// out[r * c + x] = half_norms[x] - <y[r], centroid x> for tile_rows rows y of ds floats, one chain of fused multiply-adds each.
  PQKV_TARGET_AVX2 static void half_distances(const float* const* y, const float* centroids, const float* half_norms, std::size_t c,
                                              std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m256 acc[tile_rows][2];
      for (auto& row : acc) row[0] = _mm256_loadu_ps(half_norms + x), row[1] = _mm256_loadu_ps(half_norms + x + 8);
      for (std::size_t i = 0; i < ds; ++i) {
        const __m256 low = _mm256_loadu_ps(centroids + i * c + x), high = _mm256_loadu_ps(centroids + i * c + x + 8);
        for (std::size_t r = 0; r < tile_rows; ++r) {
          const __m256 element = _mm256_broadcast_ss(y[r] + i);
          acc[r][0] = _mm256_fnmadd_ps(element, low, acc[r][0]);
          acc[r][1] = _mm256_fnmadd_ps(element, high, acc[r][1]);
        }
      }
      for (std::size_t r = 0; r < tile_rows; ++r) {
        _mm256_storeu_ps(out + r * c + x, acc[r][0]);
        _mm256_storeu_ps(out + r * c + x + 8, acc[r][1]);
      }
    }
  }

  /// The index of the smallest value, or c when another value is not above it by more than the slack (NaNs included).
  PQKV_TARGET_AVX2 static std::size_t only_closest(const float* values, std::size_t c, float slack) {
    __m256 least = _mm256_loadu_ps(values);
    for (std::size_t x = 8; x < c; x += 8) least = _mm256_min_ps(least, _mm256_loadu_ps(values + x));
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(least), _mm256_extractf128_ps(least, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    four = _mm_min_ss(four, _mm_movehdup_ps(four));
    const __m256 reach = _mm256_set1_ps(_mm_cvtss_f32(four) + slack);
    std::size_t found = c;
    for (std::size_t x = 0; x < c; x += 8) {
      const auto near = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + x), reach, _CMP_NGT_UQ)));
      if (near == 0) continue;
      if (found != c || (near & (near - 1)) != 0) return c;
      found = x + static_cast<std::size_t>(__builtin_ctz(near));
    }
    return found;
  }

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
      // The product with a power of two is exact, so this rounds once, as the scalar leaf does.
      const __m256i fixed = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(scale)));
      add64(sum + i, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(fixed)));
      add64(sum + i + 4, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(fixed, 1)));
    }
    base::accumulate(y + i, scale, n - i, sum + i);
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

  PQKV_TARGET_AVX2 static PQKV_INLINE void add64(std::int64_t* sum, __m256i term) {
    __m256i* at = reinterpret_cast<__m256i*>(sum);
    _mm256_storeu_si256(at, _mm256_add_epi64(_mm256_loadu_si256(at), term));
  }
};

}  // namespace pqkv::detail
