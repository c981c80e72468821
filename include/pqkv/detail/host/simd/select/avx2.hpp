// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of selection. AVX2 has no compress: a table of 256 shuffles moves the chosen lanes of eight to the front.
#pragma once

#include <immintrin.h>

#include <array>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// Row `mask` holds the places of its set bits, ascending, then zeros.
inline constexpr auto places_of_set_bits = [] {
  std::array<std::array<std::uint8_t, 8>, 256> table{};
  for (std::size_t mask = 0; mask < 256; ++mask) {
    std::size_t count = 0;
    for (unsigned bit = 0; bit < 8; ++bit)
      if ((mask >> bit & 1) != 0) table[mask][count++] = static_cast<std::uint8_t>(bit);
  }
  return table;
}();

template <>
struct select_kernels<isa::avx2> : select_kernels<isa::scalar> {
  using base = select_kernels<isa::scalar>;

  PQKV_TARGET_AVX2 static std::size_t count_at_least(const float* x, std::size_t n, float bound) {
    const __m256 limit = _mm256_set1_ps(bound);
    __m256i a = _mm256_setzero_si256(), b = a;
    std::size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      a = _mm256_sub_epi32(a, _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + i), limit, _CMP_GE_OQ)));
      b = _mm256_sub_epi32(b, _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 8), limit, _CMP_GE_OQ)));
    }
    return sum32(_mm256_add_epi32(a, b)) + base::count_at_least(x + i, n - i, bound);
  }

  PQKV_TARGET_AVX2 static std::size_t count_at_least(const std::uint16_t* x, std::size_t n, std::uint16_t bound) {
    std::size_t count = 0, i = 0;
    for (; i + 32 <= n; i += 32) count += static_cast<unsigned>(std::popcount(at_least(x + i, bound)));
    return count + base::count_at_least(x + i, n - i, bound);
  }

  PQKV_TARGET_AVX2 static interval_counts keep_between(const float* x, std::size_t n, float low, float high, float* kept) {
    const __m256 from = _mm256_set1_ps(low), to = _mm256_set1_ps(high);
    __m256i above = _mm256_setzero_si256();
    std::size_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 values = _mm256_loadu_ps(x + i);
      const __m256 over = _mm256_cmp_ps(values, to, _CMP_GE_OQ);
      above = _mm256_sub_epi32(above, _mm256_castps_si256(over));
      const auto inside = static_cast<unsigned>(_mm256_movemask_ps(_mm256_andnot_ps(over, _mm256_cmp_ps(values, from, _CMP_GE_OQ))));
      _mm256_storeu_ps(kept + count, _mm256_permutevar8x32_ps(values, places(inside)));
      count += static_cast<unsigned>(std::popcount(inside));
    }
    const interval_counts rest = base::keep_between(x + i, n - i, low, high, kept + count);
    return {sum32(above) + rest.above, count + rest.kept};
  }

  PQKV_TARGET_AVX2 static interval_counts keep_between(const std::uint16_t* x, std::size_t n, std::uint16_t low, std::uint16_t high,
                                                       std::uint16_t* kept) {
    interval_counts counts;
    std::size_t i = 0;
    for (; i + 32 <= n; i += 32) {
      const std::uint32_t over = at_least(x + i, high), inside = at_least(x + i, low) & ~over;
      counts.above += static_cast<unsigned>(std::popcount(over));
      for (unsigned part = 0; part < 32; part += 8) {
        const unsigned mask = inside >> part & 0xffu;
        const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i + part));
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(places_of_set_bits[mask].data()));
        const __m128i twice = _mm_add_epi8(_mm_unpacklo_epi8(bytes, bytes), _mm_unpacklo_epi8(bytes, bytes));  // byte 2 p of place p
        const __m128i shuffle = _mm_add_epi8(twice, _mm_set1_epi16(0x0100));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(kept + counts.kept), _mm_shuffle_epi8(eight, shuffle));
        counts.kept += static_cast<unsigned>(std::popcount(mask));
      }
    }
    const interval_counts rest = base::keep_between(x + i, n - i, low, high, kept + counts.kept);
    return {counts.above + rest.above, counts.kept + rest.kept};
  }

  PQKV_TARGET_AVX2 static std::uint64_t weight_at_least(const float* x, const std::uint32_t* weights, std::size_t n, float bound) {
    const __m256 limit = _mm256_set1_ps(bound);
    __m256i sum = _mm256_setzero_si256();
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i over = _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + i), limit, _CMP_GE_OQ));
      sum = _mm256_add_epi32(sum, _mm256_and_si256(over, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + i))));
    }
    return sum32(sum) + base::weight_at_least(x + i, weights + i, n - i, bound);
  }

  PQKV_TARGET_AVX2 static interval_counts keep_between(const float* x, const std::uint32_t* weights, std::size_t n, float low, float high,
                                                       float* kept, std::uint32_t* kept_weights) {
    const __m256 from = _mm256_set1_ps(low), to = _mm256_set1_ps(high);
    __m256i above = _mm256_setzero_si256();
    std::size_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 values = _mm256_loadu_ps(x + i);
      const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + i));
      const __m256 over = _mm256_cmp_ps(values, to, _CMP_GE_OQ);
      above = _mm256_add_epi32(above, _mm256_and_si256(_mm256_castps_si256(over), weight));
      const auto inside = static_cast<unsigned>(_mm256_movemask_ps(_mm256_andnot_ps(over, _mm256_cmp_ps(values, from, _CMP_GE_OQ))));
      _mm256_storeu_ps(kept + count, _mm256_permutevar8x32_ps(values, places(inside)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(kept_weights + count), _mm256_permutevar8x32_epi32(weight, places(inside)));
      count += static_cast<unsigned>(std::popcount(inside));
    }
    const interval_counts rest = base::keep_between(x + i, weights + i, n - i, low, high, kept + count, kept_weights + count);
    return {sum32(above) + rest.above, count + rest.kept};
  }

  PQKV_TARGET_AVX2 static std::size_t keep_occupied(const std::uint32_t* weights, std::size_t n, std::int32_t* out, std::uint32_t* kept) {
    std::size_t count = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + i));
      const __m256i empty = _mm256_cmpeq_epi32(weight, _mm256_setzero_si256());
      const auto mask = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(empty))) & 0xffu;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(kept + count), _mm256_permutevar8x32_epi32(weight, places(mask)));
      count += put(mask, static_cast<std::int32_t>(i), out + count);
    }
    for (; i < n; ++i) {
      out[count] = static_cast<std::int32_t>(i);
      kept[count] = weights[i];
      count += weights[i] != 0 ? 1 : 0;
    }
    return count;
  }

  PQKV_TARGET_AVX2 static std::size_t emit_at_least(const float* x, std::size_t n, float bound, std::int32_t first, std::int32_t* out,
                                                    std::size_t room) {
    const __m256 limit = _mm256_set1_ps(bound);
    std::size_t count = 0, i = 0;
    for (; i + 8 <= n && count + 8 <= room; i += 8) {
      const auto mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), limit, _CMP_GE_OQ)));
      count += put(mask, first + static_cast<std::int32_t>(i), out + count);
    }
    return count + base::emit_at_least(x + i, n - i, bound, first + static_cast<std::int32_t>(i), out + count, room - count);
  }

  PQKV_TARGET_AVX2 static std::size_t emit_at_least(const std::uint16_t* x, std::size_t n, std::uint16_t bound, std::int32_t first,
                                                    std::int32_t* out, std::size_t room) {
    std::size_t count = 0, i = 0;
    for (; i + 32 <= n && count + 32 <= room; i += 32) {
      const std::uint32_t mask = at_least(x + i, bound);
      for (unsigned part = 0; part < 32; part += 8)
        count += put(mask >> part & 0xffu, first + static_cast<std::int32_t>(i + part), out + count);
    }
    return count + base::emit_at_least(x + i, n - i, bound, first + static_cast<std::int32_t>(i), out + count, room - count);
  }

 private:
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i places(unsigned mask) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places_of_set_bits[mask].data())));
  }
  /// Writes first + the places of the mask's set bits and what follows them, 8 in all; returns how many are set.
  PQKV_TARGET_AVX2 static PQKV_INLINE std::size_t put(unsigned mask, std::int32_t first, std::int32_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_add_epi32(_mm256_set1_epi32(first), places(mask)));
    return static_cast<unsigned>(std::popcount(mask));
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE std::size_t sum32(__m256i counts) {
    alignas(32) std::uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), counts);
    std::size_t total = 0;
    for (const std::uint32_t lane : lanes) total += lane;
    return total;
  }
  /// Bit i: x[i] is at least the bound; of 32.
  PQKV_TARGET_AVX2 static PQKV_INLINE std::uint32_t at_least(const std::uint16_t* x, std::uint16_t bound) {
    const __m256i limit = _mm256_set1_epi16(static_cast<short>(bound));
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16));
    const __m256i packed =
        _mm256_packs_epi16(_mm256_cmpeq_epi16(_mm256_max_epu16(a, limit), a), _mm256_cmpeq_epi16(_mm256_max_epu16(b, limit), b));
    return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(packed, 0xd8)));
  }
};

}  // namespace pqkv::detail
