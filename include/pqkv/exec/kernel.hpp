// SPDX-License-Identifier: Apache-2.0
// The one seam between what is asked and who does it. A public function checks its arguments and calls
// kernel<op::scan, Policy::backend_type>::run(...); a backend is a folder of specialisations of this template. Not overloads
// found by name: a forgotten include would silently fall back to something slower, here it does not compile.
#pragma once

#include <cstddef>

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

/// Bytes of scratch that a call on the policy takes from policy.scratch: what a caller who brings scratch must bring. 0 where the backend
/// needs none.
///
/// @tparam Op    e.g. op::retrieve
/// @param sizes  of the call, e.g. {.lists = 8, .query_heads = 32, ...}
template <class Op, exec::policy P>
constexpr std::size_t scratch_bytes(const P&, const typename Op::sizes& sizes) {
  return kernel<Op, typename P::backend_type>::scratch_bytes(sizes);
}
}  // namespace pqkv
