// SPDX-License-Identifier: Apache-2.0
// Rows of any layout and storage type as contiguous floats, for the host's SIMD kernels.
#pragma once

#include <type_traits>

#include "../../../core/row.hpp"
#include "kernels.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// The row itself if it already is contiguous float, else a copy in `copy`.
template <class Kernels, class T>
const float* load_row(kv_row<T> row, std::size_t n, float* copy) {
  if (row.stride == 1) {
    if constexpr (std::is_same_v<T, float>) return row.data;
    Kernels::widen(row.data, n, copy);
  } else {
    for (std::size_t i = 0; i < n; ++i) copy[i] = static_cast<float>(row.data[i * row.stride]);
  }
  return copy;
}

/// A row of 8-bit integers as floats in `copy`.
template <class Kernels>
const float* load_row(kv_row<scaled_int8> row, std::size_t n, float* copy) {
  Kernels::widen(row.data, *row.scale, n, copy);
  return copy;
}

/// Writes the added coordinate of the inner-product metric to y[ds]. Returns false if |y|^2 is not finite.
inline bool lift_to_sphere(float* y, std::size_t ds, float squared_radius) {
  const float norm = canonical::dot(y, y, 1, ds);
  y[ds] = canonical::sphere_coordinate(squared_radius, norm);
  return is_finite(norm);
}

}  // namespace pqkv::detail
