// SPDX-License-Identifier: Apache-2.0
// What stands around the two sides of a conversation, in the families of models that were trained on one: without it an instructed model
// goes on with a text instead of answering it.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer.hpp"

namespace minillama {

/// A conversation is: user_open, what the user says, user_close, the reply, reply_close, user_open, ...
struct chat_template {
  const char* name;
  const char* user_open;
  const char* user_close;   // and what precedes the reply
  const char* reply_close;  // the end token, and what follows it
  const char* end_token;    // that ends a reply; reply_close begins with it
};

/// chatml (SmolLM2, Qwen), llama2, llama3, mistral; all without a system message.
const std::vector<chat_template>& chat_templates();

/// @throws load_error, on behalf of `source`, for a name that is none of them
const chat_template& chat_template_named(const std::string& source, std::string_view name);

/// The template whose marks are tokens of their own in this vocabulary; none where there are no such tokens.
const chat_template* chat_template_of(const tokenizer& words);

}  // namespace minillama
