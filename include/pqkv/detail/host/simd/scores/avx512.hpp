// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of scores (F, BW, DQ, VL). Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
// Tables of 16 to 256 floats are looked up in registers by permutes: measured, a gather of 16 lanes takes longer than eight permutes.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct score_kernels<isa::avx512> : score_kernels<isa::avx2> {
  using base = score_kernels<isa::avx2>;

  PQKV_TARGET_AVX512 static void exponentials(const float* u, std::size_t n, canonical::softmax_scale s, float* out) {
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(out + i, exponential_of(_mm512_loadu_ps(u + i), s));
    base::exponentials(u + i, n - i, s, out + i);
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
    score_kernels<isa::scalar>::products(e, m, c, codes + whole, stride, n - whole, out + whole);
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
    score_kernels<isa::scalar>::sums(table, m, c, codes + whole, stride, n - whole, out + whole);
  }

  PQKV_TARGET_AVX512 static void multiples(float factor, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 16) _mm512_storeu_ps(out + x, _mm512_mul_ps(_mm512_set1_ps(factor), _mm512_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX512 static void offsets(float term, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 16) _mm512_storeu_ps(out + x, _mm512_add_ps(_mm512_set1_ps(term), _mm512_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX512 static std::uint64_t total(const float* p, const std::uint32_t* weights, std::size_t n) {
    // The bits of p * 2^40 + magic. The magic's own bits are subtracted at the end, modulo 2^64.
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
    score_kernels<isa::scalar>::add_scaled(p + t, r, n - t, scores + t);
  }

 protected:
  enum class look_up_step { multiply, add };
  static constexpr __mmask16 all16 = 0xffff;

 private:
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512 exponential_of(__m512 u, canonical::softmax_scale s) {
    const __m512 scale = _mm512_set1_ps(s.scale), magic = _mm512_set1_ps(canonical::round_magic);
    const __m512 t = _mm512_fmadd_ps(u, scale, magic);
    const __m512 r = _mm512_fmsub_ps(u, scale, _mm512_sub_ps(t, magic));
    __m512 p = _mm512_set1_ps(canonical::exp2_c6);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c0));
    const __m512i power = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(magic));
    const __mmask16 counts = _mm512_cmp_ps_mask(u, _mm512_set1_ps(s.floor), _CMP_NLT_UQ);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(counts, _mm512_castps_si512(p), _mm512_maskz_slli_epi32(counts, power, 23)));
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
