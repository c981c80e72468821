// SPDX-License-Identifier: Apache-2.0
// The one function that waits. Calls on a device policy only enqueue. After sync() their results are there, and their errors have been
// reported. On the host every call is done when it returns, so generic code may call sync() there too.
#pragma once

#include "kernel.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct sync {};
}  // namespace op

/// Waits until everything that was enqueued on the policy's stream is done.
///
/// @throws cuda_error when it, or anything before it on the stream, failed
template <exec::policy P>
void sync(const P& policy) {
  detail::run_operation<op::sync>(policy);
}

}  // namespace pqkv
