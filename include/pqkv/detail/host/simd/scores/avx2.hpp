// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of scores (with FMA and F16C).
// Lanes are centroids or tokens, never the axis that is summed, so every lane repeats the scalar kernel's operations in their order.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct score_kernels<isa::avx2> : score_kernels<isa::scalar> {
  using base = score_kernels<isa::scalar>;

  PQKV_TARGET_AVX2 static void exponentials(const float* u, std::size_t n, canonical::softmax_scale s, float* out) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, exponential(_mm256_loadu_ps(u + i), s));
    base::exponentials(u + i, n - i, s, out + i);
  }

  PQKV_TARGET_AVX2 static void products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                        std::size_t n, float* out) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) {
      __m256 p = look_up(e, codes + t);
      for (std::size_t j = 1; j < m; ++j) p = _mm256_mul_ps(p, look_up(e + j * c, codes + j * stride + t));
      _mm256_storeu_ps(out + t, p);
    }
    base::products(e, m, c, codes + t, stride, n - t, out + t);
  }

  PQKV_TARGET_AVX2 static void sums(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                    std::size_t n, float* out) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) {
      __m256 z = look_up(table, codes + t);
      for (std::size_t j = 1; j < m; ++j) z = _mm256_add_ps(z, look_up(table + j * c, codes + j * stride + t));
      _mm256_storeu_ps(out + t, z);
    }
    base::sums(table, m, c, codes + t, stride, n - t, out + t);
  }

  PQKV_TARGET_AVX2 static void multiples(float factor, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 8) _mm256_storeu_ps(out + x, _mm256_mul_ps(_mm256_set1_ps(factor), _mm256_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX2 static void offsets(float term, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 8) _mm256_storeu_ps(out + x, _mm256_add_ps(_mm256_set1_ps(term), _mm256_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX2 static std::uint64_t total(const float* p, const std::uint32_t* weights, std::size_t n) {
    const __m256d magic = _mm256_set1_pd(0x1.8p52);
    __m256i z = _mm256_setzero_si256();
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) {
      __m256i low = fixed(_mm_loadu_ps(p + t), magic), high = fixed(_mm_loadu_ps(p + t + 4), magic);
      if (weights != nullptr) {
        const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + t));
        low = times(low, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(weight)));
        high = times(high, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(weight, 1)));
      }
      z = _mm256_add_epi64(z, _mm256_add_epi64(low, high));
    }
    alignas(32) std::uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), z);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3] + base::total(p + t, weights != nullptr ? weights + t : nullptr, n - t);
  }

  PQKV_TARGET_AVX2 static void add_scaled(const float* p, float r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8)
      _mm256_storeu_ps(scores + t, _mm256_fmadd_ps(_mm256_loadu_ps(p + t), _mm256_set1_ps(r), _mm256_loadu_ps(scores + t)));
    base::add_scaled(p + t, r, n - t, scores + t);
  }

  PQKV_TARGET_AVX2 static void max_scaled(const float* p, float r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8)
      _mm256_storeu_ps(scores + t, _mm256_max_ps(_mm256_mul_ps(_mm256_loadu_ps(p + t), _mm256_set1_ps(r)), _mm256_loadu_ps(scores + t)));
    base::max_scaled(p + t, r, n - t, scores + t);
  }

  PQKV_TARGET_AVX2 static void add(const float* z, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) _mm256_storeu_ps(scores + t, _mm256_add_ps(_mm256_loadu_ps(scores + t), _mm256_loadu_ps(z + t)));
    base::add(z + t, n - t, scores + t);
  }

  PQKV_TARGET_AVX2 static void max_shifted(const float* z, float bias, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8)
      _mm256_storeu_ps(scores + t, _mm256_max_ps(_mm256_add_ps(_mm256_loadu_ps(z + t), _mm256_set1_ps(bias)), _mm256_loadu_ps(scores + t)));
    base::max_shifted(z + t, bias, n - t, scores + t);
  }

 private:
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256 exponential(__m256 u, canonical::softmax_scale s) {
    const __m256 scale = _mm256_set1_ps(s.scale), magic = _mm256_set1_ps(canonical::round_magic);
    const __m256 t = _mm256_fmadd_ps(u, scale, magic);
    const __m256 r = _mm256_fmsub_ps(u, scale, _mm256_sub_ps(t, magic));
    __m256 p = _mm256_set1_ps(canonical::exp2_c6);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c0));
    const __m256i exponent = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic)), 23);
    const __m256 power = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    return _mm256_andnot_ps(_mm256_cmp_ps(u, _mm256_set1_ps(s.floor), _CMP_LT_OQ), power);
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE __m256 look_up(const float* table, const std::uint8_t* code) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(code));
    return _mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(eight), 4);
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i fixed(__m128 p, __m256d magic) {
    const __m256d shifted = _mm256_fmadd_pd(_mm256_cvtps_pd(p), _mm256_set1_pd(0x1p40), magic);
    return _mm256_sub_epi64(_mm256_castpd_si256(shifted), _mm256_castpd_si256(magic));
  }

  /// 64-bit value times 32-bit weight, modulo 2^64
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i times(__m256i value, __m256i weight) {
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(value, 32), weight);
    return _mm256_add_epi64(_mm256_mul_epu32(value, weight), _mm256_slli_epi64(high, 32));
  }
};

}  // namespace pqkv::detail
