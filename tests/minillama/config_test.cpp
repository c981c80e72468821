// SPDX-License-Identifier: Apache-2.0
// config.json: what is read, what defaults apply, and the key that is named for everything that cannot be computed.
#include "config.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "json_file.hpp"
#include "load_error.hpp"
#include "text_cases.hpp"

using namespace minillama_test;
using nlohmann::json;

namespace {

std::string problem(const std::string& text) {
  return refusal_of_file("config.json", text, [](const std::filesystem::path& path) { minillama::load_config(path); });
}

std::string problem_with(const char* key, const json& value) {
  json config = config_of({});
  config[key] = value;
  return problem(config.dump());
}

std::string problem_without(const char* key) {
  json config = config_of({});
  config.erase(key);
  return problem(config.dump());
}

minillama::model_config loaded(const json& config) {
  const temporary_directory folder;
  write_text(folder.path() / "config.json", config.dump());
  return minillama::load_config(folder.path() / "config.json");
}

bool unscaled(const json& config) { return std::holds_alternative<std::monostate>(loaded(config).rope_scaling); }

bool starts(const std::string& text, const std::string& with) { return text.rfind(with, 0) == 0; }

}  // namespace

TEST_CASE("every extent of a complete file is read") {
  const auto config = loaded(config_of({}));
  CHECK(config.hidden == 24);
  CHECK(config.intermediate == 40);
  CHECK(config.layers == 2);
  CHECK(config.query_heads == 4);
  CHECK(config.kv_heads == 2);
  CHECK(config.head_dim == 8);
  CHECK(config.max_positions == 512);
  CHECK(config.rope_theta == 10000.0);
  CHECK(config.rms_norm_epsilon == 1e-5f);
  CHECK(config.tied_embeddings);
  CHECK(config.end_tokens.empty());
  CHECK(config.group() == 2);
  CHECK(config.qkv_width() == 64);
}

TEST_CASE("absent keys take the defaults of Hugging Face") {
  json config = config_of({});
  for (const char* key : {"num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_act",
                          "attention_bias", "mlp_bias", "eos_token_id", "rms_norm_eps", "max_position_embeddings"})
    config.erase(key);
  const auto read = loaded(config);
  CHECK(read.kv_heads == 4);
  CHECK(read.stored_head_dim == 6);
  CHECK(read.head_dim == 8);
  CHECK(read.rms_norm_epsilon == 1e-6f);
  CHECK(read.max_positions == 2048);
  CHECK(read.end_tokens == std::vector<minillama::token_id>{2});
  CHECK(read.rope_theta == 10000.0);
  CHECK_FALSE(read.tied_embeddings);
}

TEST_CASE("the rotary base may stand in rope_parameters, and the end tokens are one or a list") {
  json config = config_of({});
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};
  config["eos_token_id"] = 10;
  CHECK(loaded(config).rope_theta == 5e5);
  CHECK(loaded(config).end_tokens == std::vector<minillama::token_id>{10});
  CHECK(loaded(config).ends(10));
  CHECK_FALSE(loaded(config).ends(11));
  CHECK(starts(problem_with("rope_parameters", 3), "rope_parameters: "));
  config["vocab_size"] = 128256;
  config["eos_token_id"] = {128001, 128009};
  CHECK(loaded(config).vocabulary == 128256);
  CHECK(loaded(config).ends(128009));
  config["eos_token_id"] = {-1, 10, 128256, 1LL << 40};  // only one of them can be generated
  CHECK(loaded(config).end_tokens == std::vector<minillama::token_id>{10});
  for (const json& value : {json("end"), json(1.5), json{10, "end"}})
    CHECK(problem_with("eos_token_id", value) == "eos_token_id: expected tokens, whole numbers, or null, got " + value.dump());
}

