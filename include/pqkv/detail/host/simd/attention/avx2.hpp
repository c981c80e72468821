// SPDX-License-Identifier: Apache-2.0
// AVX2 leaves of attention.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::detail {

template <>
struct attention_leaf<isa::avx2> : attention_leaf<isa::scalar> {
  using base = attention_leaf<isa::scalar>;

  PQKV_TARGET_AVX2 static void group_dots(const float* queries, std::size_t g, const float* key, std::size_t d, float* out,
                                          std::size_t out_stride) {
    for (std::size_t q = 0; q < g; ++q) {
      __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      std::size_t i = 0;
      for (; i + 16 <= d; i += 16) {
        acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i), _mm256_loadu_ps(key + i), acc[0]);
        acc[1] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i + 8), _mm256_loadu_ps(key + i + 8), acc[1]);
      }
      for (; i + 8 <= d; i += 8) acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i), _mm256_loadu_ps(key + i), acc[0]);
      const __m256 both = _mm256_add_ps(acc[0], acc[1]);
      __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
      four = _mm_add_ps(four, _mm_movehl_ps(four, four));
      float total = _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
      for (; i < d; ++i) total += queries[q * d + i] * key[i];
      out[q * out_stride] = total;
    }
  }

  PQKV_TARGET_AVX2 static void group_add(float* acc, std::size_t g, const float* weight, std::size_t weight_stride, const float* value,
                                         std::size_t d) {
    for (std::size_t q = 0; q < g; ++q) {
      const __m256 w = _mm256_set1_ps(weight[q * weight_stride]);
      float* row = acc + q * d;
      std::size_t i = 0;
      for (; i + 8 <= d; i += 8) _mm256_storeu_ps(row + i, _mm256_fmadd_ps(w, _mm256_loadu_ps(value + i), _mm256_loadu_ps(row + i)));
      for (; i < d; ++i) row[i] += weight[q * weight_stride] * value[i];
    }
  }
};

}  // namespace pqkv::detail
