// SPDX-License-Identifier: Apache-2.0
// Contexts with facts in them, and questions about the facts, from a seed. Three kinds: needles spliced into running text, a key-value
// list between text, and numbers between sentences. The first two have the forms that the shipped model was trained on
// (model/README.md); the third asks any model that was taught to answer, as RULER's needles do.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "random_source.hpp"

namespace minillama {

struct question {
  std::string key;
  std::string value;

  /// What is fed to the model; it goes on with the value and a line feed.
  std::string text() const { return "\nQuestion: what is the code of " + key + "?\nAnswer: "; }
};

enum class context_kind { needles, list, numbers };
const char* name_of(context_kind kind);

struct question_context {
  context_kind kind = context_kind::needles;
  std::string text;  // exactly as long as was asked for
  std::vector<question> questions;
};

/// Makes one context of `length` bytes that holds the answers to `questions` questions, every key in it once.
///
/// needles: one fact for each 512 bytes, in four wordings, spliced into the text at any byte
/// list:    lines of "key": "value", 30 % of the length, text before and after
/// numbers: one sentence with a number of seven digits for each question, after sentences or lines of the text
///
/// @param text  running text, at least `length` bytes; a span from a random offset is taken
/// @throws std::invalid_argument when the length does not hold so many facts, the text is too short, or there are too few keys
question_context make_context(context_kind kind, const std::string& text, std::size_t length, std::size_t questions, random_source& random);

/// The files' ASCII, one after the other; of a folder its regular files, no links, in sorted order. prose() without any.
///
/// @throws load_error when a file or folder cannot be read, or a folder has no file
std::string load_text(const std::vector<std::filesystem::path>& files_and_folders);

}  // namespace minillama
