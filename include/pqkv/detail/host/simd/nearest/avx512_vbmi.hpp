// SPDX-License-Identifier: Apache-2.0
// The search for nearest centroids where the CPU has VNNI: one instruction multiplies pairs of 16-bit integers and adds them to a sum. The
// sums are exact, so the result is that of the other sets.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "avx512.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct nearest_kernels<isa::avx512_vbmi> : nearest_kernels<isa::avx512> {
  PQKV_TARGET_VBMI static void two_least(const std::int32_t* block, const std::int32_t* pairs, const std::int32_t* start, std::size_t count,
                                         std::size_t pair_count, std::size_t first, std::int32_t* least, std::int32_t* second) {
    constexpr std::size_t together = 8;  // centroids; as in the base
    __m512i least0 = _mm512_loadu_si512(least), least1 = _mm512_loadu_si512(least + 16);
    __m512i second0 = _mm512_loadu_si512(second), second1 = _mm512_loadu_si512(second + 16);
    for (std::size_t x = 0; x < count; x += together) {
      __m512i sum[together][2];
      for (std::size_t k = 0; k < together; ++k) sum[k][0] = sum[k][1] = _mm512_set1_epi32(start[x + k]);
      for (std::size_t p = 0; p < pair_count; ++p) {
        const __m512i rows0 = _mm512_loadu_si512(block + p * block_rows), rows1 = _mm512_loadu_si512(block + p * block_rows + 16);
        for (std::size_t k = 0; k < together; ++k) {
          const __m512i centroid = _mm512_set1_epi32(pairs[p * count + x + k]);
          sum[k][0] = _mm512_dpwssd_epi32(sum[k][0], rows0, centroid);
          sum[k][1] = _mm512_dpwssd_epi32(sum[k][1], rows1, centroid);
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
};

}  // namespace pqkv::detail
