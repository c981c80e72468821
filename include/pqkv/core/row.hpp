// SPDX-License-Identifier: Apache-2.0
// One row of keys or values in any layout, as a store gives it and kernels read and write it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "owner.hpp"
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

/// K and V of one token and head side by side, as a cache's own memory and the copies in fast memory have them: key [d], value [d].
template <class T>
struct token_row {
  using element_type = T;  // what memory of such rows is made of

  /// From one token's row to the next: rows begin on cache lines.
  PQKV_HD static constexpr std::size_t elements(std::size_t d) {
    constexpr std::size_t line = cache_line_bytes / sizeof(T);
    return (2 * d + line - 1) / line * line;
  }
  /// Bytes that a copy of a row copies.
  PQKV_HD static constexpr std::size_t bytes(std::size_t d) { return 2 * d * sizeof(T); }
  PQKV_HD static constexpr kv_row<T> key(const T* row, std::size_t) { return {row, 1}; }
  PQKV_HD static constexpr kv_row<T> value(const T* row, std::size_t d) { return {row + d, 1}; }
  PQKV_HD static constexpr row_slot<T> key_slot(T* row, std::size_t) { return {row, 1}; }
  PQKV_HD static constexpr row_slot<T> value_slot(T* row, std::size_t d) { return {row + d, 1}; }
};

/// Key [d] and value [d] as 8-bit integers, and 16 bytes for their two scales of 4 bytes each, so that rows begin on 16 bytes.
template <>
struct token_row<scaled_int8> {
  using element_type = std::byte;

  PQKV_HD static constexpr std::size_t elements(std::size_t d) { return 16 + 2 * d; }
  PQKV_HD static constexpr std::size_t bytes(std::size_t d) { return elements(d); }
  PQKV_HD static kv_row<scaled_int8> key(const std::byte* row, std::size_t d) { return read(row, d, 0); }
  PQKV_HD static kv_row<scaled_int8> value(const std::byte* row, std::size_t d) { return read(row, d, 1); }
  PQKV_HD static row_slot<scaled_int8> key_slot(std::byte* row, std::size_t d) { return slot(row, d, 0); }
  PQKV_HD static row_slot<scaled_int8> value_slot(std::byte* row, std::size_t d) { return slot(row, d, 1); }

 private:
  PQKV_HD static kv_row<scaled_int8> read(const std::byte* row, std::size_t d, std::size_t which) {
    return {reinterpret_cast<const std::int8_t*>(row) + which * d, reinterpret_cast<const float*>(row + 2 * d) + which};
  }
  PQKV_HD static row_slot<scaled_int8> slot(std::byte* row, std::size_t d, std::size_t which) {
    return {reinterpret_cast<std::int8_t*>(row) + which * d, reinterpret_cast<float*>(row + 2 * d) + which};
  }
};

/// Row `token` of head `head` of [h, n, d], for writing.
template <class T, class Space>
PQKV_HD constexpr row_slot<T> slot_of(const view<T, 3, Space>& rows, std::size_t head, std::size_t token) {
  return {rows.data + head * rows.stride(0) + token * rows.stride(1), rows.stride(2)};
}

}  // namespace pqkv
