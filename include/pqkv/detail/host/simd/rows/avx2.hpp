// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of rows of keys (with FMA and F16C).
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "../../../../config.hpp"
#include "../../../../core/scalar.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct row_kernels<isa::avx2> : row_kernels<isa::scalar> {
  using base = row_kernels<isa::scalar>;
  using row_kernels<isa::scalar>::widen;

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

  PQKV_TARGET_AVX2 static void widen(const std::int8_t* src, float scale, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src + i)));
      _mm256_storeu_ps(dst + i, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale)));
    }
    base::widen(src + i, scale, n - i, dst + i);
  }

  PQKV_TARGET_AVX2 static float narrow(const float* src, std::size_t n, std::int8_t* dst) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(src + i)), magnitude));
    alignas(32) std::uint32_t lane[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), most);
    std::uint32_t largest = *std::max_element(lane, lane + 8);
    for (std::size_t rest = i; rest < n; ++rest) largest = std::max(largest, float_bits(src[rest]) & 0x7fffffffu);
    const float scale = canonical::row_scale(largest), inverse = canonical::inverse_row_scale(scale);
    if (inverse == 0) {
      std::fill_n(dst, n, std::int8_t{0});
      return scale;
    }
    const __m256 magic = _mm256_set1_ps(canonical::round_magic);
    const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                               0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    for (i = 0; i + 8 <= n; i += 8) {
      const __m256 shifted = _mm256_fmadd_ps(_mm256_loadu_ps(src + i), _mm256_set1_ps(inverse), magic);
      // The difference of the bits is the integer, whose lowest byte is kept.
      const __m256i bytes = _mm256_shuffle_epi8(_mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(magic)), low_bytes);
      const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(dst + i), eight);
    }
    for (; i < n; ++i) dst[i] = static_cast<std::int8_t>(canonical::scaled_integer(src[i], inverse));
    return scale;
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
