// SPDX-License-Identifier: Apache-2.0
// How configurations and files of real Llamas are spelt: each row is a model that is computed as the double-precision oracle computes it,
// or refused by the name of what is in the way. No row computes another model.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "decoder.hpp"
#include "hugging_face.hpp"
#include "load_error.hpp"
#include "plain_llama.hpp"

using namespace minillama_test;
using nlohmann::json;

namespace {

constexpr double tolerance = 2e-5;
const tiny_shape shape{.tied = false};
const tensors base = random_weights(shape, 1);
const auto text = random_tokens(24, 3);

/// A model as a file has it, and what the oracle is told of it.
struct spelling {
  json config = config_of(shape);
  tensors file = base;
  tiny_shape oracle = shape;
  tensors weights = base;  // by plain names
  oracle_rotary rotary{};
  std::size_t position_ids = 0;  // numbers of an int64 tensor beside
};
using change = std::function<void(spelling&)>;

/// "" where prefill and a decoded token agree with the oracle; else the refusal, or how far they are apart.
std::string outcome_of(const change& changed) {
  spelling s;
  changed(s);
  const temporary_directory folder;
  write_text(folder.path() / "config.json", s.config.dump());
  safetensors_parts parts = parts_of(s.file, "F32");
  if (s.position_ids != 0) {
    const std::size_t begin = parts.data.size(), bytes = s.position_ids * sizeof(std::int64_t);
    parts.header["model.position_ids"] = {{"dtype", "I64"}, {"shape", {s.position_ids}}, {"data_offsets", {begin, begin + bytes}}};
    parts.data.append(bytes, '\x01');
  }
  parts.write(folder.path() / "model.safetensors");
  try {
    const minillama::model llama(folder.path());
    minillama::pool_runner runner(1);
    const auto prompt = minillama::prefill(llama, std::span(text).first(23), runner);
    minillama::policy_settings full;
    full.name = minillama::policy_name::full;
    minillama::host_session session(llama, runner, full, prompt, 1, minillama::session_kind::single);
    const auto wanted = plain_logits(s.oracle, s.weights, text, s.rotary);
    const double worst = std::max(difference(prompt.logits, wanted[22]), difference(session.step(text[23]), wanted[23]));
    return worst < tolerance ? "" : "differs by " + std::to_string(worst);
  } catch (const minillama::load_error& error) {
    const std::string what = error.what(), start = folder.path().string() + "/";
    return what.rfind(start, 0) == 0 ? what.substr(start.size()) : what;
  }
}

change set(const char* key, const json& value) {
  return [key = std::string(key), value](spelling& s) { s.config[key] = value; };
}
change without(const char* key) {
  return [key = std::string(key)](spelling& s) { s.config.erase(key); };
}
/// One change behind the other.
change operator+(const change& first, const change& second) {
  return [=](spelling& s) { first(s), second(s); };
}
change theta(double value) {
  return [=](spelling& s) { s.oracle.theta = value; };
}
change windowed_oracle(std::size_t window) {
  return [=](spelling& s) { s.oracle.sliding_window = window; };
}
change tied_oracle() {
  return [](spelling& s) { s.oracle.tied = true; };
}
change extra(const std::string& name, std::size_t size = 1) {
  return [=](spelling& s) { s.file[name] = {{size}, std::vector<float>(size, 0.5f)}; };
}
/// Biases in every layer, for the oracle too.
change biases(std::initializer_list<const char*> projections) {
  return [names = std::vector<std::string>(projections.begin(), projections.end())](spelling& s) {
    for (std::size_t layer = 0; layer < shape.layers; ++layer)
      for (const std::string& name : names) {
        const std::string full = "model.layers." + std::to_string(layer) + "." + name;
        tensor bias{{base.at(full + ".weight").shape[0]}, {}};
        for (std::size_t i = 0; i < bias.shape[0]; ++i) bias.values.push_back(std::sin(static_cast<float>(i + full.size() + layer)));
        s.file[full + ".bias"] = s.weights[full + ".bias"] = bias;
      }
  };
}
change renamed(const std::function<std::string(const std::string&)>& name) {
  return [=](spelling& s) {
    tensors other;
    for (const auto& [old, entry] : s.file) other[name(old)] = entry;
    s.file = other;
  };
}
const std::string plain_prefix = "model.";
change prefixed(const std::string& prefix, const std::string& head) {
  return renamed([=](const std::string& name) { return name == "lm_head.weight" ? head : prefix + name.substr(plain_prefix.size()); });
}
change no_head() {
  return [](spelling& s) { s.file.erase("lm_head.weight"); };
}
change head_is_embedding() {
  return [](spelling& s) { s.file["lm_head.weight"] = s.file["model.embed_tokens.weight"]; };
}
change frequencies(const std::function<double(double)>& of, double attention_factor = 1) {
  return [=](spelling& s) {
    for (int i = 0; i < 4; ++i) s.rotary.frequencies.push_back(of(std::pow(10000.0, -i / 4.0)));
    s.rotary.attention_factor = attention_factor;
  };
}

const change same = [](spelling&) {};
const json theta500{{"rope_type", "default"}, {"rope_theta", 500.0}};
const json llama3{{"rope_type", "llama3"},
                  {"factor", 8.0},
                  {"low_freq_factor", 1.0},
                  {"high_freq_factor", 4.0},
                  {"original_max_position_embeddings", 64.0}};
json with(json object, const char* key, const json& value) {
  object[key] = value;
  return object;
}
json lacking(json object, const char* key) {
  object.erase(key);
  return object;
}
double slowed_as_llama3(double frequency) {
  const double kept = std::clamp((64 * frequency / (2 * 3.14159265358979323846) - 1) / 3, 0.0, 1.0);
  return (1 - kept) * frequency / 8 + kept * frequency;
}

struct row {
  const char* name;
  change changed;
  const char* refusal = "";  // how it begins; none: computed
};

const std::vector<row> table{
    {"as it is", same},
    // Biases and other tensors.
    {"q, k, v biases", without("attention_bias") + biases({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})},
    {"q, k, v biases, announced as bias",
     without("attention_bias") + set("bias", true) + biases({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})},
    {"attention_bias true",
     set("attention_bias", true) + biases({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"})},
    {"attention_bias true, none of the output",
     set("attention_bias", true) + biases({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})},
    {"attention_bias true, none there", set("attention_bias", true),
     "model.safetensors: model.layers.0.self_attn.q_proj.bias: missing tensor"},
    {"attention_bias false, biases there", biases({"self_attn.q_proj"}),
     "model.safetensors: model.layers.0.self_attn.q_proj.bias: is left over: attention_bias is false"},
    {"attention_bias null", set("attention_bias", nullptr)},
    {"q biases alone", without("attention_bias") + biases({"self_attn.q_proj"}),
     "model.safetensors: model.layers.0.self_attn.k_proj.bias: missing tensor"},
    {"MLP biases", without("mlp_bias") + biases({"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})},
    {"mlp_bias true", set("mlp_bias", true) + biases({"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})},
    {"mlp_bias false, biases there", biases({"mlp.up_proj"}),
     "model.safetensors: model.layers.0.mlp.up_proj.bias: is left over: mlp_bias is false"},
    {"q_norm", extra("model.layers.0.self_attn.q_norm.weight", 8),
     "model.safetensors: model.layers.0.self_attn.q_norm.weight: is left over"},
    {"a layer more", extra("model.layers.2.mlp.up_proj.weight"),
     "model.safetensors: model.layers.2.mlp.up_proj.weight: is left over: num_hidden_layers is 2"},
    {"a layer less", set("num_hidden_layers", 1),
     "model.safetensors: model.layers.1.input_layernorm.weight: is left over: num_hidden_layers is 1"},
    {"a norm's bias", extra("model.norm.bias", 24), "model.safetensors: model.norm.bias: is left over"},
    {"inv_freq", extra("model.layers.0.self_attn.rotary_emb.inv_freq", 4)},
    {"k_scale, v_scale", extra("model.layers.0.self_attn.k_scale") + extra("model.layers.1.self_attn.v_scale")},
    {"position_ids", extra("model.position_ids", 4)},
    {"position_ids of 64 bits", [](spelling& s) { s.position_ids = 4; }},
    {"names without model.", prefixed("", "lm_head.weight")},
    {"names under language_model.", prefixed("language_model.model.", "language_model.lm_head.weight")},
    {"names under model.language_model.", prefixed("model.language_model.", "lm_head.weight")},
    {"a tower beside", extra("vision_tower.weight"), "model.safetensors: vision_tower.weight: is left over"},
    {"the model twice", extra("layers.0.input_layernorm.weight", 24), "model.safetensors: layers.0.input_layernorm.weight: is left over"},
    // The head.
    {"tied, another head in the file", set("tie_word_embeddings", true)},
    {"tied, the embedding as head", set("tie_word_embeddings", true) + head_is_embedding() + tied_oracle()},
    {"no head, not said to be tied", without("tie_word_embeddings") + no_head() + tied_oracle()},
    {"no head, tied", set("tie_word_embeddings", true) + no_head() + tied_oracle()},
    {"no head, said not to be tied", no_head(), "model.safetensors: lm_head.weight: missing tensor, and tie_word_embeddings is false"},
    // Architecture.
    {"no architectures", without("architectures") + set("model_type", "llama")},
    {"architectures null", set("architectures", nullptr) + set("model_type", "llama")},
    {"neither", without("architectures"), "config.json: architectures: missing key, and no model_type either"},
    {"another model_type", set("model_type", "qwen2"), "config.json: model_type: expected \"llama\" for LlamaForCausalLM, got \"qwen2\""},
    {"LlamaModel", set("architectures", {"LlamaModel"}), "config.json: architectures: unsupported: [\"LlamaModel\"]"},
    {"Mistral, no window", set("architectures", {"MistralForCausalLM"}) + set("sliding_window", nullptr)},
    {"Mistral, a window longer than the context", set("architectures", {"MistralForCausalLM"}) + set("sliding_window", 4096)},
    {"Mistral, a window as long as the text", set("model_type", "mistral") + without("architectures") + set("sliding_window", 24)},
    {"Mistral, a window shorter than the text",
     set("architectures", {"MistralForCausalLM"}) + set("sliding_window", 16) + windowed_oracle(16)},
    {"Mistral, a window of one token", set("architectures", {"MistralForCausalLM"}) + set("sliding_window", 1) + windowed_oracle(1)},
    {"Llama with a window", set("sliding_window", 16), "config.json: sliding_window: unsupported: 16 for LlamaForCausalLM"},
    {"Llama with a window longer than the context", set("sliding_window", 512)},
    {"hidden_act swish", set("hidden_act", "swish")},
    {"no hidden_act", without("hidden_act")},
    {"no num_key_value_heads", without("num_key_value_heads"),
     "model.safetensors: model.layers.0.self_attn.k_proj.weight: expected shape [32, 24], got [16, 24]"},
    {"no head_dim", without("head_dim"),
     "model.safetensors: model.layers.0.self_attn.q_proj.weight: expected shape [24, 24], got [32, 24]"},
    {"no intermediate_size", without("intermediate_size"), "config.json: intermediate_size: missing key"},
    {"no vocab_size", without("vocab_size"), "config.json: vocab_size: missing key"},
    {"head_dim null", set("head_dim", nullptr),
     "model.safetensors: model.layers.0.self_attn.q_proj.weight: expected shape [24, 24], got [32, 24]"},
    {"fewer rows than the file", set("vocab_size", 250),
     "model.safetensors: model.embed_tokens.weight: expected shape [250, 24], got [256, 24]"},
    // Numbers.
    {"whole numbers with a point", set("hidden_size", 24.0) + set("max_position_embeddings", 512.0)},
    {"no rms_norm_eps", without("rms_norm_eps") + [](spelling& s) { s.oracle.epsilon = 1e-6; }},
    {"no max_position_embeddings", without("max_position_embeddings")},
    {"end token -1", set("eos_token_id", -1)},
    {"end tokens, one beyond the vocabulary", set("eos_token_id", {2, 32000})},
    {"an end token beyond the vocabulary", set("eos_token_id", 256)},
    {"an end token with a point", set("eos_token_id", 2.0)},
    {"no end token", without("eos_token_id")},
    {"rope_theta an integer", set("rope_theta", 10000)},
    {"rope_theta a text", set("rope_theta", "10000.0"), "config.json: rope_theta: expected a number, got string"},
    // Rotary embedding.
    {"no rope_theta", without("rope_theta")},
    {"rope_parameters", without("rope_theta") + set("rope_parameters", theta500) + theta(500)},
    {"rope_parameters, rope_scaling null", set("rope_parameters", theta500) + set("rope_scaling", nullptr) + theta(500)},
    {"rope_parameters, another base at the top", set("rope_parameters", theta500) + set("rope_theta", 10000.0) + theta(500)},
    {"rope_scaling equal beside", set("rope_parameters", theta500) + set("rope_scaling", theta500) + theta(500)},
    {"rope_scaling different beside", set("rope_parameters", theta500) + set("rope_scaling", llama3),
     "config.json: rope_scaling: is given beside"},
    {"rope_parameters without a base", set("rope_parameters", {{"rope_type", "default"}}) + set("rope_theta", 500.0) + theta(500)},
    {"rope_scaling with a base", set("rope_scaling", theta500) + theta(500)},
    {"rope_scaling empty", set("rope_scaling", json::object())},
    {"rope_parameters empty", set("rope_parameters", json::object())},
    {"nested by layer type", set("rope_parameters", {{"full_attention", theta500}}),
     "config.json: rope_parameters.full_attention: unsupported"},
    {"linear", set("rope_scaling", {{"type", "linear"}, {"factor", 4.0}}) + frequencies([](double f) { return f / 4; })},
    {"linear, 1", set("rope_scaling", {{"type", "linear"}, {"factor", 1}})},
    {"dynamic", set("rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}})},
    {"llama3", set("rope_scaling", llama3) + frequencies(slowed_as_llama3)},
    {"llama3, original length at the top", set("rope_scaling", lacking(llama3, "original_max_position_embeddings")) +
                                               set("original_max_position_embeddings", 64) + frequencies(slowed_as_llama3)},
    {"llama3, another original length at the top", set("rope_scaling", llama3) + set("original_max_position_embeddings", 128),
     "config.json: original_max_position_embeddings: is 128, but 64.0 in rope_scaling.original_max_position_embeddings"},
    {"llama3, no passage", set("rope_scaling", with(llama3, "low_freq_factor", 4.0)),
     "config.json: rope_scaling.high_freq_factor: expected more"},
    // Of 4 pairs, whose passage lies between 0 and 2: the second keeps half its speed.
    {"yarn", set("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}}) +
                 frequencies([](double f) { return f > 0.5    ? f
                                                   : f > 0.05 ? f / 8 + f / 2
                                                              : f / 4; }, 0.1 * std::log(4.0) + 1)},
    {"yarn, its factor given",
     set("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}, {"attention_factor", 0.5}, {"original_max_position_embeddings", 64}}) +
         frequencies([](double f) { return f > 0.5    ? f
                                           : f > 0.05 ? f / 8 + f / 2
                                                      : f / 4; }, 0.5)},
    {"longrope", set("rope_scaling", {{"rope_type", "longrope"}}), "config.json: rope_scaling.rope_type: unsupported: \"longrope\""},
    {"partial_rotary_factor at the top", set("partial_rotary_factor", 0.5),
     "config.json: partial_rotary_factor: unsupported: 0.5 (only 1)"},
    {"partial_rotary_factor 1", set("partial_rotary_factor", 1.0)},
    {"partial_rotary_factor within", set("rope_parameters", with(theta500, "partial_rotary_factor", 0.5)),
     "config.json: rope_parameters.partial_rotary_factor: unsupported: 0.5 (only 1)"},
    // Keys of other models.
    {"quantization_config", set("quantization_config", {{"quant_method", "awq"}}), "config.json: quantization_config: unsupported"},
    {"layer_types, all full", set("layer_types", {"full_attention", "full_attention"})},
    {"layer_types, one sliding", set("layer_types", {"full_attention", "sliding_attention"}), "config.json: layer_types: unsupported"},
    {"is_causal false", set("is_causal", false), "config.json: is_causal: unsupported"},
    {"embedding_multiplier", set("embedding_multiplier", 12.0), "config.json: embedding_multiplier: unsupported: 12.0 (only 1)"},
    {"final_logit_softcapping", set("final_logit_softcapping", 30.0), "config.json: final_logit_softcapping: unsupported"},
    {"keys that change nothing",
     set("pretraining_tp", 2) + set("torch_dtype", "float16") + set("use_cache", false) + set("_name_or_path", "x")},
    {"dtype, as newer files have it", set("dtype", "bfloat16")},
};

}  // namespace

TEST_CASE("every spelling is computed as the oracle does, or refused by name") {
  for (const row& one : table) {
    const std::string got = outcome_of(one.changed), wanted = one.refusal;
    CHECK_MESSAGE((wanted.empty() ? got.empty() : got.rfind(wanted, 0) == 0), one.name, ": ", got);
  }
}

TEST_CASE("what the oracle is told differently of is seen by it") {
  for (const char* name : {"q, k, v biases", "MLP biases", "linear", "llama3", "yarn", "rope_parameters", "no head, tied"}) {
    const auto found = std::find_if(table.begin(), table.end(), [&](const row& one) { return one.name == std::string(name); });
    REQUIRE(found != table.end());
    const change plain_oracle = found->changed + [](spelling& s) { s.oracle = shape, s.weights = base, s.rotary = {}; };
    CHECK_MESSAGE(outcome_of(plain_oracle).rfind("differs by", 0) == 0, name);
  }
}

TEST_CASE("a model reads every tensor that was let pass") {
  /// Notes what is read.
  class watched final : public minillama::weight_source {
   public:
    watched(std::unique_ptr<weight_source> from, std::set<std::string>& read) : from_(std::move(from)), read_(read) {}
    std::vector<std::string> names() const override { return from_->names(); }
    [[noreturn]] void refuse(const std::string& name, const std::string& what) const override { from_->refuse(name, what), throw 0; }
    void require(const std::string& name, std::span<const std::size_t> extents) const override { from_->require(name, extents); }
    bool same(const std::string& one, const std::string& other) const override { return from_->same(one, other); }
    minillama::weight_type type_of(const std::string& name) const override { return from_->type_of(name); }
    void read_rows(const std::string& name, std::span<const std::size_t> extents, const minillama::row_taker& take) const override {
      read_.insert(name);
      from_->read_rows(name, extents, take);
    }

   private:
    std::unique_ptr<weight_source> from_;
    std::set<std::string>& read_;
  };
  spelling s;
  (set("attention_bias", true) + set("mlp_bias", true) +
   biases(
       {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) +
   prefixed("language_model.", "language_model.lm_head.weight"))(s);
  const temporary_directory folder;
  write_text(folder.path() / "config.json", s.config.dump());
  parts_of(s.file, "F32").write(folder.path() / "model.safetensors");
  minillama::checkpoint opened = minillama::open_hugging_face(folder.path());
  const auto names = opened.weights->names();
  std::set<std::string> read;
  opened.weights = std::make_unique<watched>(std::move(opened.weights), read);
  const minillama::model llama(opened);
  CHECK(read == std::set<std::string>(names.begin(), names.end()));
  CHECK(read.size() == base.size() + 2 * 7);
}
