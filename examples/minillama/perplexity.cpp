// SPDX-License-Identifier: Apache-2.0
// The largest logit is taken out of the sum of exponentials, so that none overflows.
#include "perplexity.hpp"

#include <cmath>

namespace minillama {

double text_score::perplexity() const { return std::exp(negative_log_likelihood); }

namespace {

/// log sum exp of the logits: what each of them is above its probability's logarithm.
double log_normaliser(std::span<const float> logits) {
  const double largest = largest_logit(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

double divergence_from(std::span<const float> dense, std::span<const float> logits, double normaliser) {
  double sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double wanted = dense[i];
    sum += std::exp(wanted) * (wanted - (static_cast<double>(logits[i]) - normaliser));
  }
  return sum;
}

}  // namespace

double negative_log_likelihood(std::span<const float> logits, token_id token) {
  return log_normaliser(logits) - static_cast<double>(logits[token]);
}

text_score score(session& at, std::span<const float> logits, std::span<const token_id> tokens, const step_observer& observe,
                 kept_distributions keep, std::span<const float> dense) {
  text_score found{.tokens = tokens.size()};
  const std::size_t vocabulary = logits.size();
  double sum = 0, divergence = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const double normaliser = log_normaliser(logits);
    sum += normaliser - static_cast<double>(logits[tokens[i]]);
    if (!dense.empty()) divergence += divergence_from(dense.subspan(i * vocabulary, vocabulary), logits, normaliser);
    if (keep == kept_distributions::all)
      for (const float logit : logits) found.log_probabilities.push_back(static_cast<float>(static_cast<double>(logit) - normaliser));
    if (i + 1 < tokens.size()) logits = at.step(tokens[i], observe);
  }
  found.negative_log_likelihood = sum / static_cast<double>(tokens.size());
  if (!dense.empty()) found.divergence = divergence / static_cast<double>(tokens.size());
  return found;
}

}  // namespace minillama
