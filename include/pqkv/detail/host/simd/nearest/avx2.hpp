// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of the search for nearest centroids (with FMA and F16C).
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct nearest_kernels<isa::avx2> : nearest_kernels<isa::scalar> {
  using base = nearest_kernels<isa::scalar>;

  PQKV_TARGET_AVX2 static row_extent measure(const float* y, std::size_t n) {
    __m256i bits = _mm256_setzero_si256();
    __m256 squares = _mm256_setzero_ps();
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 x = _mm256_loadu_ps(y + i);
      bits = _mm256_max_epu32(bits, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)));
      squares = _mm256_fmadd_ps(x, x, squares);
    }
    const row_extent most = reduced(bits, squares), rest = base::measure(y + i, n - i);
    return {float_bits(most.largest) > float_bits(rest.largest) ? most.largest : rest.largest, most.squared_norm + rest.squared_norm};
  }

  PQKV_TARGET_AVX2 static void squared_norms(const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m256 low = _mm256_setzero_ps(), high = low;
      for (std::size_t i = 0; i < ds; ++i) {
        const __m256 a = _mm256_loadu_ps(centroids + i * c + x), b = _mm256_loadu_ps(centroids + i * c + x + 8);
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
      }
      _mm256_storeu_ps(out + x, low);
      _mm256_storeu_ps(out + x + 8, high);
    }
  }

  PQKV_TARGET_AVX2 static void write_block(const float* y, std::size_t stride, std::size_t ds, float scale, std::int32_t* block) {
    for (std::size_t i = 0; i < ds; i += 16)
      for (std::size_t r = 0; r < block_rows; r += 8)
        write_square(y + r * stride + i, stride, ds - i, scale, block + i / 2 * block_rows + r);
  }

  PQKV_TARGET_AVX2 static void write_centroids(const float* centroids, std::size_t c, std::size_t count, std::size_t ds, float scale,
                                               std::int32_t* pairs) {
    const __m256 factor = _mm256_set1_ps(scale);
    for (std::size_t i = 0; i < ds; i += 2)
      for (std::size_t x = 0; x < count; x += 8) {
        const __m256i low = rounded(centroids + i * c + x, factor);
        const __m256i high = i + 1 < ds ? rounded(centroids + (i + 1) * c + x, factor) : _mm256_setzero_si256();
        const __m256i pair = _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + i / 2 * count + x), pair);
      }
  }

  PQKV_TARGET_AVX2 static void two_least(const std::int32_t* block, const std::int32_t* pairs, const std::int32_t* start, std::size_t count,
                                         std::size_t pair_count, std::size_t first, std::int32_t* least, std::int32_t* second) {
    constexpr std::size_t together = 4;  // centroids; with two vectors of rows there are 8 sums, and registers remain for products
    for (std::size_t r = 0; r < block_rows; r += 16)
      for (std::size_t x = 0; x < count; x += together) {
        __m256i sum[together][2];
        for (std::size_t k = 0; k < together; ++k) sum[k][0] = sum[k][1] = _mm256_set1_epi32(start[x + k]);
        for (std::size_t p = 0; p < pair_count; ++p) {
          const __m256i rows0 = load(block + p * block_rows + r), rows1 = load(block + p * block_rows + r + 8);
          for (std::size_t k = 0; k < together; ++k) {
            const __m256i centroid = _mm256_set1_epi32(pairs[p * count + x + k]);
            sum[k][0] = _mm256_add_epi32(sum[k][0], _mm256_madd_epi16(rows0, centroid));
            sum[k][1] = _mm256_add_epi32(sum[k][1], _mm256_madd_epi16(rows1, centroid));
          }
        }
        __m256i least0 = load(least + r), least1 = load(least + r + 8);
        __m256i second0 = load(second + r), second1 = load(second + r + 8);
        for (std::size_t k = 0; k < together; ++k) {
          const __m256i number = _mm256_set1_epi32(static_cast<int>(first + x + k));
          keep_two(sum[k][0], number, least0, second0);
          keep_two(sum[k][1], number, least1, second1);
        }
        store(least0, least + r), store(least1, least + r + 8);
        store(second0, second + r), store(second1, second + r + 8);
      }
  }

  PQKV_TARGET_AVX2 static void values_of(const std::int32_t* block, const std::int32_t* pairs, const std::int32_t* start, std::size_t count,
                                         std::size_t pair_count, const std::uint8_t* index, std::uint8_t mark, std::int32_t* out) {
    for (std::size_t r = 0; r < block_rows; r += 8) {
      const __m256i at = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(index + r)));
      __m256i sum = _mm256_i32gather_epi32(start, at, 4);
      for (std::size_t p = 0; p < pair_count; ++p) {
        const __m256i centroid = _mm256_i32gather_epi32(pairs + p * count, at, 4);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(load(block + p * block_rows + r), centroid));
      }
      store(_mm256_or_si256(_mm256_and_si256(sum, _mm256_set1_epi32(~0xff)), _mm256_set1_epi32(mark)), out + r);
    }
  }

  PQKV_TARGET_AVX2 static std::uint32_t close_calls(const std::int32_t* least, const std::int32_t* second, std::int32_t slack,
                                                    std::uint8_t* index) {
    std::uint32_t clear = 0;
    for (std::size_t r = 0; r < block_rows; r += 8) {
      const __m256i gap = _mm256_sub_epi32(load(second + r), load(least + r));
      const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(gap, _mm256_set1_epi32(slack))));
      clear |= static_cast<std::uint32_t>(mask) << r;
    }
    for (std::size_t r = 0; r < block_rows; ++r) index[r] = static_cast<std::uint8_t>(least[r] & 0xff);
    return ~clear;
  }

 protected:
  PQKV_TARGET_AVX2 static PQKV_INLINE row_extent reduced(__m256i bits, __m256 squares) {
    __m128i b = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(squares), _mm256_extractf128_ps(squares, 1));
    b = _mm_max_epu32(b, _mm_shuffle_epi32(b, 0x4e));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    b = _mm_max_epu32(b, _mm_shuffle_epi32(b, 0xb1));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return {float_from_bits(static_cast<std::uint32_t>(_mm_cvtsi128_si32(b))), _mm_cvtss_f32(s)};
  }

 private:
  static_assert(block_rows == 32);

  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i load(const std::int32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i rounded(const float* x, __m256 factor) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE void store(__m256i value, std::int32_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE void keep_two(__m256i value, __m256i number, __m256i& least, __m256i& second) {
    const __m256i marked = _mm256_or_si256(_mm256_and_si256(value, _mm256_set1_epi32(~0xff)), number);
    second = _mm256_min_epi32(second, _mm256_max_epi32(least, marked));
    least = _mm256_min_epi32(least, marked);
  }

  /// Transposes 8 rows by up to 16 coordinates in three steps.
  PQKV_TARGET_AVX2 static void write_square(const float* y, std::size_t stride, std::size_t coordinates, float scale, std::int32_t* out) {
    const __m256 factor = _mm256_set1_ps(scale);
    __m256i a[8], b[8];
    for (std::size_t r = 0; r < 8; ++r)  // half q of a register has the pairs 2q, 2q + 1, 2q + 4, 2q + 5 of the row
      a[r] = _mm256_packs_epi32(rounded(y + r * stride, factor), rounded(y + r * stride + 8, factor));
    for (std::size_t r = 0; r < 8; r += 2) {
      b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
    }
    for (std::size_t r = 0; r < 8; r += 4) {
      a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    for (std::size_t k = 0; k < 4; ++k) {
      b[k] = _mm256_permute2x128_si256(a[k], a[4 + k], 0x20);
      b[4 + k] = _mm256_permute2x128_si256(a[k], a[4 + k], 0x31);
    }
    for (std::size_t q = 0; q < 2; ++q)
      for (std::size_t k = 0; k < 4; ++k) {
        const std::size_t pair = 2 * q + k % 2 + k / 2 * 4;
        if (2 * pair < coordinates) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + pair * block_rows), b[4 * q + k]);
      }
  }
};

}  // namespace pqkv::detail
