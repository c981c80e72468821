// SPDX-License-Identifier: Apache-2.0
// Host memory for the operations of exec/memory.hpp.
#pragma once

#include "../../exec/host.hpp"
#include "../../exec/memory.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::allocate, backend::host> {
  template <class P>
  static memory_block run(const P&, std::size_t bytes) {
    return detail::host_memory(bytes);
  }
};

template <>
struct kernel<op::copy_bytes, backend::host> {
  template <class P>
  static void run(const P&, void* to, const void* from, std::size_t bytes) noexcept {
    std::memmove(to, from, bytes);
  }
};

template <>
struct kernel<op::zero_bytes, backend::host> {
  template <class P>
  static void run(const P&, void* to, std::size_t bytes) noexcept {
    std::memset(to, 0, bytes);
  }
};

}  // namespace pqkv
