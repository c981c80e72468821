// SPDX-License-Identifier: Apache-2.0
// A policy against dense attention on the same conversation. Both decode on their own; as long as both texts agree, both went through the
// same tokens, so their logits can be compared step by step: up to the step at which the texts part, that step included.
#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "conversation.hpp"

namespace minillama {

/// |policy's logit - full's logit| of one step.
struct logit_difference {
  double largest = 0, mean = 0;  // over the vocabulary
};

struct reply_comparison {
  bool same_before = true;             // an earlier turn's texts did not part; otherwise nothing is compared
  std::optional<std::size_t> departs;  // first token that differs, from 0
  std::vector<logit_difference> steps;
};

/// Compares reply by reply.
///
/// @param policy, full  replies to the same turns, with their logits
std::vector<reply_comparison> compare(std::span<const reply> policy, std::span<const reply> full, std::size_t vocabulary, turn_start start);

}  // namespace minillama
