// SPDX-License-Identifier: Apache-2.0
// What a measurement counts as time.
#pragma once

#include <chrono>
#include <cstddef>
#include <ctime>

namespace llama_example {

/// Time that this thread has been on a CPU, in seconds. What other programs do meanwhile is not in it.
inline double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Of work on one thread its time on the CPU; of several threads the time that passes.
inline double seconds_of_work(std::size_t threads) {
  if (threads == 1) return thread_seconds();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace llama_example
