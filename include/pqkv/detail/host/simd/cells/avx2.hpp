// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of cells (with FMA). Lanes are cells, so every lane repeats the scalar kernel's operations in their order.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct cell_kernels<isa::avx2> : cell_kernels<isa::scalar> {
  PQKV_TARGET_AVX2 static std::uint64_t cell_total(const cell_grid& grid, const std::uint32_t* weights, std::uint64_t weight_sum) {
    // The bits of p * 2^40 + magic. The magic's own bits are subtracted at the end, modulo 2^64.
    __m256i low = _mm256_setzero_si256(), high = low;
    for (std::size_t x = 0; x < grid.prefixes; ++x) {
      const __m256 prefix = _mm256_set1_ps(grid.prefix[x]);
      for (std::size_t y = 0; y < grid.c; y += 8) {
        const __m256 p = _mm256_mul_ps(prefix, _mm256_loadu_ps(grid.row + y));
        const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + x * grid.c + y));
        low = _mm256_add_epi64(low, times(fixed(_mm256_castps256_ps128(p)), _mm256_cvtepu32_epi64(_mm256_castsi256_si128(weight))));
        high =
            _mm256_add_epi64(high, times(fixed(_mm256_extractf128_ps(p, 1)), _mm256_cvtepu32_epi64(_mm256_extracti128_si256(weight, 1))));
      }
    }
    alignas(32) std::uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(low, high));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3] - weight_sum * __builtin_bit_cast(std::uint64_t, 0x1.8p52);
  }

  PQKV_TARGET_AVX2 static void add_cells(const cell_grid& grid, const float* factor, float* scores) {
    if (grid.g == 1) add_group<1>(grid, factor, scores);
    if (grid.g == 2) add_group<2>(grid, factor, scores);
    if (grid.g == 3) add_group<3>(grid, factor, scores);
    if (grid.g == 4) add_group<4>(grid, factor, scores);
  }

  PQKV_TARGET_AVX2 static void digits(const std::int32_t* cells, std::size_t n, unsigned shift, unsigned mask, std::uint8_t* codes) {
    const __m128i places = _mm_cvtsi32_si128(static_cast<int>(shift));
    const __m256i low = _mm256_set1_epi32(static_cast<int>(mask));
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const auto* from = reinterpret_cast<const __m256i*>(cells + i);
      const __m256i a = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(from), places), low);
      const __m256i b = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(from + 1), places), low);
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
      const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), bytes);
    }
    cell_kernels<isa::scalar>::digits(cells + i, n - i, shift, mask, codes + i);
  }

 private:
  template <std::size_t G>
  PQKV_TARGET_AVX2 static PQKV_INLINE void add_group(const cell_grid& grid, const float* factor, float* scores) {
    __m256 prefix[G], scale[G];
    for (std::size_t q = 0; q < G; ++q) scale[q] = _mm256_set1_ps(factor[q]);
    for (std::size_t x = 0; x < grid.prefixes; ++x) {
      for (std::size_t q = 0; q < G; ++q) prefix[q] = _mm256_set1_ps(grid.prefix[q * grid.prefix_stride + x]);
      float* out = scores + x * grid.c;
      for (std::size_t y = 0; y < grid.c; y += 8) {
        __m256 sum = _mm256_loadu_ps(out + y);
        for (std::size_t q = 0; q < G; ++q)
          sum = _mm256_fmadd_ps(_mm256_mul_ps(prefix[q], _mm256_loadu_ps(grid.row + q * grid.row_stride + y)), scale[q], sum);
        _mm256_storeu_ps(out + y, sum);
      }
    }
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i fixed(__m128 p) {
    return _mm256_castpd_si256(_mm256_fmadd_pd(_mm256_cvtps_pd(p), _mm256_set1_pd(0x1p40), _mm256_set1_pd(0x1.8p52)));
  }

  /// 64-bit value times 32-bit weight, modulo 2^64
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i times(__m256i value, __m256i weight) {
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(value, 32), weight);
    return _mm256_add_epi64(_mm256_mul_epu32(value, weight), _mm256_slli_epi64(high, 32));
  }
};

}  // namespace pqkv::detail
