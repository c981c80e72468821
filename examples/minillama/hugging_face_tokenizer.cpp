// SPDX-License-Identifier: Apache-2.0
// Joins go by rank, as the file lists them; the first of equal places is joined first.
#include "hugging_face_tokenizer.hpp"

#include <algorithm>
#include <cstdio>

#include "byte_pairs.hpp"
#include "json_file.hpp"
#include "load_error.hpp"
#include "regular_expression.hpp"
#include "unicode_text.hpp"

namespace minillama {
namespace {

using nlohmann::json;

constexpr std::size_t most_tokens = std::size_t{1} << 24;
constexpr std::string_view space_mark = "\xe2\x96\x81";  // SentencePiece's

std::string byte_name(unsigned byte) {
  char name[8];
  std::snprintf(name, sizeof(name), "<0x%02X>", byte);
  return name;
}

/// Of an empty text, or of none, where the file says nothing.
std::string text_or_empty(const json_reader& at, const std::string& key) { return at.find(key) ? at.text(key) : std::string(); }

/// "a b" or ["a", "b"]
std::pair<std::string, std::string> pair_of(const json_reader& at, const std::string& key, const json& given) {
  if (given.is_array() && given.size() == 2 && given[0].is_string() && given[1].is_string())
    return {given[0].get<std::string>(), given[1].get<std::string>()};
  if (given.is_string()) {
    const auto& text = given.get_ref<const std::string&>();
    const auto blank = text.find(' ');
    if (blank != text.npos && text.find(' ', blank + 1) == text.npos) return {text.substr(0, blank), text.substr(blank + 1)};
  }
  at.fail(key, "expected two texts, as \"a b\" or [\"a\", \"b\"], got " + given.dump(-1, ' ', false, json::error_handler_t::replace));
}

bool is_white_space(std::string_view character) {
  static const regular_expression blank(R"(\s)");
  bool found = false;
  blank.each_match(character, [&](std::size_t, std::size_t) { found = true; });
  return found;
}

/// Where the white space begins that a text ends with.
std::size_t white_space_before(std::string_view text) {
  std::size_t begin = text.size();
  while (begin > 0) {
    std::size_t at = begin - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
    if (!is_white_space(text.substr(at, begin - at))) break;
    begin = at;
  }
  return begin;
}

/// Where the white space ends that a text begins with.
std::size_t white_space_behind(std::string_view text) {
  std::size_t end = 0;
  while (end < text.size()) {
    const std::size_t bytes = character_bytes(text.substr(end));
    if (!is_white_space(text.substr(end, bytes))) break;
    end += bytes;
  }
  return end;
}

}  // namespace

byte_pair_model::byte_pair_model(const std::filesystem::path& file, const json& described) {
  const json_reader at(file, described, "model.");
  if (at.find("type")) at.require_text("type", "BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const std::string text = text_or_empty(at, key); !text.empty()) at.fail(key, "unsupported: \"" + text + "\" (only none)");
  if (at.find("dropout") && at.at("dropout") != 0.0) at.fail("dropout", "unsupported: " + at.at("dropout").dump() + " (only null)");
  byte_fallback_ = at.flag_or("byte_fallback", false);
  fuse_unknown_ = at.flag_or("fuse_unk", false);
  ignore_merges_ = at.flag_or("ignore_merges", false);
  read_vocabulary(at);
  read_merges(at);
  if (at.find("unk_token")) {
    unknown_ = find(at.text("unk_token"));
    if (!unknown_) at.fail("unk_token", "\"" + at.text("unk_token") + "\" is not in vocab");
  }
  byte_tokens_.resize(256);
  for (unsigned byte = 0; byte < 256; ++byte) byte_tokens_[byte] = find(byte_name(byte));
}

std::optional<unsigned char> byte_pair_model::byte_of(token_id token) const {
  unsigned byte = 0;
  if (!byte_fallback_ || std::sscanf(texts_[token].c_str(), "<0x%2X>", &byte) != 1 || texts_[token] != byte_name(byte)) return std::nullopt;
  return static_cast<unsigned char>(byte);
}

void byte_pair_model::read_vocabulary(const json_reader& at) {
  const json_reader vocabulary = at.inside("vocab");
  std::vector<std::pair<std::string, std::size_t>> tokens;
  std::size_t size = 0;
  for (const auto& [text, id] : at.at("vocab").items()) {
    tokens.emplace_back(text, vocabulary.whole(text, 0, most_tokens));
    size = std::max(size, tokens.back().second + 1);
  }
  if (tokens.empty()) at.fail("vocab", "is empty");
  if (size > 2 * tokens.size() + 1024)
    at.fail("vocab", "has " + std::to_string(tokens.size()) + " tokens and ids up to " + std::to_string(size - 1));
  texts_.resize(size);
  std::vector<char> given(size);
  for (auto& [text, id] : tokens) {
    if (given[id]++) at.fail("vocab", "has the id " + std::to_string(id) + " twice");
    texts_[id] = std::move(text);
  }
  known_.reserve(size);
  for (std::size_t id = 0; id < size; ++id)
    if (given[id]) known_.emplace(texts_[id], static_cast<token_id>(id));
}

void byte_pair_model::read_merges(const json_reader& at) {
  const json& merges = at.at("merges");
  if (!merges.is_array()) at.fail("merges", std::string("expected an array, got ") + merges.type_name());
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string key = "merges[" + std::to_string(rank) + "]";
    const auto [left, right] = pair_of(at, key, merges[rank]);
    const auto known = [&](const std::string& text) {
      const auto found = find(text);
      if (!found) at.fail(key, "\"" + text + "\" is not in vocab");
      return *found;
    };
    const token_id one = known(left), other = known(right);
    merges_[key_of(one, other)] = {static_cast<std::uint32_t>(rank), known(left + right)};
  }
}

