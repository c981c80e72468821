// SPDX-License-Identifier: Apache-2.0
// NEON leaves of attention: four queries share what is loaded of a key or value.
#pragma once

#include <arm_neon.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::detail {

template <>
struct attention_leaf<isa::neon> : attention_leaf<isa::scalar> {
  using base = attention_leaf<isa::scalar>;

  static void group_dots(const float* queries, std::size_t g, const float* key, std::size_t d, float* out, std::size_t out_stride) {
    std::size_t q = 0;
    for (; q + 4 <= g; q += 4) dots<4, 2>(queries + q * d, key, d, out + q * out_stride, out_stride);
    for (; q < g; ++q) dots<1, 4>(queries + q * d, key, d, out + q * out_stride, out_stride);
  }

  static void group_add(float* acc, std::size_t g, const float* weight, std::size_t weight_stride, const float* value, std::size_t d) {
    std::size_t q = 0;
    for (; q + 4 <= g; q += 4) add_weighted<4>(acc + q * d, weight + q * weight_stride, weight_stride, value, d);
    for (; q < g; ++q) add_weighted<1>(acc + q * d, weight + q * weight_stride, weight_stride, value, d);
  }

 private:
  /// Sums of Vectors * 4 lanes for each of Queries queries.
  template <std::size_t Queries, std::size_t Vectors>
  static PQKV_INLINE void dots(const float* queries, const float* key, std::size_t d, float* out, std::size_t out_stride) {
    float32x4_t acc[Queries][Vectors];
    for (auto& query : acc)
      for (float32x4_t& one : query) one = vdupq_n_f32(0);
    std::size_t i = 0;
    for (; i + 4 * Vectors <= d; i += 4 * Vectors)
      for (std::size_t v = 0; v < Vectors; ++v) {
        const float32x4_t elements = vld1q_f32(key + i + 4 * v);
        for (std::size_t q = 0; q < Queries; ++q) acc[q][v] = vfmaq_f32(acc[q][v], vld1q_f32(queries + q * d + i + 4 * v), elements);
      }
    for (std::size_t q = 0; q < Queries; ++q) {
      float32x4_t sum = acc[q][0];
      for (std::size_t v = 1; v < Vectors; ++v) sum = vaddq_f32(sum, acc[q][v]);
      float total = vaddvq_f32(sum);
      for (std::size_t rest = i; rest < d; ++rest) total += queries[q * d + rest] * key[rest];
      out[q * out_stride] = total;
    }
  }

  template <std::size_t Queries>
  static PQKV_INLINE void add_weighted(float* acc, const float* weight, std::size_t weight_stride, const float* value, std::size_t d) {
    float w[Queries];
    for (std::size_t q = 0; q < Queries; ++q) w[q] = weight[q * weight_stride];
    std::size_t i = 0;
    for (; i + 4 <= d; i += 4) {
      const float32x4_t elements = vld1q_f32(value + i);
      for (std::size_t q = 0; q < Queries; ++q) vst1q_f32(acc + q * d + i, vfmaq_n_f32(vld1q_f32(acc + q * d + i), elements, w[q]));
    }
    for (; i < d; ++i)
      for (std::size_t q = 0; q < Queries; ++q) acc[q * d + i] += w[q] * value[i];
  }
};

}  // namespace pqkv::detail
