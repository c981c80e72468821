// SPDX-License-Identifier: Apache-2.0
// What an execution policy is: a small copyable value that says which memory space, which backend, which ISA or device tuning,
// who runs tasks or which stream, and where scratch comes from. It owns nothing.
#pragma once

#include <concepts>
#include <type_traits>

#include "../core/space.hpp"

namespace pqkv::inline PQKV_MODE::backend {
struct host {};
struct cuda {};
}  // namespace pqkv::backend

namespace pqkv::inline PQKV_MODE::exec {
/// The two types that every function reads. A backend's own policies have whatever else it needs.
template <class P>
concept policy = std::copy_constructible<P> && requires {
  typename P::backend_type;
  typename P::space_type;
} && space::is_space<typename P::space_type>;
}  // namespace pqkv::exec

namespace pqkv::inline PQKV_MODE {
/// Whether memory of this space can be used with this policy.
template <class Space, class Policy>
concept reachable_from = space::usable_from<Space, typename Policy::space_type>;
}  // namespace pqkv
