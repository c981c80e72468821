// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of tokens' scores for four query heads at a time (with FMA). The lanes of a 128-bit register are the four heads.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct group_kernels<isa::avx2> : group_kernels<isa::scalar> {
  using base = group_kernels<isa::scalar>;

  // measured: bench/retrieve.cpp with random tables, 131072 tokens, in times of a gather for each head. One Zen 3 core: 8 x 8 bits, 4 heads
  // 0.2, 2 heads 0.4; 4 x 8 bits 0.2; 2 x 6 bits 0.3. A Xeon with VBMI: 0.5, 0.8; 0.6; 0.6. One head: the same. 2026-11-30
  static constexpr bool prefers_groups(std::size_t g, std::size_t) { return g > 1; }

  PQKV_TARGET_AVX2 static void group_total(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                           std::size_t n, float* partial, std::uint64_t* z) {
    const std::size_t whole = n / together * together;
    // The bits of p * 2^40 + magic are added up. The magic's own bits are subtracted at the end, modulo 2^64.
    const __m256d magic = _mm256_set1_pd(0x1.8p52);
    const looked_up of = begin<look_up_step::multiply>(e, m, c, codes, stride, whole, partial);
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    if (of.subspaces == 4) add_fixed<4>(of, c, stride, whole, magic, sum);
    if (of.subspaces == 2) add_fixed<2>(of, c, stride, whole, magic, sum);
    if (of.subspaces == 1) add_fixed<1>(of, c, stride, whole, magic, sum);
    alignas(32) std::uint64_t lanes[grouped_heads];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(sum[0], sum[1]));
    for (std::size_t q = 0; q < grouped_heads; ++q) z[q] += lanes[q] - whole * __builtin_bit_cast(std::uint64_t, 0x1.8p52);
    base::group_total(e, m, c, codes + whole, stride, n - whole, partial, z);
  }

  PQKV_TARGET_AVX2 static void group_add_scaled(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                                std::size_t n, float* partial, const float* r, float* scores) {
    const std::size_t whole = n / together * together;
    const looked_up of = begin<look_up_step::multiply>(e, m, c, codes, stride, whole, partial);
    if (of.subspaces == 4) scale_and_add<4>(of, c, stride, whole, r, scores);
    if (of.subspaces == 2) scale_and_add<2>(of, c, stride, whole, r, scores);
    if (of.subspaces == 1) scale_and_add<1>(of, c, stride, whole, r, scores);
    base::group_add_scaled(e, m, c, codes + whole, stride, n - whole, partial, r, scores + whole);
  }

  PQKV_TARGET_AVX2 static void group_largest(const float* u, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                             std::size_t n, float* partial, float* best) {
    const std::size_t whole = n / together * together;
    const looked_up of = begin<look_up_step::add>(u, m, c, codes, stride, whole, partial);
    __m128 most = _mm_loadu_ps(best);
    if (of.subspaces == 4) most = raise<4>(of, c, stride, whole, most);
    if (of.subspaces == 2) most = raise<2>(of, c, stride, whole, most);
    if (of.subspaces == 1) most = raise<1>(of, c, stride, whole, most);
    _mm_storeu_ps(best, most);
    base::group_largest(u, m, c, codes + whole, stride, n - whole, partial, best);
  }

 private:
  static constexpr std::size_t together = 8;  // tokens, whose results are in registers

  /// The subspaces that are still to be looked up, and the results of those before them.
  struct looked_up {
    const float* table;
    const std::uint8_t* codes;
    std::size_t subspaces;  // 1, 2 or 4
    const float* partial;   // [n, 4], or null if there were none before
  };

  template <look_up_step Step>
  PQKV_TARGET_AVX2 static PQKV_INLINE __m128 join(__m128 a, __m128 b) {
    if constexpr (Step == look_up_step::multiply)
      return _mm_mul_ps(a, b);
    else
      return _mm_add_ps(a, b);
  }

  /// Looks up all subspaces but the last 1, 2 or 4. There are four at most at a time: with 256 centroids their table has 16 KiB, and that
  /// of eight would fill the first-level cache of most CPUs. n is a multiple of `together`.
  template <look_up_step Step>
  PQKV_TARGET_AVX2 static PQKV_INLINE looked_up begin(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes,
                                                      std::size_t stride, std::size_t n, float* partial) {
    looked_up of{table, codes, m, nullptr};
    while (of.subspaces > 4 || of.subspaces == 3) {
      const std::size_t count = of.subspaces > 4 ? 4 : 2;
      if (count == 4) store<4, Step>(of, c, stride, n, partial);
      if (count == 2) store<2, Step>(of, c, stride, n, partial);
      of = {of.table + count * c * grouped_heads, of.codes + count * stride, of.subspaces - count, partial};
    }
    return of;
  }

  /// The results of eight tokens.
  template <std::size_t Subspaces, look_up_step Step>
  PQKV_TARGET_AVX2 static PQKV_INLINE void look_up(const looked_up& of, std::size_t c, std::size_t stride, std::size_t t,
                                                   __m128 (&found)[together]) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < together; ++i) {
      found[i] = _mm_loadu_ps(of.table + of.codes[t + i] * grouped_heads);
      if (of.partial != nullptr) found[i] = join<Step>(_mm_loadu_ps(of.partial + (t + i) * grouped_heads), found[i]);
    }