std::optional<token_id> byte_pair_model::find(std::string_view text) const {
  const auto found = known_.find(text);
  return found == known_.end() ? std::nullopt : std::optional(found->second);
}

void byte_pair_model::add_unknown(std::string_view piece, std::size_t start, std::size_t length, std::vector<text_part>& parts) const {
  const std::string_view character = piece.substr(start, length);
  const auto has_token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)].has_value(); };
  if (byte_fallback_ && std::all_of(character.begin(), character.end(), has_token)) {
    for (std::size_t i = 0; i < length; ++i) parts.push_back({start + i, 1, *byte_tokens_[static_cast<unsigned char>(character[i])]});
    return;
  }
  if (!unknown_) return;
  const bool behind_unknown = !parts.empty() && parts.back().token == *unknown_ && parts.back().start + parts.back().length == start;
  // that is not the unknown token written out, as "?" may be
  if (fuse_unknown_ && behind_unknown && piece.substr(parts.back().start, parts.back().length) != texts_[*unknown_])
    parts.back().length += length;
  else
    parts.push_back({start, length, *unknown_});
}

void byte_pair_model::encode(const std::string& piece, std::vector<token_id>& tokens) const {
  if (ignore_merges_)
    if (const auto whole = find(piece)) return tokens.push_back(*whole);
  std::vector<text_part> parts;
  for (std::size_t start = 0; start < piece.size();) {
    const std::string_view rest = std::string_view(piece).substr(start);
    const std::size_t length = character_bytes(rest);
    if (const auto token = find(rest.substr(0, length)))
      parts.push_back({start, length, *token});
    else
      add_unknown(piece, start, length, parts);
    start += length;
  }
  const auto join = [&](const text_part& left, const text_part& right) -> std::optional<joined_pair<std::uint32_t>> {
    const auto found = merges_.find(key_of(left.token, right.token));
    if (found == merges_.end()) return std::nullopt;
    return joined_pair<std::uint32_t>{found->second.rank, found->second.token};
  };
  for (const text_part& one : merge_pairs<std::uint32_t>(std::move(parts), join)) tokens.push_back(one.token);
}

hugging_face_tokenizer::hugging_face_tokenizer(const std::filesystem::path& path)
    : hugging_face_tokenizer(path, read_object(path, tokenizer_limits)) {}

hugging_face_tokenizer::hugging_face_tokenizer(const std::filesystem::path& path, const json& whole)
    : model_(path, json_reader(path, whole).at("model")),
      normalizer_(path, whole.value("normalizer", json())),
      pre_tokenizer_(path, whole.value("pre_tokenizer", json())) {
  const json_reader at(path, whole);
  size_ = model_.size();
  if (at.find("added_tokens")) read_added(at);
  if (at.find("post_processor")) read_post_processor(at.inside("post_processor"));
  if (at.find("decoder")) read_decoder(at.inside("decoder"));
}

