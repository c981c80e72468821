// SPDX-License-Identifier: Apache-2.0
// AVX-512 kernels of selection (F, BW, DQ, VL). Compress goes to a register and then to memory: some CPUs run the form with a
// destination in memory as microcode. Zero-masked forms stand where g++ 12's headers would warn of the plain ones.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct select_kernels<isa::avx512> : select_kernels<isa::avx2> {
  PQKV_TARGET_AVX512 static std::size_t count_at_least(const float* x, std::size_t n, float bound) {
    const __m512 limit = _mm512_set1_ps(bound);
    const __m512i one = _mm512_set1_epi32(1);
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    std::size_t i = 0;
    for (; i + 64 <= n; i += 64) {
      a = _mm512_mask_add_epi32(a, at_least(x + i, limit), a, one);
      b = _mm512_mask_add_epi32(b, at_least(x + i + 16, limit), b, one);
      c = _mm512_mask_add_epi32(c, at_least(x + i + 32, limit), c, one);
      d = _mm512_mask_add_epi32(d, at_least(x + i + 48, limit), d, one);
    }
    for (; i < n; i += 16) a = _mm512_mask_add_epi32(a, at_least_of(x + i, n - i, limit), a, one);
    return sum32(_mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)));
  }

  PQKV_TARGET_AVX512 static std::size_t count_at_least(const std::uint16_t* x, std::size_t n, std::uint16_t bound) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += 64) count += static_cast<unsigned>(std::popcount(at_least_64(x + i, n - i, bound)));
    return count;
  }

  PQKV_TARGET_AVX512 static interval_counts keep_between(const float* x, std::size_t n, float low, float high, float* kept) {
    const __m512 from = _mm512_set1_ps(low), to = _mm512_set1_ps(high);
    const __m512i one = _mm512_set1_epi32(1);
    __m512i above = _mm512_setzero_si512();
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 valid = first_of(n - i);
      const __m512 values = _mm512_maskz_loadu_ps(valid, x + i);
      const __mmask16 over = _mm512_mask_cmp_ps_mask(valid, values, to, _CMP_GE_OQ);
      const auto inside = static_cast<__mmask16>(_mm512_mask_cmp_ps_mask(valid, values, from, _CMP_GE_OQ) & ~over);
      above = _mm512_mask_add_epi32(above, over, above, one);
      _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(inside, values));
      count += static_cast<unsigned>(std::popcount(static_cast<unsigned>(inside)));
    }
    return {sum32(above), count};
  }

  PQKV_TARGET_AVX512 static interval_counts keep_between(const std::uint16_t* x, std::size_t n, std::uint16_t low, std::uint16_t high,
                                                         std::uint16_t* kept) {
    const __m512i from = _mm512_set1_epi32(low), to = _mm512_set1_epi32(high);
    interval_counts counts;
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 valid = first_of(n - i);
      const __m512i values = _mm512_maskz_cvtepu16_epi32(valid, _mm256_maskz_loadu_epi16(valid, x + i));
      const __mmask16 over = _mm512_mask_cmpge_epi32_mask(valid, values, to);
      const auto inside = static_cast<__mmask16>(_mm512_mask_cmpge_epi32_mask(valid, values, from) & ~over);
      const __m256i found = _mm512_maskz_cvtepi32_epi16(all16, _mm512_maskz_compress_epi32(inside, values));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(kept + counts.kept), found);
      counts.above += static_cast<unsigned>(std::popcount(static_cast<unsigned>(over)));
      counts.kept += static_cast<unsigned>(std::popcount(static_cast<unsigned>(inside)));
    }
    return counts;
  }

  PQKV_TARGET_AVX512 static std::uint64_t weight_at_least(const float* x, const std::uint32_t* weights, std::size_t n, float bound) {
    const __m512 limit = _mm512_set1_ps(bound);
    __m512i a = _mm512_setzero_si512(), b = a;
    std::size_t i = 0;
    for (; i + 32 <= n; i += 32) {
      a = _mm512_mask_add_epi32(a, at_least(x + i, limit), a, _mm512_loadu_si512(weights + i));
      b = _mm512_mask_add_epi32(b, at_least(x + i + 16, limit), b, _mm512_loadu_si512(weights + i + 16));
    }
    for (; i < n; i += 16) {
      const __mmask16 over = at_least_of(x + i, n - i, limit);
      a = _mm512_add_epi32(a, _mm512_maskz_loadu_epi32(over, weights + i));
    }
    return sum32(_mm512_add_epi32(a, b));
  }

  PQKV_TARGET_AVX512 static interval_counts keep_between(const float* x, const std::uint32_t* weights, std::size_t n, float low, float high,
                                                         float* kept, std::uint32_t* kept_weights) {
    const __m512 from = _mm512_set1_ps(low), to = _mm512_set1_ps(high);
    __m512i above = _mm512_setzero_si512();
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += 16) {
      const __mmask16 valid = first_of(n - i);
      const __m512 values = _mm512_maskz_loadu_ps(valid, x + i);
      const __m512i weight = _mm512_maskz_loadu_epi32(valid, weights + i);
      const __mmask16 over = _mm512_mask_cmp_ps_mask(valid, values, to, _CMP_GE_OQ);
      const auto inside = static_cast<__mmask16>(_mm512_mask_cmp_ps_mask(valid, values, from, _CMP_GE_OQ) & ~over);
      above = _mm512_mask_add_epi32(above, over, above, weight);
      _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(inside, values));
      _mm512_storeu_si512(kept_weights + count, _mm512_maskz_compress_epi32(inside, weight));
      count += static_cast<unsigned>(std::popcount(static_cast<unsigned>(inside)));
    }
    return {sum32(above), count};
  }

  PQKV_TARGET_AVX512 static std::size_t keep_occupied(const std::uint32_t* weights, std::size_t n, std::int32_t* places,
                                                      std::uint32_t* kept) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += 16) {
      const __m512i weight = _mm512_maskz_loadu_epi32(first_of(n - i), weights + i);
      const __mmask16 occupied = _mm512_test_epi32_mask(weight, weight);
      _mm512_storeu_si512(kept + count, _mm512_maskz_compress_epi32(occupied, weight));
      count += put(occupied, static_cast<std::int32_t>(i), places + count);
    }
    return count;
  }

  PQKV_TARGET_AVX512 static std::size_t emit_at_least(const float* x, std::size_t n, float bound, std::int32_t first, std::int32_t* out,
                                                      std::size_t room) {
    const __m512 limit = _mm512_set1_ps(bound);
    std::size_t count = 0, i = 0;
    for (; i + 16 <= n && count + 16 <= room; i += 16)
      count += put(at_least(x + i, limit), first + static_cast<std::int32_t>(i), out + count);
    for (; i < n && count < room; i += 16)
      count += put_within(at_least_of(x + i, n - i, limit), first + static_cast<std::int32_t>(i), out + count, room - count);
    return count;
  }

  PQKV_TARGET_AVX512 static std::size_t emit_at_least(const std::uint16_t* x, std::size_t n, std::uint16_t bound, std::int32_t first,
                                                      std::int32_t* out, std::size_t room) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n && count < room; i += 64) {
      const std::uint64_t mask = at_least_64(x + i, n - i, bound);
      for (unsigned part = 0; part < 64; part += 16)
        count += put_within(static_cast<__mmask16>(mask >> part), first + static_cast<std::int32_t>(i + part), out + count, room - count);
    }
    return count;
  }

 protected:
  static constexpr __mmask16 all16 = 0xffff;
  /// The first n lanes of 16.
  PQKV_TARGET_AVX512 static PQKV_INLINE __mmask16 first_of(std::size_t n) {
    return n >= 16 ? all16 : static_cast<__mmask16>((1u << n) - 1);
  }
  PQKV_TARGET_AVX512 static PQKV_INLINE __mmask16 at_least(const float* x, __m512 limit) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), limit, _CMP_GE_OQ);
  }
  PQKV_TARGET_AVX512 static PQKV_INLINE __mmask16 at_least_of(const float* x, std::size_t n, __m512 limit) {
    const __mmask16 valid = first_of(n);
    return _mm512_mask_cmp_ps_mask(valid, _mm512_maskz_loadu_ps(valid, x), limit, _CMP_GE_OQ);
  }
  /// Bit i: x[i] is at least the bound; of 64, or of n.
  PQKV_TARGET_AVX512 static PQKV_INLINE std::uint64_t at_least_64(const std::uint16_t* x, std::size_t n, std::uint16_t bound) {
    const __m512i limit = _mm512_set1_epi16(static_cast<short>(bound));
    if (n >= 64) {
      const std::uint64_t low = _mm512_cmpge_epu16_mask(_mm512_loadu_si512(x), limit);
      return low | std::uint64_t{_mm512_cmpge_epu16_mask(_mm512_loadu_si512(x + 32), limit)} << 32;
    }
    const std::uint64_t valid = (std::uint64_t{1} << n) - 1;
    const auto first = static_cast<__mmask32>(valid), second = static_cast<__mmask32>(valid >> 32);
    const std::uint64_t low = _mm512_mask_cmpge_epu16_mask(first, _mm512_maskz_loadu_epi16(first, x), limit);
    return low | std::uint64_t{_mm512_mask_cmpge_epu16_mask(second, _mm512_maskz_loadu_epi16(second, x + 32), limit)} << 32;
  }
  /// Writes first + the places of the mask's set bits and zeros, 16 in all; returns how many are set.
  PQKV_TARGET_AVX512 static PQKV_INLINE std::size_t put(__mmask16 mask, std::int32_t first, std::int32_t* out) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(mask, positions(first)));
    return static_cast<unsigned>(std::popcount(static_cast<unsigned>(mask)));
  }
  /// The same with no more than `room` written.
  PQKV_TARGET_AVX512 static PQKV_INLINE std::size_t put_within(__mmask16 mask, std::int32_t first, std::int32_t* out, std::size_t room) {
    const std::size_t set = static_cast<unsigned>(std::popcount(static_cast<unsigned>(mask))), count = set < room ? set : room;
    _mm512_mask_storeu_epi32(out, first_of(count), _mm512_maskz_compress_epi32(mask, positions(first)));
    return count;
  }
  PQKV_TARGET_AVX512 static PQKV_INLINE __m512i positions(std::int32_t first) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32(first), lane);
  }
  PQKV_TARGET_AVX512 static PQKV_INLINE std::size_t sum32(__m512i counts) {
    alignas(64) std::uint32_t lanes[16];
    _mm512_store_si512(lanes, counts);
    std::size_t total = 0;
    for (const std::uint32_t lane : lanes) total += lane;
    return total;
  }
};

}  // namespace pqkv::detail