#pragma GCC unroll 32
    for (std::size_t at = together; at < Subspaces * together; ++at) {  // a single loop: g++ 12 unrolls only innermost loops early enough
      const std::size_t j = at / together, i = at % together;
      found[i] = join<Step>(found[i], _mm_loadu_ps(of.table + (j * c + of.codes[j * stride + t + i]) * grouped_heads));
    }
  }

  template <std::size_t Subspaces, look_up_step Step>
  PQKV_TARGET_AVX2 static void store(const looked_up& of, std::size_t c, std::size_t stride, std::size_t n, float* out) {
    for (std::size_t t = 0; t < n; t += together) {
      __m128 found[together];
      look_up<Subspaces, Step>(of, c, stride, t, found);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < together; ++i) _mm_storeu_ps(out + (t + i) * grouped_heads, found[i]);
    }
  }

  template <std::size_t Subspaces>
  PQKV_TARGET_AVX2 static PQKV_INLINE void add_fixed(const looked_up& of, std::size_t c, std::size_t stride, std::size_t n, __m256d magic,
                                                     __m256i (&sum)[2]) {
    for (std::size_t t = 0; t < n; t += together) {
      __m128 found[together];
      look_up<Subspaces, look_up_step::multiply>(of, c, stride, t, found);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < together; ++i) {
        const __m256d shifted = _mm256_fmadd_pd(_mm256_cvtps_pd(found[i]), _mm256_set1_pd(0x1p40), magic);
        sum[i % 2] = _mm256_add_epi64(sum[i % 2], _mm256_castpd_si256(shifted));
      }
    }
  }

  template <std::size_t Subspaces>
  PQKV_TARGET_AVX2 static PQKV_INLINE void scale_and_add(const looked_up& of, std::size_t c, std::size_t stride, std::size_t n,
                                                         const float* r, float* scores) {
    const __m256 r0 = _mm256_broadcast_ss(r), r1 = _mm256_broadcast_ss(r + 1), r2 = _mm256_broadcast_ss(r + 2),
                 r3 = _mm256_broadcast_ss(r + 3);
    for (std::size_t t = 0; t < n; t += together) {
      __m128 found[together];
      look_up<Subspaces, look_up_step::multiply>(of, c, stride, t, found);
      _MM_TRANSPOSE4_PS(found[0], found[1], found[2], found[3]);
      _MM_TRANSPOSE4_PS(found[4], found[5], found[6], found[7]);
      __m256 score = _mm256_fmadd_ps(both(found[0], found[4]), r0, _mm256_loadu_ps(scores + t));
      score = _mm256_fmadd_ps(both(found[1], found[5]), r1, score);
      score = _mm256_fmadd_ps(both(found[2], found[6]), r2, score);
      _mm256_storeu_ps(scores + t, _mm256_fmadd_ps(both(found[3], found[7]), r3, score));
    }
  }

  template <std::size_t Subspaces>
  PQKV_TARGET_AVX2 static PQKV_INLINE __m128 raise(const looked_up& of, std::size_t c, std::size_t stride, std::size_t n, __m128 most) {
    for (std::size_t t = 0; t < n; t += together) {
      __m128 found[together];
      look_up<Subspaces, look_up_step::add>(of, c, stride, t, found);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < together; ++i) most = _mm_max_ps(found[i], most);
    }
    return most;
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE __m256 both(__m128 low, __m128 high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
  }
};

}  // namespace pqkv::detail
