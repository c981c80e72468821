// SPDX-License-Identifier: Apache-2.0
// Copies rows into a store on the host. A task is one head.
#pragma once

#include "../../cache/kv_store.hpp"
#include "../../exec/host.hpp"

namespace pqkv::inline PQKV_MODE {

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
          finite &= is_finite(static_cast<float>(stored));  // a finite float may overflow in half
          to(head, t, i) = stored;
        }
        if (!finite && nonfinite.data != nullptr) ++nonfinite(head);
      }
    });
  }
};

}  // namespace pqkv
