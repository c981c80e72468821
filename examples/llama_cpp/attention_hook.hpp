// SPDX-License-Identifier: Apache-2.0
// pqkv inside llama.cpp without a patch. llama.cpp calls back around every node of its graph (llama_context_params::cb_eval); this object
// asks to be called after each attention, a GGML_OP_FLASH_ATTN_EXT node, which holds all that pqkv wants to know: queries, keys and values
// after rotary embedding, the softmax scale, and the memory of the result, which the next node has not read yet.
//
//   a prompt  llama.cpp attends; the rows it has just written into its cache go into ours, layer by layer. The last rows train the index
//   a step    the rows go into ours, our attention runs, and its output replaces llama.cpp's
//
// While steps are answered here, llama.cpp's own cache needs no more than the step's own tokens: engine.cpp empties it, but for the windows
// of layers that have one. Its attention then runs over few cells. Layers with a sliding window stay llama.cpp's own: their cache is
// another one, of fewer cells, and never longer than window and batch.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include <ggml.h>

#include "layer_cache.hpp"

namespace llama_example {

/// Where the time of the callbacks goes, in seconds (seconds_of_work()).
struct hook_times {
  double taking = 0;     // rows of a prompt, and training
  double attending = 0;  // steps: append and attend
  double between = 0;    // maintain()
  std::uint64_t calls = 0;
};

class attention_hook {
 public:
  /// @param variants  caches that each layer gets, side by side: all take prompts, one of them answers (choose()). Their heads, head_dim
  ///                  and scale are read from the graph; batch and capacity must be given, the same for all
  /// @param layers    of the model
  /// @param stopped   asked between layers: true ends the llama_decode() under way
  attention_hook(std::vector<cache_settings> variants, int layers, std::size_t threads, std::function<bool()> stopped);

  /// For llama_context_params: cb_eval = attention_hook::on_node, cb_eval_user_data = this.
  static bool on_node(ggml_tensor* node, bool ask, void* hook);
  /// Tells global layers from those with a sliding window, whose caches have fewer cells than these.
  void set_cells(std::size_t of_global_layers) { global_cells_ = of_global_layers; }

  /// What the next calls of llama_decode() bring: the rest of a prompt of `tokens` in all for an empty slot; tokens that llama.cpp reads
  /// and answers itself, and that this object does not see; or steps, one call for each.
  void expect_prompt(std::size_t slot, std::size_t tokens);
  void expect_nothing() { expected_ = expected::nothing; }
  /// @param slots   of the batch's tokens, in its order, none twice
  /// @param counts  tokens of each
  void expect_step(std::vector<std::uint32_t> slots, std::vector<std::uint32_t> counts);
  bool takes_prompt() const { return expected_ == expected::prompt; }
  /// Call it after every llama_decode(). What the callbacks could not throw through ggml comes out here; then, and where llama_decode()
  /// was stopped or failed, every layer is as it was after the last call that went well, but a prompt that broke off is gone.
  /// @returns whether it went well: succeeded, and not stopped in a callback, which llama_decode() does not tell
  /// @throws what went wrong in a callback
  bool finish(bool succeeded);

  /// The variant that answers steps from now on.
  void choose(std::size_t variant) { chosen_ = variant; }
  /// Forgets all but a slot's first n tokens.
  void truncate(std::size_t slot, std::size_t n);
  void fork(std::size_t from, std::size_t to);
  void reset(std::size_t slot);
  /// All layers of the chosen variant. @throws as layer_cache; a slot that could not be loaded is empty
  void save(std::size_t slot, std::FILE* file) const;
  void load(std::size_t slot, std::FILE* file, std::size_t tokens);
  std::size_t size(std::size_t slot) const { return committed_[slot]; }
  /// Whether the chosen variant has exactly the slot's first n tokens.
  bool has_all(std::size_t slot, std::size_t n) const {
    return committed_[slot] == n && (layers_.empty() || answering(layers_.front()).size(slot) == n);
  }
  std::size_t layers() const { return layers_.size(); }
  const hook_times& times() const { return times_; }
  /// Times and attended_tokens() count from here on.
  void clear_times();
  /// Tokens attended by a KV head in a step, mean over the chosen variant's layers, slots and steps.
  double attended_tokens() const;
  std::size_t bytes() const;

 private:
  enum class expected { nothing, prompt, steps };
  struct layer {
    const ggml_tensor* keys = nullptr;                   // llama.cpp's cache of the layer: what tells the layers apart
    std::vector<std::unique_ptr<layer_cache>> caches{};  // one for each variant
  };
  /// Tokens of the batch under way are written into these cells of the cache with that tensor.
  struct written_cells {
    const ggml_tensor* cache;
    std::vector<std::int64_t> cells;
  };

  bool wants(const ggml_tensor* node);
  struct counts_type {
    double tokens = 0, steps = 0;
  };
  counts_type counted() const;
  bool is_local(const ggml_tensor* attention);
  void take(ggml_tensor* attention);
  void take_prompt(layer& here, row_view keys, row_view values);
  layer& layer_of(const ggml_tensor* attention);
  const std::vector<std::int64_t>& cells_of(const ggml_tensor* cache, std::size_t count) const;
  row_view rows_of(row_view cache, const std::vector<std::int64_t>& cells, std::vector<pqkv::half>& gathered) const;
  void check_layers() const;
  void roll_back();
  layer_cache& answering(const layer& each) const { return *each.caches[chosen_]; }

  std::vector<cache_settings> variants_;
  thread_pool threads_;
  std::function<bool()> stopped_;
  std::size_t layers_wanted_, global_cells_ = 0, chosen_ = 0;
  std::vector<layer> layers_;
  std::vector<const ggml_tensor*> local_;  // caches of the layers with a sliding window
  std::vector<written_cells> written_;
  std::vector<pqkv::half> gathered_keys_, gathered_values_;  // rows whose cells do not stand side by side
  expected expected_ = expected::nothing;
  std::vector<std::uint32_t> slots_, counts_;  // of the step under way
  std::size_t prompt_slot_ = 0, prompt_tokens_ = 0;
  std::vector<std::size_t> committed_;  // tokens of each slot
  bool interrupted_ = false;
  std::exception_ptr failed_;
  hook_times times_;
  counts_type before_;  // when the times were cleared
};

}  // namespace llama_example
