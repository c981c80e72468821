// SPDX-License-Identifier: Apache-2.0
// AVX-512 VBMI kernels of scores: floats are looked up in pieces. A table of 64 floats is two tables of 64 words; a larger one is four
// planes of bytes, of which one permute reads 64 or 128 entries at once. Interleaving joins the pieces. Smaller tables gain nothing.
// Measured: bench/scan.cpp, probability_sum, one core of Zen 5: 1.2 times as fast as permutes of floats at 64 entries, 2.3 times at 256.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx512.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct score_kernels<isa::avx512_vbmi> : score_kernels<isa::avx512> {
  using base = score_kernels<isa::avx512>;

  PQKV_TARGET_VBMI static void products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                        std::size_t n, float* out) {
    const std::size_t whole = pieces<look_up_step::multiply>(e, m, c, codes, stride, n, out);
    base::products(e, m, c, codes + whole, stride, n - whole, out + whole);
  }

  PQKV_TARGET_VBMI static void sums(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                    std::size_t n, float* out) {
    const std::size_t whole = pieces<look_up_step::add>(table, m, c, codes, stride, n, out);
    base::sums(table, m, c, codes + whole, stride, n - whole, out + whole);
  }

 private:
  static constexpr std::size_t most_subspaces = 16;
  static constexpr __mmask64 even_bytes = 0x5555555555555555u;

  template <look_up_step Step>
  PQKV_TARGET_VBMI static PQKV_INLINE __m512 join(__m512 a, __m512 b) {
    if constexpr (Step == look_up_step::multiply)
      return _mm512_mul_ps(a, b);
    else
      return _mm512_add_ps(a, b);
  }

  /// Scores as many tokens as it can, from the first on; returns how many.
  template <look_up_step Step>
  PQKV_TARGET_VBMI static PQKV_INLINE std::size_t pieces(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes,
                                                         std::size_t stride, std::size_t n, float* out) {
    if (c < 64 || m > most_subspaces || n < 128) return 0;
    if (c == 64) return by_words<Step>(table, m, codes, stride, n, out);
    return c == 128 ? by_bytes<2, Step>(table, m, codes, stride, n, out) : by_bytes<4, Step>(table, m, codes, stride, n, out);
  }

  template <look_up_step Step>
  PQKV_TARGET_VBMI static PQKV_INLINE std::size_t by_words(const float* table, std::size_t m, const std::uint8_t* codes, std::size_t stride,
                                                           std::size_t n, float* out) {
    alignas(64) std::uint16_t halves[most_subspaces * 128], numbers[32];
    for (std::size_t i = 0; i < 32; ++i) numbers[i] = static_cast<std::uint16_t>(2 * i);
    const __m512i even = _mm512_load_si512(numbers), odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t x = 0; x < 64; x += 32) {
        const __m512i a = _mm512_loadu_si512(table + j * 64 + x), b = _mm512_loadu_si512(table + j * 64 + x + 16);
        _mm512_store_si512(halves + j * 128 + x, _mm512_permutex2var_epi16(a, even, b));
        _mm512_store_si512(halves + j * 128 + 64 + x, _mm512_permutex2var_epi16(a, odd, b));
      }
    // Interleaving takes four words in turn from the lower and the upper half of every 128 bits: codes 0 to 3 and 16 to 19 go there.
    alignas(64) std::uint8_t order[64];
    for (std::size_t i = 0; i < 32; ++i) order[2 * i] = order[2 * i + 1] = static_cast<std::uint8_t>(i / 8 * 4 + i % 4 + (i / 4 % 2) * 16);
    const __m512i widened = _mm512_load_si512(order);
    std::size_t t = 0;
    for (; t + 64 <= n; t += 64) {
      __m512 found[4] = {};
      for (std::size_t j = 0; j < m; ++j) {
        const std::uint16_t* held = halves + j * 128;
        const __m512i low0 = _mm512_load_si512(held), low1 = _mm512_load_si512(held + 32);
        const __m512i high0 = _mm512_load_si512(held + 64), high1 = _mm512_load_si512(held + 96);
#pragma GCC unroll 2
        for (std::size_t i = 0; i < 2; ++i) {
          const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + j * stride + t + 32 * i));
          const __m512i index = _mm512_maskz_permutexvar_epi8(even_bytes, widened, _mm512_castsi256_si512(code));
          const __m512i low = _mm512_permutex2var_epi16(low0, index, low1), high = _mm512_permutex2var_epi16(high0, index, high1);
          const __m512 front = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, high));
          const __m512 back = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, high));
          found[2 * i] = j == 0 ? front : join<Step>(found[2 * i], front);
          found[2 * i + 1] = j == 0 ? back : join<Step>(found[2 * i + 1], back);
        }
      }
