// SPDX-License-Identifier: Apache-2.0
// The runs of minillama: a conversation, the score of a text, and the plan of either's memory.
#pragma once
#include "options.hpp"

namespace minillama {

/// Prefills the prompt, takes the turns, prints the replies on stdout.
void generate(const options& o);

/// Scores the last tokens of a text under the policy.
void score_text(const options& o);

/// Prints what the context will take; reads no weights.
void print_plan(const options& o);

}  // namespace minillama
