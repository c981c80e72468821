// SPDX-License-Identifier: Apache-2.0
// Contexts and questions as a model reads them, and what counts as an answer. A model of bytes is asked in the forms that it was trained
// on; any other is spoken to as its chat template says, with the beginning of the answer put in its mouth.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "chat.hpp"
#include "questions.hpp"
#include "tokenizer.hpp"

namespace minillama {

/// What an answer is, and where it ends.
enum class answer_form {
  line,   // everything up to a line feed, which has to come
  number  // the first digits; blanks before them, anything after them
};

/// Whether an answer need not go on: it has ended, or can no longer be right.
bool is_complete(answer_form form, const std::string& text);
bool is_right(answer_form form, const std::string& text, const std::string& value);

struct exam_question {
  question fact;
  std::vector<token_id> tokens;  // that are fed after the context; the model goes on with the answer
};

struct examination {
  context_kind kind;
  answer_form form;
  std::vector<token_id> context;
  std::vector<exam_question> questions;
};

/// How a model is asked.
class examiner {
 public:
  /// @param words  outlives the examiner
  /// @param chat   none: the forms of the shipped model
  examiner(const tokenizer& words, const chat_template* chat) : words_(&words), chat_(chat) {}

  const tokenizer& words() const { return *words_; }
  bool is_chat() const { return chat_ != nullptr; }

  /// The context number i: needles and lists in turn, or numbers in a chat.
  ///
  /// @param length  tokens of the context; in a chat it is up to 2 % shorter
  /// @throws std::invalid_argument as make_context()
  examination prepare(std::size_t i, const std::string& text, std::size_t length, std::size_t questions, random_source& random) const;

 private:
  examination chat_of(const std::string& text, std::size_t length, std::size_t questions, random_source& random) const;

  const tokenizer* words_;
  const chat_template* chat_;
};

}  // namespace minillama
