// SPDX-License-Identifier: Apache-2.0
// Tiny random Llamas against the double-precision oracle: prefill and decode steps, for every type, tied and separate embeddings,
// grouped heads, lengths on both sides of the tiles, forks, and selectors that attend to everything.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "decoder.hpp"
#include "engine.hpp"
#include "footprint.hpp"
#include "load_error.hpp"
#include "plain_llama.hpp"
#include "quality.hpp"
#include "tiny_model.hpp"
#include "tokenizer.hpp"

using namespace minillama_test;
using minillama::byte_tokens;

namespace {

constexpr double tolerance = 2e-5;  // float against double through a few layers

struct loaded_model {
  explicit loaded_model(const tiny_shape& of, std::uint64_t seed = 1) : shape(of), weights(random_weights(of, seed)) {
    write_model(folder.path(), shape, weights);
    llama = std::make_unique<minillama::model>(folder.path());
  }
  tiny_shape shape;
  tensors weights;
  temporary_directory folder;
  std::unique_ptr<minillama::model> llama;
};

minillama::policy_settings policy(minillama::policy_name name, double ratio = 1.0) {
  minillama::policy_settings settings;
  settings.name = name;
  settings.budget.ratio = ratio;
  return settings;
}

/// |out - dense| / |dense| of every query head of a layer's last token, in double.
std::vector<double> plain_output_errors(const minillama::layer_step& step, const tiny_shape& shape) {
  const auto store = step.cache.store(step.slot);
  const std::size_t d = store.head_dim(), n = store.tokens(), group = shape.query_heads / shape.kv_heads;
  std::vector<double> errors;
  for (std::size_t q = 0; q < shape.query_heads; ++q) {
    std::vector<double> weights(n), dense(d);
    double sum = 0, difference = 0, norm = 0;
    for (std::size_t t = 0; t < n; ++t) {
      double dot = 0;
      for (std::size_t i = 0; i < d; ++i)
        dot += static_cast<double>(step.query(0, q, i)) * static_cast<double>(store.keys(q / group, t, i));
      sum += weights[t] = std::exp(dot / std::sqrt(static_cast<double>(d)));
    }
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) dense[i] += weights[t] / sum * static_cast<double>(store.values(q / group, t, i));
    for (std::size_t i = 0; i < d; ++i) {
      difference += std::pow(static_cast<double>(step.out(0, q, i)) - dense[i], 2);
      norm += dense[i] * dense[i];
    }
    errors.push_back(std::sqrt(difference / norm));
  }
  return errors;
}

}  // namespace

TEST_CASE("prefill and decode agree with the oracle for every type and both kinds of embeddings") {
  minillama::pool_runner runner(2);
  for (const std::string type : {"F32", "F16", "BF16"}) {
    for (const bool tied : {true, false}) {
      CAPTURE(type);
      CAPTURE(tied);
      const loaded_model model({.tied = tied, .type = type});
      const auto text = random_tokens(40, 7);
      const auto wanted = plain_logits(model.shape, model.weights, text);
      const auto prompt = minillama::prefill(*model.llama, std::span(text).first(30), runner);
      CHECK(difference(prompt.logits, wanted[29]) < tolerance);
      minillama::host_session session(*model.llama, runner, policy(minillama::policy_name::full), prompt, 10,
                                      minillama::session_kind::single);
      for (std::size_t t = 30; t < text.size(); ++t) CHECK(difference(session.step(text[t]), wanted[t]) < tolerance);
    }
  }
}

TEST_CASE("a vocabulary wider than bytes, and tokens outside of it") {
  minillama::pool_runner runner(2);
  const loaded_model model({.vocabulary = 70001, .layers = 1, .tied = false});
  const std::vector<minillama::token_id> text{70000, 3, 65536, 255, 256, 40000};
  const auto wanted = plain_logits(model.shape, model.weights, text);
  const auto prompt = minillama::prefill(*model.llama, std::span(text).first(5), runner);
  CHECK(difference(prompt.logits, wanted[4]) < tolerance);
  minillama::host_session session(*model.llama, runner, policy(minillama::policy_name::full), prompt, 2, minillama::session_kind::single);
  CHECK_THROWS_AS(session.step(70001), std::out_of_range);
  CHECK(difference(session.step(text[5]), wanted[5]) < tolerance);
  std::vector<float> logits(70001);
  logits[69999] = 1;
  CHECK(minillama::greedy(logits) == 69999);
}

