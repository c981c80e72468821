// SPDX-License-Identifier: Apache-2.0
// Bytes as tokens, and the choice between tokenizers.
#include "tokenizer.hpp"

#include <cstdint>

#include "hugging_face_tokenizer.hpp"
#include "llama2c_tokenizer.hpp"
#include "load_error.hpp"

namespace minillama {

std::vector<token_id> byte_tokens(std::string_view text) {
  std::vector<token_id> tokens;
  tokens.reserve(text.size());
  for (const char c : text) tokens.push_back(static_cast<std::uint8_t>(c));
  return tokens;
}

std::vector<token_id> byte_tokenizer::encode(std::string_view text, text_place) const { return byte_tokens(text); }

std::string byte_tokenizer::decode(token_id, token_id token) const { return std::string(1, static_cast<char>(token)); }

namespace {

/// The file asked for, else the one beside the weights, else none.
std::optional<std::filesystem::path> file_for(const std::filesystem::path& model, const std::optional<std::filesystem::path>& asked) {
  const std::filesystem::path beside = model / "tokenizer.json";
  if (asked) return asked;
  if (std::filesystem::exists(beside)) return beside;
  return std::nullopt;
}

}  // namespace

std::unique_ptr<tokenizer> make_tokenizer(const model_config& config, const std::filesystem::path& model,
                                          const std::optional<std::filesystem::path>& asked) {
  const auto refuse = [&](const std::filesystem::path& file, const tokenizer& read) {
    throw load_error(file, "vocabulary",
                     "has " + std::to_string(read.vocabulary()) + " tokens, the model " + std::to_string(config.vocabulary));
  };
  if (const auto file = file_for(model, asked); file && file->extension() == ".json") {
    auto read = std::make_unique<hugging_face_tokenizer>(*file);
    if (read->vocabulary() > config.vocabulary) refuse(*file, *read);
    return read;
  } else if (file) {
    auto read = std::make_unique<llama2c_tokenizer>(*file);
    if (read->vocabulary() != config.vocabulary) refuse(*file, *read);
    return read;
  }
  if (config.vocabulary != byte_tokenizer().vocabulary())
    throw load_error("tokenizer", "a file is needed: the model has " + std::to_string(config.vocabulary) +
                                      " tokens, and only a model of 256 reads bytes");
  return std::make_unique<byte_tokenizer>();
}

}  // namespace minillama
