// SPDX-License-Identifier: Apache-2.0
// Weights in 16 bits: every number of both types against the library's scalars, products against Eigen's own of a float matrix, to the
// bit; and models whose tensors differ in type.
#include "weight_matrix.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <random>

#include "decoder.hpp"
#include "footprint.hpp"
#include "plain_llama.hpp"
#include "../cases/sanitized.hpp"
#include "tiny_model.hpp"

using namespace minillama_test;
using minillama::index_of;
using minillama::matrix;
using minillama::weight_matrix;
using minillama::weight_type;

namespace {

constexpr std::array<weight_type, 3> all_types{weight_type::float32, weight_type::bfloat16, weight_type::float16};

std::string name_of(weight_type type) { return type == weight_type::float32 ? "F32" : type == weight_type::float16 ? "F16" : "BF16"; }

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

/// Numbers from -1 to 1 as they are stored, one in thirty so small that it is a denormal half, and the same as floats.
struct random_weights_of {
  random_weights_of(weight_type type, std::size_t count, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    for (std::size_t i = 0; i < count; ++i) {
      const auto unit = static_cast<float>(static_cast<std::int64_t>(bits() >> 40)) * 0x1p-23f - 1.0f;
      const float value = stored(i % 30 == 7 ? unit * 0x1p-15f : unit, name_of(type));
      append_bytes(text, value, name_of(type));
      floats.push_back(value);
    }
  }
  std::string text;
  std::vector<float> floats;
};

bool same_bits(const matrix& a, const matrix& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

/// Writes a model whose tensors are floats, but for those in `types`.
void write_mixed(const std::filesystem::path& folder, const tiny_shape& shape, const tensors& weights,
                 const std::map<std::string, std::string>& types) {
  safetensors_parts parts;
  for (const auto& [name, entry] : weights) {
    const auto found = types.find(name);
    const std::string type = found == types.end() ? "F32" : found->second;
    const std::size_t begin = parts.data.size();
    for (const float value : entry.values) append_bytes(parts.data, value, type);
    parts.header[name] = {{"dtype", type}, {"shape", entry.shape}, {"data_offsets", {begin, parts.data.size()}}};
  }
  write_text(folder / "config.json", config_of(shape).dump());
  parts.write(folder / "model.safetensors");
}

}  // namespace

TEST_CASE("every finite number of 16 bits becomes the float that it is, and the others are found") {
  for (const weight_type type : {weight_type::bfloat16, weight_type::float16}) {
    std::string finite;
    std::vector<float> wanted;
    std::size_t others = 0;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      const auto narrow = static_cast<std::uint16_t>(bits);
      const float value = type == weight_type::bfloat16 ? static_cast<float>(__builtin_bit_cast(pqkv::bfloat16, narrow))
                                                        : static_cast<float>(__builtin_bit_cast(pqkv::half, narrow));
      const std::string text(reinterpret_cast<const char*>(&narrow), sizeof narrow);
      CHECK(minillama::first_non_finite(type, bytes_of(text)) == (pqkv::is_finite(value) ? 1 : 0));
      if (pqkv::is_finite(value))
        finite += text, wanted.push_back(value);
      else
        ++others;
    }
    CHECK(others == (type == weight_type::bfloat16 ? 2 * 128 : 2 * 1024));
    std::vector<float> got(wanted.size());
    minillama::to_floats(type, bytes_of(finite), got);
    CHECK(std::memcmp(got.data(), wanted.data(), got.size() * sizeof(float)) == 0);
  }
  for (const weight_type type : all_types)
    for (const std::size_t at : {0u, 1u, 15u, 16u, 33u, 66u}) {
      std::string text;
      for (std::size_t i = 0; i < 67; ++i) append_bytes(text, i == at ? -HUGE_VALF : 1.0f, name_of(type));
      CHECK(minillama::first_non_finite(type, bytes_of(text)) == at);
      const std::string odd = "x" + text;  // at an address that is no multiple of anything
      CHECK(minillama::first_non_finite(type, bytes_of(odd).subspan(1)) == at);
    }
}

