// SPDX-License-Identifier: Apache-2.0
// Turns and replies: each turn's text goes through the decode path after a prefilled context, then tokens are picked until the model
// ends, the reply is long enough or the context is full.
#pragma once
#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "sampling.hpp"
#include "session.hpp"
#include "tokenizer.hpp"

namespace minillama {

enum class turn_start {
  continued,  // after the replies before it
  fresh       // from a fork of the prefilled context; needs a forked session
};

struct turn {
  std::string text;
  std::vector<token_id> tokens;
};

enum class ending { end_token, token_limit, context_limit, interrupted };
const char* name_of(ending ended);

struct reply {
  std::vector<token_id> tokens{};  // that were picked, an end token included
  std::string text{};              // of them, without an end token
  ending ended = ending::token_limit;
  std::vector<float> logits{};  // [tokens, vocabulary] that they were picked from; only where these are kept
};

enum class kept_logits { none, all };
/// What an end token does to a reply: with `ignored` it is one like others, for measurements of so many tokens.
enum class end_rule { heeded, ignored };

struct conversation_settings {
  std::vector<token_id> missing_end{};  // fed after a reply that did not end itself, where another turn follows
  std::size_t tokens = 64;              // of a reply, at most
  turn_start start = turn_start::continued;
  sampling_settings sampling{};
  kept_logits keep = kept_logits::none;
  end_rule ends = end_rule::heeded;
};

/// Who listens to a conversation; any of the functions may be empty.
struct listener {
  std::function<void(token_id)> picked;            // each token, an end token included
  std::function<void(const std::string&)> spoken;  // what a token adds to the text
  std::function<void(const reply&)> finished;
  std::function<bool()> stopped{};  // asked before each token: whether to end here. No turn follows then
};

/// Lines of a file of turns; in a line, \n is a line feed and \\ a backslash. Empty lines are left out.
/// @throws load_error when the file cannot be read, holds no turn, or a line has another escape
std::vector<std::string> read_turns(const std::filesystem::path& file);

/// The most tokens after the prompt that a conversation takes, in a context of this length.
///
/// @throws load_error, on behalf of `source`, when prompt and turns do not fit, with a token of every reply that another turn follows
std::size_t conversation_room(const std::string& source, std::size_t prompt_tokens, std::span<const turn> turns, std::size_t context,
                              const conversation_settings& settings);

/// Takes all turns. What ended a reply is the model's token too: it goes in front of the next turn. Each turn draws from a random source
/// of its own, so that a reply does not depend on how many numbers the replies before it took.
///
/// @param at       the session, at the end of the prompt
/// @param room     of the session, from conversation_room()
/// @param logits_of_prompt  [vocabulary] of its last token
/// @param last_of_prompt    its last token
std::vector<reply> converse(session& at, std::size_t room, const model_config& config, const tokenizer& words,
                            std::span<const float> logits_of_prompt, token_id last_of_prompt, std::span<const turn> turns,
                            const conversation_settings& settings, const step_observer& observe = {}, const listener& listening = {});

}  // namespace minillama
