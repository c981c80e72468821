// SPDX-License-Identifier: Apache-2.0
// Seconds of wall-clock time.
#pragma once

#include <chrono>

namespace minillama {

using wall_clock = std::chrono::steady_clock;

inline double seconds_since(wall_clock::time_point start) { return std::chrono::duration<double>(wall_clock::now() - start).count(); }

}  // namespace minillama
