// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a Hugging Face directory (tokenizer.json), where its model is byte-pair encoding: byte-level vocabularies as those of
// GPT-2, Llama 3 and SmolLM2, and SentencePiece's as those of Llama 2 and Mistral. What is not read is refused by key.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pre_tokenizer.hpp"
#include "tokenizer.hpp"

namespace minillama {

/// Joins a piece into tokens: the key "model" of a tokenizer.json.
class byte_pair_model {
 public:
  /// @throws load_error that names the file and the key: another kind of model, an id out of range or given twice, a merge of tokens that
  ///         are not in the vocabulary
  byte_pair_model(const std::filesystem::path& file, const nlohmann::json& described);
  byte_pair_model(const byte_pair_model&) = delete;  // known_ looks into texts_
  byte_pair_model& operator=(const byte_pair_model&) = delete;

  /// Appends the tokens of a piece. A character without a token gives its bytes' tokens, or the unknown token, or nothing, as the file
  /// says.
  void encode(const std::string& piece, std::vector<token_id>& tokens) const;

  const std::string& text(token_id token) const { return texts_[token]; }
  std::optional<token_id> find(std::string_view text) const;
  std::size_t size() const { return texts_.size(); }
  /// The byte that a token such as "<0x0A>" stands for.
  std::optional<unsigned char> byte_of(token_id token) const;

 private:
  struct merge {
    std::uint32_t rank;
    token_id token;
  };
  static std::uint64_t key_of(token_id left, token_id right) { return std::uint64_t{left} << 32 | right; }
  void read_vocabulary(const json_reader& at);
  void read_merges(const json_reader& at);
  void add_unknown(std::string_view piece, std::size_t start, std::size_t length, std::vector<struct text_part>& parts) const;

  std::vector<std::string> texts_;                        // by token; empty where a token has no text
  std::unordered_map<std::string_view, token_id> known_;  // views of texts_
  std::unordered_map<std::uint64_t, merge> merges_;       // by key_of()
  std::vector<std::optional<token_id>> byte_tokens_;      // [256] "<0x0A>"; used when byte_fallback_
  std::optional<token_id> unknown_;
  bool byte_fallback_ = false, fuse_unknown_ = false, ignore_merges_ = false;
};

class hugging_face_tokenizer final : public tokenizer {
 public:
  /// @throws load_error that names the file and the key
  explicit hugging_face_tokenizer(const std::filesystem::path& path);

  /// Tokens that the file adds to its vocabulary are found in text as they are written, special ones too: "<|im_start|>" is one token.
  /// At the start the begin token comes first where the file's post-processor puts one.
  std::vector<token_id> encode(std::string_view text, text_place place) const override;
  std::string decode(token_id previous, token_id token) const override;
  /// Numbers above the largest token that has a text mean nothing; a model may have more, to fill its matrix up.
  std::size_t vocabulary() const override { return size_; }
  std::optional<token_id> begin_token() const override { return begin_; }

  std::optional<token_id> special_token(const std::string& mark) const override;

 private:
  struct added_token {
    std::string text;
    token_id token;
    bool special, left_strip, right_strip;
  };
  /// Added tokens and the text between them.
  struct segment {
    std::string text;
    std::optional<token_id> token;
  };

  hugging_face_tokenizer(const std::filesystem::path& path, const nlohmann::json& whole);
  void read_added(const json_reader& at);
  void read_post_processor(const json_reader& at);
  void read_decoder(const json_reader& at);
  static std::vector<segment> split(std::string_view text, const std::vector<added_token>& at);

  byte_pair_model model_;
  normalizer normalizer_;
  pre_tokenizer pre_tokenizer_;
  std::vector<added_token> raw_, normalized_;  // found before and after normalization; longest first
  std::unordered_map<token_id, added_token> added_;
  std::optional<token_id> begin_;
  std::size_t size_ = 0;
  bool byte_letters_ = false;  // decoding: bytes as letters, else spaces as marks
  bool strips_first_space_ = false;
};

}  // namespace minillama
