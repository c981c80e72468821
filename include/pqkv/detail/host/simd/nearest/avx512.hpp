// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of the search for nearest centroids (F, BW, DQ, VL). Zero-masked forms stand where g++ 12's headers would warn of
// the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct nearest_kernels<isa::avx512> : nearest_kernels<isa::avx2> {
  PQKV_TARGET_AVX512 static row_extent measure(const float* y, std::size_t n) {
    __m512i bits = _mm512_setzero_si512();
    __m512 squares = _mm512_setzero_ps();
    for (std::size_t i = 0; i < n; i += 16) {
      const auto some = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
      const __m512 x = _mm512_maskz_loadu_ps(some, y + i);
      bits = _mm512_maskz_max_epu32(all16, bits, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
      squares = _mm512_fmadd_ps(x, x, squares);
    }
    const __m256i bits8 = _mm256_max_epu32(_mm512_maskz_extracti32x8_epi32(0xff, bits, 0), _mm512_maskz_extracti32x8_epi32(0xff, bits, 1));
    const __m256 squares8 = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, squares, 0), _mm512_maskz_extractf32x8_ps(0xff, squares, 1));
    return reduced(bits8, squares8);
  }

  PQKV_TARGET_AVX512 static void squared_norms(const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m512 even = _mm512_setzero_ps(), odd = even;
      for (std::size_t i = 0; i < ds; ++i) {
        const __m512 element = _mm512_loadu_ps(centroids + i * c + x);
        even = _mm512_fmadd_ps(element, element, even);
        if (++i == ds) break;
        const __m512 next = _mm512_loadu_ps(centroids + i * c + x);
        odd = _mm512_fmadd_ps(next, next, odd);
      }
      _mm512_storeu_ps(out + x, _mm512_add_ps(even, odd));
    }
  }

  PQKV_TARGET_AVX512 static void write_block(const float* y, std::size_t stride, std::size_t ds, float scale, std::int32_t* block) {
    for (std::size_t i = 0; i < ds; i += 32)
      for (std::size_t r = 0; r < block_rows; r += 16)
        write_square(y + r * stride + i, stride, ds - i, scale, block + i / 2 * block_rows + r);
  }

  PQKV_TARGET_AVX512 static void write_centroids(const float* centroids, std::size_t c, std::size_t count, std::size_t ds, float scale,
                                                 std::int32_t* pairs) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (std::size_t i = 0; i < ds; i += 2)
      for (std::size_t x = 0; x < count; x += 16) {
        const __m512i low = rounded(centroids + i * c + x, factor);
        const __m512i high = i + 1 < ds ? rounded(centroids + (i + 1) * c + x, factor) : _mm512_setzero_si512();
        const __m512i pair = _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_maskz_slli_epi32(all16, high, 16));
        _mm512_storeu_si512(pairs + i / 2 * count + x, pair);
      }
  }

  PQKV_TARGET_AVX512 static void two_least(const std::int32_t* block, const std::int32_t* pairs, const std::int32_t* start,
                                           std::size_t count, std::size_t pair_count, std::size_t first, std::int32_t* least,
                                           std::int32_t* second) {
    constexpr std::size_t together = 8;  // centroids; with two vectors of rows there are 16 sums, enough to hide every latency
    __m512i least0 = _mm512_loadu_si512(least), least1 = _mm512_loadu_si512(least + 16);
    __m512i second0 = _mm512_loadu_si512(second), second1 = _mm512_loadu_si512(second + 16);
    for (std::size_t x = 0; x < count; x += together) {
      __m512i sum[together][2];
      for (std::size_t k = 0; k < together; ++k) sum[k][0] = sum[k][1] = _mm512_set1_epi32(start[x + k]);
      for (std::size_t p = 0; p < pair_count; ++p) {
        const __m512i rows0 = _mm512_loadu_si512(block + p * block_rows), rows1 = _mm512_loadu_si512(block + p * block_rows + 16);
        for (std::size_t k = 0; k < together; ++k) {
          const __m512i centroid = _mm512_set1_epi32(pairs[p * count + x + k]);
          sum[k][0] = _mm512_add_epi32(sum[k][0], _mm512_madd_epi16(rows0, centroid));
          sum[k][1] = _mm512_add_epi32(sum[k][1], _mm512_madd_epi16(rows1, centroid));
        }
      }
      for (std::size_t k = 0; k < together; ++k) {
        const __m512i number = _mm512_set1_epi32(static_cast<int>(first + x + k));
        keep_two(sum[k][0], number, least0, second0);
        keep_two(sum[k][1], number, least1, second1);
      }
    }
    _mm512_storeu_si512(least, least0);
    _mm512_storeu_si512(least + 16, least1);
    _mm512_storeu_si512(second, second0);
    _mm512_storeu_si512(second + 16, second1);
  }

  PQKV_TARGET_AVX512 static void values_of(const std::int32_t* block, const std::int32_t* pairs, const std::int32_t* start,
                                           std::size_t count, std::size_t pair_count, const std::uint8_t* index, std::uint8_t mark,
                                           std::int32_t* out) {
    for (std::size_t r = 0; r < block_rows; r += 16) {
      const __m512i at = _mm512_maskz_cvtepu8_epi32(all16, _mm_loadu_si128(reinterpret_cast<const __m128i*>(index + r)));
      __m512i sum = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), all16, at, start, 4);
      for (std::size_t p = 0; p < pair_count; ++p) {
        const __m512i centroid = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), all16, at, pairs + p * count, 4);
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_loadu_si512(block + p * block_rows + r), centroid));
      }
      _mm512_storeu_si512(out + r, _mm512_ternarylogic_epi32(sum, _mm512_set1_epi32(~0xff), _mm512_set1_epi32(mark), 0xea));
    }
  }

  PQKV_TARGET_AVX512 static std::uint32_t close_calls(const std::int32_t* least, const std::int32_t* second, std::int32_t slack,
                                                      std::uint8_t* index) {
    std::uint32_t close = 0;
    for (std::size_t r = 0; r < block_rows; r += 16) {
      const __m512i one = _mm512_loadu_si512(least + r), gap = _mm512_sub_epi32(_mm512_loadu_si512(second + r), one);
      close |= static_cast<std::uint32_t>(_mm512_cmple_epi32_mask(gap, _mm512_set1_epi32(slack))) << r;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(index + r), _mm512_maskz_cvtepi32_epi8(all16, one));
    }
    return close;
  }

 protected:
  static constexpr __mmask16 all16 = 0xffff;

  PQKV_TARGET_AVX512 static PQKV_INLINE void keep_two(__m512i value, __m512i number, __m512i& least, __m512i& second) {
    const __m512i marked = _mm512_ternarylogic_epi32(value, _mm512_set1_epi32(~0xff), number, 0xea);  // (value & ~0xff) | number
    second = _mm512_maskz_min_epi32(all16, second, _mm512_maskz_max_epi32(all16, least, marked));
    least = _mm512_maskz_min_epi32(all16, least, marked);
  }

 private:
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512i rounded(const float* x, __m512 factor) {
    return _mm512_maskz_cvtps_epi32(all16, _mm512_mul_ps(_mm512_loadu_ps(x), factor));
  }

  /// Transposes 16 rows by up to 32 coordinates in four steps.
  PQKV_TARGET_AVX512 static void write_square(const float* y, std::size_t stride, std::size_t coordinates, float scale, std::int32_t* out) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512i a[16], b[16];
    for (std::size_t r = 0; r < 16; ++r)  // quarter q of a register has the pairs 2q, 2q + 1, 2q + 8, 2q + 9 of the row
      a[r] = _mm512_maskz_packs_epi32(0xffffffffu, rounded(y + r * stride, factor), rounded(y + r * stride + 16, factor));
    for (std::size_t r = 0; r < 16; r += 2) {
      b[r] = _mm512_maskz_unpacklo_epi32(all16, a[r], a[r + 1]);
      b[r + 1] = _mm512_maskz_unpackhi_epi32(all16, a[r], a[r + 1]);
    }
    for (std::size_t r = 0; r < 16; r += 4) {
      a[r] = _mm512_maskz_unpacklo_epi64(0xff, b[r], b[r + 2]);
      a[r + 1] = _mm512_maskz_unpackhi_epi64(0xff, b[r], b[r + 2]);
      a[r + 2] = _mm512_maskz_unpacklo_epi64(0xff, b[r + 1], b[r + 3]);
      a[r + 3] = _mm512_maskz_unpackhi_epi64(0xff, b[r + 1], b[r + 3]);
    }
    // Quarter q of a[4g + k] has the k-th of these pairs for rows 4g to 4g + 3.
    for (std::size_t k = 0; k < 4; ++k) {
      const __m512i rows0 = _mm512_maskz_shuffle_i32x4(all16, a[k], a[4 + k], 0x44),
                    rows1 = _mm512_maskz_shuffle_i32x4(all16, a[8 + k], a[12 + k], 0x44);
      const __m512i rows2 = _mm512_maskz_shuffle_i32x4(all16, a[k], a[4 + k], 0xee),
                    rows3 = _mm512_maskz_shuffle_i32x4(all16, a[8 + k], a[12 + k], 0xee);
      b[k] = _mm512_maskz_shuffle_i32x4(all16, rows0, rows1, 0x88);
      b[4 + k] = _mm512_maskz_shuffle_i32x4(all16, rows0, rows1, 0xdd);
      b[8 + k] = _mm512_maskz_shuffle_i32x4(all16, rows2, rows3, 0x88);
      b[12 + k] = _mm512_maskz_shuffle_i32x4(all16, rows2, rows3, 0xdd);
    }
    for (std::size_t q = 0; q < 4; ++q)
      for (std::size_t k = 0; k < 4; ++k) {
        const std::size_t pair = 2 * q + k % 2 + k / 2 * 8;
        if (2 * pair < coordinates) _mm512_storeu_si512(out + pair * block_rows, b[4 * q + k]);
      }
  }
};

}  // namespace pqkv::detail
