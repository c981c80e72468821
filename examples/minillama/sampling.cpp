// SPDX-License-Identifier: Apache-2.0
// The nucleus is taken off a heap: exact for any P, and no sort of the whole vocabulary.
#include "sampling.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "decoder.hpp"

namespace minillama {

sampler::sampler(const sampling_settings& settings) : settings_(settings), random_(settings.seed) {
  if (!(settings.temperature >= 0) || !std::isfinite(settings.temperature))
    throw std::invalid_argument("temperature: expected 0 or more, got " + std::to_string(settings.temperature));
  if (!(settings.top_p > 0 && settings.top_p <= 1))
    throw std::invalid_argument("top_p: expected more than 0, at most 1, got " + std::to_string(settings.top_p));
}

token_id sampler::pick(std::span<const float> logits) {
  if (settings_.temperature == 0) return greedy(logits);
  const float largest = largest_logit(logits);

  candidates_.clear();
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((static_cast<double>(logits[i]) - static_cast<double>(largest)) / settings_.temperature);
    candidates_.push_back({weight, static_cast<token_id>(i)});
    total += weight;
  }

  // A heap's front moves to the back: the nucleus grows there, the likeliest token last.
  const auto later = [](const candidate& a, const candidate& b) { return a.weight != b.weight ? a.weight < b.weight : a.token > b.token; };
  auto heap_end = candidates_.end();
  double kept = 0;
  std::make_heap(candidates_.begin(), heap_end, later);
  do {
    std::pop_heap(candidates_.begin(), heap_end, later);
    kept += (--heap_end)->weight;
  } while (kept < settings_.top_p * total && heap_end != candidates_.begin());

  const double drawn = random_.unit() * kept;
  double sum = 0;
  for (auto one = candidates_.end(); one != heap_end;) {
    sum += (--one)->weight;
    if (drawn < sum) return one->token;
  }
  return heap_end->token;
}

}  // namespace minillama
