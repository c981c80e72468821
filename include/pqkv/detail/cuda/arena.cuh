// SPDX-License-Identifier: Apache-2.0
// Scratch of a device call: always the caller's, since taking it from the driver would wait.
#pragma once

#include "../../core/arena.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// The policy's arena, or a part of it, for one call.
/// @throws capacity_error when it has less than `bytes` left; a policy without an arena has none
inline arena device_scratch(const arena& scratch, std::size_t bytes, const char* function) {
  const std::size_t free = scratch.counting() ? 0 : scratch.free_bytes();
  if (free < bytes)
    raise({status::code::capacity, function, "policy.scratch", "bytes of device memory, from scratch_bytes()", bytes, free,
           relation::at_least});
  return scratch;
}

}  // namespace pqkv::detail
