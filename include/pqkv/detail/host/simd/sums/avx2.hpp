// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of quantized scans: byte shuffles of 16 entries. A larger table takes one shuffle for each sixteen entries. Each shuffle
// must ignore the codes of the others: a saturating addition leaves bit 7 set if the upper four bits of a code are not its own.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct sum_kernels<isa::avx2> : sum_kernels<isa::scalar> {
  using base = sum_kernels<isa::scalar>;

  template <class Entry>
  PQKV_TARGET_AVX2 static void quantized_sums(const Entry* table, std::size_t queries, std::size_t m, std::size_t c,
                                              const std::uint8_t* codes, std::size_t stride, std::size_t n, std::uint16_t* out,
                                              std::size_t out_stride) {
    std::size_t q = 0;
    for (; q + 4 <= queries; q += 4) group<4>(table + q * m * c, m, c, codes, stride, n, out + q * out_stride, out_stride);
    for (; q < queries; ++q) group<1>(table + q * m * c, m, c, codes, stride, n, out + q * out_stride, out_stride);
  }

 private:
  /// The table of one subspace as byte planes. For every sixteen entries and query head it has the low bytes and then, for 16 bits, the
  /// high bytes.
  template <std::size_t Queries, class Entry>
  PQKV_TARGET_AVX2 static PQKV_INLINE void split(const Entry* table, std::size_t query_stride, std::size_t c, __m128i* planes) {
    const __m128i low_bytes = _mm_set1_epi16(0xff);
    for (std::size_t x = 0; x < c; x += 16)
      for (std::size_t q = 0; q < Queries; ++q) {
        const auto* from = reinterpret_cast<const __m128i*>(table + q * query_stride + x);
        const __m128i a = _mm_loadu_si128(from);
        if constexpr (sizeof(Entry) == 1) {
          _mm_store_si128(planes++, a);
        } else {
          const __m128i b = _mm_loadu_si128(from + 1);
          _mm_store_si128(planes++, _mm_packus_epi16(_mm_and_si128(a, low_bytes), _mm_and_si128(b, low_bytes)));
          _mm_store_si128(planes++, _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8)));
        }
      }
  }

  template <std::size_t Queries, class Entry>
  PQKV_TARGET_AVX2 static PQKV_INLINE void group(const Entry* table, std::size_t m, std::size_t c, const std::uint8_t* codes,
                                                 std::size_t stride, std::size_t n, std::uint16_t* out, std::size_t out_stride) {
    constexpr std::size_t lookups = Queries * sizeof(Entry);
    alignas(32) __m128i planes[16 * lookups];
    const std::size_t whole = n / 32 * 32;
    const __m256i seven = _mm256_set1_epi8(0x70);
    for (std::size_t j = 0; j < m; ++j) {
      split<Queries>(table + j * c, m * c, c, planes);
      for (std::size_t t = 0; t < whole; t += 32) {
        const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + j * stride + t));
        __m256i found[lookups];
#pragma GCC unroll 8
        for (std::size_t i = 0; i < lookups; ++i) found[i] = _mm256_setzero_si256();
        for (std::size_t sixteen = 0; sixteen < c / 16; ++sixteen) {
          const __m256i upper = _mm256_set1_epi8(static_cast<char>(sixteen * 16));
          const __m256i index = _mm256_adds_epu8(_mm256_xor_si256(code, upper), seven);
#pragma GCC unroll 8
          for (std::size_t i = 0; i < lookups; ++i) {
            const __m256i entries = _mm256_broadcastsi128_si256(planes[sixteen * lookups + i]);
            found[i] = _mm256_or_si256(found[i], _mm256_shuffle_epi8(entries, index));
          }
        }
#pragma GCC unroll 4
        for (std::size_t q = 0; q < Queries; ++q) {
          const __m256i low = found[q * sizeof(Entry)];
          const __m256i high = sizeof(Entry) == 1 ? _mm256_setzero_si256() : found[(q + 1) * sizeof(Entry) - 1];
          const __m256i even = _mm256_unpacklo_epi8(low, high), odd = _mm256_unpackhi_epi8(low, high);
          put(_mm256_permute2x128_si256(even, odd, 0x20), j == 0, out + q * out_stride + t);
          put(_mm256_permute2x128_si256(even, odd, 0x31), j == 0, out + q * out_stride + t + 16);
        }
      }
    }
    base::quantized_sums(table, Queries, m, c, codes + whole, stride, n - whole, out + whole, out_stride);
  }

  PQKV_TARGET_AVX2 static PQKV_INLINE void put(__m256i found, bool first, std::uint16_t* out) {
    auto* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, first ? found : _mm256_add_epi16(found, _mm256_loadu_si256(to)));
  }
};

}  // namespace pqkv::detail
