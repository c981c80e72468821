// SPDX-License-Identifier: Apache-2.0
// NEON kernels of rows of keys. Armv8-A has these instructions in its baseline, so no function needs a target attribute.
#pragma once

#include <arm_neon.h>

#include "../../../../core/scalar.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct row_kernels<isa::neon> : row_kernels<isa::scalar> {
  using base = row_kernels<isa::scalar>;
  using row_kernels<isa::scalar>::widen;

  static void widen(const half* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const float16x8_t narrow = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(src + i)));
      vst1q_f32(dst + i, vcvt_f32_f16(vget_low_f16(narrow)));
      vst1q_f32(dst + i + 4, vcvt_high_f32_f16(narrow));
    }
    base::widen(src + i, n - i, dst + i);
  }

  static void widen(const bfloat16* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const uint16x8_t narrow = vld1q_u16(reinterpret_cast<const std::uint16_t*>(src + i));
      vst1q_f32(dst + i, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(narrow), 16)));
      vst1q_f32(dst + i + 4, vreinterpretq_f32_u32(vshll_high_n_u16(narrow, 16)));
    }
    base::widen(src + i, n - i, dst + i);
  }

  static bool all_finite(const float* x, std::size_t n) {
    const uint32x4_t exponent = vdupq_n_u32(0x7f800000u);
    uint32x4_t broken = vdupq_n_u32(0);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) {
      const uint32x4_t bits = vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), exponent);
      broken = vorrq_u32(broken, vceqq_u32(bits, exponent));
    }
    return vmaxvq_u32(broken) == 0 && base::all_finite(x + i, n - i);
  }

  static void centre(const float* x, const float* mean, std::size_t n, float* out) {
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vsubq_f32(vld1q_f32(x + i), vld1q_f32(mean + i)));
    base::centre(x + i, mean + i, n - i, out + i);
  }
};

}  // namespace pqkv::detail
