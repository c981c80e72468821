// SPDX-License-Identifier: Apache-2.0
// The shipped model on a GPU against the host: logits under full attention within a tolerance; under pq, whose codebooks move with the
// rounding of keys, what the model says. Figures are printed.
#include <doctest/doctest.h>

#include <cmath>
#include <thread>

#include "../program.hpp"
#include "cuda/decoder.hpp"
#include "cuda/prefill.hpp"
#include "decoder.hpp"
#include "perplexity.hpp"
#include "tokenizer.hpp"

using namespace minillama_test;

namespace {

constexpr std::size_t prompt_tokens = 6000;
constexpr double tolerance = 5e-5;  // of the largest logit: eight layers in float on both sides, sums over 6000 tokens

const std::filesystem::path root = MINILLAMA_REPOSITORY;

/// |device - host| of the worst logit, in units of the host's largest.
double difference(std::span<const float> device, std::span<const float> host) {
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < host.size(); ++i) {
    const double apart = std::abs(static_cast<double>(device[i]) - static_cast<double>(host[i]));
    worst = std::isfinite(apart) ? std::max(worst, apart) : HUGE_VAL;
    scale = std::max(scale, std::abs(static_cast<double>(host[i])));
  }
  return worst / scale;
}

/// The licence, prefilled on both.
struct both_prompts {
  minillama::model host{root / "examples/minillama/model"};
  minillama::cuda::device_model device{host};
  minillama::pool_runner runner{std::max(1u, std::thread::hardware_concurrency())};
  std::vector<minillama::token_id> text = minillama::byte_tokens(contents(root / "LICENSE"));
  minillama::prefilled_prompt here = minillama::prefill(host, head(), runner);
  minillama::cuda::device_prompt there = minillama::cuda::prefill(device, head());

  std::span<const minillama::token_id> head() const { return std::span(text).first(prompt_tokens); }
  std::span<const minillama::token_id> tail(std::size_t count) const { return std::span(text).subspan(prompt_tokens, count); }

  static both_prompts& shared() {
    static both_prompts one;
    return one;
  }
};

minillama::policy_settings policy(minillama::policy_name name) {
  minillama::policy_settings settings;
  settings.name = name;
  return settings;
}

using enum minillama::policy_name;
using enum minillama::session_kind;

}  // namespace

TEST_CASE("full attention: logits of the prompt and of 60 steps are the host's within the tolerance") {
  both_prompts& both = both_prompts::shared();
  const double at_prompt = difference(both.there.logits, both.here.logits);
  CHECK(at_prompt < tolerance);
  minillama::host_session host(both.host, both.runner, policy(full), both.here, 60, single);
  minillama::cuda::device_session device(both.device, policy(full), both.there, 60, single);
  double worst = 0;
  std::size_t equal = 0;
  for (const minillama::token_id token : both.tail(60)) {
    const auto wanted = host.step(token), got = device.step(token);
    worst = std::max(worst, difference(got, wanted));
    equal += minillama::greedy(got) == minillama::greedy(wanted) ? 1 : 0;
  }
  CHECK(worst < tolerance);
  CHECK(equal >= 59);
  MESSAGE("full, ", prompt_tokens, " tokens: largest difference ", at_prompt, " of the prompt's logits, ", worst, " of 60 steps'; ", equal,
          " of 60 greedy tokens equal");
}

TEST_CASE("pq: the text is foretold as well as on the host, by mostly the same tokens, with as many attended to") {
  both_prompts& both = both_prompts::shared();
  constexpr std::size_t count = 400;
  minillama::host_session host(both.host, both.runner, policy(pq), both.here, count, single);
  minillama::cuda::device_session device(both.device, policy(pq), both.there, count, single);
  double host_sum = 0, device_sum = 0;
  std::size_t equal = 0;
  const auto tail = both.tail(count);
  for (std::size_t i = 0; i + 1 < count; ++i) {
    const auto wanted = host.step(tail[i]), got = device.step(tail[i]);
    equal += minillama::greedy(got) == minillama::greedy(wanted) ? 1 : 0;
    host_sum += minillama::negative_log_likelihood(wanted, tail[i + 1]);
    device_sum += minillama::negative_log_likelihood(got, tail[i + 1]);
  }
  const double steps = count - 1, apart = std::abs(device_sum - host_sum) / steps;
  MESSAGE("pq, ", prompt_tokens, " tokens: ", equal, " of ", count - 1, " greedy tokens equal; nats per token ", device_sum / steps,
          ", on the host ", host_sum / steps);
  CHECK(static_cast<double>(equal) >= 0.9 * steps);
  CHECK(apart < 0.05);
  CHECK(device.statistics().tokens_attended == host.statistics().tokens_attended);
}

TEST_CASE("pq in a graph gives the bits of steps call by call, past maintenance of the index") {
  both_prompts& both = both_prompts::shared();
  minillama::cuda::device_session replayed(both.device, policy(pq), both.there, 700, single);
  minillama::cuda::device_session eager(both.device, policy(pq), both.there, 700, single, minillama::cuda::step_launch::eager);
  std::size_t differing = 0;
  for (const minillama::token_id token : both.tail(700)) {
    const auto a = replayed.step(token), b = eager.step(token);
    differing += std::equal(a.begin(), a.end(), b.begin(), b.end()) ? 0 : 1;
  }
  CHECK(differing == 0);
}

TEST_CASE("questions: as many right answers as on the host") {
  const temporary_directory folder;
  const auto right_on = [&](const std::string& device) {
    const auto file = folder.path() / (device + ".json");
    const bench any;
    const outcome got = any.run("-m \"" + (root / "examples/minillama/model").string() + "\" --text \"" + (root / "LICENSE").string() +
                                    "\" --length 4096 --questions 20 --contexts 2 --seed 5 --policy pq streaming --ratios 5 --device " +
                                    device + " --json \"" + file.string() + "\"",
                                MINILLAMA_ASK_PROGRAM);
    REQUIRE_MESSAGE(got.code == 0, got.err);
    MESSAGE(device, ":\n", got.out);
    std::vector<int> right;
    const auto report = nlohmann::json::parse(contents(file));
    for (const auto& one : report.at("policies")) right.push_back(one.at("right").get<int>());
    return right;
  };
  const auto host = right_on("host"), device = right_on("cuda");
  REQUIRE(host.size() == 3);
  REQUIRE(device.size() == 3);
  CHECK(device[0] == host[0]);
  CHECK(std::abs(device[1] - host[1]) <= 2);
  CHECK(std::abs(device[2] - host[2]) <= 1);
}
