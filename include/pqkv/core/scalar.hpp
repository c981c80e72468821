// SPDX-License-Identifier: Apache-2.0
// Storage types of 16 bits beside float. Arithmetic is always in float; these only load and store. Conversions round to
// nearest even, keep infinities, and turn every NaN into a NaN. Layouts are IEEE 754 binary16 and the upper half of binary32,
// so arrays of __half, _Float16, __nv_bfloat16 or uint16_t can be viewed as these by a pointer cast.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE {

/// The bits of x.
PQKV_HD constexpr std::uint32_t float_bits(float x) { return __builtin_bit_cast(std::uint32_t, x); }
/// The float that has these bits.
PQKV_HD constexpr float float_from_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// True unless x is an infinity or a NaN. Tests the bits, so no compiler flag can assume the answer.
PQKV_HD constexpr bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

/// Storage type: the upper half of a float, rounded to nearest even.
struct bfloat16 {
  std::uint16_t bits{};

  constexpr bfloat16() = default;
  PQKV_HD constexpr explicit bfloat16(float x) {
    const std::uint32_t u = float_bits(x);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  PQKV_HD constexpr explicit operator float() const { return float_from_bits(static_cast<std::uint32_t>(bits) << 16); }
};

/// Storage type: IEEE binary16, rounded to nearest even.
struct half {
  std::uint16_t bits{};

  constexpr half() = default;
  PQKV_HD constexpr explicit half(float x) {
    const std::uint32_t u = float_bits(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    std::uint32_t h = 0;
    if (magnitude > 0x7f800000u) {
      h = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x47800000u) {  // 65536 and above; 65520..65536 rounds up to infinity below
      h = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // normal: rebias the exponent by 127 - 15, round on 13 dropped bits
      h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    } else if (magnitude > 0x33000000u) {  // subnormal; 2^-25 and below round to zero
      const std::uint32_t shift = 126u - (magnitude >> 23), significand = (magnitude & 0x7fffffu) | 0x800000u;
      const std::uint32_t floor = significand >> shift, rest = significand & ((1u << shift) - 1u), middle = 1u << (shift - 1u);
      h = floor + ((rest > middle || (rest == middle && (floor & 1u))) ? 1u : 0u);
    }
    bits = static_cast<std::uint16_t>(sign | h);
  }
  PQKV_HD constexpr explicit operator float() const {
    const std::uint32_t sign = (static_cast<std::uint32_t>(bits) & 0x8000u) << 16, exponent = (bits >> 10) & 0x1fu,
                        fraction = bits & 0x3ffu;
    if (exponent == 0x1fu) return float_from_bits(sign | 0x7f800000u | (fraction << 13));
    if (exponent != 0) return float_from_bits(sign | ((exponent + 112u) << 23) | (fraction << 13));
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // exact
    return float_from_bits(sign | float_bits(magnitude));
  }
};

/// Storage type: a signed 8-bit integer in a row with one scale. It stands for integer * scale. The row has the scale (core/row.hpp), so an
/// element alone has no value as a float.
struct scaled_int8 {
  std::int8_t integer{};
};

/// The element types that keys and values may have in memory.
template <class T>
concept storage_scalar = std::same_as < std::remove_cv_t<T>,
float > || std::same_as<std::remove_cv_t<T>, half> || std::same_as<std::remove_cv_t<T>, bfloat16>;

/// The element types that a cache's rows may have: these, and integers with a scale for each row.
template <class T>
concept row_scalar = storage_scalar<T> || std::same_as<std::remove_cv_t<T>, scaled_int8>;

/// A storage_scalar that can be written.
template <class T>
concept writable_scalar = storage_scalar<T> && !std::is_const_v<T>;

}  // namespace pqkv
