// SPDX-License-Identifier: Apache-2.0
// The Llama's arithmetic, written as Hugging Face computes it: rotary halves (rotate_half), RMSNorm in float, SwiGLU.
#include "model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
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

/// One tensor of those that are stacked into a matrix.
struct stacked_tensor {
  std::string name;
  std::size_t outputs;  // rows, as the file has them
  std::size_t first;    // row of the matrix
};
using tensor_stack = std::vector<stacked_tensor>;

/// Reads tensors of one part of a file: of a layer, or of what is outside of all layers.
class weight_reader {
 public:
  weight_reader(const weight_source& file, std::string prefix, const model_config& config)
      : file_(file), prefix_(std::move(prefix)), heads_{config.stored_head_dim, config.head_dim} {}

  /// The type that holds all of them.
  weight_type type_of(const tensor_stack& stack) const {
    weight_type type = file_.type_of(prefix_ + stack.front().name);
    for (const stacked_tensor& one : stack) type = wider(type, file_.type_of(prefix_ + one.name));
    return type;
  }

  /// @param place  the row of the matrix for a tensor's row, both counted from the tensor's first
  template <class Place = std::identity>
  weight_matrix matrix_of(const tensor_stack& stack, std::size_t outputs, std::size_t inputs, const Place& place = {}) const {
    weight_matrix out(outputs, inputs, type_of(stack));
    for (const stacked_tensor& one : stack)
      for_each_row(one, inputs, [&](std::size_t row, weight_type type, std::span<const std::byte> elements) {
        out.set(one.first + place(row), 0, type, elements);
      });
    return out;
  }
  /// Of projections that make heads: where these are padded, rows of zeros stand between those of the file.
  weight_matrix head_outputs(const tensor_stack& stack, std::size_t outputs, std::size_t inputs) const {
    return matrix_of(stack, outputs, inputs, [&](std::size_t row) { return heads_.of(row); });
  }
  /// Of a projection that reads `count` heads: half a head follows half a head, each with its zeros.
  weight_matrix head_inputs(const tensor_stack& stack, std::size_t outputs, std::size_t count) const {
    weight_matrix out(outputs, count * heads_.computed, type_of(stack));
    const std::size_t half = heads_.stored / 2;
    for (const stacked_tensor& one : stack)
      for_each_row(one, count * heads_.stored, [&](std::size_t row, weight_type type, std::span<const std::byte> elements) {
        const std::size_t half_bytes = half * element_bytes(type);
        for (std::size_t i = 0; i < 2 * count; ++i)
          out.set(one.first + row, heads_.of(i * half), type, elements.subspan(i * half_bytes, half_bytes));
      });
    return out;
  }

  row_vector vector(const std::string& name, std::size_t size) const {
    row_vector out(index_of(size));
    const std::array shape{size};
    file_.read(prefix_ + name, shape, {out.data(), size});
    return out;
  }
  /// The bias of a projection that makes heads, into elements first.. of out.
  void head_biases(const std::string& name, std::size_t count, std::size_t first, row_vector& out) const {
    const row_vector stored = vector(name, count * heads_.stored);
    for (std::size_t i = 0; i < count * heads_.stored; ++i) out[index_of(first + heads_.of(i))] = stored[index_of(i)];
  }

 private:
  template <class Take>
  void for_each_row(const stacked_tensor& one, std::size_t columns, const Take& take) const {
    const std::string name = prefix_ + one.name;
    const std::array shape{one.outputs, columns};
    const weight_type type = file_.type_of(name);
    file_.read_rows(name, shape, [&](std::size_t row, std::span<const std::byte> elements) { take(row, type, elements); });
  }

  const weight_source& file_;
  std::string prefix_;
  head_rows heads_;
};

// What the matrices of a layer are made of.

tensor_stack qkv_stack(const model_config& config) {
  const std::size_t first_key = config.query_width(), first_value = first_key + config.kv_width(), d = config.stored_head_dim;
  return {{"self_attn.q_proj.weight", config.query_heads * d, 0},
          {"self_attn.k_proj.weight", config.kv_heads * d, first_key},
          {"self_attn.v_proj.weight", config.kv_heads * d, first_value}};
}
tensor_stack attention_out_stack(const model_config& config) { return {{"self_attn.o_proj.weight", config.hidden, 0}}; }
tensor_stack gate_up_stack(const model_config& config) {
  return {{"mlp.gate_proj.weight", config.intermediate, 0}, {"mlp.up_proj.weight", config.intermediate, config.intermediate}};
}
tensor_stack down_stack(const model_config& config) { return {{"mlp.down_proj.weight", config.hidden, 0}}; }
tensor_stack vocabulary_stack(const std::string& name, const model_config& config) { return {{name, config.vocabulary, 0}}; }

void read_attention(const weight_reader& file, const model_config& config, layer_weights& weights) {
  weights.qkv = file.head_outputs(qkv_stack(config), config.qkv_width(), config.hidden);
  weights.attention_out = file.head_inputs(attention_out_stack(config), config.hidden, config.query_heads);
  if (config.biases.qkv) {
    const std::size_t first_key = config.query_width(), first_value = first_key + config.kv_width();
    weights.qkv_bias = row_vector::Zero(index_of(config.qkv_width()));
    file.head_biases("self_attn.q_proj.bias", config.query_heads, 0, weights.qkv_bias);
    file.head_biases("self_attn.k_proj.bias", config.kv_heads, first_key, weights.qkv_bias);
    file.head_biases("self_attn.v_proj.bias", config.kv_heads, first_value, weights.qkv_bias);
  }
  if (config.biases.attention_out) weights.attention_out_bias = file.vector("self_attn.o_proj.bias", config.hidden);
}

