// SPDX-License-Identifier: Apache-2.0
// A Llama's weights, and the parts of its forward pass that do not look at other tokens: embedding, normalisation, projections with
// rotary embedding, SwiGLU. Attention is not here: prefill.hpp and decoder.hpp attend through pqkv.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "weight_matrix.hpp"
#include "weight_source.hpp"

namespace minillama {

/// One decoder layer. Projections are [outputs, inputs]; those that read the same input are stacked, so that they are one product.
struct layer_weights {
  row_vector attention_norm;                                         // [hidden]
  weight_matrix qkv;                                                 // [hq*d + 2*h*d, hidden]: queries, keys, values
  weight_matrix attention_out;                                       // [hidden, hq*d]
  row_vector mlp_norm;                                               // [hidden]
  weight_matrix gate_up;                                             // [2*intermediate, hidden]
  weight_matrix down;                                                // [hidden, intermediate]
  row_vector qkv_bias, attention_out_bias, gate_up_bias, down_bias;  // of their outputs; empty where there is none
};

class model {
 public:
  /// Loads a Hugging Face directory, or a file in llama2.c's format.
  ///
  /// @throws load_error that names the file and the key or tensor
  explicit model(const std::filesystem::path& path);

  /// Reads all weights of a checkpoint, which is not needed afterwards.
  explicit model(const checkpoint& from);

  const model_config& config() const { return config_; }

  /// The weights themselves, for who computes elsewhere.
  const std::vector<layer_weights>& layers() const { return layers_; }
  const weight_matrix& embedding() const { return embedding_; }
  const weight_matrix& unembedding() const { return config_.tied_embeddings ? embedding_ : unembedding_; }  // [vocabulary, hidden]
  const row_vector& final_norm() const { return final_norm_; }
  const std::vector<float>& frequencies() const { return frequencies_; }

  /// x[i, hidden] = embedding of tokens[i]
  ///
  /// @throws std::out_of_range when a token is not in the vocabulary
  void embed(std::span<const token_id> tokens, rows_view x) const;

  /// qkv = rms_norm(x) W_qkv^T, with rotary embedding applied to queries and keys.
  ///
  /// @param x               [n, hidden]
  /// @param first_position  of x's first row in the sequence; the others follow
  /// @param qkv             [n, hq*d + 2*h*d], written; in a row the queries [hq, d], keys [h, d] and values [h, d] follow each other
  void project_qkv(std::size_t layer, const_rows_view x, std::size_t first_position, rows_view qkv) const;

  /// x += attention W_out^T, then x += W_down (silu(gate) * up) of rms_norm(x)
  ///
  /// @param attention  [n, hq*d] what the layer's queries gathered
  /// @param x          [n, hidden], updated
  void finish_layer(std::size_t layer, const_rows_view attention, rows_view x) const;

  /// logits[vocabulary] of one token's final hidden state
  void logits(const_rows_view x, std::span<float> out) const;

 private:
  model_config config_;
  weight_matrix embedding_;  // [vocabulary, hidden]
  std::vector<layer_weights> layers_;
  row_vector final_norm_;           // [hidden]
  weight_matrix unembedding_;       // [vocabulary, hidden]; empty when tied to the embedding
  std::vector<float> frequencies_;  // [d/2] rotary angle of one position, per pair
};

/// Bytes that the weights of a checkpoint take. Matrices are as the file stores them; one that is stacked of tensors of different types
/// is float, and so are norms and biases.
struct weight_footprint {
  std::size_t bytes = 0;            // held by the model
  std::size_t product_scratch = 0;  // of one product of several tokens, at most
  std::size_t token_scratch = 0;    // of one product of one token, at most
};

/// Reads no weight. @throws load_error where a tensor is missing, or of a type that is not read
weight_footprint plan_weights(const checkpoint& from);

}  // namespace minillama
