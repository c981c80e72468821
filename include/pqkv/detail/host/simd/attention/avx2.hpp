// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of attention. Eight sums are in registers at a time: of 1, 2 or 4 queries with 8, 4 or 2 keys. The lanes of all eight are
// then added up together. Eight queries are handled as two groups of four.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "../../../../config.hpp"
#include "../../../../core/scalar.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct attention_kernels<isa::avx2> : attention_kernels<isa::scalar> {
  using base = attention_kernels<isa::scalar>;

  template <class T>
  static constexpr std::size_t split_lanes = std::is_same_v<T, bfloat16> ? 8 : 0;

  PQKV_TARGET_AVX2 static void group_dots(const float* queries, std::size_t g, const float* key, std::size_t d, float* out,
                                          std::size_t out_stride) {
    for (std::size_t q = 0; q < g; ++q) {
      __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      std::size_t i = 0;
      for (; i + 16 <= d; i += 16) {
        acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i), _mm256_loadu_ps(key + i), acc[0]);
        acc[1] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i + 8), _mm256_loadu_ps(key + i + 8), acc[1]);
      }
      for (; i + 8 <= d; i += 8) acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i), _mm256_loadu_ps(key + i), acc[0]);
      float total = lane_sum(_mm256_add_ps(acc[0], acc[1]));
      for (; i < d; ++i) total += queries[q * d + i] * key[i];
      out[q * out_stride] = total;
    }
  }

  template <class T>
  PQKV_TARGET_AVX2 static void tile_dots(const float* queries, std::size_t stride, std::size_t g, const T* const* keys, std::size_t count,
                                         std::size_t d, rows_ahead<T> ahead, float* out, std::size_t out_stride) {
    if (g == 1) return score_keys<1>(queries, stride, g, keys, count, d, ahead, out, out_stride);
    if (g == 2) return score_keys<2>(queries, stride, g, keys, count, d, ahead, out, out_stride);
    for (std::size_t q = 0; q < g; q += 4)
      score_keys<4>(queries + q * stride, stride, std::min<std::size_t>(g - q, 4), keys, count, d, ahead, out + q * out_stride, out_stride);
  }

  template <class T>
  PQKV_TARGET_AVX2 static void tile_add(float* sums, std::size_t stride, std::size_t g, const float* weights, std::size_t weight_stride,
                                        const T* const* values, std::size_t count, std::size_t d, rows_ahead<T> ahead) {
    if (g == 1) return add_values<1>(sums, stride, g, weights, weight_stride, values, count, d, ahead);
    if (g == 2) return add_values<2>(sums, stride, g, weights, weight_stride, values, count, d, ahead);
    for (std::size_t q = 0; q < g; q += 4)
      add_values<4>(sums + q * stride, stride, std::min<std::size_t>(g - q, 4), weights + q * weight_stride, weight_stride, values, count,
                    d, ahead);
  }

  PQKV_TARGET_AVX2 static bool tile_top(const float* x, std::size_t n, float& top) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256i broken = _mm256_setzero_si256();
    __m256 most = _mm256_set1_ps(top);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 some = _mm256_loadu_ps(x + i);
      most = _mm256_max_ps(most, some);
      broken = _mm256_or_si256(broken, _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(some), exponent), exponent));
    }
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    top = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    return base::tile_top(x + i, n - i, top) && _mm256_testz_si256(broken, broken) != 0;
  }

  PQKV_TARGET_AVX2 static void tile_lower(float* x, std::size_t n, float top) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(top)));
    base::tile_lower(x + i, n - i, top);
  }

  PQKV_TARGET_AVX2 static float tile_total(const float* x, std::size_t n) {
    __m256 all = _mm256_setzero_ps();
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) all = _mm256_add_ps(all, _mm256_loadu_ps(x + i));
    return lane_sum(all) + base::tile_total(x + i, n - i);
  }

  PQKV_TARGET_AVX2 static void tile_scale(float* x, std::size_t n, float factor) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(factor)));
    base::tile_scale(x + i, n - i, factor);
  }

 private:
  static constexpr std::size_t lanes = 8, pair = 2 * lanes;

  PQKV_TARGET_AVX2 static PQKV_INLINE float lane_sum(__m256 all) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }

  /// Sixteen elements of a row as two registers of floats.
  PQKV_TARGET_AVX2 static PQKV_INLINE void widened(const float* row, __m256& low, __m256& high) {
    low = _mm256_loadu_ps(row);
    high = _mm256_loadu_ps(row + lanes);
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE void widened(const half* row, __m256& low, __m256& high) {
    low = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
    high = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + lanes)));
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE void widened(const bfloat16* row, __m256& even, __m256& odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE void widened(const std::int8_t* row, __m256& low, __m256& high) {
    low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row))));
    high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + lanes))));
  }
  /// The first n of sixteen elements; the others are zeros.
  template <class T>
  PQKV_TARGET_AVX2 static PQKV_INLINE void widened(const T* row, std::size_t n, __m256& low, __m256& high) {
    if (n >= pair) return widened(row, low, high);
    T some[pair] = {};
    std::copy_n(row, n, some);
    widened(static_cast<const T*>(some), low, high);
  }

  /// Prefetches the lines of a row that begin in its 16 elements from the i-th on.
  template <class T>
  static PQKV_INLINE void touch(const T* row, std::size_t i) {
    if (i * sizeof(T) % 64 == 0) _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
  }

  /// Lane a is the sum of the lanes of acc[a].
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256 lane_sums(const __m256 (&acc)[8]) {
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(acc[0], acc[1]), _mm256_hadd_ps(acc[2], acc[3])),
                 high = _mm256_hadd_ps(_mm256_hadd_ps(acc[4], acc[5]), _mm256_hadd_ps(acc[6], acc[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }

  /// Q queries with 8 / Q keys at a time. Queries from the g-th on are computed, but their results are not stored.
  template <std::size_t Q, class T>
  PQKV_TARGET_AVX2 static PQKV_INLINE void score_keys(const float* queries, std::size_t stride, std::size_t g, const T* const* keys,
                                                      std::size_t count, std::size_t d, rows_ahead<T> ahead, float* out,
                                                      std::size_t out_stride) {
    constexpr std::size_t rows = 8 / Q;
    alignas(32) float sums[8];
    for (std::size_t t = 0; t < count; t += rows) {
      __m256 acc[8];
#pragma GCC unroll 8
      for (std::size_t a = 0; a < 8; ++a) acc[a] = _mm256_setzero_ps();
      std::size_t i = 0;
      for (; i + pair <= d; i += pair) add_products<Q>(acc, queries + i, stride, keys + t, ahead.keys + t, i, pair);
      if (i < d) add_products<Q>(acc, queries + i, stride, keys + t, ahead.keys + t, i, d - i);
      _mm256_store_ps(sums, lane_sums(acc));
      for (std::size_t q = 0; q < g; ++q)
        for (std::size_t r = 0; r < rows; ++r) out[q * out_stride + t + r] = sums[r * Q + q];
    }
  }

  /// acc[r * Q + q] += products of n elements of key r and query q, from the i-th on. With n known, no element is copied, and acc stays in
  /// registers.
  template <std::size_t Q, class T>
  PQKV_TARGET_AVX2 static PQKV_INLINE void add_products(__m256 (&acc)[8], const float* queries, std::size_t stride, const T* const* keys,
                                                        const T* const* ahead, std::size_t i, std::size_t n) {
    if constexpr (Q == 4) {  // the rows stay in registers; all eight pieces of queries would not find room beside the sums
      __m256 low[2], high[2];
#pragma GCC unroll 2
      for (std::size_t r = 0; r < 2; ++r) {
        touch(ahead[r], i);
        widened(keys[r] + i, n, low[r], high[r]);
      }
#pragma GCC unroll 4
      for (std::size_t q = 0; q < 4; ++q) {
        const __m256 query = _mm256_loadu_ps(queries + q * stride);
        acc[q] = _mm256_fmadd_ps(query, low[0], acc[q]);
        acc[4 + q] = _mm256_fmadd_ps(query, low[1], acc[4 + q]);
      }
#pragma GCC unroll 4
      for (std::size_t q = 0; q < 4; ++q) {
        const __m256 query = _mm256_loadu_ps(queries + q * stride + lanes);
        acc[q] = _mm256_fmadd_ps(query, high[0], acc[q]);
        acc[4 + q] = _mm256_fmadd_ps(query, high[1], acc[4 + q]);
      }
    } else {
      __m256 low{}, high{};
#pragma GCC unroll 8
      for (std::size_t a = 0; a < 8; ++a) {  // single loops: g++ 12 unrolls only innermost loops early enough
        if (a % Q == 0) {
          touch(ahead[a / Q], i);
          widened(keys[a / Q] + i, n, low, high);
        }
        acc[a] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + a % Q * stride), low, acc[a]);
        acc[a] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + a % Q * stride + lanes), high, acc[a]);
      }
    }
  }

  /// Elements in runs of 16 * C, whose sums stay in registers over the tile.
  template <std::size_t Q, class T>
  PQKV_TARGET_AVX2 static PQKV_INLINE void add_values(float* sums, std::size_t stride, std::size_t g, const float* weights,
                                                      std::size_t weight_stride, const T* const* values, std::size_t count, std::size_t d,
                                                      rows_ahead<T> ahead) {
    constexpr std::size_t widest = Q == 4 ? 1 : 2;
    std::size_t i = 0;
    for (; i + widest * pair <= d; i += widest * pair)
      add_run_of_values<Q, widest>(sums + i, stride, g, weights, weight_stride, values, count, i, pair, ahead);
    for (; i < d; i += pair) add_run_of_values<Q, 1>(sums + i, stride, g, weights, weight_stride, values, count, i, d - i, ahead);
  }
  template <std::size_t Q, std::size_t C, class T>
  PQKV_TARGET_AVX2 static PQKV_INLINE void add_run_of_values(float* sums, std::size_t stride, std::size_t g, const float* weights,
                                                             std::size_t weight_stride, const T* const* values, std::size_t count,
                                                             std::size_t first_element, std::size_t n, rows_ahead<T> ahead) {
    __m256 acc[2 * Q * C];
#pragma GCC unroll 8
    for (std::size_t a = 0; a < 2 * Q * C; ++a) acc[a] = _mm256_setzero_ps();
    for (std::size_t t = 0; t < count; ++t) {
      __m256 value[2 * C];
#pragma GCC unroll 8
      for (std::size_t c = 0; c < C; ++c) {
        touch(ahead.values[t], first_element + c * pair);
        widened(values[t] + first_element + c * pair, n, value[2 * c], value[2 * c + 1]);
      }
      __m256 weight;
#pragma GCC unroll 8
      for (std::size_t a = 0; a < 2 * Q * C; ++a) {
        if (a % (2 * C) == 0) weight = _mm256_set1_ps(weights[a / (2 * C) * weight_stride + t]);
        acc[a] = _mm256_fmadd_ps(weight, value[a % (2 * C)], acc[a]);
      }
    }
#pragma GCC unroll 8
    for (std::size_t a = 0; a < 2 * Q * C; ++a) {
      float* sum = sums + a / (2 * C) * stride + a % (2 * C) * lanes;
      if (a / (2 * C) < g) _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), acc[a]));
    }
  }
};

}  // namespace pqkv::detail
