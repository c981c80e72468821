// SPDX-License-Identifier: Apache-2.0
// Reads config.json. Defaults of absent keys are those of Hugging Face's LlamaConfig and MistralConfig.
#include "config.hpp"

#include <array>
#include <string>
#include <utility>

#include "json_file.hpp"
#include "json_reader.hpp"
#include "load_error.hpp"
#include "rotary_config.hpp"

namespace minillama {
namespace {

using nlohmann::json;

// Above any Llama, and small enough that products of two extents fit in 64 bits many times over.
constexpr std::size_t largest_extent = std::size_t{1} << 24;

std::size_t extent(const json_reader& object, const std::string& key, std::size_t most = largest_extent) {
  return object.whole(key, 1, most);
}
std::size_t extent_or(const json_reader& object, const std::string& key, std::size_t otherwise) {
  return object.find(key) ? extent(object, key) : otherwise;
}

/// The two kinds of model that are computed, and where their defaults differ.
struct family {
  const char* architecture;
  const char* model_type;
  std::size_t max_positions;
  std::size_t kv_heads;        // 0: as many as query heads
  std::size_t sliding_window;  // 0: none
};
constexpr family families[] = {{"LlamaForCausalLM", "llama", 2048, 0, 0}, {"MistralForCausalLM", "mistral", 131072, 8, 4096}};

/// By its architecture, or where none is named by its type, and never by both where they differ.
const family& family_of(const json_reader& object) {
  const json* architectures = object.find("architectures");
  const json* type = object.find("model_type");
  if (!architectures && !type) object.fail("architectures", "missing key, and no model_type either");
  const bool one = !architectures || (architectures->is_array() && architectures->size() == 1);
  for (const family& known : families) {
    if (!one || (architectures && (*architectures)[0] != known.architecture)) continue;
    if (!architectures && *type != known.model_type) continue;
    if (type && *type != known.model_type)
      object.fail("model_type", "expected \"" + std::string(known.model_type) + "\" for " + known.architecture + ", got " + type->dump());
    return known;
  }
  if (architectures)
    object.fail("architectures", "unsupported: " + architectures->dump() +
                                     " (only [\"LlamaForCausalLM\"] and [\"MistralForCausalLM\"], which predict tokens)");
  object.fail("model_type", "unsupported: " + type->dump() + " (only \"llama\" and \"mistral\")");
}

/// Keys by which other programs and models compute something else, and the one value of each with which they do not.
void refuse_other_models(const json_reader& object) {
  const std::pair<const char*, json> neutral[] = {{"partial_rotary_factor", 1},
                                                  {"rotary_pct", 1},
                                                  {"is_causal", true},
                                                  {"is_encoder_decoder", false},
                                                  {"add_cross_attention", false},
                                                  {"alibi", false},
                                                  {"use_qk_norm", false},
                                                  {"qk_layernorm", false},
                                                  {"qk_norm", false},
                                                  {"embedding_multiplier", 1},
                                                  {"residual_multiplier", 1},
                                                  {"logits_scaling", 1},
                                                  {"logit_scale", 1},
                                                  {"scale_emb", 1}};
  for (const auto& [key, value] : neutral)
    if (const json* given = object.find(key); given && *given != value)
      object.fail(key, "unsupported: " + given->dump() + " (only " + value.dump() + ")");
  for (const char* key : {"attention_multiplier", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
                          "attention_chunk_size", "no_rope_layers", "num_local_experts", "num_experts"})
    if (const json* given = object.find(key)) object.fail(key, "unsupported: " + given->dump() + " (a plain Llama has none)");
  for (const char* key : {"quantization_config", "compression_config"})
    if (object.find(key)) object.fail(key, "unsupported: quantized weights are not read (only float32, float16 and bfloat16)");
  if (const json* types = object.find("layer_types"))
    for (const json& type : types->is_array() ? *types : json::array({*types}))
      if (type != "full_attention") object.fail("layer_types", "unsupported: " + type.dump() + " (only \"full_attention\")");
  const json* activation = object.find("hidden_act");
  if (activation && *activation != "silu" && *activation != "swish")  // two names of one function
    object.fail("hidden_act", "unsupported: " + activation->dump() + " (only \"silu\")");
}

/// Tokens that attention looks back to; 0 for all. transformers gives a Mistral that does not say so a window of 4096.
std::size_t sliding_window(const json_reader& object, const family& of, std::size_t max_positions) {
  const std::size_t window = object.find("sliding_window")     ? extent(object, "sliding_window")
                             : object.states("sliding_window") ? 0
                                                               : of.sliding_window;
  if (!object.flag_or("use_sliding_window", true) || window >= max_positions) return 0;
  if (window != 0 && of.sliding_window == 0)
    object.fail("sliding_window", "unsupported: " + std::to_string(window) + " for " + of.architecture + ", whose attention has no window");
  return window;
}

/// One token, a list of them (Llama 3 has several), or none. A number that is no token of the model ends nothing: files have -1.
std::vector<token_id> read_end_tokens(const json_reader& object, std::size_t vocabulary) {
  const json* value = object.find("eos_token_id");
  if (!value) return {};
  std::vector<token_id> tokens;
  for (const json& token : value->is_array() ? *value : json::array({*value})) {
    if (!is_whole(token)) object.fail("eos_token_id", "expected tokens, whole numbers, or null, got " + value->dump());
    if (const double number = token.get<double>(); number >= 0 && number < static_cast<double>(vocabulary))
      tokens.push_back(token.get<token_id>());
  }
  return tokens;
}

void read_heads(const json_reader& object, const family& of, model_config& config) {
  config.query_heads = extent(object, "num_attention_heads");
  const bool by_family = of.kv_heads != 0 && !object.states("num_key_value_heads");
  config.kv_heads = extent_or(object, "num_key_value_heads", by_family ? of.kv_heads : config.query_heads);
  if (config.query_heads % config.kv_heads != 0)
    object.fail("num_key_value_heads",
                std::to_string(config.kv_heads) + " does not divide the " + std::to_string(config.query_heads) + " of num_attention_heads");
  if (!object.find("head_dim") && config.hidden % config.query_heads != 0)
    object.fail("num_attention_heads", std::to_string(config.query_heads) + " does not divide the " + std::to_string(config.hidden) +
                                           " of hidden_size, and head_dim is not given");
  config.set_head_dim(extent_or(object, "head_dim", config.hidden / config.query_heads));
  if (config.stored_head_dim % 2 != 0)
    object.fail("head_dim", std::to_string(config.stored_head_dim) + " is odd; rotary embedding turns pairs");
}

std::optional<bool> stated_flag(const json_reader& object, const char* key) {
  return object.find(key) ? std::optional(object.flag_or(key, false)) : std::nullopt;
}

}  // namespace

model_config load_config(const std::filesystem::path& path) {
  const json whole = read_object(path);
  const json_reader object(path, whole);
  const family& of = family_of(object);
  refuse_other_models(object);

  model_config config;
  config.hidden = extent(object, "hidden_size");
  config.intermediate = extent(object, "intermediate_size");
  config.layers = extent(object, "num_hidden_layers", most_layers);
  config.vocabulary = extent(object, "vocab_size");
  config.rms_norm_epsilon = static_cast<float>(object.positive_or("rms_norm_eps", 1e-6));
  read_heads(object, of, config);
  const std::size_t positions = extent_or(object, "max_position_embeddings", of.max_positions);
  config.sliding_window = sliding_window(object, of, positions);
  config.max_positions = positions;
  read_rotary(object, positions, config);
  config.tied_embeddings = object.flag_or("tie_word_embeddings", false);
  config.states_tied = object.find("tie_word_embeddings") != nullptr;
  config.states_attention_bias = stated_flag(object, "attention_bias");
  config.states_mlp_bias = stated_flag(object, "mlp_bias");
  config.biases = {config.states_attention_bias == true, false, config.states_mlp_bias == true};

  config.end_tokens = read_end_tokens(object, config.vocabulary);
  if (!object.states("eos_token_id") && config.vocabulary > 2) config.end_tokens = {2};
  if (const std::filesystem::path beside = path.parent_path() / "generation_config.json"; std::filesystem::exists(beside)) {
    const json generation = read_object(beside);
    if (const json_reader named(beside, generation); named.find("eos_token_id"))
      config.end_tokens = read_end_tokens(named, config.vocabulary);
  }
  return config;
}

}  // namespace minillama
