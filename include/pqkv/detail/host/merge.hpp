// SPDX-License-Identifier: Apache-2.0
// Merges partial attention on the host. A task is one query head.
#pragma once

#include "../../exec/host.hpp"
#include "../../merge.hpp"
#include "../../core/float_environment.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::merge, backend::host> {
  template <class P>
  static void run(const P& policy, view<float, 2> out, view<float, 1> lse, view<const float, 2> other_out, view<const float, 1> other_lse) {
    detail::run_tasks(policy, out.extent(0),
                      [&](std::size_t q) { merge(&out(q, 0), lse(q), &other_out(q, 0), other_lse(q), out.extent(1)); });
  }
};

}  // namespace pqkv
