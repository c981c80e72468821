// SPDX-License-Identifier: Apache-2.0
// The arithmetic that decides which tokens are selected. Host SIMD kernels, CUDA kernels and tests all compute these functions to the bit,
// so the selected set depends on codebook, codes, query and parameters alone. Two rules ensure this. Every step is one correctly rounded
// operation or an explicit fused multiply-add, in a stated order. No rounded product is an operand of an add, so a compiler that contracts
// expressions finds nothing to contract. docs/numerics.md explains each choice. The host must round to nearest with subnormals on;
// detail/host entries set that and restore it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "float_environment.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::canonical {

#if defined(__CUDA_ARCH__)
// Inline PTX: --use_fast_math would turn the intrinsics into instructions that flush subnormals.
PQKV_HD inline float fma(float a, float b, float c) {
  float r;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
  return r;
}
PQKV_HD inline float add(float a, float b) {
  float r;
  asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
PQKV_HD inline float sub(float a, float b) {
  float r;
  asm("sub.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
PQKV_HD inline float mul(float a, float b) {
  float r;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
PQKV_HD inline float div(float a, float b) {
  float r;
  asm("div.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
PQKV_HD inline float max(float a, float b) {
  float r;
  asm("{\n .reg .pred p;\n setp.gt.f32 p, %1, %2;\n selp.f32 %0, %1, %2, p;\n}" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
PQKV_HD inline float sqrt(float a) {
  float r;
  asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
#else
/// Rounded once, to nearest even; never fused with the operation before or after.
/// @{
PQKV_HD inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
PQKV_HD inline float add(float a, float b) { return a + b; }
PQKV_HD inline float mul(float a, float b) { return a * b; }
PQKV_HD inline float sub(float a, float b) { return a - b; }
PQKV_HD inline float div(float a, float b) { return a / b; }
PQKV_HD inline float sqrt(float a) { return std::sqrt(a); }
/// @}
/// Like the instruction `maxps`: returns b when either is a NaN, and when they are equal.
PQKV_HD inline float max(float a, float b) { return a > b ? a : b; }
#endif

/// One chain of fused multiply-adds, ascending, from +0: sum of a[i] * b[i * stride].
PQKV_HD inline float dot(const float* a, const float* b, std::size_t stride, std::size_t n) {
  float acc = 0;
  for (std::size_t i = 0; i < n; ++i) acc = fma(a[i], b[i * stride], acc);
  return acc;
}

/// Squared distance: e = y[i] - c[i * stride]; acc = fma(e, e, acc); ascending, from +0.
PQKV_HD inline float squared_distance(const float* y, const float* c, std::size_t stride, std::size_t n) {
  float acc = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float e = sub(y[i], c[i * stride]);
    acc = fma(e, e, acc);
  }
  return acc;
}

/// The coordinate that puts a vector with this squared norm on the sphere with this squared radius; 0 if the vector is outside.
PQKV_HD inline float sphere_coordinate(float squared_radius, float squared_norm) {
  return sqrt(max(sub(squared_radius, squared_norm), 0.0f));
}

/// Turns a difference of inner products into a power of two. It is computed in canonical modes, so a launch on a device does not need to
/// set them.
struct softmax_scale {
  float scale;  // float(log2(e) / sqrt(d)), or float(log2(e) * factor)
  float floor;  // -125 / scale: below it the exponential is 0

  /// @param d       head dimension
  /// @param factor  of the logits; 0: 1 / sqrt(d)
  static softmax_scale of(std::size_t d, float factor = 0) {
    softmax_scale result;
    detail::in_float_environment([&] {
      const double log2_e = 1.4426950408889634074;
      result.scale = static_cast<float>(factor == 0 ? log2_e / std::sqrt(static_cast<double>(d)) : log2_e * static_cast<double>(factor));
      result.floor = -125.0f / result.scale;
    });
    return result;
  }
};

/// The factor that softmax_scale::of(d, factor) stands for. As there, it does not depend on the modes of the calling thread.
inline double logit_factor(std::size_t d, float factor) {
  double result = 0;
  detail::in_float_environment([&] { result = factor == 0 ? 1 / std::sqrt(static_cast<double>(d)) : static_cast<double>(factor); });
  return result;
}

/// Horner coefficients of 2^r on [-1/2, 1/2], lowest first; error of the whole exponential 2^-23.4. Seven scalars, not an array:
/// device code can name a constexpr float but not an element of a constexpr array.
/// @{
inline constexpr float exp2_c0 = 1.0f, exp2_c1 = 0x1.62e43p-1f, exp2_c2 = 0x1.ebfbep-3f, exp2_c3 = 0x1.c6aeccp-5f, exp2_c4 = 0x1.3b2a1cp-7f,
                       exp2_c5 = 0x1.5f48cp-10f, exp2_c6 = 0x1.444p-13f;
/// @}
inline constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer kept in the low bits

/// 2^(u * scale), u finite and scale * u <= 126; exactly 0 below the floor. Never libm.
PQKV_HD inline float exponential(float u, softmax_scale s) {
  if (u < s.floor) return 0.0f;
  const float t = fma(u, s.scale, round_magic);
  const float i = sub(t, round_magic);
  const float r = fma(u, s.scale, -i);
  float p = exp2_c6;
  p = fma(p, r, exp2_c5);
  p = fma(p, r, exp2_c4);
  p = fma(p, r, exp2_c3);
  p = fma(p, r, exp2_c2);
  p = fma(p, r, exp2_c1);
  p = fma(p, r, exp2_c0);
  return float_from_bits(float_bits(p) + ((float_bits(t) - float_bits(round_magic)) << 23));
}

/// F(P): P * 2^40 rounded to nearest even, P in [0, 2^10]. Sums of these are free of order.
PQKV_HD inline std::uint64_t to_fixed(float p) {
  // The product with a power of two is exact, so a fused add gives the same double.
  const double shifted = static_cast<double>(p) * 0x1p40 + 0x1.8p52;
  return __builtin_bit_cast(std::uint64_t, shifted) - __builtin_bit_cast(std::uint64_t, 0x1.8p52);
}

/// Splits F(P) into upper * 2^22 + lower, |lower| <= 2^21.
struct fixed_parts {
  std::int32_t upper, lower;
};
/// The parts of to_fixed(p), p in [0, 16], by six operations on floats.
PQKV_HD inline fixed_parts to_fixed_parts(float p) {
  const float shifted = fma(p, 0x1p18f, round_magic), upper = sub(shifted, round_magic);
  const float rest = fma(upper, -0x1p-18f, p);          // exact, at most half a step of the upper part
  const float lower = fma(rest, 0x1p40f, round_magic);  // rounds as F(P) does: in units of 2^-40 the upper part is even
  const std::uint32_t magic = float_bits(round_magic);
  return {static_cast<std::int32_t>(float_bits(shifted) - magic), static_cast<std::int32_t>(float_bits(lower) - magic)};
}

/// Whether Z has too few bits because the table's maxima are too far above the best token.
PQKV_HD constexpr bool needs_recentring(std::uint64_t z, std::uint64_t tokens) { return z < (tokens << 20); }

/// A, from the best token's sum of u: max(best, -120 / scale).
PQKV_HD inline float recentring(float best, softmax_scale s) { return max(best, div(-120.0f, s.scale)); }

/// R = float(2^40 / double(Z)); 0 for Z = 0, which makes the query head contribute nothing.
PQKV_HD inline float inverse_normaliser(std::uint64_t z) { return z == 0 ? 0.0f : static_cast<float>(0x1p40 / static_cast<double>(z)); }

/// Unsigned key with the order of the floats; -0 equals +0, every NaN is below -infinity.
PQKV_HD constexpr std::uint32_t order_key(float x) {
  const std::uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
  if (bits == 0x80000000u) return 0x80000000u;
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

/// Inverse of order_key; a NaN for keys outside those of the infinities.
PQKV_HD constexpr float from_order_key(std::uint32_t key) { return float_from_bits((key & 0x80000000u) ? key & 0x7fffffffu : ~key); }

/// Exponent s with |x| * 2^s < 2^30 for all |x| <= largest, so that 2^33 terms sum in 64 bits. Clamped to +-100.
PQKV_HD constexpr int fixed_point_exponent(float largest) {
  const int exponent = static_cast<int>((float_bits(largest) >> 23) & 0xffu) - 127;  // largest < 2^(exponent + 1)
  const int s = 29 - exponent;
  return s > 100 ? 100 : s < -100 ? -100 : s;
}

/// 2^e for e in [-126, 127].
PQKV_HD constexpr float power_of_two(int e) { return float_from_bits(static_cast<std::uint32_t>(e + 127) << 23); }

/// x * 2^s rounded to nearest even; scale = power_of_two(s), |x| * scale < 2^30.
PQKV_HD inline std::int64_t fixed_point(float x, float scale) {
  const double shifted = static_cast<double>(x) * static_cast<double>(scale) + 0x1.8p52;
  return static_cast<std::int64_t>(__builtin_bit_cast(std::uint64_t, shifted) - __builtin_bit_cast(std::uint64_t, 0x1.8p52));
}

/// Turns a row of floats into 8-bit integers with one scale: scale = largest / 127, integer = x / scale rounded to nearest even.
/// @{
inline constexpr float least_scaled = 0x1p-100f;  // rows below it become zeros: the scale's inverse would overflow

/// @param largest  magnitude of the row, by its bits. If it is an infinity or a NaN, the scale is a NaN, and so is everything read back
PQKV_HD inline float row_scale(std::uint32_t largest) {
  if (largest >= 0x7f800000u) return float_from_bits(0x7fc00000u);
  const float magnitude = float_from_bits(largest);
  return magnitude < least_scaled ? 0.0f : div(magnitude, 127.0f);
}
/// The factor for elements; 0 if the row is zeros or not finite.
PQKV_HD inline float inverse_row_scale(float scale) { return scale > 0 ? div(1.0f, scale) : 0.0f; }
/// x / scale as an integer, |x| at most 127 * scale.
PQKV_HD inline std::int32_t scaled_integer(float x, float inverse_scale) {
  return static_cast<std::int32_t>(float_bits(fma(x, inverse_scale, round_magic)) - float_bits(round_magic));
}
/// @}

/// The mean that a fixed-point sum gives.
PQKV_HD inline float fixed_point_mean(std::int64_t sum, std::uint64_t count, float scale) {
  return static_cast<float>(static_cast<double>(sum) / static_cast<double>(count) / static_cast<double>(scale));
}

}  // namespace pqkv::canonical
