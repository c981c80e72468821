// SPDX-License-Identifier: Apache-2.0
// AVX2 leaves of rows of keys (with FMA and F16C).
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "../../../../core/scalar.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct row_leaf<isa::avx2> : row_leaf<isa::scalar> {
  using base = row_leaf<isa::scalar>;
  using row_leaf<isa::scalar>::widen;

  PQKV_TARGET_AVX2 static void widen(const half* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
    base::widen(src + i, n - i, dst + i);
  }

  PQKV_TARGET_AVX2 static void widen(const bfloat16* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i)));
      _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
    }
    base::widen(src + i, n - i, dst + i);
  }

  PQKV_TARGET_AVX2 static bool all_finite(const float* x, std::size_t n) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256i broken = _mm256_setzero_si256();
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i bits = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), exponent);
      broken = _mm256_or_si256(broken, _mm256_cmpeq_epi32(bits, exponent));
    }
    return _mm256_testz_si256(broken, broken) != 0 && base::all_finite(x + i, n - i);
  }

  PQKV_TARGET_AVX2 static void centre(const float* x, const float* mean, std::size_t n, float* out) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(mean + i)));
    base::centre(x + i, mean + i, n - i, out + i);
  }
};

}  // namespace pqkv::detail
