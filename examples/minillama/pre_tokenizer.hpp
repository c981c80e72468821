// SPDX-License-Identifier: Apache-2.0
// How a text falls into the pieces that byte-pair merging never joins: the normalizer and the pre-tokenizer of a tokenizer.json.
//
// Supported: Prepend, Replace, Sequence; Split (a regular expression or a text, isolated), Digits, ByteLevel, Metaspace, Sequence.
// Everything else is refused by name: another normalizer would give other tokens without a word.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "json_reader.hpp"

namespace minillama {

/// What stands before a piece. Some tokenizers put a space before what begins a text, some before every piece.
enum class piece_place {
  start,      // nothing
  continued,  // tokens of a text that was encoded before: no space belongs here
  later       // another piece, or a token that was named in the text
};

/// Changes a text as a whole.
class normalizer {
 public:
  /// @param described  the key "normalizer"; null: changes nothing
  /// @throws load_error that names the file and the key
  normalizer(const std::filesystem::path& file, const nlohmann::json& described);

  /// Prepend gives nothing to a continued text. @throws load_error when the text becomes twelve times as long, and 4 KB
  std::string operator()(std::string text, piece_place place) const;

 private:
  struct step {
    std::string from, to;  // from is empty: prepended
  };
  std::filesystem::path file_;
  std::vector<step> steps_;
};

/// Splits a text into pieces, and may put them into other letters.
class pre_tokenizer {
 public:
  /// @param described  the key "pre_tokenizer"; null: a text is one piece
  /// @throws load_error that names the file and the key
  pre_tokenizer(const std::filesystem::path& file, const nlohmann::json& described);

  /// @throws load_error when all pieces are twelve times as long as the text, and 4 KB
  std::vector<std::string> operator()(std::string text, piece_place place) const;

 private:
  using pieces = std::vector<std::string>;
  using step = std::function<void(const std::string& piece, piece_place place, pieces& out)>;

  void add(const json_reader& at);
  void add_matches(const json_reader& at, const std::string& key, const std::string& pattern);
  void add_split(const json_reader& at);
  void add_byte_level(const json_reader& at);
  void add_metaspace(const json_reader& at);

  std::filesystem::path file_;
  std::vector<step> steps_;
};

/// The letter that stands for a byte in a byte-level vocabulary, in UTF-8: itself where it is printable, else one from U+0100 on.
const std::string& byte_letter(unsigned char byte);

/// Bytes that a text of byte letters stands for; the text itself where one of its characters is none.
std::string bytes_of_letters(const std::string& letters);

}  // namespace minillama
