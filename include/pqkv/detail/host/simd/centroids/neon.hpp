// SPDX-License-Identifier: Apache-2.0
// NEON kernels of centroids.
// Lanes are centroids, never the axis that is summed, so every lane repeats the scalar kernel's operations in their order.
#pragma once

#include <arm_neon.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct centroid_kernels<isa::neon> : centroid_kernels<isa::scalar> {
  using base = centroid_kernels<isa::scalar>;

  static nearest_centroid nearest(const float* y, const float* centroids, std::size_t c, std::size_t ds) {
    float32x4_t best = vdupq_n_f32(0);
    uint32x4_t block = vdupq_n_u32(0);
    for (std::size_t x = 0; x < c; x += 16) {
      float32x4_t acc[4];
      distances<4>(y, centroids + x, c, ds, acc);
      for (std::size_t v = 0; v < 4; ++v) {
        const uint32x4_t closer = x + v == 0 ? vdupq_n_u32(0xffffffffu) : vcltq_f32(acc[v], best);
        best = vbslq_f32(closer, acc[v], best);
        block = vbslq_u32(closer, vdupq_n_u32(static_cast<std::uint32_t>(x / 4 + v)), block);
      }
    }
    float distance[4];
    std::uint32_t number[4];
    vst1q_f32(distance, best);
    vst1q_u32(number, block);
    nearest_centroid found{number[0] * 4, distance[0]};
    for (std::uint32_t lane = 1; lane < 4; ++lane) {
      const std::uint32_t index = number[lane] * 4 + lane;
      if (distance[lane] < found.distance || (distance[lane] == found.distance && index < found.index)) found = {index, distance[lane]};
    }
    return found;
  }

  static void accumulate(const float* y, float scale, std::size_t n, std::int64_t* sum) {
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) {
      // The product with a power of two is exact, so this rounds once, to nearest even, as the scalar kernel does.
      const int32x4_t fixed = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(y + i), scale));
      vst1q_s64(sum + i, vaddw_s32(vld1q_s64(sum + i), vget_low_s32(fixed)));
      vst1q_s64(sum + i + 2, vaddw_high_s32(vld1q_s64(sum + i + 2), fixed));
    }
    base::accumulate(y + i, scale, n - i, sum + i);
  }

  static void inner_products(const float* q, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    std::size_t x = 0;
    for (; x + 64 <= c; x += 64) inner_product_block<16>(q, centroids + x, c, ds, out + x);
    for (; x < c; x += 16) inner_product_block<4>(q, centroids + x, c, ds, out + x);
  }

  static void negative_distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      float32x4_t acc[4];
      distances<4>(y, centroids + x, c, ds, acc);
      for (std::size_t v = 0; v < 4; ++v) vst1q_f32(out + x + 4 * v, vnegq_f32(acc[v]));
    }
  }

 private:
  template <std::size_t Vectors>
  static PQKV_INLINE void distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, float32x4_t* acc) {
    for (std::size_t v = 0; v < Vectors; ++v) acc[v] = vdupq_n_f32(0);
    for (std::size_t i = 0; i < ds; ++i)
      for (std::size_t v = 0; v < Vectors; ++v) {
        const float32x4_t e = vsubq_f32(vdupq_n_f32(y[i]), vld1q_f32(centroids + i * c + 4 * v));
        acc[v] = vfmaq_f32(acc[v], e, e);
      }
  }

  template <std::size_t Vectors>
  static PQKV_INLINE void inner_product_block(const float* q, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    float32x4_t acc[Vectors];
    for (float32x4_t& one : acc) one = vdupq_n_f32(0);
    for (std::size_t i = 0; i < ds; ++i)
      for (std::size_t v = 0; v < Vectors; ++v) acc[v] = vfmaq_n_f32(acc[v], vld1q_f32(centroids + i * c + 4 * v), q[i]);
    for (std::size_t v = 0; v < Vectors; ++v) vst1q_f32(out + 4 * v, acc[v]);
  }
};

}  // namespace pqkv::detail
