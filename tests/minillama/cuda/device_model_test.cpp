// SPDX-License-Identifier: Apache-2.0
// The decoder on a device with tiny random Llamas, against the double-precision oracle and against itself: prompts in blocks, steps from
// a graph and call by call, forks, policies, limits. Run on a GPU where there is one, and on an emulation of it everywhere.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <memory>
#include <stdexcept>

#include "../plain_llama.hpp"
#include "cuda/decoder.hpp"
#include "cuda/prefill.hpp"
#include "cuda/settings.hpp"
#include "decoder.hpp"

using namespace minillama_test;
using minillama::cuda::device_session;
using minillama::cuda::step_launch;

namespace {

#if defined(MINILLAMA_EMULATED)
constexpr std::size_t replay_prompt = 100, replays = 140, compared_prompt = 200;
#else
constexpr std::size_t replay_prompt = 300, replays = 700, compared_prompt = 600;
#endif
constexpr double tolerance = 2e-5;  // that of the host's tests: float against double through a few layers

/// A tiny Llama on the host and on the device.
struct both_models {
  explicit both_models(const tiny_shape& of, std::uint64_t seed = 1) : shape(of), weights(random_weights(of, seed)) {
    write_model(folder.path(), shape, weights);
    host = std::make_unique<minillama::model>(folder.path());
    device = std::make_unique<minillama::cuda::device_model>(*host);
  }
  tiny_shape shape;
  tensors weights;
  temporary_directory folder;
  std::unique_ptr<minillama::model> host;
  std::unique_ptr<minillama::cuda::device_model> device;
};

minillama::policy_settings policy(minillama::policy_name name, double ratio = 1.0) {
  minillama::policy_settings settings;
  settings.name = name;
  settings.budget.ratio = ratio;
  settings.quantizer.bits = 4;
  return settings;
}

using enum minillama::policy_name;
using enum minillama::session_kind;

}  // namespace

TEST_CASE("prefill and decode agree with the oracle for heads of every grouping, both kinds of embeddings, and odd widths") {
  struct heads {
    std::size_t hq, h, d, hidden;
    bool tied;
  };
  for (const heads& of : {heads{4, 2, 8, 24, true},
                          {1, 1, 8, 32, false},
                          {6, 2, 16, 40, true},
                          {8, 1, 40, 32, false},
                          {3, 3, 64, 300, true},
                          {2, 1, 20, 24, true}}) {
    CAPTURE(of.hq);
    CAPTURE(of.d);
    const both_models model(
        {.hidden = of.hidden, .layers = 2, .query_heads = of.hq, .kv_heads = of.h, .head_dim = of.d, .tied = of.tied, .theta = 1e6}, of.d);
    const auto text = random_tokens(28, of.hq);
    const auto wanted = plain_logits(model.shape, model.weights, text);
    const auto prompt = minillama::cuda::prefill(*model.device, std::span(text).first(23));
    CHECK(difference(prompt.logits, wanted[22]) < tolerance);
    device_session at(*model.device, policy(full), prompt, 5, single);
    for (std::size_t t = 23; t < text.size(); ++t) CHECK(difference(at.step(text[t]), wanted[t]) < tolerance);
  }
}

TEST_CASE("prompts of any length, in blocks of any size") {
  const both_models model({.layers = 3});
  const auto text = random_tokens(40, 3);
  const auto wanted = plain_logits(model.shape, model.weights, text);
  for (const std::size_t n : {1u, 2u, 7u, 33u, 40u})
    for (const std::size_t block : {0u, 1u, 7u, 32u}) {
      CAPTURE(n);
      CAPTURE(block);
      double last = 0;
      const auto report = [&](double share) {
        CHECK(share > last);
        last = share;
      };
      const auto prompt =
          minillama::cuda::prefill(*model.device, std::span(text).first(n), block == 7 ? report : minillama::progress_report{}, block);
      CHECK(difference(prompt.logits, wanted[n - 1]) < tolerance);
      if (block == 7) CHECK(last == 1);
      if (n != 33) continue;
      device_session at(*model.device, policy(full), prompt, 2, single);  // keys and values of every layer count
      CHECK(difference(at.step(text[33]), wanted[33]) < tolerance);
      CHECK(difference(at.step(text[34]), wanted[34]) < tolerance);
    }
}

