// SPDX-License-Identifier: Apache-2.0
// NEON kernels of scores.
// Lanes are centroids or tokens, never the axis that is summed, so every lane repeats the scalar kernel's operations in their order.
// A table of 16, 32 or 64 floats is held as four planes of bytes, in which one instruction looks up sixteen codes at once. A look-up can
// use four registers at most; larger tables are read entry by entry.
#pragma once

#include <arm_neon.h>

#include "../../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct score_kernels<isa::neon> : score_kernels<isa::scalar> {
  using base = score_kernels<isa::scalar>;

  static void exponentials(const float* u, std::size_t n, canonical::softmax_scale s, float* out) {
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(out + i, exponential(vld1q_f32(u + i), s));
    base::exponentials(u + i, n - i, s, out + i);
  }

  static void products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                       float* out) {
    const std::size_t whole = n / 16 * 16;
    for (std::size_t j = 0; j < m; ++j) look_up<look_up_step::multiply>(e + j * c, c, codes + j * stride, whole, j == 0, out);
    base::products(e, m, c, codes + whole, stride, n - whole, out + whole);
  }

  static void sums(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                   float* out) {
    const std::size_t whole = n / 16 * 16;
    for (std::size_t j = 0; j < m; ++j) look_up<look_up_step::add>(table + j * c, c, codes + j * stride, whole, j == 0, out);
    base::sums(table, m, c, codes + whole, stride, n - whole, out + whole);
  }

  static void multiples(float factor, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 4) vst1q_f32(out + x, vmulq_n_f32(vld1q_f32(e + x), factor));
  }

  static void offsets(float term, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 4) vst1q_f32(out + x, vaddq_f32(vdupq_n_f32(term), vld1q_f32(e + x)));
  }

  static std::uint64_t total(const float* p, const std::uint32_t* weights, std::size_t n) {
    // There is no multiplication of 64-bit values by 32-bit weights, so the two halves of the values are summed separately.
    uint64x2_t low = vdupq_n_u64(0), high = vdupq_n_u64(0);
    std::size_t t = 0;
    for (; t + 4 <= n; t += 4) {
      const float32x4_t four = vld1q_f32(p + t);
      const uint64x2_t a = fixed(vcvt_f64_f32(vget_low_f32(four))), b = fixed(vcvt_high_f64_f32(four));
      if (weights != nullptr) {
        const uint32x4_t weight = vld1q_u32(weights + t);
        low = vmlal_u32(vmlal_u32(low, vmovn_u64(a), vget_low_u32(weight)), vmovn_u64(b), vget_high_u32(weight));
        high = vmlal_u32(vmlal_u32(high, vshrn_n_u64(a, 32), vget_low_u32(weight)), vshrn_n_u64(b, 32), vget_high_u32(weight));
      } else {
        low = vaddq_u64(low, vaddq_u64(a, b));
      }
    }
    return vaddvq_u64(low) + (vaddvq_u64(high) << 32) + base::total(p + t, weights != nullptr ? weights + t : nullptr, n - t);
  }

  static void add_scaled(const float* p, float r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 4 <= n; t += 4) vst1q_f32(scores + t, vfmaq_n_f32(vld1q_f32(scores + t), vld1q_f32(p + t), r));
    base::add_scaled(p + t, r, n - t, scores + t);
  }

  static void max_scaled(const float* p, float r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 4 <= n; t += 4) vst1q_f32(scores + t, max(vmulq_n_f32(vld1q_f32(p + t), r), vld1q_f32(scores + t)));
    base::max_scaled(p + t, r, n - t, scores + t);
  }

  static void add(const float* z, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 4 <= n; t += 4) vst1q_f32(scores + t, vaddq_f32(vld1q_f32(scores + t), vld1q_f32(z + t)));
    base::add(z + t, n - t, scores + t);
  }

  static void max_shifted(const float* z, float bias, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 4 <= n; t += 4) vst1q_f32(scores + t, max(vaddq_f32(vld1q_f32(z + t), vdupq_n_f32(bias)), vld1q_f32(scores + t)));
    base::max_shifted(z + t, bias, n - t, scores + t);
  }

 private:
  enum class look_up_step { multiply, add };

  /// Like canonical::max: the second when either is a NaN, and when they are equal. FMAX differs in both cases.
  static PQKV_INLINE float32x4_t max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

  static PQKV_INLINE float32x4_t exponential(float32x4_t u, canonical::softmax_scale s) {
    const float32x4_t magic = vdupq_n_f32(canonical::round_magic);
    const float32x4_t t = vfmaq_n_f32(magic, u, s.scale);
    const float32x4_t r = vfmaq_n_f32(vnegq_f32(vsubq_f32(t, magic)), u, s.scale);
    float32x4_t p = vdupq_n_f32(canonical::exp2_c6);
    p = vfmaq_f32(vdupq_n_f32(canonical::exp2_c5), p, r);
    p = vfmaq_f32(vdupq_n_f32(canonical::exp2_c4), p, r);
    p = vfmaq_f32(vdupq_n_f32(canonical::exp2_c3), p, r);
    p = vfmaq_f32(vdupq_n_f32(canonical::exp2_c2), p, r);
    p = vfmaq_f32(vdupq_n_f32(canonical::exp2_c1), p, r);
    p = vfmaq_f32(vdupq_n_f32(canonical::exp2_c0), p, r);
    const uint32x4_t exponent = vshlq_n_u32(vsubq_u32(vreinterpretq_u32_f32(t), vreinterpretq_u32_f32(magic)), 23);
    const uint32x4_t power = vaddq_u32(vreinterpretq_u32_f32(p), exponent);
    return vreinterpretq_f32_u32(vbicq_u32(power, vcltq_f32(u, vdupq_n_f32(s.floor))));
  }

  static PQKV_INLINE uint64x2_t fixed(float64x2_t p) {
    const float64x2_t magic = vdupq_n_f64(0x1.8p52);
    return vsubq_u64(vreinterpretq_u64_f64(vfmaq_n_f64(magic, p, 0x1p40)), vreinterpretq_u64_f64(magic));
  }

  /// out[t] = table[code], or out[t] times or plus it; n a multiple of 16.
  template <look_up_step Step>
  static void look_up(const float* table, std::size_t c, const std::uint8_t* codes, std::size_t n, bool first, float* out) {
    switch (c) {
      case 16:
        return look_up_planes<1, Step>(table, codes, n, first, out);
      case 32:
        return look_up_planes<2, Step>(table, codes, n, first, out);
      case 64:
        return look_up_planes<4, Step>(table, codes, n, first, out);
      default:
        return look_up_entries<Step>(table, codes, n, first, out);
    }
  }

  /// A plane: one byte of each of 16 * Vectors floats.
  template <std::size_t Vectors>
  struct plane {
    uint8x16_t vector[Vectors];
    PQKV_INLINE uint8x16_t operator()(uint8x16_t code) const {
      if constexpr (Vectors == 1) return vqtbl1q_u8(vector[0], code);
      if constexpr (Vectors == 2) return vqtbl2q_u8({{vector[0], vector[1]}}, code);
      if constexpr (Vectors == 4) return vqtbl4q_u8({{vector[0], vector[1], vector[2], vector[3]}}, code);
    }
  };

  template <std::size_t Vectors, look_up_step Step>
  static PQKV_INLINE void look_up_planes(const float* table, const std::uint8_t* codes, std::size_t n, bool first, float* out) {
    plane<Vectors> byte[4];
    for (std::size_t v = 0; v < Vectors; ++v) {
      const uint8x16x4_t planes = vld4q_u8(reinterpret_cast<const std::uint8_t*>(table + 16 * v));
      for (std::size_t b = 0; b < 4; ++b) byte[b].vector[v] = planes.val[b];
    }
    for (std::size_t t = 0; t < n; t += 16) {
      const uint8x16_t code = vld1q_u8(codes + t);
      const uint8x16_t b0 = byte[0](code), b1 = byte[1](code), b2 = byte[2](code), b3 = byte[3](code);
      const uint16x8_t low01 = vreinterpretq_u16_u8(vzip1q_u8(b0, b1)), low23 = vreinterpretq_u16_u8(vzip1q_u8(b2, b3));
      const uint16x8_t high01 = vreinterpretq_u16_u8(vzip2q_u8(b0, b1)), high23 = vreinterpretq_u16_u8(vzip2q_u8(b2, b3));
      store<Step>(vreinterpretq_f32_u16(vzip1q_u16(low01, low23)), first, out + t);
      store<Step>(vreinterpretq_f32_u16(vzip2q_u16(low01, low23)), first, out + t + 4);
      store<Step>(vreinterpretq_f32_u16(vzip1q_u16(high01, high23)), first, out + t + 8);
      store<Step>(vreinterpretq_f32_u16(vzip2q_u16(high01, high23)), first, out + t + 12);
    }
  }

  template <look_up_step Step>
  static PQKV_INLINE void look_up_entries(const float* table, const std::uint8_t* codes, std::size_t n, bool first, float* out) {
    for (std::size_t t = 0; t < n; t += 4) {
      float32x4_t found = vld1q_dup_f32(table + codes[t]);
      found = vld1q_lane_f32(table + codes[t + 1], found, 1);
      found = vld1q_lane_f32(table + codes[t + 2], found, 2);
      found = vld1q_lane_f32(table + codes[t + 3], found, 3);
      store<Step>(found, first, out + t);
    }
  }

  template <look_up_step Step>
  static PQKV_INLINE void store(float32x4_t found, bool first, float* out) {
    if (first)
      vst1q_f32(out, found);
    else if constexpr (Step == look_up_step::multiply)
      vst1q_f32(out, vmulq_f32(vld1q_f32(out), found));
    else
      vst1q_f32(out, vaddq_f32(vld1q_f32(out), found));
  }
};

}  // namespace pqkv::detail
