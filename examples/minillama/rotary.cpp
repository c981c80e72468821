// SPDX-License-Identifier: Apache-2.0
// Frequencies are computed in double and rounded once.
#include "rotary.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace minillama {
namespace {

double scaled(double frequency, const rotary_scaling& scaling) {
  const double turns = scaling.original_positions * frequency / (2 * std::numbers::pi);
  const double share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  const double kept = std::clamp(share, 0.0, 1.0);
  return (1 - kept) * frequency / scaling.factor + kept * frequency;
}

}  // namespace

std::vector<float> rotary_frequencies(const model_config& config) {
  std::vector<float> frequencies(config.head_dim / 2);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double plain = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    frequencies[i] = static_cast<float>(config.rope_scaling ? scaled(plain, *config.rope_scaling) : plain);
  }
  return frequencies;
}

void rotate(std::span<float> heads, std::span<const float> cosines, std::span<const float> sines) {
  const std::size_t half = cosines.size();
  for (std::size_t head = 0; head < heads.size(); head += 2 * half) {
    for (std::size_t i = 0; i < half; ++i) {
      const rotary_pair pair = turned({heads[head + i], heads[head + i + half]}, cosines[i], sines[i]);
      heads[head + i] = pair.first;
      heads[head + i + half] = pair.second;
    }
  }
}

}  // namespace minillama
