// SPDX-License-Identifier: Apache-2.0
// JSON lines: a file with one JSON object a line, as question sets are distributed. Lines are read one by one, so a file may be larger than
// memory. What is wrong is said with file, line and key: "qa.jsonl: line 3: context: missing key".
#pragma once
#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "json_reader.hpp"
#include "mapped_file.hpp"

namespace minillama {

class jsonl_reader {
 public:
  /// The longest line. A context of a million tokens has a tenth of it.
  static constexpr std::size_t most_line_bytes = std::size_t{64} << 20;

  /// @throws load_error when the file cannot be opened, is empty, or is no file
  explicit jsonl_reader(const std::filesystem::path& path) : path_(path), file_(path) {}

  /// Goes to the next line that is not blank; false at the end of the file.
  /// @throws load_error that names file and line when it is too long, or not a JSON object as parse_object() takes them
  bool next();
  /// Of the current line, counted from 1.
  std::size_t line() const { return line_; }
  /// The object of the current line. It is valid until next() is called.
  json_reader record() const { return {path_, object_, name_of_line() + ": "}; }

 private:
  std::string name_of_line() const { return "line " + std::to_string(line_); }

  std::filesystem::path path_;
  mapped_file file_;
  std::size_t at_ = 0, line_ = 0;
  nlohmann::json object_;
};

}  // namespace minillama
