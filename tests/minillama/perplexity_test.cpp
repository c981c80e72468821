// SPDX-License-Identifier: Apache-2.0
// Distributions that are kept while a text is scored, and how far another policy's are from them.
#include "perplexity.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "decoder.hpp"
#include "tiny_model.hpp"
#include "tokenizer.hpp"

using namespace minillama_test;
using namespace minillama;

namespace {

/// Scores the last tokens of a text under any policy, and keeps the logits that foretold each.
struct scorer {
  scorer() {
    const tiny_shape shape{.max_positions = 256};
    write_model(folder.path(), shape, random_weights(shape, 1));
    llama = std::make_unique<model>(folder.path());
  }

  text_score operator()(policy_name name, kept_distributions keep, std::span<const float> dense = {}) {
    return score(*session_of(name), prefilled().logits, tail(), {}, keep, dense);
  }
  /// [tokens][vocabulary], as a session gives them.
  std::vector<std::vector<float>> logits(policy_name name) {
    const auto at = session_of(name);
    std::vector<std::vector<float>> all{prefilled().logits};
    for (const token_id token : tail().first(scored - 1)) {
      const auto next = at->step(token);
      all.emplace_back(next.begin(), next.end());
    }
    return all;
  }

  static constexpr std::size_t scored = 30;
  std::span<const token_id> tail() const { return std::span(tokens).last(scored); }

 private:
  const prefilled_prompt& prefilled() {
    if (!prompt) prompt = prefill(*llama, std::span(tokens).first(tokens.size() - scored), runner);
    return *prompt;
  }
  std::unique_ptr<host_session> session_of(policy_name name) {
    policy_settings policy;
    policy.name = name;
    policy.budget.ratio = 0;
    return std::make_unique<host_session>(*llama, runner, policy, prefilled(), scored, session_kind::single);
  }

  temporary_directory folder;
  std::unique_ptr<model> llama;
  pool_runner runner{2};
  std::vector<token_id> tokens = byte_tokens("It was a bright cold day in April, and the clocks were striking thirteen. " +
                                             std::string(60, 'q') + " Winston Smith slipped quickly through the glass doors.");
  std::optional<prefilled_prompt> prompt;
};

/// Probabilities, in double, by the plain formula: the tiny model's logits are small.
std::vector<double> plain_probabilities(const std::vector<float>& logits) {
  std::vector<double> all;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  for (const float logit : logits) all.push_back(std::exp(static_cast<double>(logit)) / sum);
  return all;
}

}  // namespace

TEST_CASE("kept distributions are the policy's own, and sum to one") {
  scorer score_of;
  const text_score found = score_of(policy_name::full, kept_distributions::all);
  const auto logits = score_of.logits(policy_name::full);
  REQUIRE(found.log_probabilities.size() == scorer::scored * 256);
  for (std::size_t i = 0; i < scorer::scored; ++i) {
    const auto wanted = plain_probabilities(logits[i]);
    double sum = 0, largest_error = 0;
    for (std::size_t token = 0; token < 256; ++token) {
      const double kept = std::exp(static_cast<double>(found.log_probabilities[i * 256 + token]));
      sum += kept;
      largest_error = std::max(largest_error, std::abs(kept - wanted[token]));
    }
    CHECK(sum == doctest::Approx(1).epsilon(1e-6));
    CHECK(largest_error < 1e-6);
  }
  CHECK_FALSE(found.divergence);
  CHECK(score_of(policy_name::full, kept_distributions::none).log_probabilities.empty());
}

TEST_CASE("a policy does not diverge from itself, and from another as the plain formula says") {
  scorer score_of;
  const text_score dense = score_of(policy_name::full, kept_distributions::all);
  const text_score same = score_of(policy_name::full, kept_distributions::none, dense.log_probabilities);
  REQUIRE(same.divergence);
  CHECK(std::abs(*same.divergence) < 1e-6);
  CHECK(same.negative_log_likelihood == dense.negative_log_likelihood);

  const text_score other = score_of(policy_name::streaming, kept_distributions::none, dense.log_probabilities);
  const auto wanted_logits = score_of.logits(policy_name::full), own_logits = score_of.logits(policy_name::streaming);
  double sum = 0, back = 0;
  for (std::size_t i = 0; i < scorer::scored; ++i) {
    const auto wanted = plain_probabilities(wanted_logits[i]), own = plain_probabilities(own_logits[i]);
    for (std::size_t token = 0; token < 256; ++token) {
      sum += wanted[token] * std::log(wanted[token] / own[token]);
      back += own[token] * std::log(own[token] / wanted[token]);
    }
  }
  const double mean = sum / scorer::scored;
  REQUIRE(other.divergence);
  CHECK(mean > 1e-4);                                                 // the two do differ
  CHECK(std::abs(back - sum) / scorer::scored > 1e-5 + 1e-3 * mean);  // and it matters which is measured from which
  CHECK(*other.divergence == doctest::Approx(mean).epsilon(1e-3));
}
