// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of shortlists (F, BW, DQ, VL). Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct shortlist_kernels<isa::avx512> : shortlist_kernels<isa::avx2> {
  using base = shortlist_kernels<isa::avx2>;

  PQKV_TARGET_AVX512 static std::uint64_t weights(float* z, std::size_t n, float top, canonical::softmax_scale s) {
    const __m512 magic = _mm512_set1_ps(canonical::round_magic), scale = _mm512_set1_ps(s.scale);
    const __m512d shift = _mm512_set1_pd(0x1.8p52), power = _mm512_set1_pd(0x1p40);
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m512 u = _mm512_sub_ps(_mm512_loadu_ps(z + i), _mm512_set1_ps(top));
      const __m512 t = _mm512_fmadd_ps(u, scale, magic);
      const __m512 r = _mm512_fmsub_ps(u, scale, _mm512_sub_ps(t, magic));
      __m512 p = _mm512_set1_ps(canonical::exp2_c6);
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c5));
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c4));
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c3));
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c2));
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c1));
      p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(canonical::exp2_c0));
      const __m512i exponent = _mm512_maskz_slli_epi32(all16, _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(magic)), 23);
      const __mmask16 above = _mm512_cmp_ps_mask(u, _mm512_set1_ps(s.floor), _CMP_NLT_UQ);
      const __m512 e = _mm512_castsi512_ps(_mm512_maskz_add_epi32(above, _mm512_castps_si512(p), exponent));
      _mm512_storeu_ps(z + i, e);
      // The bits of e * 2^40 + magic. The magic's own bits are subtracted at the end, modulo 2^64.
      const __m512d low = _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, e, 0));
      const __m512d high = _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, e, 1));
      even = _mm512_add_epi64(even, _mm512_castpd_si512(_mm512_fmadd_pd(low, power, shift)));
      odd = _mm512_add_epi64(odd, _mm512_castpd_si512(_mm512_fmadd_pd(high, power, shift)));
    }
    alignas(64) std::uint64_t lanes[8];
    _mm512_store_si512(lanes, _mm512_add_epi64(even, odd));
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : lanes) sum += lane;
    sum -= i * __builtin_bit_cast(std::uint64_t, 0x1.8p52);
    return sum + shortlist_kernels<isa::scalar>::weights(z + i, n - i, top, s);
  }

 private:
  static constexpr __mmask16 all16 = 0xffff;
};

}  // namespace pqkv::detail
