// SPDX-License-Identifier: Apache-2.0
// The Llama's arithmetic, written as Hugging Face computes it: rotary halves (rotate_half), RMSNorm in float, SwiGLU.
#include "model.hpp"

#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include "rotary.hpp"

namespace minillama {
namespace {

/// Reads a tensor [rows, columns] into rows first.. of a matrix that already has its size.
void read_rows(const weight_source& file, const std::string& name, std::size_t rows, std::size_t first, matrix& out) {
  const auto columns = static_cast<std::size_t>(out.cols());
  const std::array shape{rows, columns};
  file.read(name, shape, {out.data() + first * columns, rows * columns});
}

matrix read_matrix(const weight_source& file, const std::string& name, std::size_t rows, std::size_t columns) {
  matrix out(index_of(rows), index_of(columns));
  read_rows(file, name, rows, 0, out);
  return out;
}

row_vector read_vector(const weight_source& file, const std::string& name, std::size_t size) {
  row_vector out(index_of(size));
  const std::array shape{size};
  file.read(name, shape, {out.data(), size});
  return out;
}

layer_weights read_layer(const weight_source& file, const model_config& config, std::size_t layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  layer_weights weights;
  weights.attention_norm = read_vector(file, prefix + "input_layernorm.weight", config.hidden);
  weights.qkv.resize(index_of(config.qkv_width()), index_of(config.hidden));
  read_rows(file, prefix + "self_attn.q_proj.weight", config.query_width(), 0, weights.qkv);
  read_rows(file, prefix + "self_attn.k_proj.weight", config.kv_width(), config.query_width(), weights.qkv);
  read_rows(file, prefix + "self_attn.v_proj.weight", config.kv_width(), config.query_width() + config.kv_width(), weights.qkv);
  weights.attention_out = read_matrix(file, prefix + "self_attn.o_proj.weight", config.hidden, config.query_width());
  weights.mlp_norm = read_vector(file, prefix + "post_attention_layernorm.weight", config.hidden);
  weights.gate_up.resize(index_of(2 * config.intermediate), index_of(config.hidden));
  read_rows(file, prefix + "mlp.gate_proj.weight", config.intermediate, 0, weights.gate_up);
  read_rows(file, prefix + "mlp.up_proj.weight", config.intermediate, config.intermediate, weights.gate_up);
  weights.down = read_matrix(file, prefix + "mlp.down_proj.weight", config.hidden, config.intermediate);
  return weights;
}

/// x / sqrt(mean(x^2) + epsilon) * weight, row by row
matrix rms_norm(const_rows_view x, const row_vector& weight, float epsilon) {
  matrix out(x.rows(), x.cols());
  for (Eigen::Index i = 0; i < x.rows(); ++i) {
    const float scale = 1.0f / std::sqrt(x.row(i).squaredNorm() / static_cast<float>(x.cols()) + epsilon);
    out.row(i) = (x.row(i) * scale).cwiseProduct(weight);
  }
  return out;
}

}  // namespace

model::model(const std::filesystem::path& path) : model(open_checkpoint(path)) {}

model::model(const checkpoint& from) : config_(from.config) {
  const weight_source& file = *from.weights;
  embedding_ = read_matrix(file, "model.embed_tokens.weight", config_.vocabulary, config_.hidden);
  for (std::size_t layer = 0; layer < config_.layers; ++layer) layers_.push_back(read_layer(file, config_, layer));
  final_norm_ = read_vector(file, "model.norm.weight", config_.hidden);
  if (!config_.tied_embeddings) unembedding_ = read_matrix(file, "lm_head.weight", config_.vocabulary, config_.hidden);

  frequencies_ = rotary_frequencies(config_);
}

void model::embed(std::span<const token_id> tokens, rows_view x) const {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= config_.vocabulary)
      throw std::out_of_range("embed: token " + std::to_string(tokens[i]) + " in a vocabulary of " + std::to_string(config_.vocabulary));
    x.row(index_of(i)) = embedding_.row(index_of(tokens[i]));
  }
}

void model::project_qkv(std::size_t layer, const_rows_view x, std::size_t first_position, rows_view qkv) const {
  const layer_weights& weights = layers_[layer];
  qkv.noalias() = rms_norm(x, weights.attention_norm, config_.rms_norm_epsilon) * weights.qkv.transpose();

  const std::size_t rotated = config_.query_width() + config_.kv_width();
  std::vector<float> cosines(config_.head_dim / 2), sines(config_.head_dim / 2);
  for (Eigen::Index row = 0; row < x.rows(); ++row) {
    const auto position = static_cast<float>(first_position + static_cast<std::size_t>(row));
    for (std::size_t i = 0; i < cosines.size(); ++i) {
      const float angle = position * frequencies_[i];
      cosines[i] = std::cos(angle);
      sines[i] = std::sin(angle);
    }
    rotate({qkv.row(row).data(), rotated}, cosines, sines);
  }
}

void model::finish_layer(std::size_t layer, const_rows_view attention, rows_view x) const {
  const layer_weights& weights = layers_[layer];
  x.noalias() += attention * weights.attention_out.transpose();

  const matrix gate_up = rms_norm(x, weights.mlp_norm, config_.rms_norm_epsilon) * weights.gate_up.transpose();
  const auto gate = gate_up.leftCols(index_of(config_.intermediate)).array();
  const auto up = gate_up.rightCols(index_of(config_.intermediate)).array();
  const matrix activated = gate / (1.0f + (-gate).exp()) * up;
  x.noalias() += activated * weights.down.transpose();
}

void model::logits(const_rows_view x, std::span<float> out) const {
  Eigen::Map<row_vector>(out.data(), index_of(out.size())).noalias() =
      rms_norm(x, final_norm_, config_.rms_norm_epsilon) * unembedding().transpose();
}

}  // namespace minillama
