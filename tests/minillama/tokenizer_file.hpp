// SPDX-License-Identifier: Apache-2.0
// Small tokenizer.json files, for the tests of their reader: written by the test, read, and their tokens spelt out.
#pragma once
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "hugging_face_tokenizer.hpp"
#include "load_error.hpp"
#include "text_cases.hpp"

namespace minillama_test {

inline const std::string space_mark = "\xe2\x96\x81";  // SentencePiece's, U+2581
inline const std::string llama3_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Readable: marks and letters of a space as "_", the letter of a line feed as "~".
inline std::string readable(std::string text) {
  for (const auto& [from, to] : {std::pair{space_mark.c_str(), "_"}, {"\xc4\xa0", "_"}, {"\xc4\x8a", "~"}})
    for (auto at = text.find(from); at != text.npos; at = text.find(from)) text.replace(at, std::string(from).size(), to);
  return text;
}

/// And back, to marks.
inline std::string marked(std::string text) {
  for (auto at = text.find('_'); at != text.npos; at = text.find('_')) text.replace(at, 1, space_mark);
  return text;
}

inline std::string joined(const std::vector<std::string>& pieces) {
  std::string all;
  for (const std::string& piece : pieces) all += (all.empty() ? "" : "|") + readable(piece);
  return all;
}

/// A byte-pair model whose tokens have these texts, from 0 on.
inline nlohmann::json model_of(const std::vector<std::string>& texts, const nlohmann::json& merges = nlohmann::json::array()) {
  nlohmann::json vocabulary = nlohmann::json::object();
  for (std::size_t id = 0; id < texts.size(); ++id) vocabulary[texts[id]] = id;
  return {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}};
}

inline nlohmann::json file_of(const nlohmann::json& model) { return {{"version", "1.0"}, {"model", model}}; }

inline nlohmann::json added(const std::string& text, std::size_t id, bool special = true) {
  return {{"content", text}, {"id", id}, {"special", special}, {"normalized", !special}};
}

/// "before" a text stands one token.
inline nlohmann::json begin_template(const std::string& token) {
  return {{"type", "TemplateProcessing"},
          {"single", {{{"SpecialToken", {{"id", token}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}}};
}

struct loaded_file {
  explicit loaded_file(const nlohmann::json& whole) {
    write_text(path(), whole.dump());
    words = std::make_unique<minillama::hugging_face_tokenizer>(path());
    for (const auto& [text, id] : whole.at("model").at("vocab").items()) name(id.get<std::size_t>(), text);
    if (whole.contains("added_tokens"))
      for (const auto& one : whole.at("added_tokens")) name(one.at("id").get<std::size_t>(), one.at("content").get<std::string>());
  }
  std::filesystem::path path() const { return folder.path() / "tokenizer.json"; }

  /// Texts of the tokens of a text, with bars between them.
  std::string spelt(const std::string& text, minillama::text_place place = minillama::text_place::start) const {
    std::vector<std::string> all;
    for (const minillama::token_id token : words->encode(text, place)) all.push_back(names.at(token));
    return joined(all);
  }
  /// What the tokens of a text decode to, behind the begin token.
  std::string back(const std::string& text, minillama::text_place place = minillama::text_place::start) const {
    std::string all;
    minillama::token_id previous = 0;
    for (const minillama::token_id token : words->encode(text, place)) {
      all += words->decode(previous, token);
      previous = token;
    }
    return all;
  }

  temporary_directory folder;
  std::unique_ptr<minillama::hugging_face_tokenizer> words;
  std::vector<std::string> names;

 private:
  void name(std::size_t id, const std::string& text) {
    if (names.size() <= id) names.resize(id + 1);
    names[id] = text;
  }
};

inline std::string problem_of(const std::string& text) {
  return refusal_of_file("tokenizer.json", text, [](const std::filesystem::path& path) { minillama::hugging_face_tokenizer words(path); });
}

}  // namespace minillama_test
