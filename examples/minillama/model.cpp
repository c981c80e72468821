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

/// Where the rows of heads go: a head as the file has it becomes two halves, each padded, so that rotary pairs stay half a head apart.
struct head_rows {
  std::size_t stored, computed;  // d

  bool padded() const { return stored != computed; }
  std::size_t of(std::size_t row) const {
    const std::size_t inner = row % stored, half = stored / 2;
    return row / stored * computed + inner + (inner < half ? 0 : computed / 2 - half);
  }
};

/// Reads tensors of one file into matrices that have their size already.
class weight_reader {
 public:
  weight_reader(const weight_source& file, std::string prefix, const model_config& config)
      : file_(file), prefix_(std::move(prefix)), heads_{config.stored_head_dim, config.head_dim} {}

  /// [rows, columns of out], into rows first.. of out
  void rows(const std::string& name, std::size_t rows, std::size_t first, matrix& out) const {
    const auto columns = static_cast<std::size_t>(out.cols());
    const std::array shape{rows, columns};
    file_.read(prefix_ + name, shape, {out.data() + first * columns, rows * columns});
  }
  matrix whole(const std::string& name, std::size_t row_count, std::size_t columns) const {
    matrix out(index_of(row_count), index_of(columns));
    rows(name, row_count, 0, out);
    return out;
  }
  row_vector vector(const std::string& name, std::size_t size) const {
    row_vector out(index_of(size));
    const std::array shape{size};
    file_.read(prefix_ + name, shape, {out.data(), size});
    return out;
  }

  /// A projection that makes `count` heads, into rows first.. of out, which are zero.
  void head_outputs(const std::string& name, std::size_t count, std::size_t first, matrix& out) const {
    if (!heads_.padded()) return rows(name, count * heads_.stored, first, out);
    const matrix stored = whole(name, count * heads_.stored, static_cast<std::size_t>(out.cols()));
    for (std::size_t row = 0; row < count * heads_.stored; ++row) out.row(index_of(first + heads_.of(row))) = stored.row(index_of(row));
  }
  /// Its bias.
  void head_biases(const std::string& name, std::size_t count, std::size_t first, row_vector& out) const {
    const row_vector stored = vector(name, count * heads_.stored);
    for (std::size_t i = 0; i < count * heads_.stored; ++i) out[index_of(first + heads_.of(i))] = stored[index_of(i)];
  }
  /// A projection of `count` heads.
  matrix head_inputs(const std::string& name, std::size_t row_count, std::size_t count) const {
    matrix stored = whole(name, row_count, count * heads_.stored);
    if (!heads_.padded()) return stored;
    matrix out = matrix::Zero(index_of(row_count), index_of(count * heads_.computed));
    for (std::size_t i = 0; i < count * heads_.stored; ++i) out.col(index_of(heads_.of(i))) = stored.col(index_of(i));
    return out;
  }

 private:
  const weight_source& file_;
  std::string prefix_;
  head_rows heads_;
};

void read_attention(const weight_reader& file, const model_config& config, layer_weights& weights) {
  const std::size_t first_key = config.query_width(), first_value = first_key + config.kv_width();
  weights.qkv = matrix::Zero(index_of(config.qkv_width()), index_of(config.hidden));
  file.head_outputs("self_attn.q_proj.weight", config.query_heads, 0, weights.qkv);
  file.head_outputs("self_attn.k_proj.weight", config.kv_heads, first_key, weights.qkv);
  file.head_outputs("self_attn.v_proj.weight", config.kv_heads, first_value, weights.qkv);
  weights.attention_out = file.head_inputs("self_attn.o_proj.weight", config.hidden, config.query_heads);
  if (config.biases.qkv) {
    weights.qkv_bias = row_vector::Zero(index_of(config.qkv_width()));
    file.head_biases("self_attn.q_proj.bias", config.query_heads, 0, weights.qkv_bias);
    file.head_biases("self_attn.k_proj.bias", config.kv_heads, first_key, weights.qkv_bias);
    file.head_biases("self_attn.v_proj.bias", config.kv_heads, first_value, weights.qkv_bias);
  }
  if (config.biases.attention_out) weights.attention_out_bias = file.vector("self_attn.o_proj.bias", config.hidden);
}

void read_mlp(const weight_reader& file, const model_config& config, layer_weights& weights) {
  weights.gate_up.resize(index_of(2 * config.intermediate), index_of(config.hidden));
  file.rows("mlp.gate_proj.weight", config.intermediate, 0, weights.gate_up);
  file.rows("mlp.up_proj.weight", config.intermediate, config.intermediate, weights.gate_up);
  weights.down = file.whole("mlp.down_proj.weight", config.hidden, config.intermediate);
  if (!config.biases.mlp) return;
  weights.gate_up_bias.resize(index_of(2 * config.intermediate));
  weights.gate_up_bias << file.vector("mlp.gate_proj.bias", config.intermediate), file.vector("mlp.up_proj.bias", config.intermediate);
  weights.down_bias = file.vector("mlp.down_proj.bias", config.hidden);
}

layer_weights read_layer(const checkpoint& from, std::size_t layer) {
  const model_config& config = from.config;
  const weight_reader file(*from.weights, from.prefix + "layers." + std::to_string(layer) + ".", config);
  layer_weights weights;
  weights.attention_norm = file.vector("input_layernorm.weight", config.hidden);
  read_attention(file, config, weights);
  weights.mlp_norm = file.vector("post_attention_layernorm.weight", config.hidden);
  read_mlp(file, config, weights);
  return weights;
}

void add_bias(rows_view rows, const row_vector& bias) {
  if (bias.size() != 0) rows.rowwise() += bias;
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
  const weight_reader file(*from.weights, from.prefix, config_), head(*from.weights, "", config_);
  embedding_ = file.whole("embed_tokens.weight", config_.vocabulary, config_.hidden);
  for (std::size_t layer = 0; layer < config_.layers; ++layer) layers_.push_back(read_layer(from, layer));
  final_norm_ = file.vector("norm.weight", config_.hidden);
  if (!config_.tied_embeddings) unembedding_ = head.whole(from.head, config_.vocabulary, config_.hidden);

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
  add_bias(qkv, weights.qkv_bias);

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
  add_bias(x, weights.attention_out_bias);

  matrix gate_up = rms_norm(x, weights.mlp_norm, config_.rms_norm_epsilon) * weights.gate_up.transpose();
  add_bias(gate_up, weights.gate_up_bias);
  const auto gate = gate_up.leftCols(index_of(config_.intermediate)).array();
  const auto up = gate_up.rightCols(index_of(config_.intermediate)).array();
  const matrix activated = gate / (1.0f + (-gate).exp()) * up;
  x.noalias() += activated * weights.down.transpose();
  add_bias(x, weights.down_bias);
}

void model::logits(const_rows_view x, std::span<float> out) const {
  Eigen::Map<row_vector>(out.data(), index_of(out.size())).noalias() =
      rms_norm(x, final_norm_, config_.rms_norm_epsilon) * unembedding().transpose();
}

}  // namespace minillama
