// SPDX-License-Identifier: Apache-2.0
// The names are those that model.cpp reads; a test compares the two.
#include "tensor_list.hpp"

#include <algorithm>
#include <array>
#include <set>

namespace minillama {
namespace {

bool ends_with_any(const std::string& name, std::initializer_list<const char*> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](const char* ending) { return name.ends_with(ending); });
}

/// A source, and which of its tensors nobody has asked for yet.
class tensor_list {
 public:
  explicit tensor_list(const weight_source& weights) : weights_(weights) {
    for (const std::string& name : weights.names()) {
      all_.insert(name);
      if (!ends_with_any(name, {"inv_freq", ".k_scale", ".v_scale", "position_ids"})) left_.insert(name);
    }
  }

  bool contains(const std::string& name) const { return all_.contains(name); }
  bool any_ends_with(const std::string& ending) const {
    return std::any_of(all_.begin(), all_.end(), [&](const std::string& name) { return name.ends_with(ending); });
  }
  void need(const std::string& name, std::initializer_list<std::size_t> shape) {
    weights_.require(name, {shape.begin(), shape.size()});
    left_.erase(name);
  }
  void drop(const std::string& name) { left_.erase(name); }
  const std::set<std::string>& left() const { return left_; }

 private:
  const weight_source& weights_;
  std::set<std::string> all_, left_;
};

void find_prefix(const tensor_list& tensors, checkpoint& opened) {
  constexpr std::array prefixes{"model.", "", "language_model.model.", "model.language_model.", "language_model."};
  for (const std::string prefix : prefixes) {
    if (!tensors.contains(prefix + "embed_tokens.weight")) continue;
    opened.prefix = prefix;
    const std::string outer = prefix == "language_model.model." || prefix == "language_model." ? "language_model." : "";
    if (tensors.contains(outer + "lm_head.weight")) opened.head = outer + "lm_head.weight";
    return;
  }
}

void find_head(const tensor_list& tensors, checkpoint& opened) {
  model_config& config = opened.config;
  const bool there = tensors.contains(opened.head);
  if (there && config.tied_embeddings) config.tied_embeddings = opened.weights->same(opened.head, opened.prefix + "embed_tokens.weight");
  if (!there && !config.states_tied) config.tied_embeddings = true;
}

/// A file's biases are used unless the configuration says that there are none.
bool has_bias(const tensor_list& tensors, std::optional<bool> stated, std::initializer_list<const char*> projections) {
  return stated.value_or(std::any_of(projections.begin(), projections.end(),
                                     [&](const char* projection) { return tensors.any_ends_with(std::string(projection) + ".bias"); }));
}

void find_biases(const tensor_list& tensors, model_config& config) {
  config.biases.qkv = has_bias(tensors, config.states_attention_bias, {"q_proj", "k_proj", "v_proj"});
  // One that was trained without has none here either: zeros.
  config.biases.attention_out = config.states_attention_bias.value_or(true) && tensors.any_ends_with("o_proj.bias");
  config.biases.mlp = has_bias(tensors, config.states_mlp_bias, {"gate_proj", "up_proj", "down_proj"});
}

void need_layer(tensor_list& tensors, const checkpoint& opened, std::size_t layer) {
  const model_config& c = opened.config;
  const std::string prefix = opened.prefix + "layers." + std::to_string(layer) + ".";
  const std::size_t queries = c.query_heads * c.stored_head_dim, keys = c.kv_heads * c.stored_head_dim;
  const auto projection = [&](const char* name, std::size_t outputs, std::size_t inputs, bool bias) {
    tensors.need(prefix + name + ".weight", {outputs, inputs});
    if (bias) tensors.need(prefix + name + ".bias", {outputs});
  };
  tensors.need(prefix + "input_layernorm.weight", {c.hidden});
  projection("self_attn.q_proj", queries, c.hidden, c.biases.qkv);
  projection("self_attn.k_proj", keys, c.hidden, c.biases.qkv);
  projection("self_attn.v_proj", keys, c.hidden, c.biases.qkv);
  projection("self_attn.o_proj", c.hidden, queries, c.biases.attention_out);
  tensors.need(prefix + "post_attention_layernorm.weight", {c.hidden});
  projection("mlp.gate_proj", c.intermediate, c.hidden, c.biases.mlp);
  projection("mlp.up_proj", c.intermediate, c.hidden, c.biases.mlp);
  projection("mlp.down_proj", c.hidden, c.intermediate, c.biases.mlp);
}

std::string reason_for(const std::string& name, const checkpoint& opened) {
  const std::string layers = opened.prefix + "layers.";
  if (name.starts_with(layers)) {
    const std::string number = name.substr(layers.size(), name.find('.', layers.size()) - layers.size());
    const bool counted = !number.empty() && number.size() < 9 && number.find_first_not_of("0123456789") == number.npos;
    if (counted && std::stoul(number) >= opened.config.layers)
      return "is left over: num_hidden_layers is " + std::to_string(opened.config.layers);
  }
  const auto is_bias_of = [&](const char* part) { return name.ends_with(".bias") && name.find(part) != name.npos; };
  if (is_bias_of(".self_attn.") && opened.config.states_attention_bias == false) return "is left over: attention_bias is false";
  if (is_bias_of(".mlp.") && opened.config.states_mlp_bias == false) return "is left over: mlp_bias is false";
  return "is left over: it is no part of a Llama as this program computes it";
}

}  // namespace

void match_tensors(checkpoint& opened) {
  tensor_list tensors(*opened.weights);
  const model_config& config = opened.config;
  find_prefix(tensors, opened);
  find_head(tensors, opened);
  find_biases(tensors, opened.config);

  tensors.need(opened.prefix + "embed_tokens.weight", {config.vocabulary, config.hidden});
  for (std::size_t layer = 0; layer < config.layers; ++layer) need_layer(tensors, opened, layer);
  tensors.need(opened.prefix + "norm.weight", {config.hidden});
  if (config.tied_embeddings)
    tensors.drop(opened.head);  // the embedding once more, if it is there
  else if (tensors.contains(opened.head))
    tensors.need(opened.head, {config.vocabulary, config.hidden});
  else
    opened.weights->refuse(opened.head, "missing tensor, and tie_word_embeddings is false");
  if (!tensors.left().empty()) {
    const std::string& first = *tensors.left().begin();
    opened.weights->refuse(first, reason_for(first, opened));
  }
}

}  // namespace minillama
