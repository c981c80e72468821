// SPDX-License-Identifier: Apache-2.0
// Frequencies are computed in double and rounded once.
#include "rotary.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace minillama {
namespace {

/// The share of its own speed that a pair keeps; the rest is `factor` times slower.
double blended(double frequency, double factor, double kept) { return (1 - kept) * frequency / factor + kept * frequency; }

double kept_share(double frequency, const llama3_scaling& scaling) {
  const double turns = scaling.original_positions * frequency / (2 * std::numbers::pi);
  const double share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return std::clamp(share, 0.0, 1.0);
}

/// @param i  number of the pair, of heads of d dimensions
double kept_share(std::size_t i, std::size_t d, double theta, const yarn_scaling& scaling) {
  const auto dims = static_cast<double>(d);
  const auto pair_that_turns = [&](double times) {
    return dims * std::log(scaling.original_positions / (times * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double first = pair_that_turns(scaling.beta_fast), last = pair_that_turns(scaling.beta_slow);
  if (scaling.whole_pairs) first = std::floor(first), last = std::ceil(last);
  first = std::max(first, 0.0), last = std::min(last, dims - 1);
  if (first == last) last += 0.001;  // as the source has it
  return 1 - std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
}

}  // namespace

std::vector<float> rotary_frequencies(const model_config& config) {
  const std::size_t d = config.stored_head_dim;
  std::vector<float> frequencies(config.head_dim / 2);
  for (std::size_t i = 0; i < d / 2; ++i) {
    double frequency = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
    if (const auto* linear = std::get_if<linear_scaling>(&config.rope_scaling)) frequency /= linear->factor;
    if (const auto* llama3 = std::get_if<llama3_scaling>(&config.rope_scaling))
      frequency = blended(frequency, llama3->factor, kept_share(frequency, *llama3));
    if (const auto* yarn = std::get_if<yarn_scaling>(&config.rope_scaling))
      frequency = blended(frequency, yarn->factor, kept_share(i, d, config.rope_theta, *yarn));
    frequencies[i] = static_cast<float>(frequency);
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
