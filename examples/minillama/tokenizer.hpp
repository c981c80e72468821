// SPDX-License-Identifier: Apache-2.0
// Between text and a model's tokens. A model of 256 tokens reads bytes and needs no file; any other needs the tokenizer that it was
// trained with.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config.hpp"

namespace minillama {

/// Where a text stands: what comes first in a sequence may get a begin token, what follows other tokens never does.
enum class text_place { start, behind };

class tokenizer {
 public:
  virtual ~tokenizer() = default;

  /// Tokens of a text; at the start of a sequence the begin token, where there is one, comes first.
  virtual std::vector<token_id> encode(std::string_view text, text_place place) const = 0;

  /// Bytes that a token adds to a text.
  ///
  /// @param previous  the token before it: the space that encode() puts before a text at the start does not come back
  /// @pre    token < vocabulary()
  virtual std::string decode(token_id previous, token_id token) const = 0;

  virtual std::size_t vocabulary() const = 0;
  virtual std::optional<token_id> begin_token() const = 0;

  /// The token that stands for a mark such as "<|im_end|>" in a text; none where such marks are text as any other.
  virtual std::optional<token_id> special_token(const std::string& /*mark*/) const { return std::nullopt; }
};

/// Tokens are bytes; no begin token.
class byte_tokenizer final : public tokenizer {
 public:
  std::vector<token_id> encode(std::string_view text, text_place place) const override;
  std::string decode(token_id previous, token_id token) const override;
  std::size_t vocabulary() const override { return 256; }
  std::optional<token_id> begin_token() const override { return std::nullopt; }
};

/// Text as the tokens of a byte model.
std::vector<token_id> byte_tokens(std::string_view text);

/// The tokenizer of a model: that of a file (Hugging Face's where its name ends in .json, else llama2.c's), that of the model's directory
/// (tokenizer.json), or bytes without a file, which only a model of 256 tokens can have.
///
/// @param model  the directory or file of the weights
/// @throws load_error when a file is needed and there is none, or the file cannot be read or has tokens that the model has not
std::unique_ptr<tokenizer> make_tokenizer(const model_config& config, const std::filesystem::path& model,
                                          const std::optional<std::filesystem::path>& file = std::nullopt);

}  // namespace minillama
