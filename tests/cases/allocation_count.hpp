// SPDX-License-Identifier: Apache-2.0
// Counts what the test program takes from the heap. A program that calls one of these gets the counting operators new and delete of
// allocation_count.cpp; they are the same for every part of it.
#pragma once

#include <cstddef>

namespace pqkv_cases {

/// Calls of any operator new so far.
std::size_t allocations();
/// Bytes they asked for.
std::size_t allocated_bytes();

}  // namespace pqkv_cases
