// SPDX-License-Identifier: Apache-2.0
// NEON kernels of attention. Four queries share each loaded and widened key or value. Prefetching is left to the hardware.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "../../../../config.hpp"
#include "../../../../core/scalar.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct attention_kernels<isa::neon> : attention_kernels<isa::scalar> {
  using base = attention_kernels<isa::scalar>;

  static void group_dots(const float* queries, std::size_t g, const float* key, std::size_t d, float* out, std::size_t out_stride) {
    std::size_t q = 0;
    for (; q + 4 <= g; q += 4) dot_products<4>(queries + q * d, d, key, d, out + q * out_stride, out_stride);
    for (; q < g; ++q) dot_products<1>(queries + q * d, d, key, d, out + q * out_stride, out_stride);
  }

  template <class T>
  static void tile_dots(const float* queries, std::size_t stride, std::size_t g, const T* const* keys, std::size_t count, std::size_t d,
                        rows_ahead<T>, float* out, std::size_t out_stride) {
    for (std::size_t t = 0; t < count; ++t) {
      std::size_t q = 0;
      for (; q + 4 <= g; q += 4) dot_products<4>(queries + q * stride, stride, keys[t], d, out + q * out_stride + t, out_stride);
      for (; q < g; ++q) dot_products<1>(queries + q * stride, stride, keys[t], d, out + q * out_stride + t, out_stride);
    }
  }

  template <class T>
  static void tile_add(float* sums, std::size_t stride, std::size_t g, const float* weights, std::size_t weight_stride,
                       const T* const* values, std::size_t count, std::size_t d, rows_ahead<T>) {
    std::size_t q = 0;
    for (; q + 4 <= g; q += 4) add_weighted<4>(sums + q * stride, stride, weights + q * weight_stride, weight_stride, values, count, d);
    for (; q < g; ++q) add_weighted<1>(sums + q * stride, stride, weights + q * weight_stride, weight_stride, values, count, d);
  }

 private:
  static PQKV_INLINE float32x4_t load_four(const float* x) { return vld1q_f32(x); }
  static PQKV_INLINE float32x4_t load_four(const half* x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(x))));
  }
  static PQKV_INLINE float32x4_t load_four(const bfloat16* x) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(x)), 16));
  }
  static PQKV_INLINE float32x4_t load_four(const std::int8_t* x) {
    std::uint32_t bytes;
    std::memcpy(&bytes, x, sizeof bytes);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes))))));
  }

  template <std::size_t Queries, class T>
  static PQKV_INLINE void dot_products(const float* queries, std::size_t stride, const T* key, std::size_t d, float* out,
                                       std::size_t out_stride) {
    float32x4_t even[Queries], odd[Queries];
    for (std::size_t q = 0; q < Queries; ++q) even[q] = odd[q] = vdupq_n_f32(0);
    std::size_t i = 0;
    for (; i + 8 <= d; i += 8) {
      const float32x4_t first = load_four(key + i), second = load_four(key + i + 4);
      for (std::size_t q = 0; q < Queries; ++q) {
        even[q] = vfmaq_f32(even[q], vld1q_f32(queries + q * stride + i), first);
        odd[q] = vfmaq_f32(odd[q], vld1q_f32(queries + q * stride + i + 4), second);
      }
    }
    for (std::size_t q = 0; q < Queries; ++q) {
      float total = vaddvq_f32(vaddq_f32(even[q], odd[q]));
      for (std::size_t rest = i; rest < d; ++rest) total += queries[q * stride + rest] * static_cast<float>(key[rest]);
      out[q * out_stride] = total;
    }
  }

  template <std::size_t Queries, class T>
  static PQKV_INLINE void add_weighted(float* sums, std::size_t stride, const float* weights, std::size_t weight_stride,
                                       const T* const* values, std::size_t count, std::size_t d) {
    std::size_t i = 0;
    for (; i + 8 <= d; i += 8) {
      float32x4_t even[Queries], odd[Queries];
      for (std::size_t q = 0; q < Queries; ++q) even[q] = odd[q] = vdupq_n_f32(0);
      for (std::size_t t = 0; t < count; ++t) {
        const float32x4_t first = load_four(values[t] + i), second = load_four(values[t] + i + 4);
        for (std::size_t q = 0; q < Queries; ++q) {
          even[q] = vfmaq_n_f32(even[q], first, weights[q * weight_stride + t]);
          odd[q] = vfmaq_n_f32(odd[q], second, weights[q * weight_stride + t]);
        }
      }
      for (std::size_t q = 0; q < Queries; ++q) {
        float* sum = sums + q * stride + i;
        vst1q_f32(sum, vaddq_f32(vld1q_f32(sum), even[q]));
        vst1q_f32(sum + 4, vaddq_f32(vld1q_f32(sum + 4), odd[q]));
      }
    }
    for (; i < d; ++i)
      for (std::size_t q = 0; q < Queries; ++q) {
        float total = 0;
        for (std::size_t t = 0; t < count; ++t) total += weights[q * weight_stride + t] * static_cast<float>(values[t][i]);
        sums[q * stride + i] += total;
      }
  }
};

}  // namespace pqkv::detail