TEST_CASE("products have the bits that a matrix of floats gives, for one token and for many") {
  // Extents at the edges of Eigen's groups and of the blocks, which are 48 outputs of 3000 inputs, and 8 of 3000 for one token.
  std::size_t turn = 0;
  for (const auto& extents : {std::array<std::size_t, 2>{1, 5},
                              {7, 12},
                              {20, 3},
                              {47, 64},
                              {67, 3000},
                              {68, 3000},
                              {97, 3000},
                              {300, 530},
                              {2000, 9},
                              {25, 8200},
                              {1100, 128}}) {
    const std::size_t outputs = extents[0], inputs = extents[1];
    for (const weight_type type : all_types) {
      if (!pqkv_cases::looks_at(turn++)) continue;
      const random_weights_of values(type, outputs * inputs, outputs);
      weight_matrix narrow(outputs, inputs, type);
      for (std::size_t row = 0; row < outputs; ++row)
        narrow.set(row, 0, type, bytes_of(values.text).subspan(row * inputs * element_bytes(type), inputs * element_bytes(type)));
      CHECK(narrow.size_bytes() == outputs * inputs * element_bytes(type));
      const matrix wide = Eigen::Map<const matrix>(values.floats.data(), index_of(outputs), index_of(inputs));
      for (const std::size_t n : {1u, 2u, 5u, 64u}) {
        CAPTURE(outputs);
        CAPTURE(inputs);
        CAPTURE(n);
        CAPTURE(name_of(type));
        const random_weights_of tokens(weight_type::float32, n * inputs, n);
        const matrix x = Eigen::Map<const matrix>(tokens.floats.data(), index_of(n), index_of(inputs));
        matrix wanted(index_of(n), index_of(outputs)), got(index_of(n), index_of(outputs));
        wanted.noalias() = x * wide.transpose();
        narrow.project(x, got);
        CHECK(same_bits(got, wanted));
        wanted.noalias() += x * wide.transpose();
        narrow.add_projection(x, got);
        CHECK(same_bits(got, wanted));
      }
    }
  }
}

TEST_CASE("weights of one output in parts, converted where the matrix is float") {
  const random_weights_of half(weight_type::float16, 6, 1), bfloat(weight_type::bfloat16, 4, 2);
  weight_matrix mixed(2, 10, weight_type::float32);
  mixed.set(1, 0, weight_type::float16, bytes_of(half.text));
  mixed.set(1, 6, weight_type::bfloat16, bytes_of(bfloat.text));
  std::array<float, 20> got{};
  mixed.copy_rows(0, got);
  for (std::size_t i = 0; i < 20; ++i) CHECK(got[i] == (i < 10 ? 0 : i < 16 ? half.floats[i - 10] : bfloat.floats[i - 16]));
}

TEST_CASE("tensors of different types make one model, whose matrices are as small as they can be") {
  minillama::pool_runner runner(1);
  for (const std::size_t head_dim : {8u, 6u}) {  // 6 is padded to 8
    const tiny_shape shape{.head_dim = head_dim, .tied = false};
    const std::string layer = "model.layers.0.";
    const std::map<std::string, std::string> types{{"model.embed_tokens.weight", "F16"},        {"lm_head.weight", "BF16"},
                                                   {layer + "self_attn.q_proj.weight", "BF16"},  // beside k and v of F16
                                                   {layer + "self_attn.k_proj.weight", "F16"},  {layer + "self_attn.v_proj.weight", "F16"},
                                                   {layer + "self_attn.o_proj.weight", "BF16"}, {layer + "mlp.gate_proj.weight", "F16"},
                                                   {layer + "mlp.up_proj.weight", "F16"},       {layer + "input_layernorm.weight", "F16"}};
    tensors weights = random_weights(shape, head_dim);
    for (const auto& [name, type] : types)
      for (float& value : weights.at(name).values) value = stored(value, type);
    const temporary_directory folder;
    write_mixed(folder.path(), shape, weights, types);

    const minillama::checkpoint opened = minillama::open_checkpoint(folder.path());
    const minillama::weight_footprint planned = minillama::plan_weights(opened);
    const minillama::model llama(opened);
    const auto& first = llama.layers()[0];
    CHECK(llama.embedding().type() == weight_type::float16);
    CHECK(llama.unembedding().type() == weight_type::bfloat16);
    CHECK(first.qkv.type() == weight_type::float32);
    CHECK(first.attention_out.type() == weight_type::bfloat16);
    CHECK(first.gate_up.type() == weight_type::float16);
    CHECK(first.down.type() == weight_type::float32);
    std::size_t held = llama.embedding().size_bytes() + llama.unembedding().size_bytes();
    held += static_cast<std::size_t>(llama.final_norm().size()) * sizeof(float);
    for (const auto& one : llama.layers())
      held += one.qkv.size_bytes() + one.attention_out.size_bytes() + one.gate_up.size_bytes() + one.down.size_bytes() +
              static_cast<std::size_t>(one.attention_norm.size() + one.mlp_norm.size()) * sizeof(float);
    CHECK(planned.bytes == held);
    CHECK(planned.bytes < minillama::plan_float_weights(llama.config()).bytes);

    const auto text = random_tokens(21, 3);
    const auto wanted = plain_logits(shape, weights, text);
    const auto prompt = minillama::prefill(llama, std::span(text).first(20), runner);
    CHECK(difference(prompt.logits, wanted[19]) < 2e-5);
    minillama::policy_settings settings;
    settings.name = minillama::policy_name::full;
    minillama::host_session session(llama, runner, settings, prompt, 1, minillama::session_kind::single);
    CHECK(difference(session.step(text[20]), wanted[20]) < 2e-5);
  }
}
