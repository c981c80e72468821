// SPDX-License-Identifier: Apache-2.0
// The shape of a Llama, read from the config.json of a Hugging Face directory and checked. What this program cannot compute is refused
// here, by key, and not met later as wrong text.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace minillama {

using token_id = std::uint32_t;

/// Rotary embedding that was stretched to longer contexts as Llama 3.1's was ("rope_type": "llama3").
struct llama3_scaling {
  double factor = 0;            // how much slower the slow pairs turn
  double low_freq_factor = 0;   // turns in original_positions, below which a pair is slow
  double high_freq_factor = 0;  // turns from which a pair stays as it is
  double original_positions = 0;
};

/// Every pair turns slower ("rope_type": "linear").
struct linear_scaling {
  double factor = 0;
};

/// As YaRN ("rope_type": "yarn"): between the pairs that make beta_fast and beta_slow turns in original_positions the speed goes over
/// from as it was to `factor` times slower, linearly in the number of the pair.
struct yarn_scaling {
  double factor = 0;
  double beta_fast = 32, beta_slow = 1;
  double original_positions = 0;
  bool whole_pairs = true;      // the two ends of the passage are rounded outwards
  double attention_factor = 1;  // of queries and of keys
};

using rotary_scaling = std::variant<std::monostate, linear_scaling, llama3_scaling, yarn_scaling>;

/// Above any Llama: what a file says of layers is believed before they are seen.
inline constexpr std::size_t most_layers = 1024;

/// The library takes heads of so many dimensions, or a multiple; other heads are padded with zeros.
inline constexpr std::size_t head_dim_step = 8;

/// Which projections add a vector to their product.
struct bias_places {
  bool qkv = false, attention_out = false, mlp = false;
  bool any() const { return qkv || attention_out || mlp; }
};

/// Extents in the symbols of the library: hq query heads share h KV heads of d dimensions.
struct model_config {
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  std::size_t layers = 0;
  std::size_t query_heads = 0;      // hq
  std::size_t kv_heads = 0;         // h
  std::size_t head_dim = 0;         // d, as it is computed with: stored_head_dim, padded
  std::size_t stored_head_dim = 0;  // as the file has it
  std::size_t vocabulary = 0;
  std::size_t max_positions = 0;   // longest sequence
  std::size_t sliding_window = 0;  // w: a query attends to the last w tokens, its own among them; 0: to all
  float rms_norm_epsilon = 0;
  double rope_theta = 0;
  rotary_scaling rope_scaling{};
  bool tied_embeddings = false;
  bias_places biases{};
  std::vector<token_id> end_tokens;  // generation stops at any of them

  // What a config.json says outright, which a checkpoint's tensors are held against (tensor_list.hpp).
  bool states_tied = false;
  std::optional<bool> states_attention_bias{}, states_mlp_bias{};

  void set_head_dim(std::size_t stored) {
    stored_head_dim = stored;
    head_dim = (stored + head_dim_step - 1) / head_dim_step * head_dim_step;
  }
  /// Of logits, for the library: 0 is its own, 1 / sqrt(d).
  float softmax_scale() const {
    const auto* yarn = std::get_if<yarn_scaling>(&rope_scaling);
    if (!yarn && stored_head_dim == head_dim) return 0;
    const double turned = yarn ? yarn->attention_factor : 1;
    return static_cast<float>(turned * turned / std::sqrt(static_cast<double>(stored_head_dim)));
  }

  std::size_t group() const { return query_heads / kv_heads; }  // g
  std::size_t query_width() const { return query_heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
  /// Whether tokens leave the window of a sequence of so many.
  bool outgrows_window(std::size_t tokens) const { return sliding_window != 0 && tokens > sliding_window; }
  bool ends(token_id token) const { return std::find(end_tokens.begin(), end_tokens.end(), token) != end_tokens.end(); }
  std::size_t qkv_width() const { return query_width() + 2 * kv_width(); }
};

/// Reads and checks a config.json of a Llama, or of a Mistral, which is a Llama but for its window. Absent keys have transformers' defaults
/// where it has any that a model is made with: not the extents of the weights. A window is of all layers. Where a generation_config.json
/// beside it names end tokens, these are taken: Llama 3 Instruct's second one stands there alone.
///
/// @throws load_error that names the file and the key: missing, of the wrong type, out of range, or not supported
model_config load_config(const std::filesystem::path& path);

}  // namespace minillama
