// SPDX-License-Identifier: Apache-2.0
// Nothing to wait for: a host call is done when it returns.
#pragma once

#include "../../exec/sync.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::sync, backend::host> {
  template <class P>
  static void run(const P&) noexcept {}
};

}  // namespace pqkv
