// SPDX-License-Identifier: Apache-2.0
// Reads config.json. Defaults of absent keys are those of Hugging Face's LlamaConfig.
#include "config.hpp"

#include <cmath>
#include <string>

#include "json_file.hpp"
#include "load_error.hpp"

namespace minillama {
namespace {

using nlohmann::json;

// Above any Llama, and small enough that products of two extents fit in 64 bits many times over.
constexpr std::uint64_t largest_extent = std::uint64_t{1} << 24;

/// One JSON object of the file, with getters that name file and key when something is wrong.
class json_object {
 public:
  /// @param inside  the key of this object in the one around it, with a dot; empty for the outermost
  json_object(std::filesystem::path path, json object, std::string inside = "")
      : path_(std::move(path)), object_(std::move(object)), inside_(std::move(inside)) {}

  [[noreturn]] void fail(const std::string& key, const std::string& what) const { throw load_error(path_, inside_ + key, what); }

  /// The value of a key; null counts as absent, as it does for Hugging Face.
  const json* find(const std::string& key) const {
    const auto entry = object_.find(key);
    return entry == object_.end() || entry->is_null() ? nullptr : &*entry;
  }

  const json& at(const std::string& key) const {
    const json* value = find(key);
    if (!value) fail(key, "missing key");
    return *value;
  }

  std::size_t extent(const std::string& key) const {
    const json& value = at(key);
    if (!value.is_number_integer()) fail(key, std::string("expected a whole number, got ") + value.type_name());
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() == 0 || value.get<std::uint64_t>() > largest_extent)
      fail(key, "expected 1 to " + std::to_string(largest_extent) + ", got " + value.dump());
    return value.get<std::size_t>();
  }
  std::size_t extent_or(const std::string& key, std::size_t otherwise) const { return find(key) ? extent(key) : otherwise; }

  double positive(const std::string& key) const {
    const json& value = at(key);
    if (!value.is_number()) fail(key, std::string("expected a number, got ") + value.type_name());
    if (!(value.get<double>() > 0) || value.get<double>() > 1e30) fail(key, "expected a number above 0, got " + value.dump());
    return value.get<double>();
  }
  double positive_or(const std::string& key, double otherwise) const { return find(key) ? positive(key) : otherwise; }

  bool flag_or(const std::string& key, bool otherwise) const {
    const json* value = find(key);
    if (value && !value->is_boolean()) fail(key, std::string("expected true or false, got ") + value->type_name());
    return value ? value->get<bool>() : otherwise;
  }

  /// Refuses a file that asks for something that this program does not compute.
  void require_text(const std::string& key, const std::string& only) const {
    const json* value = find(key);
    if (value && *value != only) fail(key, "unsupported: " + value->dump() + " (only \"" + only + "\")");
  }

 private:
  std::filesystem::path path_;
  json object_;
  std::string inside_;
};

void require_llama(const json_object& object) {
  const json& architectures = object.at("architectures");
  if (!architectures.is_array() || architectures.size() != 1 || architectures[0] != "LlamaForCausalLM")
    object.fail("architectures", "unsupported: " + architectures.dump() + " (only [\"LlamaForCausalLM\"])");
  object.require_text("hidden_act", "silu");
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (object.flag_or(key, false)) object.fail(key, "unsupported: true (only false)");
}

rotary_scaling llama3_scaling(const json_object& inner) {
  rotary_scaling scaling;
  scaling.factor = inner.positive("factor");
  scaling.low_freq_factor = inner.positive("low_freq_factor");
  scaling.high_freq_factor = inner.positive("high_freq_factor");
  scaling.original_positions = static_cast<double>(inner.extent("original_max_position_embeddings"));
  if (scaling.factor < 1) inner.fail("factor", "expected 1 or more, got " + inner.at("factor").dump());
  if (scaling.low_freq_factor >= scaling.high_freq_factor)
    inner.fail("high_freq_factor", "expected more than the " + inner.at("low_freq_factor").dump() + " of low_freq_factor, got " +
                                       inner.at("high_freq_factor").dump());
  return scaling;
}

/// Base and scaling. Older files have rope_theta at the top and rope_scaling, null where nothing is scaled; newer ones have all of it
/// in rope_parameters.
void read_rotary(const std::filesystem::path& path, const json_object& object, model_config& config) {
  config.rope_theta = object.positive_or("rope_theta", 10000.0);
  const bool newer = object.find("rope_parameters") != nullptr;
  const std::string key = newer ? "rope_parameters" : "rope_scaling";
  const json* parameters = object.find(key);
  if (!parameters) return;
  if (newer && object.find("rope_scaling")) object.fail("rope_scaling", "is given beside rope_parameters");
  if (!parameters->is_object()) object.fail(key, std::string("expected an object, got ") + parameters->type_name());

  const json_object inner(path, *parameters, key + ".");
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
std::vector<token_id> end_tokens(const json_object& object, std::size_t vocabulary) {
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
  const json_object object(path, read_object(path));
  require_llama(object);

  model_config config;
  config.hidden = object.extent("hidden_size");
  config.intermediate = object.extent("intermediate_size");
  config.layers = object.extent("num_hidden_layers");
  config.query_heads = object.extent("num_attention_heads");
  config.kv_heads = object.extent_or("num_key_value_heads", config.query_heads);
  config.vocabulary = object.extent("vocab_size");
  config.max_positions = object.extent("max_position_embeddings");
  config.rms_norm_epsilon = static_cast<float>(object.positive("rms_norm_eps"));
  read_rotary(path, object, config);
  config.tied_embeddings = object.flag_or("tie_word_embeddings", false);

  if (config.query_heads % config.kv_heads != 0)
    object.fail("num_key_value_heads",
                std::to_string(config.kv_heads) + " does not divide the " + std::to_string(config.query_heads) + " of num_attention_heads");
  if (!object.find("head_dim") && config.hidden % config.query_heads != 0)
    object.fail("num_attention_heads", std::to_string(config.query_heads) + " does not divide the " + std::to_string(config.hidden) +
                                           " of hidden_size, and head_dim is not given");
  config.head_dim = object.extent_or("head_dim", config.hidden / config.query_heads);
  if (config.head_dim % 2 != 0) object.fail("head_dim", std::to_string(config.head_dim) + " is odd; rotary embedding turns pairs");
  config.end_tokens = end_tokens(object, config.vocabulary);
  return config;
}

}  // namespace minillama
