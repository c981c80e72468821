// SPDX-License-Identifier: Apache-2.0
// A text of so many tokens is found by trying: tokens of a text are known only when it is cut.
#include "examination.hpp"

#include <algorithm>

namespace minillama {
namespace {

constexpr std::size_t longest_line = 24, longest_number = 16;  // values have at most 8 bytes

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// The first run of digits, where nothing but blanks stands before it.
std::string leading_number(const std::string& text) {
  const auto begin = std::find_if_not(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\n'; });
  return {begin, std::find_if_not(begin, text.end(), is_digit)};
}

}  // namespace

bool is_complete(answer_form form, const std::string& text) {
  if (form == answer_form::line) return text.ends_with('\n') || text.size() >= longest_line;
  const auto begin = text.find_first_not_of(" \n");
  const bool ended = begin != text.npos && !std::all_of(text.begin() + static_cast<std::ptrdiff_t>(begin), text.end(), is_digit);
  return ended || text.size() >= longest_number;
}

bool is_right(answer_form form, const std::string& text, const std::string& value) {
  return form == answer_form::line ? text == value + "\n" : leading_number(text) == value;
}

examination examiner::prepare(std::size_t i, const std::string& text, std::size_t length, std::size_t questions,
                              random_source& random) const {
  if (is_chat()) return chat_of(text, length, questions, random);
  const auto kind = i % 2 == 0 ? context_kind::needles : context_kind::list;
  question_context made = make_context(kind, text, length, questions, random);
  examination exam{kind, answer_form::line, byte_tokens(made.text), {}};
  for (question& fact : made.questions) exam.questions.push_back({fact, byte_tokens(fact.text())});
  return exam;
}

examination examiner::chat_of(const std::string& text, std::size_t length, std::size_t questions, random_source& random) const {
  const std::string task = std::string(chat_->user_open) + "Some magic numbers are hidden in the text below. Remember them.\n\n";
  std::size_t bytes = 4 * length;
  for (int attempt = 0;; ++attempt) {
    random_source drawn = random;  // the same text, longer or shorter
    question_context made = make_context(context_kind::numbers, text, bytes, questions, drawn);
    examination exam{made.kind, answer_form::number, words_->encode(task + made.text, text_place::start), {}};
    const std::size_t tokens = exam.context.size();
    if (tokens > length || (tokens < length - length / 50 && attempt < 8)) {
      bytes = bytes * (length - length / 100) / tokens;
      continue;
    }
    for (question& fact : made.questions) {
      const std::string begun = "The magic number of the " + fact.key + " is";
      const std::string asked = "\n\nWhat is the magic number of the " + fact.key + "?" + chat_->user_close + begun;
      exam.questions.push_back({fact, words_->encode(asked, text_place::behind)});
    }
    random = drawn;
    return exam;
  }
}

}  // namespace minillama
