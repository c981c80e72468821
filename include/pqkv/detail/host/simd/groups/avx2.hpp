// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of tokens' scores for four query heads at a time (with FMA). The lanes of a 128-bit register are the four heads.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct group_leaf<isa::avx2> : group_leaf<isa::scalar> {
  using base = group_leaf<isa::scalar>;

  PQKV_TARGET_AVX2 static void group_products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                              std::size_t n, float* out) {
    const std::size_t whole = n / together * together;
    look_up_all<look_up_step::multiply>(e, m, c, codes, stride, whole, out);
    base::group_products(e, m, c, codes + whole, stride, n - whole, out + whole * grouped_heads);
  }

  PQKV_TARGET_AVX2 static void group_sums(const float* u, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                          std::size_t n, float* out) {
    const std::size_t whole = n / together * together;
    look_up_all<look_up_step::add>(u, m, c, codes, stride, whole, out);
    base::group_sums(u, m, c, codes + whole, stride, n - whole, out + whole * grouped_heads);
  }

  PQKV_TARGET_AVX2 static void group_total(const float* p, std::size_t n, std::uint64_t* z) {
    // The bits of p * 2^40 + magic. The magic's own bits are subtracted at the end, modulo 2^64.
    const __m256d magic = _mm256_set1_pd(0x1.8p52);
    __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
    std::size_t t = 0;
    for (; t + 2 <= n; t += 2) {
      even = _mm256_add_epi64(even, shifted(p + t * grouped_heads, magic));
      odd = _mm256_add_epi64(odd, shifted(p + (t + 1) * grouped_heads, magic));
    }
    alignas(32) std::uint64_t lanes[grouped_heads];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(even, odd));
    for (std::size_t q = 0; q < grouped_heads; ++q) z[q] += lanes[q] - t * __builtin_bit_cast(std::uint64_t, 0x1.8p52);
    base::group_total(p + t * grouped_heads, n - t, z);
  }

  PQKV_TARGET_AVX2 static void group_largest(const float* z, std::size_t n, float* best) {
    __m128 most = _mm_loadu_ps(best);
    for (std::size_t t = 0; t < n; ++t) most = _mm_max_ps(_mm_loadu_ps(z + t * grouped_heads), most);
    _mm_storeu_ps(best, most);
  }

  PQKV_TARGET_AVX2 static void group_add_scaled(const float* p, const float* r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 4 <= n; t += 4, p += 4 * grouped_heads) {
      __m128 head0 = _mm_loadu_ps(p), head1 = _mm_loadu_ps(p + 4), head2 = _mm_loadu_ps(p + 8), head3 = _mm_loadu_ps(p + 12);
      _MM_TRANSPOSE4_PS(head0, head1, head2, head3);
      __m128 score = _mm_fmadd_ps(head0, _mm_set1_ps(r[0]), _mm_loadu_ps(scores + t));
      score = _mm_fmadd_ps(head1, _mm_set1_ps(r[1]), score);
      score = _mm_fmadd_ps(head2, _mm_set1_ps(r[2]), score);
      _mm_storeu_ps(scores + t, _mm_fmadd_ps(head3, _mm_set1_ps(r[3]), score));
    }
    base::group_add_scaled(p, r, n - t, scores + t);
  }

 private:
  enum class look_up_step { multiply, add };
  static constexpr std::size_t together = 8;  // tokens, whose results are in registers

  template <look_up_step Step>
  PQKV_TARGET_AVX2 static PQKV_INLINE __m128 join(__m128 a, __m128 b) {
    if constexpr (Step == look_up_step::multiply)
      return _mm_mul_ps(a, b);
    else
      return _mm_add_ps(a, b);
  }

  /// Four subspaces at a time: with 256 centroids their table has 16 KiB, and eight subspaces' would fill the first-level cache of most
  /// CPUs. n is a multiple of `together`.
  template <look_up_step Step>
  PQKV_TARGET_AVX2 static PQKV_INLINE void look_up_all(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes,
                                                       std::size_t stride, std::size_t n, float* out) {
    for (std::size_t j = 0; j < m;) {
      const std::size_t left = m - j, count = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const float* const entries = table + j * c * grouped_heads;
      const std::uint8_t* const planes = codes + j * stride;
      if (count == 4) look_up<4, Step>(entries, c, planes, stride, n, j == 0, out);
      if (count == 2) look_up<2, Step>(entries, c, planes, stride, n, j == 0, out);
      if (count == 1) look_up<1, Step>(entries, c, planes, stride, n, j == 0, out);
      j += count;
    }
  }

  template <std::size_t Subspaces, look_up_step Step>
  PQKV_TARGET_AVX2 static PQKV_INLINE void look_up(const float* table, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                                   std::size_t n, bool first, float* out) {
    for (std::size_t t = 0; t < n; t += together, out += together * grouped_heads) {
      __m128 found[together];
#pragma GCC unroll 8
      for (std::size_t i = 0; i < together; ++i) {
        found[i] = _mm_loadu_ps(table + codes[t + i] * grouped_heads);
        if (!first) found[i] = join<Step>(_mm_loadu_ps(out + i * grouped_heads), found[i]);
      }
#pragma GCC unroll 4
      for (std::size_t j = 1; j < Subspaces; ++j)
#pragma GCC unroll 8
        for (std::size_t i = 0; i < together; ++i)
          found[i] = join<Step>(found[i], _mm_loadu_ps(table + (j * c + codes[j * stride + t + i]) * grouped_heads));
#pragma GCC unroll 8
      for (std::size_t i = 0; i < together; ++i) _mm_storeu_ps(out + i * grouped_heads, found[i]);
    }
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i shifted(const float* p, __m256d magic) {
    return _mm256_castpd_si256(_mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_set1_pd(0x1p40), magic));
  }
};

}  // namespace pqkv::detail