TEST_CASE("heads of every grouping, and a rotary base of its own") {
  minillama::pool_runner runner(2);
  for (const auto& heads :
       {std::array<std::size_t, 3>{1, 1, 8}, {4, 4, 8}, {6, 2, 16}, {8, 1, 40}, {3, 3, 64}, {4, 2, 6}, {2, 1, 20}, {1, 1, 100}}) {
    const std::size_t hq = heads[0], h = heads[1], d = heads[2];
    CAPTURE(hq);
    CAPTURE(d);
    const char* const type = h == 1 ? "BF16" : h == 2 ? "F16" : "F32";
    const loaded_model model({.hidden = 32, .layers = 3, .query_heads = hq, .kv_heads = h, .head_dim = d, .type = type, .theta = 1e6}, d);
    const auto text = random_tokens(21, hq);
    const auto wanted = plain_logits(model.shape, model.weights, text);
    const auto prompt = minillama::prefill(*model.llama, std::span(text).first(20), runner);
    CHECK(difference(prompt.logits, wanted[19]) < tolerance);
    minillama::host_session session(*model.llama, runner, policy(minillama::policy_name::full), prompt, 1, minillama::session_kind::single);
    CHECK(difference(session.step(text[20]), wanted[20]) < tolerance);
  }
}

TEST_CASE("prompts on both sides of tiles and blocks") {
  const loaded_model model({.layers = 2});
  const auto text = random_tokens(300, 3);
  const auto wanted = plain_logits(model.shape, model.weights, text);
  for (const std::size_t threads : {1u, 3u}) {
    minillama::pool_runner runner(threads);
    for (const std::size_t n : {1u, 2u, 63u, 64u, 65u, 127u, 128u, 129u, 192u, 255u, 256u, 257u, 300u}) {
      CAPTURE(n);
      double last = 0;
      const auto prompt = minillama::prefill(*model.llama, std::span(text).first(n), runner, [&](double share) {
        CHECK(share >= last);
        last = share;
      });
      CHECK(last > 0.999);
      CHECK(prompt.tokens == n);
      CHECK(difference(prompt.logits, wanted[n - 1]) < tolerance);
    }
  }
}

TEST_CASE("a fork leaves the prompt as it was, and room is counted from the fork") {
  minillama::pool_runner runner(2);
  const loaded_model model({});
  const auto prompt_text = random_tokens(50, 5);
  const auto prompt = minillama::prefill(*model.llama, prompt_text, runner);
  minillama::host_session session(*model.llama, runner, policy(minillama::policy_name::full), prompt, 4, minillama::session_kind::forked);
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    session.fork();
    const auto more = random_tokens(4, 100 + seed);
    auto all = prompt_text;
    all.insert(all.end(), more.begin(), more.end());
    const auto wanted = plain_logits(model.shape, model.weights, all);
    for (std::size_t t = 0; t < more.size(); ++t) CHECK(difference(session.step(more[t]), wanted[50 + t]) < tolerance);
    CHECK_THROWS_AS(session.step(0), pqkv::capacity_error);
  }
  CHECK(session.statistics().steps == 12);
  CHECK(session.statistics().seconds > 0);
}

TEST_CASE("the last session of a prompt takes its rows and computes the same; another that comes too late is refused") {
  minillama::pool_runner runner(2);
  const loaded_model model({.layers = 3});
  const auto text = random_tokens(60, 5);
  const auto kind = minillama::session_kind::forked;
  auto prompt = minillama::prefill(*model.llama, std::span(text).first(50), runner);
  const std::vector<float> logits = prompt.logits;
  minillama::host_session before(*model.llama, runner, policy(minillama::policy_name::pq), prompt, 10, kind);
  minillama::host_session last(*model.llama, runner, policy(minillama::policy_name::pq), std::move(prompt), 10, kind);
  CHECK(prompt.layers.empty());
  CHECK(prompt.logits == logits);
  for (std::size_t t = 50; t < text.size(); ++t) {
    const auto wanted = before.step(text[t]), got = last.step(text[t]);
    CHECK(std::equal(wanted.begin(), wanted.end(), got.begin(), got.end()));
  }
  last.fork();
  CHECK(last.step(text[50]).size() == logits.size());
  CHECK_THROWS_AS(minillama::host_session(*model.llama, runner, policy(minillama::policy_name::full), prompt, 10, kind), std::logic_error);

  const auto full = policy(minillama::policy_name::full);
  const auto held = minillama::make_engine(minillama::device_name::host, *model.llama, runner)->prefill(std::span(text).first(50));
  const auto more = held->start(full, 10, kind), taker = held->start_last(full, 10, kind);
  CHECK(std::equal(logits.begin(), logits.end(), held->logits().begin()));
  const auto wanted = more->step(text[50]), got = taker->step(text[50]);
  CHECK(std::equal(wanted.begin(), wanted.end(), got.begin(), got.end()));
  CHECK_THROWS_AS(held->start(full, 10, kind), std::logic_error);
  const auto wants_queries = policy(minillama::policy_name::infllm);
  const auto other = minillama::make_engine(minillama::device_name::host, *model.llama, runner)->prefill(std::span(text).first(50));
  CHECK_THROWS_AS(other->start(wants_queries, 10, kind), std::logic_error);
  CHECK_THROWS_AS(held->start_last(full, 10, kind), std::logic_error);
}