TEST_CASE("full, and pq with a budget for all, agree with the oracle; a share of the tokens does not") {
  const both_models model({});
  const auto text = random_tokens(135, 9);
  const auto wanted = plain_logits(model.shape, model.weights, text);
  const auto prompt = minillama::cuda::prefill(*model.device, std::span(text).first(120));
  for (const auto name : {full, pq}) {
    CAPTURE(static_cast<int>(name));
    device_session all(*model.device, policy(name), prompt, 15, single);
    for (std::size_t t = 120; t < text.size(); ++t) CHECK(difference(all.step(text[t]), wanted[t]) < tolerance);
    CHECK(all.statistics().tokens_attended == (121 + 135) * 15 / 2 * model.shape.layers);
  }
  device_session some(*model.device, policy(pq, 0.55), prompt, 15, single);
  double worst = 0;
  for (std::size_t t = 120; t < text.size(); ++t) worst = std::max(worst, difference(some.step(text[t]), wanted[t]));
  CHECK(worst > tolerance);
  const double attended = some.statistics().per_step(some.statistics().tokens_attended) / static_cast<double>(model.shape.layers);
  CHECK(attended > 0.52 * 120);
  CHECK(attended < 0.56 * 135);
}

TEST_CASE("streaming attends to the host's tokens: its logits within rounding, also where the prompt is shorter than the budget") {
  const both_models model({});
  minillama::pool_runner runner(1);
  const auto text = random_tokens(150, 12);
  auto narrow = policy(streaming);
  narrow.budget.window = 3;
  narrow.budget.retrieve = 5;
  for (const auto& settings : {policy(streaming, 0.1), narrow})
    for (const std::size_t n : {2u, 20u, 100u}) {
      CAPTURE(n);
      const auto head = std::span(text).first(n);
      device_session device(*model.device, settings, minillama::cuda::prefill(*model.device, head), 150 - n, single);
      minillama::host_session host(*model.host, runner, settings, minillama::prefill(*model.host, head, runner), 150 - n, single);
      double worst = 0;
      for (std::size_t t = n; t < text.size(); ++t) {
        const auto wanted = host.step(text[t]);
        worst = std::max(worst, difference(device.step(text[t]), numbers(wanted.begin(), wanted.end())));
      }
      CHECK(worst < tolerance);
      CHECK(device.statistics().tokens_attended == host.statistics().tokens_attended);
      CHECK(device.statistics().attended_bytes == host.statistics().attended_bytes);
    }
}

TEST_CASE("a model with a window: prompts in blocks of any size, and tokens after them, attend to the window under every policy") {
  const both_models model({.sliding_window = 40});
  const auto text = random_tokens(170, 6);
  const auto wanted = plain_logits(model.shape, model.weights, text);
  for (const std::size_t n : {1u, 39u, 40u, 41u, 80u, 105u})
    for (const std::size_t block : {0u, 1u, 7u, 64u}) {
      if (block == 1 && n > 41) continue;
      CAPTURE(n);
      CAPTURE(block);
      const auto prompt = minillama::cuda::prefill(*model.device, std::span(text).first(n), {}, block);
      CHECK(difference(prompt.logits, wanted[n - 1]) < tolerance);
    }
  for (const std::size_t n : {7u, 40u, 41u, 100u}) {
    const auto head = std::span(text).first(n);
    const auto prompt = minillama::cuda::prefill(*model.device, head, {}, 32);
    const std::size_t steps = n == 7 ? 40 : 6;
    for (const auto name : {full, pq, streaming}) {
      CAPTURE(n);
      CAPTURE(static_cast<int>(name));
      const std::size_t rounds = name == pq ? 2 : 1;
      device_session at(*model.device, policy(name, 0.5), prompt, 50, name == pq ? forked : single,
                        name == full ? step_launch::eager : step_launch::graph);
      for (std::size_t round = 0; round < rounds; ++round) {
        for (std::size_t t = n; t < n + steps; ++t) CHECK(difference(at.step(text[t]), wanted[t]) < tolerance);
        if (name == pq) at.fork();
      }
      std::size_t attended = 0;
      for (std::size_t t = n; t < n + steps; ++t) attended += std::min(t + 1, model.shape.sliding_window);
      CHECK(at.statistics().tokens_attended == attended * model.shape.layers * rounds);
    }
  }
}

TEST_CASE("pq with the host's keys: the same tokens per step as on the host, and its logits") {
  const both_models model({.max_positions = 1024});
  minillama::pool_runner runner(2);
  const auto text = random_tokens(compared_prompt + 60, 5);
  const auto head = std::span(text).first(compared_prompt);
  const auto there = minillama::cuda::prefill(*model.device, head);
  const auto here = minillama::prefill(*model.host, head, runner);
  const auto settings = policy(pq, 0.4);
  device_session device(*model.device, settings, there, 60, single);
  minillama::host_session host(*model.host, runner, settings, here, 60, single);
  std::size_t equal = 0;
  for (std::size_t t = compared_prompt; t < text.size(); ++t)
    equal += minillama::greedy(device.step(text[t])) == minillama::greedy(host.step(text[t])) ? 1 : 0;
  MESSAGE("equal greedy tokens: ", equal, " of 60");
  CHECK(equal >= 52);  // keys differ in rounding, which moves centroids and, seldom, a selected token
  CHECK(device.statistics().tokens_attended == host.statistics().tokens_attended);
  CHECK(device.statistics().attended_bytes == host.statistics().attended_bytes);
  CHECK(device.statistics().steps == 60);
  CHECK_FALSE(device.statistics().parts.has_value());
  CHECK_FALSE(device.statistics().selection.has_value());
  CHECK(device.memory().kv_bytes == host.memory().kv_bytes);
}

