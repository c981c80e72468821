// SPDX-License-Identifier: Apache-2.0
// How well a text is predicted: exp of the mean negative log-likelihood of its tokens, each after the text's own tokens before it.
#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "session.hpp"

namespace minillama {

struct text_score {
  std::size_t tokens = 0;
  double negative_log_likelihood = 0;  // natural logarithm, mean over the tokens
  std::vector<float> log_probabilities{};  // [tokens, vocabulary], where they are kept
  std::optional<double> divergence{};  // Kullback-Leibler, of this from the distributions it was compared with; nats, mean over the tokens

  double perplexity() const;
};

/// -log softmax(logits)[token], in double.
double negative_log_likelihood(std::span<const float> logits, token_id token);

enum class kept_distributions { none, all };

/// Scores tokens one by one: each against the logits before it, then fed.
///
/// divergence = mean over the tokens of sum over the vocabulary of exp(dense) (dense - own), of logarithms of probabilities
///
/// @param logits   those that foretell the first token
/// @param tokens   not empty; the last one is not fed
/// @param observe  every step
/// @param keep     all: log_probabilities is filled, 4 bytes for each token and entry of the vocabulary
/// @param dense    log_probabilities that were kept of the same tokens, or none
text_score score(session& at, std::span<const float> logits, std::span<const token_id> tokens, const step_observer& observe = {},
                 kept_distributions keep = kept_distributions::none, std::span<const float> dense = {});

}  // namespace minillama
