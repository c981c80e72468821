// SPDX-License-Identifier: Apache-2.0
// The one place where a public function calls the backend that does the work. The function checks its arguments and calls run() of
// kernel<op::scan, Policy::backend_type>; a backend is a folder of specialisations of this template. They are not overloads found by name:
// with those, a forgotten include would silently select something slower; here it does not compile.
#pragma once

#include <cstddef>
#include <utility>

#include "policy.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {
template <class...>
inline constexpr bool always_false = false;
}

/// An operation on a backend; specialisations have a static run(policy, arguments...).
template <class Op, class Backend>
struct kernel {
  static_assert(detail::always_false<Op, Backend>,
                "pqkv: this backend's implementation is not included; include <pqkv/pqkv.hpp> for the host, <pqkv/cuda.cuh> (nvcc) or "
                "<pqkv/cuda_extern.hpp> (C++) for CUDA; docs/policies.md lists what each backend has");
};

/// Bytes of scratch that a call takes from policy.scratch. A caller who brings scratch must bring that many. 0 if the backend needs none.
///
/// @tparam Op    e.g. op::retrieve
/// @param sizes  of the call, e.g. {.lists = 8, .query_heads = 32, ...}
template <class Op, exec::policy P>
constexpr std::size_t scratch_bytes(const P&, const typename Op::sizes& sizes) {
  return kernel<Op, typename P::backend_type>::scratch_bytes(sizes);
}

namespace detail {

/// A host policy with its runner's type hidden, or another backend's policy as it is. Refers to the policy's runner.
template <exec::policy P>
auto erased(const P& policy) {
  if constexpr (requires { policy.erased(); })
    return policy.erased();
  else
    return policy;
}

/// What every public function calls once its arguments are checked: the backend's implementation, with the runner's type hidden.
template <class Op, exec::policy P, class... Argument>
decltype(auto) run_operation(const P& policy, Argument&&... argument) {
  if constexpr (requires { policy.erased(); })
    return kernel<Op, typename P::backend_type>::run(policy.erased(), std::forward<Argument>(argument)...);
  else
    return kernel<Op, typename P::backend_type>::run(policy, std::forward<Argument>(argument)...);
}

}  // namespace detail
}  // namespace pqkv
