// SPDX-License-Identifier: Apache-2.0
// Reads config.json. Defaults of absent keys are those of Hugging Face's LlamaConfig.
#include "config.hpp"

#include <cmath>
#include <string>

#include "json_file.hpp"
#include "json_reader.hpp"
#include "load_error.hpp"

namespace minillama {
namespace {

using nlohmann::json;

// Above any Llama, and small enough that products of two extents fit in 64 bits many times over.
constexpr std::size_t largest_extent = std::size_t{1} << 24;

std::size_t extent(const json_reader& object, const std::string& key) { return object.whole(key, 1, largest_extent); }
std::size_t extent_or(const json_reader& object, const std::string& key, std::size_t otherwise) {
  return object.find(key) ? extent(object, key) : otherwise;
}

void require_llama(const json_reader& object) {
  const json& architectures = object.at("architectures");
  if (!architectures.is_array() || architectures.size() != 1 || architectures[0] != "LlamaForCausalLM")
    object.fail("architectures", "unsupported: " + architectures.dump() + " (only [\"LlamaForCausalLM\"])");
  object.require_text("hidden_act", "silu");
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (object.flag_or(key, false)) object.fail(key, "unsupported: true (only false)");
}

rotary_scaling llama3_scaling(const json_reader& inner) {
  rotary_scaling scaling;
  scaling.factor = inner.positive("factor");
  scaling.low_freq_factor = inner.positive("low_freq_factor");
  scaling.high_freq_factor = inner.positive("high_freq_factor");
  scaling.original_positions = static_cast<double>(extent(inner, "original_max_position_embeddings"));
  if (scaling.factor < 1) inner.fail("factor", "expected 1 or more, got " + inner.at("factor").dump());
  if (scaling.low_freq_factor >= scaling.high_freq_factor)
    inner.fail("high_freq_factor", "expected more than the " + inner.at("low_freq_factor").dump() + " of low_freq_factor, got " +
                                       inner.at("high_freq_factor").dump());
  return scaling;
}

/// Base and scaling. Older files have rope_theta at the top and rope_scaling, null where nothing is scaled; newer ones have all of it
/// in rope_parameters.
void read_rotary(const json_reader& object, model_config& config) {
  config.rope_theta = object.positive_or("rope_theta", 10000.0);
  const bool newer = object.find("rope_parameters") != nullptr;
  const std::string key = newer ? "rope_parameters" : "rope_scaling";
  const json* parameters = object.find(key);
  if (!parameters) return;
  if (newer && object.find("rope_scaling")) object.fail("rope_scaling", "is given beside rope_parameters");

  const json_reader inner = object.inside(key);
  config.rope_theta = inner.positive_or("rope_theta", config.rope_theta);
  if (inner.positive_or("partial_rotary_factor", 1.0) != 1.0)
    inner.fail("partial_rotary_factor", "unsupported: " + inner.at("partial_rotary_factor").dump() + " (only 1)");
  const std::string type_key = inner.find("type") && !inner.find("rope_type") ? "type" : "rope_type";
  const json type = newer && !inner.find(type_key) ? json("default") : inner.at(type_key);
  if (type == "llama3")
    config.rope_scaling = llama3_scaling(inner);
  else if (type != "default")
    inner.fail(type_key, "unsupported: " + type.dump() + " (only \"default\" and \"llama3\")");
}

/// One token, a list of them (Llama 3 has several), or none.
std::vector<token_id> end_tokens(const json_reader& object, std::size_t vocabulary) {
  const json* value = object.find("eos_token_id");
  if (!value) return {};
  std::vector<token_id> tokens;
  for (const json& token : value->is_array() ? *value : json::array({*value})) {
    if (!token.is_number_unsigned() || token.get<std::uint64_t>() >= vocabulary)
      object.fail("eos_token_id",
                  "expected tokens below the " + std::to_string(vocabulary) + " of vocab_size, or null, got " + value->dump());
    tokens.push_back(token.get<token_id>());
  }
  return tokens;
}

}  // namespace

model_config load_config(const std::filesystem::path& path) {
  const json whole = read_object(path);
  const json_reader object(path, whole);
  require_llama(object);

  model_config config;
  config.hidden = extent(object, "hidden_size");
  config.intermediate = extent(object, "intermediate_size");
  config.layers = extent(object, "num_hidden_layers");
  config.query_heads = extent(object, "num_attention_heads");
  config.kv_heads = extent_or(object, "num_key_value_heads", config.query_heads);
  config.vocabulary = extent(object, "vocab_size");
  config.max_positions = extent(object, "max_position_embeddings");
  config.rms_norm_epsilon = static_cast<float>(object.positive("rms_norm_eps"));
  read_rotary(object, config);
  config.tied_embeddings = object.flag_or("tie_word_embeddings", false);

  if (config.query_heads % config.kv_heads != 0)
    object.fail("num_key_value_heads",
                std::to_string(config.kv_heads) + " does not divide the " + std::to_string(config.query_heads) + " of num_attention_heads");
  if (!object.find("head_dim") && config.hidden % config.query_heads != 0)
    object.fail("num_attention_heads", std::to_string(config.query_heads) + " does not divide the " + std::to_string(config.hidden) +
                                           " of hidden_size, and head_dim is not given");
  config.head_dim = extent_or(object, "head_dim", config.hidden / config.query_heads);
  if (config.head_dim % 2 != 0) object.fail("head_dim", std::to_string(config.head_dim) + " is odd; rotary embedding turns pairs");
  config.end_tokens = end_tokens(object, config.vocabulary);
  if (const std::filesystem::path beside = path.parent_path() / "generation_config.json"; std::filesystem::exists(beside)) {
    const json generation = read_object(beside);
    if (const json_reader named(beside, generation); named.find("eos_token_id")) config.end_tokens = end_tokens(named, config.vocabulary);
  }
  return config;
}

}  // namespace minillama