void hugging_face_tokenizer::read_added(const json_reader& at) {
  for (const json_reader& one : at.each("added_tokens")) {
    if (one.flag_or("single_word", false)) one.fail("single_word", "unsupported: true (only false)");
    added_token token{one.text("content"), static_cast<token_id>(one.whole("id", 0, most_tokens)), one.flag_or("special", false),
                      one.flag_or("lstrip", false), one.flag_or("rstrip", false)};
    if (token.text.empty()) one.fail("content", "is empty");
    const auto known = model_.find(token.text);
    const token_id expected = known ? *known : static_cast<token_id>(size_);
    if (token.token != expected && !added_.contains(token.token))
      one.fail("id", "expected " + std::to_string(expected) + ", " +
                         (known ? "which vocab says" : "the next number after the tokens before it") + ", got " +
                         std::to_string(token.token));
    size_ = std::max<std::size_t>(size_, token.token + 1);
    added_.emplace(token.token, token);
    const bool normalized = one.flag_or("normalized", !token.special);
    if (normalized) token.text = normalizer_(token.text, piece_place::start);
    (normalized ? normalized_ : raw_).push_back(std::move(token));
  }
  const auto longest_first = [](std::vector<added_token>& all) {  // of equal length in the file's order
    std::vector<std::pair<std::size_t, std::size_t>> order;       // length and place
    for (std::size_t i = 0; i < all.size(); ++i) order.emplace_back(all[i].text.size(), i);
    std::sort(order.begin(), order.end(),
              [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
    std::vector<added_token> sorted;
    for (const auto& one : order) sorted.push_back(std::move(all[one.second]));
    all = std::move(sorted);
  };
  longest_first(raw_);
  longest_first(normalized_);
}

/// ByteLevel changes only offsets. A template may put one token before the text, and nothing after it.
void hugging_face_tokenizer::read_post_processor(const json_reader& at) {
  const std::string type = at.text("type");
  if (type == "Sequence") {
    for (const json_reader& one : at.each("processors")) read_post_processor(one);
  } else if (type == "TemplateProcessing") {
    bool behind = false;
    for (const json_reader& part : at.each("single")) {
      if (part.find("Sequence")) {
        behind = true;
        continue;
      }
      const json_reader special = part.inside("SpecialToken");
      const std::string name = special.text("id");
      if (behind || begin_) special.fail("id", "unsupported: \"" + name + "\" (only one token, before the text)");
      begin_ = special_token(name);
      if (!begin_) begin_ = model_.find(name);
      if (!begin_) special.fail("id", "\"" + name + "\" is no token");
    }
  } else if (type != "ByteLevel") {
    at.fail("type", "unsupported: " + type + " (only ByteLevel, TemplateProcessing and Sequence)");
  }
}

void hugging_face_tokenizer::read_decoder(const json_reader& at) {
  const std::string type = at.text("type");
  if (type == "Sequence") {
    for (const json_reader& one : at.each("decoders")) read_decoder(one);
  } else if (type == "ByteLevel") {
    byte_letters_ = true;
  } else if (type == "Strip") {
    strips_first_space_ = at.text("content") == " " && at.whole("start", 0, 1) == 1;
  } else if (type == "Metaspace") {
    at.require_text("replacement", std::string(space_mark));
    strips_first_space_ = !at.find("prepend_scheme") || at.text("prepend_scheme") != "never";
  } else if (type == "Replace") {
    at.inside("pattern").require_text("String", std::string(space_mark));
    at.require_text("content", " ");
  } else if (type != "ByteFallback" && type != "Fuse") {
    at.fail("type", "unsupported: " + type + " (only ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace and Sequence)");
  }
}

std::optional<token_id> hugging_face_tokenizer::special_token(const std::string& mark) const {
  for (const auto& [token, added] : added_)
    if (added.text == mark) return token;
  return std::nullopt;
}

std::vector<hugging_face_tokenizer::segment> hugging_face_tokenizer::split(std::string_view text, const std::vector<added_token>& at) {
  std::vector<segment> segments;
  bool begins[256] = {};
  for (const added_token& one : at) begins[static_cast<unsigned char>(one.text[0])] = true;
  std::size_t done = 0;
  for (std::size_t i = 0; i < text.size();) {
    const auto here = [&](const added_token& one) { return text.substr(i, one.text.size()) == one.text; };
    const auto found = begins[static_cast<unsigned char>(text[i])] ? std::find_if(at.begin(), at.end(), here) : at.end();
    if (found == at.end()) {
      ++i;
      continue;
    }
    std::string_view before = text.substr(done, i - done);
    if (found->left_strip) before = before.substr(0, white_space_before(before));
    if (!before.empty()) segments.push_back({std::string(before), std::nullopt});
    segments.push_back({found->text, found->token});
    i += found->text.size();
    if (found->right_strip) i += white_space_behind(text.substr(i));
    done = i;
  }
  if (done < text.size()) segments.push_back({std::string(text.substr(done)), std::nullopt});
  return segments;
}

std::vector<token_id> hugging_face_tokenizer::encode(std::string_view text, text_place place) const {
  std::vector<token_id> tokens;
  if (place == text_place::start && begin_) tokens.push_back(*begin_);
  piece_place where = place == text_place::start ? piece_place::start : piece_place::continued;
  for (const segment& raw : split(text, raw_)) {
    if (raw.token) {
      tokens.push_back(*raw.token);
    } else {
      for (const segment& part : split(normalizer_(raw.text, where), normalized_)) {
        if (part.token)
          tokens.push_back(*part.token);
        else
          for (const std::string& piece : pre_tokenizer_(part.text, where)) model_.encode(piece, tokens);
        where = piece_place::later;
      }
    }
    where = piece_place::later;
  }
  return tokens;
}

std::string hugging_face_tokenizer::decode(token_id previous, token_id token) const {
  if (const auto added = added_.find(token); added != added_.end()) return added->second.special ? "" : added->second.text;
  if (token >= model_.size()) return "";
  if (byte_letters_) return bytes_of_letters(model_.text(token));
  if (const auto byte = model_.byte_of(token)) return std::string(1, static_cast<char>(*byte));
  const std::string text = replaced(model_.text(token), space_mark, " ");
  const bool first = begin_ && previous == *begin_;
  return strips_first_space_ && first && text.starts_with(' ') ? text.substr(1) : text;
}

}  // namespace minillama
