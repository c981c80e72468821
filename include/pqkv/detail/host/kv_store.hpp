// SPDX-License-Identifier: Apache-2.0
// Rows in any layout and storage type as contiguous floats, for the host kernels; and the copy of rows into a store.
#pragma once

#include <type_traits>

#include "../../cache/kv_store.hpp"
#include "../../exec/host.hpp"
#include "simd/leaf.hpp"

namespace pqkv::detail {

/// The row itself where it already is contiguous float, else a copy in `copy`.
template <class Leaf, class T>
const float* load_row(kv_row<T> row, std::size_t n, float* copy) {
  if (row.stride == 1) {
    if constexpr (std::is_same_v<T, float>) return row.data;
    Leaf::widen(row.data, n, copy);
  } else {
    for (std::size_t i = 0; i < n; ++i) copy[i] = static_cast<float>(row.data[i * row.stride]);
  }
  return copy;
}

/// Row `token` of head `head` of [h, n, d] keys.
template <class T, class Space>
kv_row<std::remove_cv_t<T>> row_of(const view<T, 3, Space>& keys, std::size_t head, std::size_t token) {
  return {keys.data + head * keys.stride(0) + token * keys.stride(1), keys.stride(2)};
}

/// On the bits, whatever the compiler assumes.
inline bool all_finite(const float* x, std::size_t n) {
  bool finite = true;
  for (std::size_t i = 0; i < n; ++i) finite &= is_finite(x[i]);
  return finite;
}

}  // namespace pqkv::detail

namespace pqkv {

template <>
struct kernel<op::store_rows, backend::host> {
  template <class P, class T, class U, class From, class To>
  static void run(const P& policy, view<T, 3, From> from, view<U, 3, To> to, view<std::uint32_t, 1> nonfinite) {
    const std::size_t d = from.extent(2);
    policy.runner.run(from.extent(0), [&](std::size_t head) {
      for (std::size_t t = 0; t < from.extent(1); ++t) {
        bool finite = true;
        for (std::size_t i = 0; i < d; ++i) {
          const U stored = static_cast<U>(static_cast<float>(from(head, t, i)));
          finite &= is_finite(static_cast<float>(stored));  // a finite float may be beyond half
          to(head, t, i) = stored;
        }
        if (!finite && nonfinite.data != nullptr) ++nonfinite(head);
      }
    });
  }
};

}  // namespace pqkv
