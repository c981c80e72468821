// SPDX-License-Identifier: Apache-2.0
// Counts what the test program takes from the heap, and lets one allocation fail on request. A program that calls one of these gets the
// operators new and delete of allocation_count.cpp; they are the same for every part of it.
#pragma once

#include <cstddef>

namespace pqkv_cases {

/// Calls of any operator new so far.
std::size_t allocations();
/// Bytes they asked for.
std::size_t allocated_bytes();

/// The k-th call from now on (1: the next) throws std::bad_alloc, once; 0: none does.
void fail_allocation(std::size_t k);

}  // namespace pqkv_cases
