// SPDX-License-Identifier: Apache-2.0
// What the operating system says of this process's memory, and giving memory back to it.
#pragma once
#include <cstddef>

namespace minillama {

/// Bytes of the process that are in memory now: its code and libraries too, as far as they were used. 0 where there is no /proc.
std::size_t resident_bytes();

/// Gives memory that was freed back to the system, where the C library is glibc: it would keep some for later allocations, on top of
/// which others come.
void return_free_memory();

}  // namespace minillama
