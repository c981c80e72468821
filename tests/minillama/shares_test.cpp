// SPDX-License-Identifier: Apache-2.0
// Where the time went, as the program reports it: parts that are there, add up to the whole, and are those of the work that was done.
#include <doctest/doctest.h>

#include <cmath>

#include "decoder.hpp"
#include "program.hpp"
#include "report.hpp"

using namespace minillama_test;

namespace {
void check_shares(const nlohmann::json& shares) {
  double sum = 0;
  for (const char* part : {"matrices", "cache", "rest"}) {
    CHECK(shares.at(part).get<double>() > 0);
    CHECK(shares.at(part).get<double>() < 1);
    sum += shares.at(part).get<double>();
  }
  CHECK(sum == doctest::Approx(1));
}
}  // namespace

TEST_CASE("shares of prefill and decode, on stderr and in the JSON of both programs") {
  const bench tiny;
  const auto file = tiny.path() / "run.json";
  const outcome got = tiny.generate("-p 'once upon a time' -n 6 --compare full --json \"" + file.string() + "\"");
  CHECK_MESSAGE(got.code == 0, got.err);
  for (const char* line : {"prefill, shares", "decode, shares"}) {
    const std::size_t at = got.err.find(line);
    REQUIRE_MESSAGE(at != std::string::npos, got.err);
    for (const char* part : {" matrices", " cache", " rest"}) CHECK(got.err.find(part, at) < got.err.find('\n', at));
  }
  const auto document = nlohmann::json::parse(contents(file));
  check_shares(document.at("times").at("prefill_shares"));
  check_shares(document.at("statistics").at("decode_shares"));
  check_shares(document.at("full").at("decode_shares"));
  const outcome none = tiny.generate("-p 'once upon a time' -n 1 --json \"" + file.string() + "\"");
  CHECK_MESSAGE(none.code == 0, none.err);
  CHECK(none.err.find("decode, shares") == std::string::npos);
  CHECK(nlohmann::json::parse(contents(file)).at("statistics").at("decode_shares").is_null());
}

TEST_CASE("shares: what a long prompt attends with grows with its square, weights do not; observers are not counted") {
  const bench tiny({.max_positions = 4096});
  const minillama::model llama(tiny.path());
  minillama::pool_runner runner(1);
  const std::vector<minillama::token_id> tokens(3000, 7);
  const auto prompt = minillama::prefill(llama, tokens, runner);
  double least = HUGE_VAL;  // of a few: a short run may be interrupted
  for (int i = 0; i < 9; ++i) {
    const auto shorter = minillama::prefill(llama, std::span(tokens).first(100), runner).parts;
    least = std::min(least, shorter.cache / shorter.matrices);
  }
  CHECK(prompt.parts.cache / prompt.parts.matrices > 2 * least);

  minillama::policy_settings settings;
  settings.name = minillama::policy_name::full;
  minillama::host_session at(llama, runner, settings, prompt, 10, minillama::session_kind::single);
  for (int i = 0; i < 5; ++i)
    at.step(7, [](const minillama::layer_step&) {
      const minillama::lap_clock started;
      for (minillama::lap_clock clock = started; clock.lap() < 0.02; clock = started) {
      }
    });
  const auto& s = at.statistics();
  CHECK(s.parts->matrices > 0);
  CHECK(s.parts->cache > 0);
  CHECK(s.parts->matrices + s.parts->cache <= s.seconds);
  CHECK(s.seconds < 5 * 0.02 * static_cast<double>(s.layers));  // as long as the observers alone took
  CHECK(minillama::shares_of(minillama::part_seconds{1, 2}, 4) == nlohmann::json{{"matrices", 0.25}, {"cache", 0.5}, {"rest", 0.25}});
  CHECK(minillama::shares_of(minillama::part_seconds{}, 0).is_null());
  CHECK(minillama::shares_of(std::nullopt, 1).is_null());
}
