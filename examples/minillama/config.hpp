// SPDX-License-Identifier: Apache-2.0
// The shape of a Llama, read from the config.json of a Hugging Face directory and checked. What this program cannot compute is refused
// here, by key, and not met later as wrong text.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace minillama {

using token_id = std::uint32_t;

/// Rotary embedding that was stretched to longer contexts as Llama 3.1's was ("rope_type": "llama3").
struct rotary_scaling {
  double factor = 0;            // how much slower the slow pairs turn
  double low_freq_factor = 0;   // turns in original_positions, below which a pair is slow
  double high_freq_factor = 0;  // turns from which a pair stays as it is
  double original_positions = 0;
};

/// Extents in the symbols of the library: hq query heads share h KV heads of d dimensions.
struct model_config {
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  std::size_t layers = 0;
  std::size_t query_heads = 0;  // hq
  std::size_t kv_heads = 0;     // h
  std::size_t head_dim = 0;     // d
  std::size_t vocabulary = 0;
  std::size_t max_positions = 0;
  float rms_norm_epsilon = 0;
  double rope_theta = 0;
  std::optional<rotary_scaling> rope_scaling;
  bool tied_embeddings = false;
  std::vector<token_id> end_tokens;  // generation stops at any of them

  std::size_t group() const { return query_heads / kv_heads; }  // g
  std::size_t query_width() const { return query_heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
  bool ends(token_id token) const { return std::find(end_tokens.begin(), end_tokens.end(), token) != end_tokens.end(); }
  std::size_t qkv_width() const { return query_width() + 2 * kv_width(); }
};

/// Reads and checks a config.json. Where a generation_config.json beside it names end tokens, these are taken: Llama 3 Instruct's second
/// one stands there alone.
///
/// @throws load_error that names the file and the key: missing, of the wrong type, out of range, or not supported
model_config load_config(const std::filesystem::path& path);

}  // namespace minillama
