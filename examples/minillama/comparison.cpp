// SPDX-License-Identifier: Apache-2.0
// Sums in double: a mean over a large vocabulary keeps its digits.
#include "comparison.hpp"

#include <algorithm>
#include <cmath>

namespace minillama {
namespace {

logit_difference difference(std::span<const float> a, std::span<const float> b) {
  logit_difference found;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double apart = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    found.largest = std::max(found.largest, apart);
    found.mean += apart / static_cast<double>(a.size());
  }
  return found;
}

}  // namespace

std::vector<reply_comparison> compare(std::span<const reply> policy, std::span<const reply> full, std::size_t vocabulary,
                                      turn_start start) {
  std::vector<reply_comparison> all;
  bool same = true;
  for (std::size_t turn = 0; turn < policy.size(); ++turn) {
    reply_comparison& one = all.emplace_back();
    one.same_before = same || start == turn_start::fresh;
    if (!one.same_before) continue;
    const auto &ours = policy[turn].tokens, &theirs = full[turn].tokens;
    const std::size_t both = std::min(ours.size(), theirs.size());
    const auto parted = std::mismatch(ours.begin(), ours.begin() + static_cast<std::ptrdiff_t>(both), theirs.begin());
    const auto agreed = static_cast<std::size_t>(parted.first - ours.begin());
    if (agreed < both || ours.size() != theirs.size()) one.departs = agreed;
    for (std::size_t step = 0; step < std::min(agreed + 1, both); ++step)
      one.steps.push_back(difference(std::span(policy[turn].logits).subspan(step * vocabulary, vocabulary),
                                     std::span(full[turn].logits).subspan(step * vocabulary, vocabulary)));
    same = same && !one.departs;
  }
  return all;
}

}  // namespace minillama
