// SPDX-License-Identifier: Apache-2.0
// Leaves for AVX-512 (F, BW, DQ, VL), over those of AVX2. Tables of 16 to 256 floats are looked up in registers by permutes: measured,
// a gather of 16 lanes takes longer than eight permutes. Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../core/scalar.hpp"
#include "avx2.hpp"

namespace pqkv::detail {

template <>
struct leaf<isa::avx512> : leaf<isa::avx2> {
  using base = leaf<isa::avx2>;
  using leaf<isa::scalar>::widen;

  PQKV_TARGET_AVX512 static void widen(const half* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16)
      _mm512_storeu_ps(dst + i, _mm512_maskz_cvtph_ps(all16, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i))));
    base::widen(src + i, n - i, dst + i);
  }
  PQKV_TARGET_AVX512 static void widen(const bfloat16* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m512i wide = _mm512_maskz_cvtepu16_epi32(all16, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i)));
      _mm512_storeu_ps(dst + i, _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all16, wide, 16)));
    }
    base::widen(src + i, n - i, dst + i);
  }

  PQKV_TARGET_AVX512 static void centre(const float* x, const float* mean, std::size_t n, float* out) {
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(out + i, _mm512_sub_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(mean + i)));
    base::centre(x + i, mean + i, n - i, out + i);
  }

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

  PQKV_TARGET_AVX512 static void products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                          std::size_t n, float* out) {
    const std::size_t whole = n / 16 * 16;
    for (std::size_t j = 0; j < m; ++j) {
      if (c == 16) look_up<1, look_up_step::multiply>(e + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 32) look_up<2, look_up_step::multiply>(e + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 64) look_up<4, look_up_step::multiply>(e + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 128) look_up<8, look_up_step::multiply>(e + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 256) look_up<16, look_up_step::multiply>(e + j * c, codes + j * stride, whole, j == 0, out);
    }
    leaf<isa::scalar>::products(e, m, c, codes + whole, stride, n - whole, out + whole);
  }

  PQKV_TARGET_AVX512 static void sums(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                      std::size_t n, float* out) {
    const std::size_t whole = n / 16 * 16;
    for (std::size_t j = 0; j < m; ++j) {
      if (c == 16) look_up<1, look_up_step::add>(table + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 32) look_up<2, look_up_step::add>(table + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 64) look_up<4, look_up_step::add>(table + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 128) look_up<8, look_up_step::add>(table + j * c, codes + j * stride, whole, j == 0, out);
      if (c == 256) look_up<16, look_up_step::add>(table + j * c, codes + j * stride, whole, j == 0, out);
    }
    leaf<isa::scalar>::sums(table, m, c, codes + whole, stride, n - whole, out + whole);
  }

  PQKV_TARGET_AVX512 static void multiples(float factor, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 16) _mm512_storeu_ps(out + x, _mm512_mul_ps(_mm512_set1_ps(factor), _mm512_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX512 static void offsets(float term, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 16) _mm512_storeu_ps(out + x, _mm512_add_ps(_mm512_set1_ps(term), _mm512_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX512 static std::uint64_t total(const float* p, const std::uint32_t* weights, std::size_t n) {
    // Bits of p * 2^40 + magic; the magic's own bits are taken off at the end, modulo 2^64.
    const __m512d magic = _mm512_set1_pd(0x1.8p52), scale = _mm512_set1_pd(0x1p40);
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    std::uint64_t weight_sum = 0;
    std::size_t t = 0;
    for (; t + 16 <= n; t += 16) {
      const __m512d a = _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p + t)), b = _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p + t + 8));
      __m512i low = _mm512_castpd_si512(_mm512_fmadd_pd(a, scale, magic)), high = _mm512_castpd_si512(_mm512_fmadd_pd(b, scale, magic));
      if (weights != nullptr) {
        const __m512i weight = _mm512_loadu_si512(weights + t);
        low = _mm512_mullo_epi64(low, _mm512_maskz_cvtepu32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, weight, 0)));
        high = _mm512_mullo_epi64(high, _mm512_maskz_cvtepu32_epi64(0xff, _mm512_maskz_extracti32x8_epi32(0xff, weight, 1)));
        for (std::size_t i = 0; i < 16; ++i) weight_sum += weights[t + i];
      } else {
        weight_sum += 16;
      }
      even = _mm512_add_epi64(even, low);
      odd = _mm512_add_epi64(odd, high);
    }
    alignas(64) std::uint64_t lanes[8];
    _mm512_store_si512(lanes, _mm512_add_epi64(even, odd));
    std::uint64_t z = 0;
    for (const std::uint64_t lane : lanes) z += lane;
    z -= weight_sum * __builtin_bit_cast(std::uint64_t, 0x1.8p52);
    return z + base::total(p + t, weights != nullptr ? weights + t : nullptr, n - t);
  }

  PQKV_TARGET_AVX512 static void add_scaled(const float* p, float r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 16 <= n; t += 16)
      _mm512_storeu_ps(scores + t, _mm512_fmadd_ps(_mm512_loadu_ps(p + t), _mm512_set1_ps(r), _mm512_loadu_ps(scores + t)));
    leaf<isa::scalar>::add_scaled(p + t, r, n - t, scores + t);
  }

 private:
  enum class look_up_step { multiply, add };
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

  /// Sixteen entries of a table of Vectors * 16 floats in registers.
  template <std::size_t Vectors>
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512 entries_at(const __m512* table, __m512i index) {
    if constexpr (Vectors == 1) return _mm512_maskz_permutexvar_ps(all16, index, table[0]);
    if constexpr (Vectors == 2) return _mm512_permutex2var_ps(table[0], index, table[1]);
    if constexpr (Vectors > 2) {
      const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(static_cast<int>(Vectors * 8)));
      return _mm512_mask_blend_ps(upper, entries_at<Vectors / 2>(table, index), entries_at<Vectors / 2>(table + Vectors / 2, index));
    }
  }

  /// out[t] = table[code], or out[t] times or plus it; n a multiple of 16.
  template <std::size_t Vectors, look_up_step Step>
  PQKV_TARGET_AVX512 static PQKV_INLINE void look_up(const float* table, const std::uint8_t* codes, std::size_t n, bool first, float* out) {
    __m512 held[Vectors];
    for (std::size_t v = 0; v < Vectors; ++v) held[v] = _mm512_loadu_ps(table + 16 * v);
    for (std::size_t t = 0; t < n; t += 16) {
      const __m512i index = _mm512_maskz_cvtepu8_epi32(all16, _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + t)));
      const __m512 found = entries_at<Vectors>(held, index);
      if (first)
        _mm512_storeu_ps(out + t, found);
      else if constexpr (Step == look_up_step::multiply)
        _mm512_storeu_ps(out + t, _mm512_mul_ps(_mm512_loadu_ps(out + t), found));
      else
        _mm512_storeu_ps(out + t, _mm512_add_ps(_mm512_loadu_ps(out + t), found));
    }
  }
};

}  // namespace pqkv::detail
