// SPDX-License-Identifier: Apache-2.0
// The tokenizer that stands beside llama2.c's checkpoints (tokenizer.bin): a byte-pair vocabulary that was trained by SentencePiece.
// File, little endian: the longest piece's bytes (int32), then for each token its score (float32), length (int32) and bytes.
// Tokens 0, 1 and 2 are unknown, begin and end; 3 to 258 are the raw bytes, <0x00> to <0xFF>; only what follows is found in text.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "tokenizer.hpp"

namespace minillama {

class llama2c_tokenizer final : public tokenizer {
 public:
  /// @throws load_error that names the file and the token: truncated, a length out of range, a score that is not finite, a raw byte that
  ///         is not where it has to be
  explicit llama2c_tokenizer(const std::filesystem::path& path);
  llama2c_tokenizer(const llama2c_tokenizer&) = delete;  // known_ looks into pieces_
  llama2c_tokenizer& operator=(const llama2c_tokenizer&) = delete;

  /// A text at the start gets the begin token and, unless it is empty, a space. Characters without a token of their own become raw bytes.
  ///
  /// Of all neighbours that make a token together, those of the best score are joined, the first of equals, until none are left.
  /// @cost   n log n
  std::vector<token_id> encode(std::string_view text, text_place place) const override;
  std::string decode(token_id previous, token_id token) const override;
  std::size_t vocabulary() const override { return pieces_.size(); }
  std::optional<token_id> begin_token() const override { return 1; }

 private:
  struct piece {
    std::string text;  // spaces are spaces, raw bytes the byte itself
    float score;
  };
  std::vector<piece> pieces_;
  std::unordered_map<std::string_view, token_id> known_;  // views of pieces_, the lowest token of equal pieces
};

}  // namespace minillama