TEST_CASE("a replayed graph gives the bits of a step call by call, and a second run those of the first") {
  const both_models model({.max_positions = 1024});
  const auto text = random_tokens(replay_prompt + replays, 11);
  for (const auto name : {full, pq}) {
    CAPTURE(static_cast<int>(name));
    auto settings = policy(name, 0.2);
    settings.quantizer.tail_tokens = 64;  // folded on the way
    const auto prompt = minillama::cuda::prefill(*model.device, std::span(text).first(replay_prompt));
    const auto again = minillama::cuda::prefill(*model.device, std::span(text).first(replay_prompt));
    CHECK(prompt.logits == again.logits);
    device_session replayed(*model.device, settings, prompt, replays, single);
    device_session eager(*model.device, settings, again, replays, single, step_launch::eager);
    std::size_t differing = 0;
    for (std::size_t t = replay_prompt; t < text.size(); ++t) {
      const auto a = replayed.step(text[t]), b = eager.step(text[t]);
      differing += std::equal(a.begin(), a.end(), b.begin(), b.end()) ? 0 : 1;
    }
    CHECK(differing == 0);
  }
}

TEST_CASE("forks start from the prompt again and leave it as it was") {
  const both_models model({});
  const auto text = random_tokens(60, 2);
  const auto prompt = minillama::cuda::prefill(*model.device, std::span(text).first(50));
  for (const auto name : {full, pq}) {
    device_session at(*model.device, policy(name), prompt, 4, forked);
    for (std::uint64_t fork = 0; fork < 3; ++fork) {
      auto all = text;
      all.resize(50);
      const auto more = random_tokens(4, 100 + fork);
      all.insert(all.end(), more.begin(), more.end());
      const auto wanted = plain_logits(model.shape, model.weights, all);
      at.fork();
      for (std::size_t t = 0; t < more.size(); ++t) CHECK(difference(at.step(more[t]), wanted[50 + t]) < tolerance);
      CHECK_THROWS_AS(at.step(0), pqkv::capacity_error);
    }
    CHECK(at.statistics().steps == 12);
    CHECK(at.statistics().seconds > 0);
  }
  device_session one(*model.device, policy(full), prompt, 4, single);
  CHECK_THROWS_AS(one.fork(), std::logic_error);
}

TEST_CASE("a short prompt gets its codebook while it is decoded behind") {
  const both_models model({});
  const auto text = random_tokens(200, 21);
  const auto wanted = plain_logits(model.shape, model.weights, text);
  const auto prompt = minillama::cuda::prefill(*model.device, std::span(text).first(10));
  device_session at(*model.device, policy(pq, 0.2), prompt, 190, single);
  for (std::size_t t = 10; t < 60; ++t) CHECK(difference(at.step(text[t]), wanted[t]) < tolerance);  // the least budget holds all
  double worst = 0;
  for (std::size_t t = 60; t < 200; ++t) worst = std::max(worst, difference(at.step(text[t]), wanted[t]));
  CHECK(worst > tolerance);
  CHECK(at.statistics().tokens_attended < 190 * 80 * model.shape.layers);  // a budget of 64 tokens, not of all
}

TEST_CASE("what a device does not do is refused, and nothing is changed") {
  const both_models model({.vocabulary = 300});
  const auto text = random_tokens(20, 4);
  const auto prompt = minillama::cuda::prefill(*model.device, text);
  device_session at(*model.device, policy(full), prompt, 2, single);
  CHECK_THROWS_AS(at.step(300), std::out_of_range);
  CHECK_THROWS_AS(at.step(1, [](const minillama::layer_step&) {}), std::logic_error);
  CHECK(at.statistics().steps == 0);
  auto all = text;
  all.push_back(299);
  CHECK(difference(at.step(299), plain_logits(model.shape, model.weights, all).back()) < tolerance);
  const std::vector<minillama::token_id> strange{3, 300};
  CHECK_THROWS_AS(minillama::cuda::prefill(*model.device, strange), std::out_of_range);
}
