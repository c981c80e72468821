// SPDX-License-Identifier: Apache-2.0
// pqkv's run of a model beside llama.cpp's own: the same text, and how fast.
#pragma once

#include <span>

#include "options.hpp"

namespace llama_example {

/// Greedy tokens of unmodified llama.cpp, which pqkv reads too, step by step. Prints where the two would have gone on otherwise, and by how
/// much of a logit, beside what llama.cpp's logits change by when its own flash attention is turned off.
/// @returns 0 when every token is the same, 3 when not, 130 after Ctrl-C
int compare(const model& file, const options& o, std::span<const llama_token> prompt);

/// Tokens a second after prompts of o.bench tokens, taken from `text` over and over; llama.cpp and pqkv take turns.
/// @returns 0, or 130 after Ctrl-C
int bench(const model& file, const options& o, std::span<const llama_token> text);

}  // namespace llama_example
