// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of attention (F, BW, DQ, VL). Sixteen sums are in registers at a time: of 1, 2, 4 or 8 queries with 16, 8, 4 or 2 keys,
// so that each loaded row is used by all queries. The lanes of all sixteen are then added up together, in 45 instructions. Zero-masked
// forms are used where g++ 12's headers would warn of the plain ones.
//
// vdpbf16ps is not used. To come near the error of floats it needs the query as two bfloat16 parts, so it takes as many instructions as
// multiply-adds do. Measured for the products of 4 queries with cached keys of d = 128, lanes not added up, one Zen 5 core, 2026-11-23: 4.0
// ns per key either way; shift and mask run in parallel with the multiply-adds.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "../../../../config.hpp"
#include "../../../../core/scalar.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct attention_kernels<isa::avx512> : attention_kernels<isa::avx2> {
  using base = attention_kernels<isa::avx2>;

  template <class T>
  static constexpr std::size_t split_lanes = std::is_same_v<T, bfloat16> ? 16 : 0;

  template <class T>
  PQKV_TARGET_AVX512 static void tile_dots(const float* queries, std::size_t stride, std::size_t g, const T* const* keys, std::size_t count,
                                           std::size_t d, rows_ahead<T> ahead, float* out, std::size_t out_stride) {
    if (g == 1) return score_keys<1>(queries, stride, g, keys, count, d, ahead, out, out_stride);
    if (g == 2) return score_keys<2>(queries, stride, g, keys, count, d, ahead, out, out_stride);
    if (g <= 4) return score_keys<4>(queries, stride, g, keys, count, d, ahead, out, out_stride);
    score_keys<8>(queries, stride, g, keys, count, d, ahead, out, out_stride);
  }

  template <class T>
  PQKV_TARGET_AVX512 static void tile_add(float* sums, std::size_t stride, std::size_t g, const float* weights, std::size_t weight_stride,
                                          const T* const* values, std::size_t count, std::size_t d, rows_ahead<T> ahead) {
    if (g == 1) return add_values<1>(sums, stride, g, weights, weight_stride, values, count, d, ahead);
    if (g == 2) return add_values<2>(sums, stride, g, weights, weight_stride, values, count, d, ahead);
    if (g <= 4) return add_values<4>(sums, stride, g, weights, weight_stride, values, count, d, ahead);
    add_values<8>(sums, stride, g, weights, weight_stride, values, count, d, ahead);
  }

  PQKV_TARGET_AVX512 static bool tile_top(const float* x, std::size_t n, float& top) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    __m512 most = _mm512_set1_ps(top);
    __mmask16 broken = 0;
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 some = first(n - i);
      const __m512 lane = _mm512_maskz_loadu_ps(some, x + i);
      most = _mm512_mask_max_ps(most, some, most, lane);
      broken |= _mm512_cmpeq_epi32_mask(_mm512_maskz_and_epi32(all16, _mm512_castps_si512(lane), exponent), exponent);
    }
    __m256 eight = _mm256_max_ps(_mm512_maskz_extractf32x8_ps(0xff, most, 0), _mm512_maskz_extractf32x8_ps(0xff, most, 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    top = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    return broken == 0;
  }

  PQKV_TARGET_AVX512 static void tile_lower(float* x, std::size_t n, float top) {
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 some = first(n - i);
      _mm512_mask_storeu_ps(x + i, some, _mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_set1_ps(top)));
    }
  }

  PQKV_TARGET_AVX512 static float tile_total(const float* x, std::size_t n) {
    __m512 all = _mm512_setzero_ps();
    for (std::size_t i = 0; i < n; i += 16) all = _mm512_add_ps(all, _mm512_maskz_loadu_ps(first(n - i), x + i));
    const __m256 eight = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, all, 0), _mm512_maskz_extractf32x8_ps(0xff, all, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }

  PQKV_TARGET_AVX512 static void tile_scale(float* x, std::size_t n, float factor) {
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 some = first(n - i);
      _mm512_mask_storeu_ps(x + i, some, _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_set1_ps(factor)));
    }
  }

 private:
  static constexpr __mmask16 all16 = 0xffff;
  static constexpr std::size_t lanes = 16, pair = 2 * lanes;

  PQKV_TARGET_AVX512 static PQKV_INLINE __mmask16 first(std::size_t n) {
    return static_cast<__mmask16>(n >= lanes ? 0xffffu : (1u << n) - 1u);
  }

  /// The first n, at most 32, elements of a row as two registers of floats; the others are zeros.
  PQKV_TARGET_AVX512 static PQKV_INLINE void widened(const float* row, std::size_t n, __m512& low, __m512& high) {
    low = _mm512_maskz_loadu_ps(first(n), row);
    high = _mm512_maskz_loadu_ps(first(n - std::min(n, lanes)), row + std::min(n, lanes));
  }
  PQKV_TARGET_AVX512 static PQKV_INLINE void widened(const half* row, std::size_t n, __m512& low, __m512& high) {
    low = _mm512_maskz_cvtph_ps(all16, _mm256_maskz_loadu_epi16(first(n), row));
    high = _mm512_maskz_cvtph_ps(all16, _mm256_maskz_loadu_epi16(first(n - std::min(n, lanes)), row + std::min(n, lanes)));
  }
  PQKV_TARGET_AVX512 static PQKV_INLINE void widened(const bfloat16* row, std::size_t n, __m512& even, __m512& odd) {
    const auto some = static_cast<__mmask32>(n >= pair ? ~0u : (1u << n) - 1u);
    const __m512i both = _mm512_maskz_loadu_epi16(some, row);
    even = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all16, both, 16));
    odd = _mm512_castsi512_ps(_mm512_maskz_and_epi32(all16, both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  PQKV_TARGET_AVX512 static PQKV_INLINE void widened(const std::int8_t* row, std::size_t n, __m512& low, __m512& high) {
    const __m128i first_half = _mm_maskz_loadu_epi8(first(n), row),
                  second_half = _mm_maskz_loadu_epi8(first(n - std::min(n, lanes)), row + std::min(n, lanes));
    low = _mm512_maskz_cvtepi32_ps(all16, _mm512_maskz_cvtepi8_epi32(all16, first_half));
    high = _mm512_maskz_cvtepi32_ps(all16, _mm512_maskz_cvtepi8_epi32(all16, second_half));
  }

  /// Prefetches 32 elements of a row.
  template <class T>
  static PQKV_INLINE void touch(const T* row) {
#pragma GCC unroll 2
    for (std::size_t line = 0; line < pair * sizeof(T); line += 64) _mm_prefetch(reinterpret_cast<const char*>(row) + line, _MM_HINT_T0);
  }

  /// Lane 4 L + j is the sum of the lanes of acc[4 j + L].
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512 lane_sums(const __m512 (&acc)[16]) {
    __m512 four[4];
#pragma GCC unroll 4
    for (std::size_t j = 0; j < 4; ++j) {
      const __m512 a = halves(acc[4 * j], acc[4 * j + 1]), b = halves(acc[4 * j + 2], acc[4 * j + 3]);
      four[j] = _mm512_add_ps(_mm512_maskz_shuffle_f32x4(all16, a, b, 0x88), _mm512_maskz_shuffle_f32x4(all16, a, b, 0xdd));
    }
    const __m512 u = _mm512_add_ps(_mm512_maskz_unpacklo_ps(all16, four[0], four[1]), _mm512_maskz_unpackhi_ps(all16, four[0], four[1]));
    const __m512 v = _mm512_add_ps(_mm512_maskz_unpacklo_ps(all16, four[2], four[3]), _mm512_maskz_unpackhi_ps(all16, four[2], four[3]));
    return _mm512_add_ps(_mm512_maskz_shuffle_ps(all16, u, v, 0x44), _mm512_maskz_shuffle_ps(all16, u, v, 0xee));
  }
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512 halves(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_maskz_shuffle_f32x4(all16, a, b, 0x44), _mm512_maskz_shuffle_f32x4(all16, a, b, 0xee));
  }

  /// Q queries with 16 / Q keys at a time. Queries after the g-th are computed too, but their results are not stored.
  template <std::size_t Q, class T>
  PQKV_TARGET_AVX512 static PQKV_INLINE void score_keys(const float* queries, std::size_t stride, std::size_t g, const T* const* keys,
                                                        std::size_t count, std::size_t d, rows_ahead<T> ahead, float* out,
                                                        std::size_t out_stride) {
    constexpr std::size_t rows = 16 / Q;
    alignas(64) float sums[16];
    for (std::size_t t = 0; t < count; t += rows) {
      __m512 acc[16];
#pragma GCC unroll 16
      for (std::size_t a = 0; a < 16; ++a) acc[a] = _mm512_setzero_ps();
      std::size_t i = 0;
      for (; i + pair <= d; i += pair) score_run<Q>(queries + i, stride, keys + t, ahead.keys + t, i, pair, acc);
      if (i < d) score_run<Q>(queries + i, stride, keys + t, ahead.keys + t, i, d - i, acc);
      _mm512_store_ps(sums, lane_sums(acc));
      for (std::size_t q = 0; q < std::min(Q, g); ++q)
#pragma GCC unroll 16
        for (std::size_t r = 0; r < rows; ++r) {
          const std::size_t a = r * Q + q;
          out[q * out_stride + t + r] = sums[4 * (a % 4) + a / 4];
        }
    }
  }
  template <std::size_t Q, class T>
  PQKV_TARGET_AVX512 static PQKV_INLINE void score_run(const float* queries, std::size_t stride, const T* const* keys, const T* const* next,
                                                       std::size_t first_element, std::size_t n, __m512 (&acc)[16]) {
    // Single loops: g++ 12 keeps an array in registers if it can unroll the loop over it early, and it does so for innermost loops only.
    constexpr std::size_t rows = 16 / Q;
    if constexpr (Q <= 4) {                // few queries fit in registers
      __m512 query[2 * Q], low{}, high{};  // initialised only because g++ -Og warns otherwise
#pragma GCC unroll 8
      for (std::size_t a = 0; a < 2 * Q; ++a) query[a] = _mm512_loadu_ps(queries + a / 2 * stride + a % 2 * lanes);
#pragma GCC unroll 16
      for (std::size_t a = 0; a < 16; ++a) {
        if (a % Q == 0) {
          touch(next[a / Q] + first_element);
          widened(keys[a / Q] + first_element, n, low, high);
        }
        acc[a] = _mm512_fmadd_ps(query[2 * (a % Q)], low, acc[a]);
        acc[a] = _mm512_fmadd_ps(query[2 * (a % Q) + 1], high, acc[a]);
      }
    } else {
      __m512 key[2 * rows], low{}, high{};
#pragma GCC unroll 16
      for (std::size_t r = 0; r < rows; ++r) {
        touch(next[r] + first_element);
        widened(keys[r] + first_element, n, key[2 * r], key[2 * r + 1]);
      }
#pragma GCC unroll 16
      for (std::size_t a = 0; a < 16; ++a) {
        const std::size_t q = a / rows, r = a % rows;
        if (r == 0) {
          low = _mm512_loadu_ps(queries + q * stride);
          high = _mm512_loadu_ps(queries + q * stride + lanes);
        }
        acc[r * Q + q] = _mm512_fmadd_ps(low, key[2 * r], acc[r * Q + q]);
        acc[r * Q + q] = _mm512_fmadd_ps(high, key[2 * r + 1], acc[r * Q + q]);
      }
    }
  }

  /// Elements in runs of 32 * C, whose sums stay in registers over the tile.
  template <std::size_t Q, class T>
  PQKV_TARGET_AVX512 static PQKV_INLINE void add_values(float* sums, std::size_t stride, std::size_t g, const float* weights,
                                                        std::size_t weight_stride, const T* const* values, std::size_t count, std::size_t d,
                                                        rows_ahead<T> ahead) {
    constexpr std::size_t widest = Q == 1 ? 4 : Q == 8 ? 1 : 2;
    std::size_t i = 0;
    for (; i + widest * pair <= d; i += widest * pair)
      add_run_of_values<Q, widest>(sums + i, stride, g, weights, weight_stride, values, count, i, pair, ahead);
    for (; i < d; i += pair)
      add_run_of_values<Q, 1>(sums + i, stride, g, weights, weight_stride, values, count, i, std::min(pair, d - i), ahead);
  }
  template <std::size_t Q, std::size_t C, class T>
  PQKV_TARGET_AVX512 static PQKV_INLINE void add_run_of_values(float* sums, std::size_t stride, std::size_t g, const float* weights,
                                                               std::size_t weight_stride, const T* const* values, std::size_t count,
                                                               std::size_t first_element, std::size_t n, rows_ahead<T> ahead) {
    __m512 acc[2 * Q * C];
#pragma GCC unroll 16
    for (std::size_t a = 0; a < 2 * Q * C; ++a) acc[a] = _mm512_setzero_ps();
    for (std::size_t t = 0; t < count; ++t) {
      __m512 value[2 * C];
#pragma GCC unroll 8
      for (std::size_t c = 0; c < C; ++c) {
        touch(ahead.values[t] + first_element + c * pair);
        widened(values[t] + first_element + c * pair, n, value[2 * c], value[2 * c + 1]);
      }
      __m512 weight;
#pragma GCC unroll 16
      for (std::size_t a = 0; a < 2 * Q * C; ++a) {
        if (a % (2 * C) == 0) weight = _mm512_set1_ps(weights[a / (2 * C) * weight_stride + t]);
        acc[a] = _mm512_fmadd_ps(weight, value[a % (2 * C)], acc[a]);
      }
    }
#pragma GCC unroll 16
    for (std::size_t a = 0; a < 2 * Q * C; ++a) {
      float* sum = sums + a / (2 * C) * stride + a % (2 * C) * lanes;
      if (a / (2 * C) < g) _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), acc[a]));
    }
  }
};

}  // namespace pqkv::detail