TEST_CASE("policies that retrieve the whole middle agree with the oracle; one that does not reads less") {
  minillama::pool_runner runner(2);
  const loaded_model model({.max_positions = 1024});
  const auto text = random_tokens(401, 9);
  const auto wanted = plain_logits(model.shape, model.weights, text);
  const auto prompt = minillama::prefill(*model.llama, std::span(text).first(400), runner, {}, 400);
  using enum minillama::policy_name;
  for (const auto name : {full, pq, oracle, sparq, quest, infllm}) {
    minillama::host_session dense(*model.llama, runner, policy(name, 1.0), prompt, 1, minillama::session_kind::single);
    CHECK(difference(dense.step(text[400]), wanted[400]) < tolerance);
  }
  minillama::quality_summary last;
  for (const auto name : {streaming, pq, oracle, full}) {
    minillama::host_session session(*model.llama, runner, policy(name, 0.25), prompt, 1, minillama::session_kind::single);
    minillama::quality_meter meter(model.llama->config());
    std::vector<double> errors;  // of each layer and head
    session.step(text[400], [&, observe = meter.observer({runner, {}})](const minillama::layer_step& step) {
      observe(step);
      for (const double error : plain_output_errors(step, model.shape)) errors.push_back(error);
    });
    const auto quality = meter.summary();
    CHECK(quality.steps == 1);
    CHECK(quality.output_error == doctest::Approx(std::accumulate(errors.begin(), errors.end(), 0.0) / static_cast<double>(errors.size())));
    CHECK(quality.worst_output_error == doctest::Approx(*std::max_element(errors.begin(), errors.end())));
    CHECK((quality.output_error < 1e-4) == (name == full));
    CHECK(quality.mass <= 1 + 1e-5);
    CHECK(quality.worst_mass <= quality.mass);
    CHECK(quality.mass >= last.mass - 0.02);  // random weights: the order is clear, not strict
    CHECK(quality.recall == doctest::Approx(name == streaming ? 0.0 : name == pq ? quality.recall : 1.0));
    if (name == oracle) CHECK(quality.mass == doctest::Approx(quality.oracle_mass).epsilon(1e-5));
    const double tokens = session.statistics().per_step(session.statistics().tokens_attended) / static_cast<double>(model.shape.layers);
    CHECK(tokens == doctest::Approx(name == full ? 401 : 100));
    last = quality;
  }
}

TEST_CASE("a head_dim that the library does not take is refused by name, and one that is padded finds what it found") {
  minillama::pool_runner runner(1);
  const loaded_model wide({.query_heads = 1, .kv_heads = 1, .head_dim = pqkv::max_head_dim + 2});
  CHECK_THROWS_AS(minillama::plan_footprint(wide.llama->config(), policy(minillama::policy_name::full), {.prompt = 1, .capacity = 8}, {}),
                  pqkv::value_error);

  const loaded_model model({.layers = 1, .head_dim = 10});
  const auto text = random_tokens(401, 9);
  const auto wanted = plain_logits(model.shape, model.weights, text);
  const auto prompt = minillama::prefill(*model.llama, std::span(text).first(400), runner);
  for (const auto name : {minillama::policy_name::pq, minillama::policy_name::oracle}) {
    minillama::host_session session(*model.llama, runner, policy(name), prompt, 1, minillama::session_kind::single);
    minillama::quality_meter meter(model.llama->config());
    CHECK(difference(session.step(text[400], meter.observer({runner, {}})), wanted[400]) < tolerance);
    CHECK(meter.summary().mass == doctest::Approx(1).epsilon(1e-5));  // with the same scale everywhere
  }
}

TEST_CASE("weights that are missing, of another shape or not finite are named when the model is loaded") {
  const tiny_shape shape{.tied = false};
  const auto problem = [&](const tensors& weights) {
    const temporary_directory folder;
    write_model(folder.path(), shape, weights);
    try {
      const minillama::model model(folder.path());
    } catch (const minillama::load_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const tensors good = random_weights(shape, 1);
  CHECK(problem(good) == "");
  for (const auto& named : good) {
    const auto& name = named.first;
    CAPTURE(name);
    tensors spoiled = good;
    spoiled.erase(name);
    CHECK(problem(spoiled).find("model.safetensors: " + name + ": missing tensor") != std::string::npos);
    spoiled = good;
    spoiled[name].shape.push_back(1);
    CHECK(problem(spoiled).find(name + ": expected shape") != std::string::npos);
    spoiled = good;
    spoiled[name].values.back() = std::numeric_limits<float>::quiet_NaN();
    CHECK(problem(spoiled).find(name + ": NaN or infinity") != std::string::npos);
  }
}
