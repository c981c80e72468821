// SPDX-License-Identifier: Apache-2.0
// One sequence of a llama.cpp model, as llama.cpp runs it or with pqkv's attention in it. All of llama.cpp that the program uses is here:
// model, context, tokens, templates, batches with explicit positions, its memory.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <llama.h>

#include "attention_hook.hpp"

namespace llama_example {

/// Set by Ctrl-C. llama_decode() asks it between nodes, the callbacks between layers.
extern std::atomic<bool> stop_asked;

/// A GGUF file, on the CPU.
class model {
 public:
  /// @throws std::runtime_error where llama.cpp cannot load it
  explicit model(const std::string& path);

  /// Writes a GGUF's weights, quantized or not, as 32-bit floats: on such a file comparisons show rounding of the attention alone.
  /// @throws std::runtime_error where llama.cpp cannot
  static void write_as_floats(const std::string& from, const std::string& to);

  llama_model* get() const { return model_.get(); }
  int layers() const { return llama_model_n_layer(get()); }
  std::size_t trained_tokens() const { return static_cast<std::size_t>(llama_model_n_ctx_train(get())); }
  bool ends_answer(llama_token token) const { return llama_vocab_is_eog(vocab(), token); }
  std::vector<llama_token> tokens_of(const std::string& text, bool begins_sequence) const;
  std::string text_of(llama_token token) const;

  struct message {
    std::string role, text;
  };
  /// The messages as the model's template has them, up to where the assistant speaks. Empty where the file brings no template.
  /// @throws std::runtime_error for a template that llama_chat_apply_template() does not know
  std::string chat_text(const std::vector<message>& messages, bool assistant_next) const;

 private:
  const llama_vocab* vocab() const { return llama_model_get_vocab(get()); }
  struct free_model {
    void operator()(llama_model* m) const { llama_model_free(m); }
  };
  std::unique_ptr<llama_model, free_model> model_;
};

struct engine_settings {
  std::size_t context = 0;  // tokens, prompt and answer
  std::size_t threads = 1;
  std::size_t batch = 512;               // of a prompt
  ggml_type cache_type = GGML_TYPE_F16;  // of llama.cpp's own cache
  bool flash_attention = true;           // pqkv needs it
  std::optional<cache_settings> pqkv{};  // none: llama.cpp as it is
};

class engine {
 public:
  /// @throws std::invalid_argument naming what of the model or the settings pqkv or llama.cpp cannot do
  engine(const model& file, const engine_settings& settings);

  /// Reads tokens after those that are there: the first ones as a prompt, by llama.cpp's dense attention, later ones as steps.
  /// @returns false when Ctrl-C came; what had been read before this call is as it was, but a first prompt is gone
  /// @throws std::length_error when they do not fit; std::runtime_error when llama.cpp fails; what pqkv throws
  bool read(std::span<const llama_token> tokens);
  bool read(llama_token token) { return read(std::span(&token, 1)); }
  /// After the last token that was read.
  std::span<const float> logits() const;
  llama_token best_token() const;
  /// Forgets all but the first n tokens.
  void truncate(std::size_t n);

  std::size_t size() const { return size_; }
  std::size_t capacity() const { return capacity_; }
  /// None where llama.cpp runs as it is.
  attention_hook* hook() { return hook_.get(); }

 private:
  bool decode(std::span<const llama_token> tokens);

  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  const model& model_;
  std::unique_ptr<attention_hook> hook_;  // outlives the context, which calls it
  std::unique_ptr<llama_context, free_context> context_;
  std::size_t size_ = 0, capacity_ = 0, batch_ = 0;
};

}  // namespace llama_example
