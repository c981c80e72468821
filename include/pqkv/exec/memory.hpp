// SPDX-License-Identifier: Apache-2.0
// Memory of a policy's space: allocated, zeroed and copied by its backend (exec/kernel.hpp), so that the code that uses it is written once
// for every space. On a device, zeroing and copying are enqueued on the policy's stream. Allocating and freeing may wait, so neither
// belongs in a step.
#pragma once

#include "../core/arena.hpp"
#include "kernel.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct allocate {};         // run(policy, bytes) -> memory_block, zeroed in the policy's order
struct allocate_pinned {};  // the same in page-locked host memory, which the policy's device reads too
struct copy_bytes {};       // run(policy, to, from, bytes): between the policy's space and the host's, in either direction or within one
struct zero_bytes {};       // run(policy, to, bytes)
}  // namespace op

/// `size` zeroed elements in the policy's space. @throws std::bad_alloc; on a device cuda_error
template <class T, exec::policy P>
owner<T, typename P::space_type> make_owner(const P& policy, std::size_t size) {
  if (size == 0) return {};
  if (size > static_cast<std::size_t>(-1) / sizeof(T)) detail::out_of_memory();
  return {detail::run_operation<op::allocate>(policy, size * sizeof(T)), size};
}

/// The same in a space that may be another than the policy's: page-locked host memory under a device's policy.
template <class T, class Space, exec::policy P>
requires space::is_space<Space> owner<T, Space> make_owner(const P& policy, std::size_t size) {
  static_assert(std::same_as<Space, typename P::space_type> || std::same_as<Space, space::pinned>,
                "pqkv: a policy gives memory of its own space, and a device's also pinned memory");
  if (size == 0) return {};
  if (size > static_cast<std::size_t>(-1) / sizeof(T)) detail::out_of_memory();
  if constexpr (std::same_as<Space, typename P::space_type>)
    return {detail::run_operation<op::allocate>(policy, size * sizeof(T)), size};
  else
    return {detail::run_operation<op::allocate_pinned>(policy, size * sizeof(T)), size};
}

/// Copies bytes between host memory and the policy's space, or within one; host memory must last until sync() on a device.
/// @throws cuda_error on a device
template <exec::policy P>
void copy_bytes(const P& policy, void* to, const void* from, std::size_t bytes) {
  if (bytes != 0) detail::run_operation<op::copy_bytes>(policy, to, from, bytes);
}

/// Zeroes bytes of the policy's space. @throws cuda_error on a device
template <exec::policy P>
void zero_bytes(const P& policy, void* to, std::size_t bytes) {
  if (bytes != 0) detail::run_operation<op::zero_bytes>(policy, to, bytes);
}

}  // namespace pqkv
