// SPDX-License-Identifier: Apache-2.0
// How well a text is foretold: exp of the mean negative log-likelihood of its tokens, each behind the text's own tokens before it.
#pragma once
#include <cstddef>
#include <span>

#include "session.hpp"

namespace minillama {

struct text_score {
  std::size_t tokens = 0;
  double negative_log_likelihood = 0;  // natural logarithm, mean over the tokens

  double perplexity() const;
};

/// -log softmax(logits)[token], in double.
double negative_log_likelihood(std::span<const float> logits, token_id token);

/// Scores tokens one by one: each against the logits before it, then fed.
///
/// @param logits   those that foretell the first token
/// @param tokens   not empty; the last one is not fed
/// @param observe  every step
text_score score(session& at, std::span<const float> logits, std::span<const token_id> tokens, const step_observer& observe = {});

}  // namespace minillama
