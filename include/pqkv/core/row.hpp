// SPDX-License-Identifier: Apache-2.0
// One row of keys or values in any layout, as a store gives it and kernels read and write it.
#pragma once

#include <cstddef>
#include <type_traits>

#include "scalar.hpp"
#include "view.hpp"

namespace pqkv::inline PQKV_MODE {

/// A row in memory: element i is data[i * stride].
template <class T>
struct kv_row {
  using element_type = T;  // what `data` points to

  const T* data;
  std::size_t stride;

  PQKV_HD constexpr float operator[](std::size_t i) const { return static_cast<float>(data[i * stride]); }
};

/// A row of 8-bit integers, contiguous, with one scale: element i is data[i] * scale. The scale is read at its use, because rows are
/// prefetched.
template <>
struct kv_row<scaled_int8> {
  using element_type = std::int8_t;
  static constexpr std::size_t stride = 1;

  const std::int8_t* data;
  const float* scale;

  PQKV_HD constexpr float operator[](std::size_t i) const { return static_cast<float>(data[i]) * *scale; }
};

/// The type of a copy of such a row's elements.
template <class T>
using copied_element = std::conditional_t<std::is_same_v<T, scaled_int8>, float, T>;

/// Row `token` of head `head` of [h, n, d].
template <class T, class Space>
PQKV_HD constexpr kv_row<std::remove_cv_t<T>> row_of(const view<T, 3, Space>& rows, std::size_t head, std::size_t token) {
  return {rows.data + head * rows.stride(0) + token * rows.stride(1), rows.stride(2)};
}

/// The same row, for writing.
template <class T>
struct row_slot {
  T* data;
  std::size_t stride;
};

/// A row of 8-bit integers and its scale, for writing.
template <>
struct row_slot<scaled_int8> {
  std::int8_t* data;
  float* scale;
};

/// Row `token` of head `head` of [h, n, d], for writing.
template <class T, class Space>
PQKV_HD constexpr row_slot<T> slot_of(const view<T, 3, Space>& rows, std::size_t head, std::size_t token) {
  return {rows.data + head * rows.stride(0) + token * rows.stride(1), rows.stride(2)};
}

}  // namespace pqkv
