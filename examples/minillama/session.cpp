// SPDX-License-Identifier: Apache-2.0
// What every session shares.
#include "session.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace minillama {

tier_record& tier_record::operator+=(const tier_record& other) {
  counts += other.counts;
  recall += other.recall;
  samples += other.samples;
  return *this;
}

session_statistics& session_statistics::operator+=(const session_statistics& other) {
  if (steps == 0) {
    parts = other.parts;
    selection = other.selection;
    maintenance = other.maintenance;
    tiers = other.tiers;
  } else if (other.steps != 0) {  // a sum is known where both are
    if (parts && other.parts)
      *parts += *other.parts;
    else
      parts.reset();
    if (selection && other.selection) {
      selection->index += other.selection->index;
      selection->selector += other.selection->selector;
    } else {
      selection.reset();
    }
    if (maintenance && other.maintenance) {
      maintenance->seconds += other.maintenance->seconds;
      maintenance->trainings += other.maintenance->trainings;
      maintenance->codes += other.maintenance->codes;
    } else {
      maintenance.reset();
    }
    if (tiers && other.tiers)
      *tiers += *other.tiers;
    else
      tiers.reset();
  }
  steps += other.steps;
  layers = other.layers;
  seconds += other.seconds;
  fed += other.fed;
  fed_seconds += other.fed_seconds;
  tokens_attended += other.tokens_attended;
  attended_bytes += other.attended_bytes;
  return *this;
}

std::span<const float> session::feed(std::span<const token_id> tokens, const step_observer& observe) {
  for (const token_id token : tokens.first(tokens.size() - 1)) step(token);
  return step(tokens.back(), observe);
}

float largest_logit(std::span<const float> logits) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  float largest = -infinity;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < infinity))
      throw std::domain_error("the model's logit of token " + std::to_string(i) + " is " + std::to_string(logits[i]) +
                              ": its weights overflow");
    largest = std::max(largest, logits[i]);
  }
  if (largest == -infinity) throw std::domain_error("the model's logits are all -infinity: its weights overflow");
  return largest;
}

token_id greedy(std::span<const float> logits) {
  return static_cast<token_id>(std::find(logits.begin(), logits.end(), largest_logit(logits)) - logits.begin());
}

}  // namespace minillama
