// SPDX-License-Identifier: Apache-2.0
// One row of keys or values in any layout: what a store hands out and what kernels read.
#pragma once

#include <cstddef>
#include <type_traits>

#include "view.hpp"

namespace pqkv::inline PQKV_MODE {

/// Element i is data[i * stride].
template <class T>
struct kv_row {
  const T* data;
  std::size_t stride;
};

/// Row `token` of head `head` of [h, n, d].
template <class T, class Space>
PQKV_HD constexpr kv_row<std::remove_cv_t<T>> row_of(const view<T, 3, Space>& rows, std::size_t head, std::size_t token) {
  return {rows.data + head * rows.stride(0) + token * rows.stride(1), rows.stride(2)};
}

/// The same row, to be written.
template <class T>
struct row_slot {
  T* data;
  std::size_t stride;
};

/// Row `token` of head `head` of [h, n, d], to be written.
template <class T, class Space>
PQKV_HD constexpr row_slot<T> slot_of(const view<T, 3, Space>& rows, std::size_t head, std::size_t token) {
  return {rows.data + head * rows.stride(0) + token * rows.stride(1), rows.stride(2)};
}

}  // namespace pqkv