TEST_CASE("end tokens of generation_config.json count, where it names any") {
  const temporary_directory folder;
  const auto generation = folder.path() / "generation_config.json";
  json config = config_of({});
  config["eos_token_id"] = 10;
  write_text(folder.path() / "config.json", config.dump());
  const auto ends = [&](const json& beside) {
    write_text(generation, beside.dump());
    return minillama::load_config(folder.path() / "config.json").end_tokens;
  };
  using tokens = std::vector<minillama::token_id>;
  CHECK(ends({{"eos_token_id", 12}}) == tokens{12});
  CHECK(ends({{"eos_token_id", {12, 0, 255}}}) == tokens{12, 0, 255});
  CHECK(ends({{"bos_token_id", 12}}) == tokens{10});
  CHECK(ends({{"eos_token_id", nullptr}}) == tokens{10});
  const auto refused = [&](const json& value) {
    const std::string what = generation.string() + ": eos_token_id: expected tokens, whole numbers, or null, got " + value.dump();
    CHECK_THROWS_WITH_AS(ends({{"eos_token_id", value}}), what.c_str(), minillama::load_error);
  };
  for (const json& value : {json("end"), json{12, "end"}, json(1.5)}) refused(value);
  CHECK_THROWS_WITH_AS(ends(json::array()), (generation.string() + ": is not a JSON object").c_str(), minillama::load_error);
  std::filesystem::remove(generation);
  CHECK(minillama::load_config(folder.path() / "config.json").end_tokens == tokens{10});
}

TEST_CASE("llama3 scaling is read in the older and in the newer spelling") {
  const json scaling{{"rope_type", "llama3"},
                     {"factor", 8.0},
                     {"low_freq_factor", 1.0},
                     {"high_freq_factor", 4},
                     {"original_max_position_embeddings", 8192}};
  json older = config_of({}), newer = config_of({}), oldest = config_of({});
  older["rope_theta"] = oldest["rope_theta"] = 5e5;
  older["rope_scaling"] = oldest["rope_scaling"] = newer["rope_parameters"] = scaling;
  oldest["rope_scaling"].erase("rope_type");
  oldest["rope_scaling"]["type"] = "llama3";
  newer.erase("rope_theta");
  newer.erase("rope_scaling");
  newer["rope_parameters"]["rope_theta"] = 5e5;
  for (const json& config : {older, newer, oldest}) {
    const auto read = loaded(config);
    CHECK(read.rope_theta == 5e5);
    REQUIRE(std::holds_alternative<minillama::llama3_scaling>(read.rope_scaling));
    const auto& found = std::get<minillama::llama3_scaling>(read.rope_scaling);
    CHECK(found.factor == 8);
    CHECK(found.low_freq_factor == 1);
    CHECK(found.high_freq_factor == 4);
    CHECK(found.original_positions == 8192);
  }
  CHECK(unscaled(config_of({})));
  json plain = config_of({});
  plain["rope_scaling"] = {{"rope_type", "default"}};
  CHECK(unscaled(plain));

  for (const std::string place : {"rope_scaling", "rope_parameters"}) {
    const auto problem_in = [&](const char* key, const json& value) {
      json spoiled = scaling;
      spoiled[key] = value;
      return problem_with(place.c_str(), spoiled);
    };
    for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
      const std::string name = place + "." + key + ": ";
      CHECK(problem_in(key, nullptr) == name + "missing key");
      for (const json& value : {json(0), json(-1.0), json("8"), json(1e300), json::array({8})})
        CHECK_MESSAGE(starts(problem_in(key, value), name + "expected"), key, " ", value.dump());
    }
    CHECK(problem_in("factor", 0.5) == place + ".factor: expected 1 or more, got 0.5");
    CHECK(problem_in("high_freq_factor", 1.0) == place + ".high_freq_factor: expected more than the 1.0 of low_freq_factor, got 1.0");
    CHECK(starts(problem_in("original_max_position_embeddings", 8192.5), place + ".original_max_position_embeddings: "));
    CHECK(starts(problem_in("rope_theta", 0), place + ".rope_theta: "));
    CHECK(problem_in("partial_rotary_factor", 0.5) == place + ".partial_rotary_factor: unsupported: 0.5 (only 1)");
    for (const char* type : {"longrope", "proportional", ""})
      CHECK(starts(problem_in("rope_type", type), place + ".rope_type: unsupported: \""));
    CHECK(starts(problem_in("rope_type", 3), place + ".rope_type: unsupported: 3"));
    CHECK(starts(problem_with(place.c_str(), "llama3"), place + ": expected an object, got string"));
  }
  CHECK(starts(problem_with("rope_scaling", {{"type", "longrope"}, {"factor", 2.0}}), "rope_scaling.type: unsupported: \"longrope\""));
  newer["rope_scaling"] = scaling;
  CHECK(starts(problem(newer.dump()), "rope_scaling: is given beside rope_parameters, and differs"));
}

