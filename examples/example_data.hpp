// SPDX-License-Identifier: Apache-2.0
// Keys and queries for the examples: rows around a few random centres, as real keys are, not plain noise.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

/// [rows, d] floats around centres that are the same for every seed.
inline std::vector<float> clustered_rows(std::size_t rows, std::size_t d, unsigned seed) {
  std::mt19937 same(0), generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> centres(32 * d), data(rows * d);
  for (float& x : centres) x = normal(same);
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t centre = generator() % 32;
    for (std::size_t i = 0; i < d; ++i) data[row * d + i] = centres[centre * d + i] + 0.5f * normal(generator);
  }
  return data;
}
