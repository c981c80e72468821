// SPDX-License-Identifier: Apache-2.0
// pqkv inside llama.cpp without a patch. llama.cpp calls back around every node of its graph (llama_context_params::cb_eval); this object
// asks to be called after each attention, a GGML_OP_FLASH_ATTN_EXT node, which holds all that pqkv wants to know: queries, keys and values
// after rotary embedding, the softmax scale, and the memory of the result, which the next node has not read yet.
//
//   a prompt  llama.cpp attends; the rows it has just written into its cache go into ours, layer by layer. The last rows train the index
//   a step    the rows go into ours, our attention runs, and its output replaces llama.cpp's
//
// While steps are answered here, llama.cpp's own cache needs no more than the step's own tokens: empty it before each (engine.cpp does).
// Its attention then runs over one block of 256 cells, all but a few of them masked.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include <ggml.h>

#include "layer_cache.hpp"

namespace llama_example {

/// Where the time of the callbacks goes, in seconds of the calling thread on a CPU.
struct hook_times {
  double taking = 0;     // rows of a prompt, and training
  double attending = 0;  // steps: append and attend
  double between = 0;    // maintain()
  std::uint64_t calls = 0;
};

class attention_hook {
 public:
  /// @param settings  their shape's heads, head_dim and scale are read from the graph; capacity must be given
  /// @param layers    of the model
  /// @param stopped   asked between layers: true ends the llama_decode() under way
  attention_hook(const cache_settings& settings, int layers, std::size_t threads, std::function<bool()> stopped);

  /// For llama_context_params: cb_eval = attention_hook::on_node, cb_eval_user_data = this.
  static bool on_node(ggml_tensor* node, bool ask, void* hook);

  /// What the next calls of llama_decode() bring: the rest of a prompt of `tokens` in all, or steps.
  void expect_prompt(std::size_t tokens);
  void expect_steps();
  /// Whether the attention of the next llama_decode() is computed here.
  bool answers() const { return expected_ == expected::steps; }
  /// Call it after every llama_decode(). What the callbacks could not throw through ggml comes out here; then, and where llama_decode()
  /// was stopped or failed, every layer is as it was after the last call that went well.
  /// @returns whether it went well: succeeded, and not stopped in a callback, which llama_decode() does not tell
  /// @throws what went wrong in a callback
  bool finish(bool succeeded);

  /// Forgets all but the first n tokens.
  void truncate(std::size_t n);
  void reset();
  std::size_t size() const { return committed_; }
  const hook_times& times() const { return times_; }
  void clear_times() { times_ = {}; }
  /// Tokens attended by a KV head in a step, mean over steps and layers.
  double attended_tokens() const;
  std::size_t bytes() const;

 private:
  enum class expected { nothing, prompt, steps };
  struct layer {
    const ggml_tensor* keys = nullptr;  // llama.cpp's cache of the layer: what tells the layers apart
    std::unique_ptr<layer_cache> cache;
  };
  /// Tokens of the batch under way are written into these cells of the cache with that tensor.
  struct written_cells {
    const ggml_tensor* cache;
    std::vector<std::int64_t> cells;
  };

  bool wants(const ggml_tensor* node);
  void take(ggml_tensor* attention);
  layer& layer_of(const ggml_tensor* attention);
  const std::vector<std::int64_t>& cells_of(const ggml_tensor* cache, std::size_t count) const;
  row_view rows_of(row_view cache, const std::vector<std::int64_t>& cells, std::vector<pqkv::half>& gathered) const;
  void roll_back();

  cache_settings settings_;
  thread_pool threads_;
  std::function<bool()> stopped_;
  std::size_t layers_wanted_;
  std::vector<layer> layers_;
  std::vector<written_cells> written_;
  std::vector<pqkv::half> gathered_keys_, gathered_values_;  // rows whose cells do not stand side by side
  expected expected_ = expected::nothing;
  std::size_t prompt_tokens_ = 0, committed_ = 0;
  bool interrupted_ = false;
  std::exception_ptr failed_;
  hook_times times_;
};

}  // namespace llama_example
