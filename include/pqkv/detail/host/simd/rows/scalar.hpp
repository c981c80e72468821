// SPDX-License-Identifier: Apache-2.0
// Kernels of rows of keys in plain C++: the reference for what each computes. Those marked canonical give the same bits on every ISA; the
// others agree within rounding.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <class Isa>
struct row_kernels : row_kernels<typename Isa::fallback> {};

template <>
struct row_kernels<isa::scalar> {
  /// dst[i] = float(src[i])
  template <class T>
  static void widen(const T* src, std::size_t n, float* dst) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = static_cast<float>(src[i]);
  }

  /// dst[i] = src[i] * scale
  static void widen(const std::int8_t* src, float scale, std::size_t n, float* dst) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = static_cast<float>(src[i]) * scale;
  }

  /// Canonical. dst[i] = the 8-bit integer of src[i]. Returns their scale; a NaN if some src[i] is not finite.
  static float narrow(const float* src, std::size_t n, std::int8_t* dst) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, float_bits(src[i]) & 0x7fffffffu);
    const float scale = canonical::row_scale(largest), inverse = canonical::inverse_row_scale(scale);
    for (std::size_t i = 0; i < n; ++i)
      dst[i] = inverse == 0 ? std::int8_t{0} : static_cast<std::int8_t>(canonical::scaled_integer(src[i], inverse));
    return scale;
  }

  /// Whether no element is an infinity or a NaN. Tests the bits, whatever the compiler assumes.
  static bool all_finite(const float* x, std::size_t n) {
    bool finite = true;
    for (std::size_t i = 0; i < n; ++i) finite &= is_finite(x[i]);
    return finite;
  }

  /// Canonical. out[i] = x[i] - mean[i]
  static void centre(const float* x, const float* mean, std::size_t n, float* out) {
    for (std::size_t i = 0; i < n; ++i) out[i] = canonical::sub(x[i], mean[i]);
  }
};

}  // namespace pqkv::detail
