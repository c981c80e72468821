// SPDX-License-Identifier: Apache-2.0
// llama2.c's checkpoints, written here tensor by tensor: against the oracle that turns adjacent pairs, against the same model as a Hugging
// Face directory, and every way the file can be wrong.
#include "llama2c.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <array>
#include <cmath>
#include <limits>

#include "decoder.hpp"
#include "load_error.hpp"
#include "plain_llama.hpp"
#include "text_cases.hpp"

using namespace minillama_test;

namespace {

using header_numbers = std::array<std::int32_t, 7>;

header_numbers header_of(const tiny_shape& shape) {
  const auto number = [](std::size_t extent) { return static_cast<std::int32_t>(extent); };
  return {number(shape.hidden),       number(shape.intermediate), number(shape.layers),
          number(shape.query_heads),  number(shape.kv_heads),     (shape.tied ? 1 : -1) * number(shape.vocabulary),
          number(shape.max_positions)};
}

template <class Number>
void append(std::string& file, Number value) {
  char bytes[sizeof(Number)];
  std::memcpy(bytes, &value, sizeof(Number));
  file.append(bytes, sizeof(Number));
}

/// The file's bytes; weights are under Hugging Face's names, rows of queries and keys as llama2.c has them.
std::string file_of(const tiny_shape& shape, const tensors& weights) {
  std::string file;
  for (const std::int32_t number : header_of(shape)) append(file, number);
  const auto add = [&](const std::string& name) {
    for (const float value : weights.at(name + ".weight").values) append(file, value);
  };
  const auto add_layers = [&](const std::string& name) {
    for (std::size_t layer = 0; layer < shape.layers; ++layer) add("model.layers." + std::to_string(layer) + "." + name);
  };
  add("model.embed_tokens");
  for (const char* name : {"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                           "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"})
    add_layers(name);
  add("model.norm");
  for (std::size_t i = 0; i < shape.max_positions * shape.head_dim; ++i) append(file, std::numeric_limits<float>::quiet_NaN());
  if (!shape.tied) add("lm_head");
  return file;
}

/// The same model with rows of queries and keys as Hugging Face has them: even rows of a head first, then the odd ones.
tensors with_halves(const tiny_shape& shape, tensors weights) {
  for (auto& [name, entry] : weights) {
    if (name.find("q_proj") == name.npos && name.find("k_proj") == name.npos) continue;
    const std::vector<float> from = entry.values;
    const std::size_t half = shape.head_dim / 2;
    for (std::size_t head = 0; head < entry.shape[0] / shape.head_dim; ++head)
      for (std::size_t i = 0; i < half; ++i)
        for (std::size_t odd = 0; odd < 2; ++odd)
          for (std::size_t column = 0; column < shape.hidden; ++column)
            entry.values[(head * shape.head_dim + odd * half + i) * shape.hidden + column] =
                from[(head * shape.head_dim + 2 * i + odd) * shape.hidden + column];
  }
  return weights;
}

/// Logits of the last prompt token and of each token that is decoded behind it.
std::vector<std::vector<float>> all_logits(const std::filesystem::path& path, std::span<const minillama::token_id> tokens) {
  const minillama::model llama(path);
  minillama::pool_runner runner(2);
  const auto prompt = minillama::prefill(llama, tokens.first(20), runner);
  minillama::policy_settings full;
  full.name = minillama::policy_name::full;
  minillama::host_session session(llama, runner, full, prompt, tokens.size() - 20, minillama::session_kind::single);
  std::vector<std::vector<float>> all{prompt.logits};
  for (const minillama::token_id token : tokens.subspan(20)) {
    const auto logits = session.step(token);
    all.emplace_back(logits.begin(), logits.end());
  }
  return all;
}

std::vector<minillama::token_id> some_tokens(std::size_t vocabulary) {
  std::vector<minillama::token_id> tokens(26);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<minillama::token_id>((i * i * 37 + 11) % vocabulary);
  return tokens;
}

const tiny_shape grouped{
    .hidden = 32, .intermediate = 48, .vocabulary = 300, .query_heads = 4, .kv_heads = 2, .head_dim = 8, .max_positions = 64};

std::string problem(const std::string& bytes) {
  return refusal_of_file("model.bin", bytes, [](const std::filesystem::path& path) { minillama::model model(path); });
}

}  // namespace

TEST_CASE("prefill and decode agree with the oracle and with the same model as a directory") {
  for (const auto& heads : {std::array<std::size_t, 2>{4, 2}, {4, 4}, {2, 1}}) {
    const std::size_t hq = heads[0], h = heads[1];
    for (const bool tied : {true, false}) {
      CAPTURE(hq);
      CAPTURE(tied);
      tiny_shape shape = grouped;
      shape.query_heads = hq, shape.kv_heads = h, shape.head_dim = shape.hidden / hq, shape.tied = tied;
      const tensors weights = random_weights(shape, hq);
      const auto tokens = some_tokens(shape.vocabulary);
      const temporary_directory folder, directory;
      write_text(folder.path() / "model.bin", file_of(shape, weights));
      write_model(directory.path(), shape, with_halves(shape, weights));

      const auto got = all_logits(folder.path() / "model.bin", tokens), same = all_logits(directory.path(), tokens);
      const auto wanted = plain_logits(shape, weights, tokens, {.turned = pairs::adjacent});
      const auto other = plain_logits(shape, weights, tokens);
      double worst = 0, against_oracle = 0, against_other = 0, largest = 0;
      for (std::size_t t = 0; t < got.size(); ++t)
        for (std::size_t i = 0; i < shape.vocabulary; ++i) {
          const auto value = static_cast<double>(got[t][i]);
          largest = std::max(largest, std::abs(wanted[19 + t][i]));
          worst = std::max(worst, std::abs(value - static_cast<double>(same[t][i])));
          against_oracle = std::max(against_oracle, std::abs(value - wanted[19 + t][i]));
          against_other = std::max(against_other, std::abs(value - other[19 + t][i]));
        }
      CHECK(got.size() == 7);
      CHECK(worst < 1e-5);
      CHECK(against_oracle < 2e-5 * largest);
      CHECK(against_other > 1e-2 * largest);  // the order of rows is seen by this test
    }
  }
}

TEST_CASE("the header's shape is the model's") {
  const temporary_directory folder;
  tiny_shape shape = grouped;
  for (const bool tied : {true, false}) {
    shape.tied = tied;
    write_text(folder.path() / "model.bin", file_of(shape, random_weights(shape, 1)));
    const minillama::model_config config = minillama::open_llama2c(folder.path() / "model.bin").config;
    CHECK(config.hidden == 32);
    CHECK(config.intermediate == 48);
    CHECK(config.layers == 2);
    CHECK(config.query_heads == 4);
    CHECK(config.kv_heads == 2);
    CHECK(config.head_dim == 8);
    CHECK(config.vocabulary == 300);
    CHECK(config.max_positions == 64);
    CHECK(config.rms_norm_epsilon == 1e-5f);
    CHECK(config.rope_theta == 10000.0);
    CHECK(config.tied_embeddings == tied);
    CHECK(config.end_tokens == std::vector<minillama::token_id>{1, 2});
  }
}

TEST_CASE("a file of another size than its header says is refused, with both sizes") {
  const std::string good = file_of(grouped, random_weights(grouped, 1));
  const std::string size = std::to_string(good.size());
  CHECK(problem(good) == "");
  CHECK(problem(good + "x") == "size: expected " + size + " bytes for the shape in the header, got " + std::to_string(good.size() + 1));
  for (const std::size_t cut : {good.size() - 1, good.size() / 2, std::size_t{28}})
    CHECK(problem(good.substr(0, cut)) == "size: expected " + size + " bytes for the shape in the header, got " + std::to_string(cut));
  CHECK(problem(good.substr(0, 27)) == "header: file is truncated: expected at least 28 bytes, got 27");
  tiny_shape untied = grouped;
  untied.tied = false;
  CHECK(problem(file_of(untied, random_weights(untied, 1))) == "");
}

TEST_CASE("a header that makes no sense is refused by its field") {
  const std::string good = file_of(grouped, random_weights(grouped, 1));
  const auto with = [&](std::size_t field, std::int32_t value) {
    std::string bytes = good;
    std::memcpy(bytes.data() + 4 * field, &value, 4);
    return problem(bytes);
  };
  const char* const names[] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"};
  const auto most = [](std::size_t field) { return std::string(field == 2 ? "1024" : "16777216"); };
  for (std::size_t field = 0; field < 7; ++field) {
    for (const std::int32_t value : {0, std::numeric_limits<std::int32_t>::max(), std::numeric_limits<std::int32_t>::min()})
      CHECK(with(field, value).rfind(std::string(names[field]) + ": expected 1 to " + most(field) + ", got ", 0) == 0);
    if (field != 5) CHECK(with(field, -3) == std::string(names[field]) + ": expected 1 to " + most(field) + ", got -3");
  }
  CHECK(with(3, 5) == "n_heads: 5 does not divide the 32 of dim");
  CHECK(with(3, 32) == "n_heads: a head of 1 is odd; rotary embedding turns pairs");
  CHECK(with(4, 3) == "n_kv_heads: 3 does not divide the 4 of n_heads");
  CHECK(with(2, 1 << 10).rfind("size: expected ", 0) == 0);
  CHECK(with(5, -300).rfind("size: expected ", 0) == 0);
  CHECK(with(0, 0x616b3432) == "header: unsupported: a llama2.c file of version 1 or later (only version 0)");
  std::string largest = good;
  for (const std::size_t field : {0u, 1u, 2u, 5u, 6u}) {
    const std::int32_t value = field == 2 ? 1 << 10 : 1 << 24;
    std::memcpy(largest.data() + 4 * field, &value, 4);
  }
  CHECK(problem(largest).rfind("size: expected more than ", 0) == 0);
}

TEST_CASE("a file of another format is called by its name") {
  CHECK(problem("GGUF" + std::string(100, '\3')).rfind("is a GGUF file, which is not read; ", 0) == 0);
  CHECK(
      problem(std::string("\x30\0\0\0\0\0\0\0{\"a\":", 13) + std::string(60, ' ')).rfind("is a safetensors file; give the directory", 0) ==
      0);
  CHECK(problem("PK\x03\x04" + std::string(60, '\0')).rfind("is a PyTorch file, which is not read", 0) == 0);
  CHECK(problem("{\"architectures\": [\"LlamaForCausalLM\"]}").rfind("is a JSON file; give the directory", 0) == 0);
}

TEST_CASE("a pipe is refused, not waited for") {
  const temporary_directory folder;
  const auto pipe = folder.path() / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THROWS_AS(minillama::open_llama2c(pipe), minillama::load_error);
  CHECK_THROWS_AS(minillama::open_checkpoint(pipe), minillama::load_error);
  write_model(folder.path(), grouped, random_weights(grouped, 1));
  std::filesystem::remove(folder.path() / "model.safetensors");
  std::filesystem::rename(pipe, folder.path() / "model.safetensors");
  CHECK_THROWS_AS(minillama::open_checkpoint(folder.path()), minillama::load_error);
}

TEST_CASE("weights that are not finite are named") {
  for (const auto& named : random_weights(grouped, 1)) {
    const auto& name = named.first;
    const auto& entry = named.second;
    CAPTURE(name);
    tensors spoiled = random_weights(grouped, 1);
    const std::size_t place = entry.values.size() - 2;
    for (const float poison : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      spoiled[name].values[place] = poison;
      CHECK(problem(file_of(grouped, spoiled)) == name + ": NaN or infinity at element " + std::to_string(place));
    }
  }
}
