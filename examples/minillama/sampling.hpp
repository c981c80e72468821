// SPDX-License-Identifier: Apache-2.0
// Which token comes next: the likeliest, or one drawn at a temperature from the nucleus, the smallest set of likeliest tokens that has a
// share P of the probability. The draws are this program's own (random_source.hpp): a seed gives the same text everywhere.
// Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "config.hpp"
#include "random_source.hpp"

namespace minillama {

struct sampling_settings {
  double temperature = 0;  // 0: the likeliest token, nothing is drawn
  double top_p = 1;        // P
  std::uint64_t seed = 0;
};

class sampler {
 public:
  /// @throws std::invalid_argument when the temperature is negative or not finite, or top_p is not in (0, 1]
  explicit sampler(const sampling_settings& settings);

  /// Picks a token; one draw at a temperature above 0.
  ///
  /// weight[i] = exp((logits[i] - largest) / temperature), in double. Of equal weights the lower id comes first into the nucleus.
  ///
  /// @param logits  [vocabulary], not empty
  /// @throws std::domain_error as largest_logit()
  /// @cost   a pass over the vocabulary and a heap of it, of which only the nucleus is taken out
  token_id pick(std::span<const float> logits);

 private:
  struct candidate {
    double weight;
    token_id token;
  };

  sampling_settings settings_;
  random_source random_;
  std::vector<candidate> candidates_;
};

}  // namespace minillama
