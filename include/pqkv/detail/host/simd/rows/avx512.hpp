// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of rows of keys (F, BW, DQ, VL). Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "../../../../core/scalar.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct row_kernels<isa::avx512> : row_kernels<isa::avx2> {
  using base = row_kernels<isa::avx2>;
  using row_kernels<isa::scalar>::widen;

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

 private:
  static constexpr __mmask16 all16 = 0xffff;
};

}  // namespace pqkv::detail
