// SPDX-License-Identifier: Apache-2.0
// What tests of texts and files share: how often a part occurs, and what a file is refused with.
#pragma once
#include <doctest/doctest.h>

#include <string>

#include "load_error.hpp"
#include "tiny_model.hpp"

namespace minillama_test {

inline std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

/// "" when load(path) takes a file of this name and content; else the error's text behind the file's name, which must begin with it and be
/// one line.
template <class Load>
std::string refusal_of_file(const char* name, const std::string& content, const Load& load) {
  const temporary_directory folder;
  const auto path = folder.path() / name;
  write_text(path, content);
  try {
    load(path);
  } catch (const minillama::load_error& error) {
    const std::string what = error.what(), start = path.string() + ": ";
    CHECK_MESSAGE(what.rfind(start, 0) == 0, what);
    CHECK_MESSAGE(what.find('\n') == std::string::npos, what);
    return what.substr(start.size());
  }
  return "";
}

}  // namespace minillama_test
