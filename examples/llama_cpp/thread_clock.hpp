// SPDX-License-Identifier: Apache-2.0
// Time that this thread has been on a CPU, in seconds. What other programs do meanwhile is not in it.
#pragma once

#include <ctime>

namespace llama_example {

inline double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace llama_example