#pragma GCC unroll 4
      for (std::size_t i = 0; i < 4; ++i) _mm512_storeu_ps(out + t + 16 * i, found[i]);
    }
    return t;
  }

  template <std::size_t Registers, look_up_step Step>
  PQKV_TARGET_VBMI static PQKV_INLINE std::size_t by_bytes(const float* table, std::size_t m, const std::uint8_t* codes, std::size_t stride,
                                                           std::size_t n, float* out) {
    constexpr std::size_t c = Registers * 64;
    alignas(64) std::uint8_t planes[most_subspaces * c * 4];
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t x = 0; x < c; x += 64) split(table + j * c + x, planes + j * c * 4 + x, c);
    // As above, with four bytes of every 16. After both interleavings, groups of sixteen tokens are in order.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    std::size_t t = 0;
    for (; t + 128 <= n; t += 128) {
      __m512 found[8] = {};
      for (std::size_t j = 0; j < m; ++j) {
        __m512i piece[8], code[2];
#pragma GCC unroll 2
        for (std::size_t i = 0; i < 2; ++i)
          code[i] = _mm512_maskz_permutexvar_epi32(all16, order, _mm512_loadu_si512(codes + j * stride + t + 64 * i));
#pragma GCC unroll 4
        for (std::size_t plane = 0; plane < 4; ++plane) {
          __m512i held[Registers];
#pragma GCC unroll 4
          for (std::size_t r = 0; r < Registers; ++r) held[r] = _mm512_load_si512(planes + (j * 4 + plane) * c + 64 * r);
#pragma GCC unroll 2
          for (std::size_t i = 0; i < 2; ++i) piece[4 * i + plane] = bytes_at<Registers>(held, code[i]);
        }
#pragma GCC unroll 2
        for (std::size_t i = 0; i < 2; ++i) {
          const __m512i low01 = _mm512_unpacklo_epi8(piece[4 * i], piece[4 * i + 1]),
                        high01 = _mm512_unpackhi_epi8(piece[4 * i], piece[4 * i + 1]);
          const __m512i low23 = _mm512_unpacklo_epi8(piece[4 * i + 2], piece[4 * i + 3]);
          const __m512i high23 = _mm512_unpackhi_epi8(piece[4 * i + 2], piece[4 * i + 3]);
          const __m512 entries[4] = {
              _mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23)), _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23)),
              _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23)), _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23))};
#pragma GCC unroll 4
          for (std::size_t k = 0; k < 4; ++k) found[4 * i + k] = j == 0 ? entries[k] : join<Step>(found[4 * i + k], entries[k]);
        }
      }
#pragma GCC unroll 8
      for (std::size_t i = 0; i < 8; ++i) _mm512_storeu_ps(out + t + 16 * i, found[i]);
    }
    return t;
  }

  /// 64 floats in four planes of 64 bytes, `apart` apart.
  PQKV_TARGET_VBMI static PQKV_INLINE void split(const float* table, std::uint8_t* planes, std::size_t apart) {
    alignas(64) std::uint8_t order[64];
    for (std::size_t i = 0; i < 64; ++i) order[i] = static_cast<std::uint8_t>(i % 16 * 4 + i / 16);
    const __m512i sorted = _mm512_load_si512(order);
    for (std::size_t i = 0; i < 4; ++i) {
      alignas(64) std::uint8_t bytes[64];
      _mm512_store_si512(bytes, _mm512_maskz_permutexvar_epi8(~__mmask64{0}, sorted, _mm512_loadu_si512(table + 16 * i)));
      for (std::size_t plane = 0; plane < 4; ++plane)
        _mm_store_si128(reinterpret_cast<__m128i*>(planes + plane * apart + 16 * i),
                        _mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16 * plane)));
    }
  }

  template <std::size_t Registers>
  PQKV_TARGET_VBMI static PQKV_INLINE __m512i bytes_at(const __m512i* table, __m512i code) {
    const __m512i lower = _mm512_permutex2var_epi8(table[0], code, table[1]);
    if constexpr (Registers == 2)
      return lower;
    else
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), lower, _mm512_permutex2var_epi8(table[2], code, table[3]));
  }
};

}  // namespace pqkv::detail
