// SPDX-License-Identifier: Apache-2.0
// Weights keep the host's order: rows are outputs. Matrices are float here, however the file and the host have them: cuBLAS multiplies
// floats.
#include "model.hpp"

#include <algorithm>

namespace minillama::cuda {
namespace {

array<float> uploaded(const stream& on, const float* from, std::size_t size) {
  array<float> there(size);
  copy(on, there.data(), from, size);
  return there;
}

array<float> uploaded(const stream& on, const weight_matrix& from) {
  array<float> there(from.outputs() * from.inputs());
  const std::size_t rows_at_once = std::max<std::size_t>((std::size_t{4} << 20) / from.inputs(), 1);  // 16 MiB
  std::vector<float> floats(std::min(rows_at_once, from.outputs()) * from.inputs());
  for (std::size_t first = 0, rows = 0; first < from.outputs(); first += rows) {
    rows = std::min(rows_at_once, from.outputs() - first);
    from.copy_rows(first, {floats.data(), rows * from.inputs()});
    copy(on, there.data() + first * from.inputs(), floats.data(), rows * from.inputs());
    on.wait();  // the buffer is filled again
  }
  return there;
}
array<float> uploaded(const stream& on, const row_vector& from) { return uploaded(on, from.data(), static_cast<std::size_t>(from.size())); }

}  // namespace

activations::activations(const model_config& config, std::size_t rows)
    : normal(rows * config.hidden), wide(rows * std::max(config.qkv_width(), 2 * config.intermediate)), gated(rows * config.intermediate) {}

device_model::device_model(const model& llama)
    : config_(llama.config()),
      products_(stream_),
      embedding_(uploaded(stream_, llama.embedding())),
      final_norm_(uploaded(stream_, llama.final_norm())),
      frequencies_(uploaded(stream_, llama.frequencies().data(), llama.frequencies().size())) {
  if (!config_.tied_embeddings) unembedding_ = uploaded(stream_, llama.unembedding());
  for (const layer_weights& from : llama.layers())
    layers_.push_back({uploaded(stream_, from.attention_norm), uploaded(stream_, from.qkv), uploaded(stream_, from.attention_out),
                       uploaded(stream_, from.mlp_norm), uploaded(stream_, from.gate_up), uploaded(stream_, from.down)});
  stream_.wait();  // the weights are the host's
}

void device_model::embed(const token_id* tokens, std::size_t n, float* x) const {
  cuda::embed(stream_, embedding_.data(), tokens, n, config_.hidden, x);
}

void device_model::project_qkv(std::size_t layer, const float* x, std::size_t n, split_projection to, const activations& room) const {
  const auto& weights = layers_[layer];
  normalise(stream_, x, weights.attention_norm.data(), config_.rms_norm_epsilon, n, config_.hidden, room.normal.data());
  products_.project(room.normal.data(), n, config_.hidden, weights.qkv.data(), config_.qkv_width(), room.wide.data());
  to.qkv = room.wide.data();
  to.frequencies = frequencies_.data();
  to.query_heads = config_.query_heads;
  to.kv_heads = config_.kv_heads;
  to.head_dim = config_.head_dim;
  split(stream_, to, n);
}

void device_model::finish_layer(std::size_t layer, const float* attention, std::size_t n, float* x, const activations& room) const {
  const auto& weights = layers_[layer];
  products_.project(attention, n, config_.query_width(), weights.attention_out.data(), config_.hidden, x, written::added);
  normalise(stream_, x, weights.mlp_norm.data(), config_.rms_norm_epsilon, n, config_.hidden, room.normal.data());
  products_.project(room.normal.data(), n, config_.hidden, weights.gate_up.data(), 2 * config_.intermediate, room.wide.data());
  activate(stream_, room.wide.data(), n, config_.intermediate, room.gated.data());
  products_.project(room.gated.data(), n, config_.intermediate, weights.down.data(), config_.hidden, x, written::added);
}

void device_model::logits(const float* x, float* out, const activations& room) const {
  const array<float>& weights = config_.tied_embeddings ? embedding_ : unembedding_;
  normalise(stream_, x, final_norm_.data(), config_.rms_norm_epsilon, 1, config_.hidden, room.normal.data());
  products_.project(room.normal.data(), 1, config_.hidden, weights.data(), config_.vocabulary, out);
}

}  // namespace minillama::cuda
