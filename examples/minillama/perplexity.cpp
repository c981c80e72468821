// SPDX-License-Identifier: Apache-2.0
// The largest logit is taken out of the sum of exponentials, so that none overflows.
#include "perplexity.hpp"

#include <algorithm>
#include <cmath>

namespace minillama {

double text_score::perplexity() const { return std::exp(negative_log_likelihood); }

double negative_log_likelihood(std::span<const float> logits, token_id token) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum) - static_cast<double>(logits[token]);
}

text_score score(session& at, std::span<const float> logits, std::span<const token_id> tokens, const step_observer& observe) {
  double sum = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    sum += negative_log_likelihood(logits, tokens[i]);
    if (i + 1 < tokens.size()) logits = at.step(tokens[i], observe);
  }
  return {tokens.size(), sum / static_cast<double>(tokens.size())};
}

}  // namespace minillama
