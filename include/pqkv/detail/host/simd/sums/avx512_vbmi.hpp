// SPDX-License-Identifier: Apache-2.0
// AVX-512 VBMI kernels of quantized scans: permutes of bytes, 128 from two registers, for tables of 128 and 256 bytes, or of as many words
// in two planes of bytes. Smaller tables use permutes of words, which are as many and need no interleaving (measured for 64 bytes: 12.1
// against 15.2 us for 131072 tokens of 4 query heads and 2 subspaces; bench/quantized_scan.cpp, one core of Zen 5).
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx512.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct sum_kernels<isa::avx512_vbmi> : sum_kernels<isa::avx512> {
  using base = sum_kernels<isa::avx512>;

  template <class Entry>
  PQKV_TARGET_VBMI static void quantized_sums(const Entry* table, std::size_t queries, std::size_t m, std::size_t c,
                                              const std::uint8_t* codes, std::size_t stride, std::size_t n, std::uint16_t* out,
                                              std::size_t out_stride) {
    if (c <= 64) {
      base::quantized_sums(table, queries, m, c, codes, stride, n, out, out_stride);
      return;
    }
    for (std::size_t q = 0; q < queries; ++q, table += m * c, out += out_stride) {
      if (c == 128) tokens<2>(table, m, c, codes, stride, n, out);
      if (c == 256) tokens<4>(table, m, c, codes, stride, n, out);
    }
  }

 private:
  static constexpr std::size_t vectors = 4;  // of 64 tokens; a table is loaded once for all of them

  /// One query head.
  template <std::size_t Registers, class Entry>
  PQKV_TARGET_VBMI static PQKV_INLINE void tokens(const Entry* table, std::size_t m, std::size_t c, const std::uint8_t* codes,
                                                  std::size_t stride, std::size_t n, std::uint16_t* out) {
    alignas(64) std::uint8_t planes[sizeof(Entry) * max_summed_subspaces * Registers * 64];
    split(table, m, c, planes);
    std::size_t t = 0;
    for (; t + 64 * vectors <= n; t += 64 * vectors) block<Registers, vectors, Entry>(planes, m, codes + t, stride, out + t);
    for (; t + 64 <= n; t += 64) block<Registers, 1, Entry>(planes, m, codes + t, stride, out + t);
    sum_kernels<isa::scalar>::quantized_sums(table, 1, m, c, codes + t, stride, n - t, out + t, 0);
  }

  /// For every subspace the low bytes of its entries and then, for words, the high bytes.
  template <class Entry>
  PQKV_TARGET_VBMI static PQKV_INLINE void split(const Entry* table, std::size_t m, std::size_t c, std::uint8_t* planes) {
    if constexpr (sizeof(Entry) == 1) {
      for (std::size_t i = 0; i < m * c; i += 64) _mm512_store_si512(planes + i, _mm512_loadu_si512(table + i));
    } else {
      alignas(64) std::uint8_t evens[64];
      for (std::size_t i = 0; i < 64; ++i) evens[i] = static_cast<std::uint8_t>(2 * i);
      const __m512i low = _mm512_load_si512(evens), high = _mm512_add_epi8(low, _mm512_set1_epi8(1));
      for (std::size_t j = 0; j < m; ++j, table += c, planes += 2 * c)
        for (std::size_t x = 0; x < c; x += 64) {
          const __m512i a = _mm512_loadu_si512(table + x), b = _mm512_loadu_si512(table + x + 32);
          _mm512_store_si512(planes + x, _mm512_permutex2var_epi8(a, low, b));
          _mm512_store_si512(planes + c + x, _mm512_permutex2var_epi8(a, high, b));
        }
    }
  }

  /// Vectors * 64 tokens. Widening bytes to words changes their order, which `store` restores.
  template <std::size_t Registers, std::size_t Vectors, class Entry>
  PQKV_TARGET_VBMI static PQKV_INLINE void block(const std::uint8_t* planes, std::size_t m, const std::uint8_t* codes, std::size_t stride,
                                                 std::uint16_t* out) {
    __m512i first[Vectors], second[Vectors], low[Registers], high[Registers];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < Vectors; ++v) first[v] = second[v] = _mm512_setzero_si512();
    for (std::size_t j = 0; j < m; ++j, codes += stride, planes += sizeof(Entry) * Registers * 64) {
#pragma GCC unroll 4
      for (std::size_t i = 0; i < Registers; ++i) {
        low[i] = _mm512_load_si512(planes + 64 * i);
        if constexpr (sizeof(Entry) == 2) high[i] = _mm512_load_si512(planes + 64 * (Registers + i));
      }
#pragma GCC unroll 4
      for (std::size_t v = 0; v < Vectors; ++v) {
        const __m512i code = _mm512_loadu_si512(codes + 64 * v);
        const __m512i bytes = entries_at<Registers>(low, code);
        if constexpr (sizeof(Entry) == 2) {
          const __m512i upper = entries_at<Registers>(high, code);
          first[v] = _mm512_add_epi16(first[v], _mm512_unpacklo_epi8(bytes, upper));
          second[v] = _mm512_add_epi16(second[v], _mm512_unpackhi_epi8(bytes, upper));
        } else {  // words of two neighbours, and the upper one alone
          first[v] = _mm512_add_epi16(first[v], bytes);
          second[v] = _mm512_add_epi16(second[v], _mm512_maskz_srli_epi16(0xffffffffu, bytes, 8));
        }
      }
    }
#pragma GCC unroll 4
    for (std::size_t v = 0; v < Vectors; ++v) {
      if constexpr (sizeof(Entry) == 2) {
        store(first[v], second[v], out + 64 * v);
      } else {
        const __m512i even = _mm512_sub_epi16(first[v], _mm512_maskz_slli_epi16(0xffffffffu, second[v], 8));
        store(_mm512_unpacklo_epi16(even, second[v]), _mm512_unpackhi_epi16(even, second[v]), out + 64 * v);
      }
    }
  }

  /// Groups of eight tokens 0, 2, 4, 6 and groups 1, 3, 5, 7.
  PQKV_TARGET_VBMI static PQKV_INLINE void store(__m512i even, __m512i odd, std::uint16_t* out) {
    const __m512i front = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), back = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(even, front, odd));
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi64(even, back, odd));
  }

  template <std::size_t Registers>
  PQKV_TARGET_VBMI static PQKV_INLINE __m512i entries_at(const __m512i* table, __m512i code) {
    if constexpr (Registers == 2) return _mm512_permutex2var_epi8(table[0], code, table[1]);
    if constexpr (Registers == 4)
      return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), _mm512_permutex2var_epi8(table[0], code, table[1]),
                                    _mm512_permutex2var_epi8(table[2], code, table[3]));
  }
};

}  // namespace pqkv::detail
