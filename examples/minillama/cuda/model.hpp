// SPDX-License-Identifier: Apache-2.0
// A Llama's weights in device memory, and the parts of its forward pass that do not look at other tokens: what ../model.hpp has for the
// host, enqueued on the device's stream.
#pragma once
#include <cstddef>
#include <vector>

#include "../model.hpp"
#include "kernels.hpp"
#include "memory.hpp"
#include "products.hpp"

namespace minillama::cuda {

/// Room for what a row of tokens passes through between two products.
struct activations {
  array<float> normal;  // [rows, hidden]
  array<float> wide;    // [rows, hq*d + 2*h*d], and [rows, 2*intermediate]
  array<float> gated;   // [rows, intermediate]

  activations(const model_config& config, std::size_t rows);
};

class device_model {
 public:
  /// Copies the weights, on the current device. @throws pqkv::cuda_error
  explicit device_model(const model& llama);

  const model_config& config() const { return config_; }
  const stream& on() const { return stream_; }
  const products& multiply() const { return products_; }

  /// x[i, hidden] = embedding of tokens[i] @pre they are in the vocabulary
  void embed(const token_id* tokens, std::size_t n, float* x) const;

  /// rms_norm(x) W_qkv^T, taken apart, with rotary embedding applied to queries and keys.
  ///
  /// @param x   [n, hidden]
  /// @param to  where the rows go; shape, weights and the projection itself are filled in here
  void project_qkv(std::size_t layer, const float* x, std::size_t n, split_projection to, const activations& room) const;

  /// x += attention W_out^T, then x += W_down (silu(gate) * up) of rms_norm(x)
  ///
  /// @param attention  [n, hq*d]
  /// @param x          [n, hidden], updated
  void finish_layer(std::size_t layer, const float* attention, std::size_t n, float* x, const activations& room) const;

  /// out[vocabulary]: the logits of one token's final hidden state x[hidden]
  void logits(const float* x, float* out, const activations& room) const;

 private:
  struct device_weights {
    array<float> attention_norm, qkv, attention_out, mlp_norm, gate_up, down;  // as layer_weights
  };

  model_config config_;
  stream stream_;
  products products_;
  array<float> embedding_, unembedding_, final_norm_, frequencies_;  // unembedding: empty when tied
  std::vector<device_weights> layers_;
};

}  // namespace minillama::cuda
