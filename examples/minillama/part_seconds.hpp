// SPDX-License-Identifier: Apache-2.0
// Where a run's time went: products with weights, and what the library does with keys and values. What is left of the whole is the rest.
#pragma once
#include <chrono>

namespace minillama {

struct part_seconds {
  double matrices = 0;  // projections with their normalisation and rotary embedding, feed-forward, logits
  double cache = 0;     // attention; in decoding append, selection and maintenance too

  part_seconds& operator+=(const part_seconds& other) {
    matrices += other.matrices;
    cache += other.cache;
    return *this;
  }
};

/// Tells the seconds since it was made or last asked.
class lap_clock {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace minillama