TEST_CASE("a missing key is named") {
  for (const char* key : {"architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    CHECK(starts(problem_without(key), std::string(key) + ": missing key"));
    CHECK(starts(problem_with(key, nullptr), std::string(key) + ": missing key"));
  }
}

TEST_CASE("a value of the wrong type or out of range is named") {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                          "vocab_size", "max_position_embeddings"}) {
    CHECK(starts(problem_with(key, "256"), std::string(key) + ": expected a whole number, got string"));
    CHECK(starts(problem_with(key, 25.5), std::string(key) + ": expected a whole number, got 25.5"));
    for (const json& value : {json(0), json(-4), json(1e30), json(std::uint64_t{1} << 62)})
      CHECK(starts(problem_with(key, value), std::string(key) + ": "));
  }
  CHECK(starts(problem_with("rms_norm_eps", "small"), "rms_norm_eps: expected a number"));
  CHECK(starts(problem_with("rms_norm_eps", 0), "rms_norm_eps: expected a number above 0"));
  CHECK(starts(problem_with("rope_theta", -1.0), "rope_theta: "));
  for (const double theta : {1e-300, 0.5, 1.0})
    CHECK(starts(problem_with("rope_theta", theta), "rope_theta: expected a base above 1, got " + json(theta).dump()));
  CHECK(problem_with("num_hidden_layers", 1025) == "num_hidden_layers: expected 1 to 1024, got 1025");
  CHECK(starts(problem_with("tie_word_embeddings", 1), "tie_word_embeddings: expected true or false"));
}

TEST_CASE("what the program cannot compute is refused") {
  CHECK(starts(problem_with("architectures", {"Qwen2ForCausalLM"}), "architectures: unsupported"));
  CHECK(starts(problem_with("architectures", "LlamaForCausalLM"), "architectures: unsupported"));
  CHECK(starts(problem_with("architectures", json::array()), "architectures: unsupported"));
  CHECK(starts(problem_with("hidden_act", "gelu"), "hidden_act: unsupported"));
  CHECK(starts(problem_with("num_key_value_heads", 3), "num_key_value_heads: 3 does not divide"));
  CHECK(starts(problem_with("head_dim", 7), "head_dim: 7 is odd"));
  json config = config_of({});
  config.erase("head_dim");
  config["num_attention_heads"] = 10;
  CHECK(starts(problem(config.dump()), "num_attention_heads: 10 does not divide"));
}

