// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of selection with VBMI2. The places of 64 scores are compressed as bytes and then widened: one compress instead of four.
// 16-bit scores are compressed directly.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx512.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct select_kernels<isa::avx512_vbmi> : select_kernels<isa::avx512> {
  using base = select_kernels<isa::avx512>;

  PQKV_TARGET_VBMI static std::size_t emit_at_least(const float* x, std::size_t n, float bound, std::int32_t first, std::int32_t* out,
                                                    std::size_t room) {
    const __m512 limit = _mm512_set1_ps(bound);
    std::size_t count = 0, i = 0;
    for (; i + 64 <= n && count + 64 <= room; i += 64) {
      const __mmask32 low = _mm512_kunpackw(at_least(x + i + 16, limit), at_least(x + i, limit));
      const __mmask32 high = _mm512_kunpackw(at_least(x + i + 48, limit), at_least(x + i + 32, limit));
      count += put_64(_mm512_kunpackd(high, low), first + static_cast<std::int32_t>(i), out + count);
    }
    return count + base::emit_at_least(x + i, n - i, bound, first + static_cast<std::int32_t>(i), out + count, room - count);
  }

  PQKV_TARGET_VBMI static std::size_t emit_at_least(const std::uint16_t* x, std::size_t n, std::uint16_t bound, std::int32_t first,
                                                    std::int32_t* out, std::size_t room) {
    std::size_t count = 0, i = 0;
    for (; i + 64 <= n && count + 64 <= room; i += 64)
      count += put_64(at_least_64(x + i, 64, bound), first + static_cast<std::int32_t>(i), out + count);
    return count + base::emit_at_least(x + i, n - i, bound, first + static_cast<std::int32_t>(i), out + count, room - count);
  }

  static interval_counts keep_between(const float* x, std::size_t n, float low, float high, float* kept) {
    return base::keep_between(x, n, low, high, kept);
  }
  static interval_counts keep_between(const float* x, const std::uint32_t* weights, std::size_t n, float low, float high, float* kept,
                                      std::uint32_t* kept_weights) {
    return base::keep_between(x, weights, n, low, high, kept, kept_weights);
  }
  PQKV_TARGET_VBMI static interval_counts keep_between(const std::uint16_t* x, std::size_t n, std::uint16_t low, std::uint16_t high,
                                                       std::uint16_t* kept) {
    const __m512i from = _mm512_set1_epi16(static_cast<short>(low)), to = _mm512_set1_epi16(static_cast<short>(high));
    interval_counts counts;
    std::size_t i = 0;
    for (; i + 32 <= n; i += 32) {
      const __m512i values = _mm512_loadu_si512(x + i);
      const __mmask32 over = _mm512_cmpge_epu16_mask(values, to);
      const __mmask32 inside = _mm512_cmpge_epu16_mask(values, from) & ~over;
      _mm512_storeu_si512(kept + counts.kept, _mm512_maskz_compress_epi16(inside, values));
      counts.above += static_cast<unsigned>(std::popcount(over));
      counts.kept += static_cast<unsigned>(std::popcount(inside));
    }
    const interval_counts rest = base::keep_between(x + i, n - i, low, high, kept + counts.kept);
    return {counts.above + rest.above, counts.kept + rest.kept};
  }

  PQKV_TARGET_VBMI static std::size_t emit_bits(const std::uint64_t* bits, std::size_t n, std::int32_t first, std::int32_t* out,
                                                std::size_t room) {
    // If a word has few bits, writing them one by one is faster. The bound of 4 lies between bench/retrieve.cpp's joint rows of k 2048 and
    // 16384, where each way was ahead in noisy runs; it was not swept.
    if (room < 4 * n) return base::emit_bits(bits, n, first, out, room);
    std::size_t count = 0, word = 0;
    for (; word < n && count + 64 <= room; ++word) count += put_64(bits[word], first + static_cast<std::int32_t>(word * 64), out + count);
    return count + base::emit_bits(bits + word, n - word, first + static_cast<std::int32_t>(word * 64), out + count, room - count);
  }

 protected:
  /// Writes first + the places of the mask's set bits, and up to 15 further; returns how many are set.
  PQKV_TARGET_VBMI static PQKV_INLINE std::size_t put_64(std::uint64_t mask, std::int32_t first, std::int32_t* out) {
    const __m512i places = _mm512_maskz_compress_epi8(mask, lanes_64());
    const __m512i from = _mm512_set1_epi32(first);
    const auto count = static_cast<std::size_t>(std::popcount(mask));
    _mm512_storeu_si512(out, widened<0>(places, from));
    if (count > 16) {
      _mm512_storeu_si512(out + 16, widened<1>(places, from));
      if (count > 32) {
        _mm512_storeu_si512(out + 32, widened<2>(places, from));
        _mm512_storeu_si512(out + 48, widened<3>(places, from));
      }
    }
    return count;
  }
  template <int Quarter>
  PQKV_TARGET_VBMI static PQKV_INLINE __m512i widened(__m512i places, __m512i from) {
    return _mm512_add_epi32(from, _mm512_maskz_cvtepu8_epi32(all16, _mm512_maskz_extracti32x4_epi32(0xf, places, Quarter)));
  }
  PQKV_TARGET_VBMI static PQKV_INLINE __m512i lanes_64() {
    alignas(64) static constexpr auto numbers = [] {
      std::array<std::uint8_t, 64> all{};
      for (std::size_t i = 0; i < 64; ++i) all[i] = static_cast<std::uint8_t>(i);
      return all;
    }();
    return _mm512_load_si512(numbers.data());
  }
};

}  // namespace pqkv::detail
