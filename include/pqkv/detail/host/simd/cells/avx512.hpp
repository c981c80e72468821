// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of cells (F, BW, DQ, VL). Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct cell_kernels<isa::avx512> : cell_kernels<isa::avx2> {
  PQKV_TARGET_AVX512 static std::uint64_t cell_total(const cell_grid& grid, const std::uint32_t* weights, std::uint64_t weight_sum) {
    // The bits of p * 2^40 + magic. The magic's own bits are subtracted at the end, modulo 2^64.
    const __m512d magic = _mm512_set1_pd(0x1.8p52), scale = _mm512_set1_pd(0x1p40);
    __m512i low = _mm512_setzero_si512(), high = low;
    for (std::size_t x = 0; x < grid.prefixes; ++x) {
      const __m512 prefix = _mm512_set1_ps(grid.prefix[x]);
      for (std::size_t y = 0; y < grid.c; y += 16) {
        const __m512 p = _mm512_mul_ps(prefix, _mm512_loadu_ps(grid.row + y));
        const __m512d a = _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, p, 0));
        const __m512d b = _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, p, 1));
        const std::uint32_t* weight = weights + x * grid.c + y;
        low = _mm512_add_epi64(low, _mm512_mullo_epi64(_mm512_castpd_si512(_mm512_fmadd_pd(a, scale, magic)), widened(weight)));
        high = _mm512_add_epi64(high, _mm512_mullo_epi64(_mm512_castpd_si512(_mm512_fmadd_pd(b, scale, magic)), widened(weight + 8)));
      }
    }
    alignas(64) std::uint64_t lanes[8];
    _mm512_store_si512(lanes, _mm512_add_epi64(low, high));
    std::uint64_t z = 0;
    for (const std::uint64_t lane : lanes) z += lane;
    return z - weight_sum * __builtin_bit_cast(std::uint64_t, 0x1.8p52);
  }

  PQKV_TARGET_AVX512 static void add_cells(const cell_grid& grid, const float* factor, float* scores) {
    if (grid.g == 1) add_group<1>(grid, factor, scores);
    if (grid.g == 2) add_group<2>(grid, factor, scores);
    if (grid.g == 3) add_group<3>(grid, factor, scores);
    if (grid.g == 4) add_group<4>(grid, factor, scores);
  }

  PQKV_TARGET_AVX512 static void digits(const std::int32_t* cells, std::size_t n, unsigned shift, unsigned mask, std::uint8_t* codes) {
    const __m128i places = _mm_cvtsi32_si128(static_cast<int>(shift));
    const __m512i low = _mm512_set1_epi32(static_cast<int>(mask));
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m512i digit = _mm512_and_si512(_mm512_maskz_srl_epi32(0xffff, _mm512_loadu_si512(cells + i), places), low);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_maskz_cvtepi32_epi8(0xffff, digit));
    }
    cell_kernels<isa::scalar>::digits(cells + i, n - i, shift, mask, codes + i);
  }

 private:
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512i widened(const std::uint32_t* eight) {
    return _mm512_maskz_cvtepu32_epi64(0xff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(eight)));
  }

  template <std::size_t G>
  PQKV_TARGET_AVX512 static PQKV_INLINE void add_group(const cell_grid& grid, const float* factor, float* scores) {
    __m512 prefix[G], scale[G];
    for (std::size_t q = 0; q < G; ++q) scale[q] = _mm512_set1_ps(factor[q]);
    for (std::size_t x = 0; x < grid.prefixes; ++x) {
      for (std::size_t q = 0; q < G; ++q) prefix[q] = _mm512_set1_ps(grid.prefix[q * grid.prefix_stride + x]);
      float* out = scores + x * grid.c;
      for (std::size_t y = 0; y < grid.c; y += 16) {
        __m512 sum = _mm512_loadu_ps(out + y);
        for (std::size_t q = 0; q < G; ++q)
          sum = _mm512_fmadd_ps(_mm512_mul_ps(prefix[q], _mm512_loadu_ps(grid.row + q * grid.row_stride + y)), scale[q], sum);
        _mm512_storeu_ps(out + y, sum);
      }
    }
  }
};

}  // namespace pqkv::detail