void read_mlp(const weight_reader& file, const model_config& config, layer_weights& weights) {
  weights.gate_up = file.matrix_of(gate_up_stack(config), 2 * config.intermediate, config.hidden);
  weights.down = file.matrix_of(down_stack(config), config.hidden, config.intermediate);
  if (!config.biases.mlp) return;
  weights.gate_up_bias.resize(index_of(2 * config.intermediate));
  weights.gate_up_bias << file.vector("mlp.gate_proj.bias", config.intermediate), file.vector("mlp.up_proj.bias", config.intermediate);
  weights.down_bias = file.vector("mlp.down_proj.bias", config.hidden);
}

weight_reader reader_of_layer(const checkpoint& from, std::size_t layer) {
  return {*from.weights, from.prefix + "layers." + std::to_string(layer) + ".", from.config};
}

layer_weights read_layer(const checkpoint& from, std::size_t layer) {
  const model_config& config = from.config;
  const weight_reader file = reader_of_layer(from, layer);
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

/// x / sqrt(mean(x^2) + epsilon) * weight, row by row; NaN where the sum of squares overflows, which would make zeros of the row
matrix rms_norm(const_rows_view x, const row_vector& weight, float epsilon) {
  matrix out(x.rows(), x.cols());
  for (Eigen::Index i = 0; i < x.rows(); ++i) {
    const float squares = x.row(i).squaredNorm();
    const float scale = std::isfinite(squares) ? 1.0f / std::sqrt(squares / static_cast<float>(x.cols()) + epsilon)
                                               : std::numeric_limits<float>::quiet_NaN();
    out.row(i) = (x.row(i) * scale).cwiseProduct(weight);
  }
  return out;
}

}  // namespace

model::model(const std::filesystem::path& path) : model(open_checkpoint(path)) {}

model::model(const checkpoint& from) : config_(from.config) {
  const weight_reader file(*from.weights, from.prefix, config_), head(*from.weights, "", config_);
  embedding_ = file.matrix_of(vocabulary_stack("embed_tokens.weight", config_), config_.vocabulary, config_.hidden);
  for (std::size_t layer = 0; layer < config_.layers; ++layer) layers_.push_back(read_layer(from, layer));
  final_norm_ = file.vector("norm.weight", config_.hidden);
  if (!config_.tied_embeddings) unembedding_ = head.matrix_of(vocabulary_stack(from.head, config_), config_.vocabulary, config_.hidden);

  frequencies_ = rotary_frequencies(config_);
}

void model::embed(std::span<const token_id> tokens, rows_view x) const {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= config_.vocabulary)
      throw std::out_of_range("embed: token " + std::to_string(tokens[i]) + " in a vocabulary of " + std::to_string(config_.vocabulary));
    embedding_.copy_rows(tokens[i], {x.row(index_of(i)).data(), config_.hidden});
  }
}

void model::project_qkv(std::size_t layer, const_rows_view x, std::size_t first_position, rows_view qkv) const {
  const layer_weights& weights = layers_[layer];
  weights.qkv.project(rms_norm(x, weights.attention_norm, config_.rms_norm_epsilon), qkv);
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
  weights.attention_out.add_projection(attention, x);
  add_bias(x, weights.attention_out_bias);

  matrix gate_up(x.rows(), index_of(2 * config_.intermediate));
  weights.gate_up.project(rms_norm(x, weights.mlp_norm, config_.rms_norm_epsilon), gate_up);
  add_bias(gate_up, weights.gate_up_bias);
  const auto gate = gate_up.leftCols(index_of(config_.intermediate)).array();
  const auto up = gate_up.rightCols(index_of(config_.intermediate)).array();
  const matrix activated = gate / (1.0f + (-gate).exp()) * up;
  weights.down.add_projection(activated, x);
  add_bias(x, weights.down_bias);
}

void model::logits(const_rows_view x, std::span<float> out) const {
  unembedding().project(rms_norm(x, final_norm_, config_.rms_norm_epsilon), Eigen::Map<matrix>(out.data(), 1, index_of(out.size())));
}

weight_footprint plan_weights(const checkpoint& from) {
  const model_config& config = from.config;
  const std::size_t hidden = config.hidden, intermediate = config.intermediate;
  weight_footprint planned;
  const auto add = [&](const weight_reader& reader, const tensor_stack& stack, std::size_t outputs, std::size_t inputs) {
    const weight_type type = reader.type_of(stack);
    planned.bytes += outputs * inputs * element_bytes(type);
    planned.product_scratch = std::max(planned.product_scratch, weight_matrix::product_scratch_bytes(2, outputs, inputs, type));
    planned.token_scratch = std::max(planned.token_scratch, weight_matrix::product_scratch_bytes(1, outputs, inputs, type));
  };
  add({*from.weights, from.prefix, config}, vocabulary_stack("embed_tokens.weight", config), config.vocabulary, hidden);
  if (!config.tied_embeddings) add({*from.weights, "", config}, vocabulary_stack(from.head, config), config.vocabulary, hidden);
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    const weight_reader file = reader_of_layer(from, layer);
    add(file, qkv_stack(config), config.qkv_width(), hidden);
    add(file, attention_out_stack(config), hidden, config.query_width());
    add(file, gate_up_stack(config), 2 * intermediate, hidden);
    add(file, down_stack(config), hidden, intermediate);
  }
  const std::size_t biases = (config.biases.qkv ? config.qkv_width() : 0) + (config.biases.attention_out ? hidden : 0) +
                             (config.biases.mlp ? 2 * intermediate + hidden : 0);
  planned.bytes += (hidden + config.layers * (2 * hidden + biases)) * sizeof(float);
  return planned;
}

}  // namespace minillama
