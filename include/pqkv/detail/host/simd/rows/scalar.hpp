// SPDX-License-Identifier: Apache-2.0
// Leaves of rows of keys in plain C++: the plain statement of what each computes. Those marked canonical give the same bits on every
// ISA; the others agree within rounding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <class Isa>
struct row_leaf : row_leaf<typename Isa::fallback> {};

template <>
struct row_leaf<isa::scalar> {
  /// dst[i] = float(src[i])
  template <class T>
  static void widen(const T* src, std::size_t n, float* dst) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = static_cast<float>(src[i]);
  }

  /// Whether no element is an infinity or a NaN, on the bits, whatever the compiler assumes.
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
