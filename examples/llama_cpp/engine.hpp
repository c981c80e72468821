// SPDX-License-Identifier: Apache-2.0
// Sequences of a llama.cpp model, as llama.cpp runs it or with pqkv's attention in it. All of llama.cpp that the program uses is here:
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
  std::size_t context = 0;    // tokens of a sequence, prompt and answer
  std::size_t sequences = 1;  // kept at once
  std::size_t threads = 1;
  std::size_t batch = 512;                 // tokens of a prompt read at once
  ggml_type cache_type = GGML_TYPE_F16;    // of llama.cpp's own cache
  bool flash_attention = true;             // pqkv needs it
  std::vector<cache_settings> variants{};  // of pqkv: the first answers, until answer_by() says otherwise. None: llama.cpp as it is
};

class engine {
 public:
  /// @throws std::invalid_argument naming what of the model or the settings pqkv or llama.cpp cannot do
  engine(const model& file, const engine_settings& settings);

  /// Reads tokens after those that a sequence has: the first ones as a prompt, by llama.cpp's dense attention, later ones as steps.
  /// @returns false when Ctrl-C came. What had been read before this call is then as it was, but a first prompt is gone, and so is a
  ///          sequence of a model with sliding windows when the tokens were more than a batch
  /// @throws std::length_error when they do not fit; std::runtime_error when llama.cpp fails; what pqkv throws. The sequences are then as
  ///         for Ctrl-C
  bool read(std::span<const llama_token> tokens, std::size_t sequence = 0);
  bool read(llama_token token) { return read(std::span(&token, 1)); }
  /// A step of several sequences: token i is for sequence i. @returns and @throws as read()
  bool read_each(std::span<const llama_token> tokens);
  /// After the last token that was read; after read_each(), of that sequence. @throws std::logic_error when none was read
  std::span<const float> logits(std::size_t sequence = 0) const;
  llama_token best_token(std::size_t sequence = 0) const;

  /// Makes an empty sequence a copy of another.
  void fork(std::size_t from, std::size_t to);
  /// Forgets all but the first n tokens. @throws std::invalid_argument for a model with sliding windows, unless n is 0: mark() before
  void truncate(std::size_t n, std::size_t sequence = 0);
  /// A place to go back to, as often as wanted: forgets the tokens that were read since.
  struct mark_type {
    std::size_t n = 0;
    std::vector<std::uint8_t> windows{};  // llama.cpp's cache of layers with a sliding window
  };
  mark_type mark(std::size_t sequence = 0) const;
  /// @throws std::invalid_argument for a mark past the sequence's end
  void go_back(const mark_type& to, std::size_t sequence = 0);

  /// Who answers steps from now on: one of the settings' variants, or nothing for llama.cpp itself. A prompt stays in llama.cpp's cache
  /// only if llama.cpp answers when it is read. A change needs go_back() to a mark that was made before any step: reading then throws
  /// std::logic_error.
  void answer_by(std::optional<std::size_t> variant);

  /// Writes a sequence to a file, its tokens too, by way of a file beside it. @throws std::runtime_error where the disk refuses
  void save(const std::string& path, std::span<const llama_token> tokens, std::size_t sequence = 0);
  /// Fills an empty sequence. @returns its tokens @throws what is wrong with the file; the sequence is then empty
  std::vector<llama_token> load(const std::string& path, std::size_t sequence = 0);

  std::size_t size(std::size_t sequence = 0) const { return size_[sequence]; }
  std::size_t capacity() const { return capacity_; }
  /// None where llama.cpp runs as it is.
  attention_hook* hook() { return hook_.get(); }

 private:
  struct row {
    llama_token token;
    std::size_t sequence;
    bool has_logits;
  };
  bool answers() const { return hook_ && variant_; }
  void check_answering(std::size_t sequence) const;
  void check_room(std::size_t sequence, std::size_t tokens) const;
  bool decode(std::span<const row> rows);
  void release(std::size_t sequence);
  void forget_attended(std::size_t sequence);
  void put_windows(const mark_type& from, std::size_t sequence);

  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  const model& model_;
  std::unique_ptr<attention_hook> hook_;  // outlives the context, which calls it
  std::unique_ptr<llama_context, free_context> context_;
  std::vector<std::size_t> size_;  // tokens of each sequence
  std::vector<int> logits_row_;    // of each sequence in the last batch; -1: none
  std::vector<char> released_;     // whether llama.cpp has forgotten tokens of a sequence
  std::size_t capacity_ = 0, batch_ = 0, window_ = 0;
  std::optional<std::size_t> variant_;
  policy policy_ = policy::full;  // of the first variant
};

}  // namespace llama_example