TEST_CASE("a Mistral has other defaults, and a window") {
  json config = config_of({});
  config["architectures"] = {"MistralForCausalLM"};
  config["num_attention_heads"] = 16;
  config.erase("num_key_value_heads");
  config["sliding_window"] = nullptr;
  CHECK(loaded(config).kv_heads == 8);
  CHECK(loaded(config).max_positions == 512);
  CHECK(loaded(config).sliding_window == 0);
  config["sliding_window"] = 100;
  CHECK(loaded(config).max_positions == 512);
  CHECK(loaded(config).sliding_window == 100);
  config["use_sliding_window"] = false;
  CHECK(loaded(config).max_positions == 512);
  config["sliding_window"] = 512;  // as long as the context: no difference
  config.erase("use_sliding_window");
  CHECK(loaded(config).sliding_window == 0);
  config["sliding_window"] = 100;
  CHECK(!loaded(config).outgrows_window(100));
  CHECK(loaded(config).outgrows_window(101));
  config.erase("sliding_window");
  config.erase("max_position_embeddings");
  CHECK(loaded(config).max_positions == 131072);
  CHECK(loaded(config).sliding_window == 4096);
  config["num_key_value_heads"] = nullptr;
  CHECK(loaded(config).kv_heads == 16);
}

TEST_CASE("a file that is absent or not a JSON object is refused") {
  const temporary_directory folder;
  CHECK_THROWS_AS(minillama::load_config(folder.path() / "config.json"), minillama::load_error);
  for (const char* text : {"", "{", "[]", "null", "{\"a\": }", "\xff\xfe"}) CHECK(problem(text) == "is not a JSON object");
  CHECK(starts(problem(config_of({}).dump() + std::string(3, '\0')), "is not a JSON object: there is a NUL byte in it"));
  REQUIRE(::mkfifo((folder.path() / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH_AS(minillama::load_config(folder.path() / "pipe"), ((folder.path() / "pipe").string() + ": is not a file").c_str(),
                       minillama::load_error);
  write_text(folder.path() / "vast", "{}");
  std::filesystem::resize_file(folder.path() / "vast", std::uintmax_t{1} << 40);  // sparse
  CHECK_THROWS_AS(minillama::load_config(folder.path() / "vast"), minillama::load_error);
  CHECK(problem(std::string((4 << 20) + 1, ' ')) == "has 4194305 bytes; expected at most 4194304");
  CHECK(problem(std::string(4 << 20, ' ')) == "is not a JSON object");
  CHECK(problem(R"({"head_dim": 8, "head_dim": 16})") == "head_dim: is given twice");
  CHECK(problem(R"({"a": [{"b": 1, "c": {}, "b": 1}]})") == "b: is given twice");
  CHECK(starts(problem(R"({"a": [{"b": 1}, {"b": 1}]})"), "architectures: missing key"));
  const auto nested = [](int levels) { return "{\"a\": " + std::string(static_cast<std::size_t>(levels - 1), '[') + "0"; };
  CHECK(problem(nested(32)) == "is not a JSON object");  // it ends too early
  CHECK(problem(nested(33)) == "is nested deeper than 32 levels");
}

TEST_CASE("values are refused beyond their number, and as many as are allowed take no long time") {
  const auto refusal = [](const std::string& text, std::size_t most) -> std::string {
    try {
      minillama::parse_object("f", "header", text, most);
    } catch (const minillama::load_error& error) {
      return error.what();
    }
    return "";
  };
  const std::string ten = R"({"a": [1, -1, 0.5, "x", null], "b": {}})";  // keys are counted, and the object itself
  CHECK(refusal(ten, 10) == "");
  CHECK(refusal(ten, 9) == "f: header: has more than 9 values");
  CHECK(refusal("{\"a\": [" + std::string(1 << 20, '['), 100) == "f: header: is nested deeper than 32 levels");
  std::string list = "{\"a\": [";
  for (std::size_t i = 0; i < (std::size_t{1} << 20) - 3; ++i) list += "{},";
  CHECK(problem(list + "0]}") == "has more than 1048576 values");
  std::string wide = "{";
  for (std::size_t i = 0; i < 100000; ++i) wide += "\"" + std::to_string(i) + "\":{\"b\":0},";
  // Minutes, were the members looked at again for each that ends.
  CHECK(minillama::parse_object("f", "", wide + "\"last\":0}").size() == 100001);
}
