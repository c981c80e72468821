// SPDX-License-Identifier: Apache-2.0
// Writes tiny Llamas as Hugging Face directories into a temporary folder, for the tests of minillama. Everything a test needs is made
// by the test: no checkpoint on disk is read.
#pragma once
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <pqkv/core/scalar.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace minillama_test {

/// A folder that goes away with its owner.
class temporary_directory {
 public:
  temporary_directory() {
    std::string name = (std::filesystem::temp_directory_path() / "minillama-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct tensor {
  std::vector<std::size_t> shape;
  std::vector<float> values;
};
using tensors = std::map<std::string, tensor>;

inline void append_bytes(std::string& out, float value, const std::string& type) {
  char bytes[4];
  const auto add = [&](auto stored) {
    std::memcpy(bytes, &stored, sizeof(stored));
    out.append(bytes, sizeof(stored));
  };
  if (type == "F32")
    add(value);
  else if (type == "F16")
    add(pqkv::half(value));
  else
    add(pqkv::bfloat16(value));
}

/// What the value becomes when it is stored: the oracle computes with the numbers that the file holds.
inline float stored(float value, const std::string& type) {
  return type == "F32" ? value : type == "F16" ? static_cast<float>(pqkv::half(value)) : static_cast<float>(pqkv::bfloat16(value));
}

/// Header and data in two parts, so that a test can spoil either before writing.
struct safetensors_parts {
  nlohmann::json header;
  std::string data;
  std::string padding{};  // behind the header's text, and part of it

  void write(const std::filesystem::path& path) const {
    const std::string text = header.dump() + padding;
    std::string file;
    for (unsigned i = 0; i < 8; ++i) file += static_cast<char>((text.size() >> (8 * i)) & 0xff);
    std::ofstream(path, std::ios::binary) << file << text << data;
  }
};

inline safetensors_parts parts_of(const tensors& all, const std::string& type) {
  safetensors_parts parts;
  parts.header["__metadata__"] = {{"format", "pt"}};
  for (const auto& [name, entry] : all) {
    const std::size_t begin = parts.data.size();
    for (const float value : entry.values) append_bytes(parts.data, value, type);
    parts.header[name] = {{"dtype", type}, {"shape", entry.shape}, {"data_offsets", {begin, parts.data.size()}}};
  }
  return parts;
}

/// Shape of the tiny model; the defaults have grouped heads and a head_dim that hidden / heads does not give.
struct tiny_shape {
  std::size_t hidden = 24, intermediate = 40, vocabulary = 256, layers = 2, query_heads = 4, kv_heads = 2, head_dim = 8;
  std::size_t max_positions = 512;
  std::size_t sliding_window = 0;  // not 0: a Mistral
  bool tied = true;
  std::string type = "F32";
  double theta = 10000.0, epsilon = 1e-5;
};

inline nlohmann::json config_of(const tiny_shape& shape) {
  return {{"architectures", {shape.sliding_window != 0 ? "MistralForCausalLM" : "LlamaForCausalLM"}},
          {"sliding_window", shape.sliding_window != 0 ? nlohmann::json(shape.sliding_window) : nlohmann::json(nullptr)},
          {"hidden_size", shape.hidden},
          {"intermediate_size", shape.intermediate},
          {"num_hidden_layers", shape.layers},
          {"num_attention_heads", shape.query_heads},
          {"num_key_value_heads", shape.kv_heads},
          {"head_dim", shape.head_dim},
          {"vocab_size", shape.vocabulary},
          {"max_position_embeddings", shape.max_positions},
          {"rope_theta", shape.theta},
          {"rope_scaling", nullptr},
          {"rms_norm_eps", shape.epsilon},
          {"tie_word_embeddings", shape.tied},
          {"hidden_act", "silu"},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"eos_token_id", nullptr}};
}

/// Random weights, rounded to the type they are stored in.
inline tensors random_weights(const tiny_shape& shape, std::uint64_t seed) {
  std::mt19937_64 bits(seed);
  tensors all;
  const auto add = [&](const std::string& name, std::vector<std::size_t> extents, float scale, float offset) {
    std::size_t count = 1;
    for (const std::size_t extent : extents) count *= extent;
    tensor entry{std::move(extents), std::vector<float>(count)};
    for (float& value : entry.values) {
      const auto unit = static_cast<float>(static_cast<std::int64_t>(bits() >> 40)) * 0x1p-23f - 1.0f;
      value = stored(offset + scale * unit, shape.type);
    }
    all[name] = std::move(entry);
  };
  const std::size_t q = shape.query_heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
  add("model.embed_tokens.weight", {shape.vocabulary, shape.hidden}, 1.0f, 0.0f);
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {shape.hidden}, 0.2f, 1.0f);
    add(prefix + "post_attention_layernorm.weight", {shape.hidden}, 0.2f, 1.0f);
    add(prefix + "self_attn.q_proj.weight", {q, shape.hidden}, 0.5f, 0.0f);
    add(prefix + "self_attn.k_proj.weight", {kv, shape.hidden}, 0.5f, 0.0f);
    add(prefix + "self_attn.v_proj.weight", {kv, shape.hidden}, 0.5f, 0.0f);
    add(prefix + "self_attn.o_proj.weight", {shape.hidden, q}, 0.4f, 0.0f);
    add(prefix + "mlp.gate_proj.weight", {shape.intermediate, shape.hidden}, 0.4f, 0.0f);
    add(prefix + "mlp.up_proj.weight", {shape.intermediate, shape.hidden}, 0.4f, 0.0f);
    add(prefix + "mlp.down_proj.weight", {shape.hidden, shape.intermediate}, 0.3f, 0.0f);
  }
  add("model.norm.weight", {shape.hidden}, 0.2f, 1.0f);
  if (!shape.tied) add("lm_head.weight", {shape.vocabulary, shape.hidden}, 1.0f, 0.0f);
  return all;
}

inline void write_text(const std::filesystem::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

inline void write_model(const std::filesystem::path& directory, const tiny_shape& shape, const tensors& weights) {
  write_text(directory / "config.json", config_of(shape).dump());
  parts_of(weights, shape.type).write(directory / "model.safetensors");
}

}  // namespace minillama_test
