// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of quantized scans (F, BW, DQ, VL): permutes of 16-bit entries, 32 from one register or 64 from two. Zero-masked forms
// are used where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct sum_kernels<isa::avx512> : sum_kernels<isa::avx2> {
  template <class Entry>
  PQKV_TARGET_AVX512 static void quantized_sums(const Entry* table, std::size_t queries, std::size_t m, std::size_t c,
                                                const std::uint8_t* codes, std::size_t stride, std::size_t n, std::uint16_t* out,
                                                std::size_t out_stride) {
    // Query heads handled together: as many as have room for their sums and one table in 32 registers.
    if (c <= 32) groups<1, 4>(table, queries, m, c, codes, stride, n, out, out_stride);
    if (c == 64) groups<2, 4>(table, queries, m, c, codes, stride, n, out, out_stride);
    if (c == 128) groups<4, 2>(table, queries, m, c, codes, stride, n, out, out_stride);
    if (c == 256) groups<8, 2>(table, queries, m, c, codes, stride, n, out, out_stride);
  }

 private:
  static constexpr __mmask32 all32 = 0xffffffffu;

  template <std::size_t Registers, std::size_t Queries, class Entry>
  PQKV_TARGET_AVX512 static PQKV_INLINE void groups(const Entry* table, std::size_t queries, std::size_t m, std::size_t c,
                                                    const std::uint8_t* codes, std::size_t stride, std::size_t n, std::uint16_t* out,
                                                    std::size_t out_stride) {
    std::size_t q = 0;
    for (; q + Queries <= queries; q += Queries)
      tokens<Registers, Queries>(table + q * m * c, m, c, codes, stride, n, out + q * out_stride, out_stride);
    for (; q < queries; ++q) tokens<Registers, 1>(table + q * m * c, m, c, codes, stride, n, out + q * out_stride, out_stride);
  }

  template <std::size_t Registers, std::size_t Queries, class Entry>
  PQKV_TARGET_AVX512 static PQKV_INLINE void tokens(const Entry* table, std::size_t m, std::size_t c, const std::uint8_t* codes,
                                                    std::size_t stride, std::size_t n, std::uint16_t* out, std::size_t out_stride) {
    std::size_t t = 0;
    for (; t + 128 <= n; t += 128) block<Registers, Queries, 4>(table, m, c, codes + t, stride, out + t, out_stride);
    for (; t + 32 <= n; t += 32) block<Registers, Queries, 1>(table, m, c, codes + t, stride, out + t, out_stride);
    sum_kernels<isa::scalar>::quantized_sums(table, Queries, m, c, codes + t, stride, n - t, out + t, out_stride);
  }

  /// Vectors * 32 tokens of several query heads. A code is widened once for all heads, and a table is loaded once for all vectors.
  template <std::size_t Registers, std::size_t Queries, std::size_t Vectors, class Entry>
  PQKV_TARGET_AVX512 static PQKV_INLINE void block(const Entry* table, std::size_t m, std::size_t c, const std::uint8_t* codes,
                                                   std::size_t stride, std::uint16_t* out, std::size_t out_stride) {
    __m512i sums[Queries * Vectors];
    add_subspace<Registers, Queries, Vectors, true>(table, m * c, c, codes, sums);
    for (std::size_t j = 1; j < m; ++j) add_subspace<Registers, Queries, Vectors, false>(table + j * c, m * c, c, codes + j * stride, sums);
#pragma GCC unroll 4
    for (std::size_t q = 0; q < Queries; ++q)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < Vectors; ++v) _mm512_storeu_si512(out + q * out_stride + 32 * v, sums[q * Vectors + v]);
  }

  template <std::size_t Registers, std::size_t Queries, std::size_t Vectors, bool First, class Entry>
  PQKV_TARGET_AVX512 static PQKV_INLINE void add_subspace(const Entry* table, std::size_t query_stride, std::size_t c,
                                                          const std::uint8_t* codes, __m512i* sums) {
    __m512i index[Vectors], held[Registers];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < Vectors; ++v)
      index[v] = _mm512_maskz_cvtepu8_epi16(all32, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * v)));
#pragma GCC unroll 4
    for (std::size_t q = 0; q < Queries; ++q) {
#pragma GCC unroll 8
      for (std::size_t i = 0; i < Registers; ++i) held[i] = words(table + q * query_stride + 32 * i, c);
#pragma GCC unroll 4
      for (std::size_t v = 0; v < Vectors; ++v) {
        const __m512i found = entries_at<Registers>(held, index[v]);
        sums[q * Vectors + v] = First ? found : _mm512_add_epi16(sums[q * Vectors + v], found);
      }
    }
  }

  /// 32 entries as words; of a table of 16, those.
  template <class Entry>
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512i words(const Entry* table, std::size_t c) {
    const __mmask32 there = c == 16 ? 0xffffu : all32;
    if constexpr (sizeof(Entry) == 2)
      return _mm512_maskz_loadu_epi16(there, table);
    else
      return _mm512_maskz_cvtepu8_epi16(all32, _mm256_maskz_loadu_epi8(there, table));
  }

  template <std::size_t Registers>
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512i entries_at(const __m512i* table, __m512i index) {
    if constexpr (Registers == 1) return _mm512_maskz_permutexvar_epi16(all32, index, table[0]);
    if constexpr (Registers == 2) return _mm512_permutex2var_epi16(table[0], index, table[1]);
    if constexpr (Registers > 2) {
      const __mmask32 upper = _mm512_test_epi16_mask(index, _mm512_set1_epi16(static_cast<short>(Registers * 16)));
      return _mm512_mask_blend_epi16(upper, entries_at<Registers / 2>(table, index),
                                     entries_at<Registers / 2>(table + Registers / 2, index));
    }
  }
};

}  // namespace pqkv::detail
