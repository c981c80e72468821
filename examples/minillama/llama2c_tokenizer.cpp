// SPDX-License-Identifier: Apache-2.0
// Pieces are joined by score (byte_pairs.hpp); the raw bytes are joined to nothing.
#include "llama2c_tokenizer.hpp"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <pqkv/core/scalar.hpp>

#include "byte_pairs.hpp"
#include "load_error.hpp"
#include "mapped_file.hpp"
#include "unicode_text.hpp"

namespace minillama {
namespace {

constexpr token_id text_begin = 1, text_end = 2, first_byte = 3, first_piece = first_byte + 256;
constexpr std::int32_t longest_piece = 1 << 16;  // far above any, and a JSON file's first letters are far above this

/// Reads numbers and bytes one after the other.
class reader {
 public:
  reader(const std::filesystem::path& path, std::span<const std::byte> bytes) : path_(path), bytes_(bytes) {}

  bool done() const { return bytes_.empty(); }
  std::span<const std::byte> take(std::size_t count, const std::string& what) {
    if (count > bytes_.size())
      throw load_error(path_, what,
                       "file is truncated: expected " + std::to_string(count) + " more bytes, got " + std::to_string(bytes_.size()));
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }
  template <class Number>
  Number number(const std::string& what) {
    Number value;
    std::memcpy(&value, take(sizeof(Number), what).data(), sizeof(Number));
    return value;
  }

 private:
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

/// SentencePiece's mark for a space; llama2.c's export has replaced it already.
constexpr std::string_view space_mark = "\xe2\x96\x81";

}  // namespace

llama2c_tokenizer::llama2c_tokenizer(const std::filesystem::path& path) {
  const mapped_file file(path);
  reader from(path, file.bytes());
  const auto longest = from.number<std::int32_t>("longest piece");
  if (longest < 1 || longest > longest_piece)
    throw load_error(
        path, "longest piece",
        "expected 1 to " + std::to_string(longest_piece) + " bytes, got " + std::to_string(longest) + ": not a llama2.c tokenizer");
  while (!from.done()) {
    const std::string token = "token " + std::to_string(pieces_.size());
    const auto score = from.number<float>(token);
    if (!pqkv::is_finite(score)) throw load_error(path, token, "score: expected a finite number");
    const auto length = from.number<std::int32_t>(token);
    if (length < 1 || length > longest)
      throw load_error(path, token,
                       "length: expected 1 to the " + std::to_string(longest) + " of the longest piece, got " + std::to_string(length));
    const auto bytes = from.take(static_cast<std::size_t>(length), token);
    pieces_.push_back({replaced({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, space_mark, " "), score});
  }
  if (pieces_.size() < first_piece)
    throw load_error(path, "vocabulary",
                     "expected at least " + std::to_string(first_piece) + " tokens, got " + std::to_string(pieces_.size()));
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    std::string& text = pieces_[first_byte + byte].text;
    if (text != name)
      throw load_error(path, "token " + std::to_string(first_byte + byte), std::string("expected ") + name + ", got " + text);
    text.assign(1, static_cast<char>(byte));
  }
  for (std::size_t token = first_piece; token < pieces_.size(); ++token) known_.emplace(pieces_[token].text, static_cast<token_id>(token));
}

std::vector<token_id> llama2c_tokenizer::encode(std::string_view given, text_place place) const {
  std::string text(given);
  if (place == text_place::start && !text.empty()) text.insert(0, 1, ' ');

  std::vector<text_part> parts;
  for (std::size_t start = 0; start < text.size();) {
    const std::string_view character = std::string_view(text).substr(start, character_bytes(std::string_view(text).substr(start)));
    const auto add = [&](std::size_t length, token_id token) {
      parts.push_back({start, length, token});
      start += length;
    };
    if (const auto found = known_.find(character); found != known_.end())
      add(character.size(), found->second);
    else
      for (const char c : character) add(1, first_byte + static_cast<unsigned char>(c));
  }
  const auto join = [&](const text_part& left, const text_part& right) -> std::optional<joined_pair<float>> {
    if (left.token < first_piece || right.token < first_piece) return std::nullopt;
    const auto found = known_.find(std::string_view(text).substr(left.start, left.length + right.length));
    if (found == known_.end()) return std::nullopt;
    return joined_pair<float>{-pieces_[found->second].score, found->second};  // the best score comes first
  };

  std::vector<token_id> tokens;
  if (place == text_place::start) tokens.push_back(text_begin);
  for (const text_part& one : merge_pairs<float>(std::move(parts), join)) tokens.push_back(one.token);
  return tokens;
}

std::string llama2c_tokenizer::decode(token_id previous, token_id token) const {
  if (token == text_begin || token == text_end) return "";
  const std::string& text = pieces_[token].text;
  const bool marked = previous == text_begin && text.front() == ' ';
  return marked ? text.substr(1) : text;
}

}  // namespace minillama
