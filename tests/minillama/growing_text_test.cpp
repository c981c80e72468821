// SPDX-License-Identifier: Apache-2.0
// --perplexity-prompt: a text whose middle goes through the decode path in turns, and the trainings on the way.
#include <doctest/doctest.h>

#include "program.hpp"

using namespace minillama_test;

namespace {
/// Scores the last 10 of a text of 415 tokens, and gives the JSON document.
struct scorer {
  scorer() { write_text(tiny.path() / "text", std::string(300, 'a') + "bcdefghijklmnop" + std::string(100, 'q')); }
  std::string arguments(const std::string& more) const {
    return "--perplexity \"" + (tiny.path() / "text").string() + "\" --perplexity-tokens 10 " + more;
  }
  nlohmann::json operator()(const std::string& more) const {
    const auto file = tiny.path() / "run.json";
    const outcome got = tiny.generate(arguments(more) + " --json \"" + file.string() + "\"");
    REQUIRE_MESSAGE(got.code == 0, got.err);
    return nlohmann::json::parse(contents(file));
  }

  bench tiny;
};

double perplexity_of(const nlohmann::json& document) { return document.at("perplexity").at("policy").at("perplexity").get<double>(); }
}  // namespace

TEST_CASE("a text that is fed in turns foretells as one that is prefilled, under dense attention") {
  const scorer score;
  const auto whole = score("--policy full");
  CHECK(whole.at("prompt").at("tokens") == 405);
  CHECK(whole.at("statistics").at("steps") == 9);
  for (const char* turn : {"1", "37", "512"}) {
    const auto grown = score("--policy full --perplexity-prompt 100 --quality --perplexity-turn " + std::string(turn));
    CHECK(perplexity_of(grown) == doctest::Approx(perplexity_of(whole)).epsilon(1e-4));
    CHECK(grown.at("prompt").at("tokens") == 100);
    CHECK(grown.at("statistics").at("steps") == 314);
    CHECK(grown.at("statistics").at("quality").at("measured_steps") == 9);  // the scored ones, of which the last is not fed
    CHECK(grown.at("statistics").at("maintenance").at("trainings") == 0);
  }
}

TEST_CASE("trainings on the way are counted, and their time is a part of the cache's") {
  const scorer score;
  const auto trainings = [&](const std::string& more) {
    const auto document = score("--bits 4 --perplexity-prompt 100 " + more);
    const auto& statistics = document.at("statistics");
    const auto& of = statistics.at("maintenance");
    const double cache = statistics.at("decode_shares").at("cache").get<double>() * document.at("times").at("decode_seconds").get<double>();
    CHECK(of.at("seconds").get<double>() > 0);
    CHECK(of.at("seconds").get<double>() < cache);
    return of.at("trainings").get<std::size_t>();
  };
  const std::size_t layers = score.tiny.shape().layers;
  for (const char* turn : {"1", "64", "512"}) {
    const std::string fed = " --perplexity-turn " + std::string(turn);
    CHECK(trainings("--refresh 2" + fed) == 2 * layers);    // at 200 and 400 tokens
    CHECK(trainings("--refresh 1.5" + fed) == 3 * layers);  // 150, 225, 338
    CHECK(trainings("--refresh 0" + fed) == 0);
  }
  CHECK(score.tiny.generate(score.arguments("--bits 4 --perplexity-prompt 100")).err.find(" trainings of an index over") !=
        std::string::npos);
}

TEST_CASE("prompts and turns of a text that make no sense are refused") {
  const scorer score;
  const auto refused = [&](const std::string& more, const std::string& what) {
    check_refused(score.tiny.generate(score.arguments(more)), what);
  };
  refused("--perplexity-prompt 406", "/text: has 405 tokens before the scored ones; expected at least the 406 of --perplexity-prompt");
  refused("--perplexity-prompt 0", "--perplexity-prompt");
  refused("--perplexity-prompt 5 --perplexity-turn 0", "--perplexity-turn");
  refused("--perplexity-turn 5", "--perplexity-prompt");
  for (const char* value : {"1", "0.5", "-1", "nan", "inf"})
    refused("--refresh " + std::string(value), "--refresh: expected 0, or more than 1");
  check_refused(score.tiny.generate("-p a --perplexity-prompt 5"), "--perplexity");
  CHECK(perplexity_of(score("--perplexity-prompt 405")) == perplexity_of(score("")));
}
