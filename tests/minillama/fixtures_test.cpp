// SPDX-License-Identifier: Apache-2.0
// Models that transformers saved, against the logits that transformers computed (fixtures/make_fixtures.py): the prompt's by prefill, the
// following ones by decoding token by token with every token attended. A vocabulary that SentencePiece trained, against the tokens that
// SentencePiece makes of texts (fixtures/make_tokenizer_fixture.py).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "decoder.hpp"
#include "json_file.hpp"
#include "llama2c_tokenizer.hpp"
#include "load_error.hpp"
#include "tiny_model.hpp"

using namespace minillama_test;
using nlohmann::json;

namespace {

const std::filesystem::path fixtures = MINILLAMA_REPOSITORY "/tests/minillama/fixtures";

struct expectation {
  explicit expectation(const std::string& name)
      : file(minillama::read_object(fixtures / name / "expected.json")),
        tokens(file.at("tokens")),
        prompt(file.at("prompt")),
        logits(file.at("logits")) {}

  json file;
  std::vector<minillama::token_id> tokens;
  std::size_t prompt;
  std::vector<std::vector<float>> logits;  // [tokens - prompt + 1, vocabulary]
};

double difference(std::span<const float> got, std::span<const float> wanted) {
  REQUIRE(got.size() == wanted.size());
  float worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - wanted[i]));
  return worst;
}

struct differences {
  double prefill = 0, decode = 0;
};

differences compare(const std::filesystem::path& directory, const expectation& expected) {
  const minillama::model llama(directory);
  minillama::pool_runner runner(2);
  const auto prompt = minillama::prefill(llama, std::span(expected.tokens).first(expected.prompt), runner);
  minillama::policy_settings full;
  full.name = minillama::policy_name::full;
  minillama::host_session session(llama, runner, full, prompt, expected.tokens.size() - expected.prompt, minillama::session_kind::single);
  differences found{difference(prompt.logits, expected.logits[0]), 0};
  for (std::size_t t = expected.prompt; t < expected.tokens.size(); ++t)
    found.decode = std::max(found.decode, difference(session.step(expected.tokens[t]), expected.logits[t - expected.prompt + 1]));
  return found;
}

constexpr double tolerance = 1e-3;

/// A fixture with another config.json: the weights are the same.
class changed_fixture {
 public:
  explicit changed_fixture(const std::string& name) : config(minillama::read_object(fixtures / name / "config.json")) {
    std::filesystem::copy(fixtures / name, folder_.path());
  }
  const std::filesystem::path& written() const {
    write_text(folder_.path() / "config.json", config.dump());
    return folder_.path();
  }

  json config;

 private:
  temporary_directory folder_;
};

}  // namespace

TEST_CASE("every fixture: prefill and decode give the logits of transformers") {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(fixtures))
    if (std::filesystem::exists(entry.path() / "config.json")) names.insert(entry.path().filename().string());
  CHECK(names == std::set<std::string>{"grouped_heads", "llama3_scaling", "own_head_dim", "sharded", "tied", "untied_f16"});
  for (const std::string& name : names) {
    CAPTURE(name);
    const expectation expected(name);
    for (const char* package : {"python", "torch", "transformers", "safetensors"})
      CHECK_FALSE(expected.file.at("versions").at(package).get<std::string>().empty());
    REQUIRE(expected.tokens.size() == 40);
    REQUIRE(expected.logits.size() == expected.tokens.size() - expected.prompt + 1);
    float largest = 0;
    for (const auto& row : expected.logits)
      for (const float logit : row) largest = std::max(largest, std::abs(logit));
    CHECK(largest > 2);  // so that the tolerance means something

    const differences found = compare(fixtures / name, expected);
    MESSAGE(name << ": prefill " << found.prefill << ", decode " << found.decode << " of " << largest);
    CHECK(found.prefill < tolerance);
    CHECK(found.decode < tolerance);
  }
}

TEST_CASE("the sharded fixture is in shards, and without one it does not load") {
  CHECK_FALSE(std::filesystem::exists(fixtures / "sharded" / "model.safetensors"));
  const json index = minillama::read_object(fixtures / "sharded" / "model.safetensors.index.json");
  std::set<std::string> shards;
  for (const auto& [name, shard] : index.at("weight_map").items()) shards.insert(shard);
  CHECK(shards.size() > 2);
  const changed_fixture copy("sharded");
  CHECK_NOTHROW(minillama::model(copy.written()));
  std::filesystem::remove(copy.written() / *shards.begin());
  CHECK_THROWS_AS(minillama::model(copy.written()), minillama::load_error);
}

TEST_CASE("llama3 scaling: the older spelling gives the same, another factor or none does not") {
  const expectation expected("llama3_scaling");
  changed_fixture model("llama3_scaling");
  CHECK(compare(model.written(), expected).decode < tolerance);
  const json parameters = model.config.at("rope_parameters");

  model.config.erase("rope_parameters");
  model.config["rope_theta"] = parameters.at("rope_theta");
  model.config["rope_scaling"] = parameters;
  model.config["rope_scaling"].erase("rope_theta");
  const differences older = compare(model.written(), expected);
  CHECK(older.prefill < tolerance);
  CHECK(older.decode < tolerance);

  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    CAPTURE(key);
    json other = model.config;
    std::swap(other, model.config);
    model.config["rope_scaling"][key] = other["rope_scaling"][key].get<int>() * 3 / 2 + 1;
    CHECK(compare(model.written(), expected).decode > 10 * tolerance);
    std::swap(other, model.config);
  }
  model.config["rope_scaling"] = nullptr;
  CHECK(compare(model.written(), expected).decode > 100 * tolerance);
}

TEST_CASE("what each fixture is there for changes its logits") {
  changed_fixture base("own_head_dim");
  base.config["rope_parameters"]["rope_theta"] = 10000.0;
  CHECK(compare(base.written(), expectation("own_head_dim")).prefill > 10 * tolerance);
  changed_fixture epsilon("untied_f16");
  epsilon.config["rms_norm_eps"] = 0.1;
  CHECK(compare(epsilon.written(), expectation("untied_f16")).prefill > 10 * tolerance);
}

TEST_CASE("a head of its own in the file is the head, whatever the flag says") {
  changed_fixture tied("grouped_heads");
  tied.config["tie_word_embeddings"] = true;
  CHECK(compare(tied.written(), expectation("grouped_heads")).prefill < tolerance);
}

TEST_CASE("texts become the tokens of SentencePiece, and come back") {
  const minillama::llama2c_tokenizer words(fixtures / "tokenizer" / "tokenizer.bin");
  CHECK(words.vocabulary() == 512);
  const json expected = minillama::read_object(fixtures / "tokenizer" / "expected.json");
  CHECK_FALSE(expected.at("versions").at("sentencepiece").get<std::string>().empty());
  REQUIRE(expected.at("cases").size() > 40);
  for (const json& one : expected.at("cases")) {
    const std::string text = one.at("text");
    CAPTURE(text);
    auto wanted = one.at("tokens").get<std::vector<minillama::token_id>>();
    wanted.insert(wanted.begin(), 1);
    CHECK(words.encode(text, minillama::text_place::start) == wanted);
    std::string back;
    for (std::size_t i = 1; i < wanted.size(); ++i) back += words.decode(wanted[i - 1], wanted[i]);
    CHECK(back == text);
  }
}
