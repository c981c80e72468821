// SPDX-License-Identifier: Apache-2.0
// A GPU that is not there: what minillama enqueues is kept and run on the host when it waits, so that its own device code is tested on
// machines without a GPU. Device memory is host memory between guards, full of NaNs at first; a captured graph is the list of what was
// enqueued. Not the library's kernels, which the host's pqcache stands in for, and nothing about speed.
#pragma once
#include <cstddef>
#include <functional>

namespace minillama_test::emulated {

/// Runs it when the program waits, or with every replay of the graph that is being captured.
void enqueue(std::function<void()> work);

/// How often the program has waited and allocated so far: tests hold a decode step to one wait and no allocation.
std::size_t waits();
std::size_t allocations();

}  // namespace minillama_test::emulated
