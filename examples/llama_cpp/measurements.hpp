// SPDX-License-Identifier: Apache-2.0
// pqkv's run of a model beside llama.cpp's own: the same text, and how fast.
#pragma once

#include <span>

#include "options.hpp"

namespace llama_example {

/// Exit code after Ctrl-C, and what is thrown to get there.
inline constexpr int interrupted = 130;
struct stopped {};

/// The largest difference of two logit vectors; NaN when one has a NaN, or another length.
double farthest(std::span<const float> a, std::span<const float> b);

/// The same for llama.cpp as it is.
engine_settings without_pqkv(engine_settings settings, ggml_type cache_type, bool flash_attention);

/// Greedy tokens of unmodified llama.cpp, which pqkv reads too, step by step. Prints where the two would have gone on otherwise, and by how
/// much of a logit, beside what llama.cpp's logits change by when its own flash attention is turned off.
/// @returns 0 when every token is the same, 3 when not, 130 after Ctrl-C
int compare(const model& file, const options& o, std::span<const llama_token> prompt);

/// Tokens a second after prompts of o.bench tokens, taken from `text` over and over; llama.cpp and pqkv take turns.
/// One copy of the prompt, then o.sequences copies together; the rate is of all of them.
/// @returns 0, or 130 after Ctrl-C
int bench(const model& file, const options& o, std::span<const llama_token> text);

/// Answers about numbers that stand in a text, and the perplexity of o.steps tokens that follow a prompt: by llama.cpp's dense attention,
/// and by pqkv with a fifth and a tenth of the tokens, chosen by codes and as sinks and window. Prompts are read once.
/// @returns 0, or 130 after Ctrl-C
int quality(const model& file, const options& o, const std::string& text);

/// Runs what an engine does with sequences both in one way and in a plainer one, and compares logits: copies, places to go back to, a
/// session file, several sequences in one step. Prints a line each. @returns 0, 4 when one differs, 130 after Ctrl-C
int check(const model& file, const options& o, std::span<const llama_token> text);

}  // namespace llama_example
