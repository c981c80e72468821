// SPDX-License-Identifier: Apache-2.0
// A model with a sliding window: prompts and tokens below, at and beyond the window's length give the logits of the double-precision
// oracle, whose queries attend only to the last tokens, under every policy, from memory and from a file. A GPU's are in
// cuda/device_model_test.cpp.
#include <doctest/doctest.h>

#include <array>
#include <filesystem>
#include <memory>

#include "cuda/settings.hpp"
#include "decoder.hpp"
#include "engine.hpp"
#include "footprint.hpp"
#include "plain_llama.hpp"
#include "quality.hpp"
#include "window.hpp"

using namespace minillama_test;
using namespace minillama;

namespace {

constexpr std::size_t window = 40;
constexpr double tolerance = 1e-4;

struct mistral {
  mistral() : weights(random_weights(shape, 7)) {
    write_model(folder.path(), shape, weights);
    llama = std::make_unique<model>(folder.path());
  }
  tiny_shape shape{.max_positions = 512, .sliding_window = window};
  tensors weights;
  temporary_directory folder;
  std::unique_ptr<model> llama;
  pool_runner runner{2};
  std::vector<token_id> text = random_tokens(260, 5);
  std::vector<numbers> wanted = plain_logits(shape, weights, text);
};

policy_settings policy_of(policy_name name) {
  policy_settings settings;
  settings.name = name;
  settings.budget.tokens = 24;
  settings.quantizer.bits = 4;
  return settings;
}

const auto every_policy = [] {
  using enum policy_name;
  return std::vector{full, pq, oracle, streaming, snapkv, h2o, sparq, quest, infllm};
}();

}  // namespace

TEST_CASE("a prompt below, at and beyond the window has the oracle's logits") {
  const mistral tiny;
  for (const std::size_t n : {1u, 39u, 40u, 41u, 42u, 80u, 103u, 104u, 105u, 168u, 169u, 260u}) {
    CAPTURE(n);
    for (const std::size_t threads : {1u, 3u}) {
      pool_runner runner(threads);
      double told = 0;
      const auto prompt = prefill(*tiny.llama, std::span(tiny.text).first(n), runner, [&](double share) { told = share; });
      CHECK(difference(prompt.logits, tiny.wanted[n - 1]) < tolerance);
      CHECK(told == doctest::Approx(1));
    }
  }
}

TEST_CASE("tokens after a prompt have the oracle's logits, one by one and several at once, under every policy") {
  mistral tiny;
  for (const policy_name name : every_policy)
    for (const std::size_t prompt : {7u, 38u, 40u, 41u, 150u}) {
      CAPTURE(static_cast<int>(name));
      CAPTURE(prompt);
      const policy_settings settings = policy_of(name);
      const auto head = std::span(tiny.text).first(prompt);
      for (const session_kind kind : {session_kind::single, session_kind::forked}) {
        host_session session(*tiny.llama, tiny.runner, settings, prefill(*tiny.llama, head, tiny.runner, {}, settings.shown_queries()), 100,
                             kind);
        quality_meter meter(tiny.llama->config());
        std::size_t n = prompt;
        for (; n < prompt + 5; ++n) CHECK(difference(session.step(tiny.text[n]), tiny.wanted[n]) < tolerance);
        n += 70;
        CHECK(difference(session.feed(std::span(tiny.text).subspan(n - 70, 70)), tiny.wanted[n - 1]) < tolerance);
        for (const std::size_t end = n + 3; n < end; ++n)
          CHECK(difference(session.step(tiny.text[n], meter.observer({tiny.runner, {}})), tiny.wanted[n]) < tolerance);
        // All that the model attends to is attended to.
        CHECK(meter.summary().worst_recall == 1);
        CHECK(meter.summary().worst_mass == doctest::Approx(1).epsilon(1e-5));
        CHECK(meter.summary().worst_output_error < tolerance);
        CHECK(session.statistics().selection->index == 0);
      }
    }
}

TEST_CASE("an engine's session, with rows of 8 bits, is that of the window too") {
  mistral tiny;
  const auto computing = make_engine(device_name::host, *tiny.llama, tiny.runner);
  policy_settings settings = policy_of(policy_name::pq);
  for (const row_format rows : {row_format::float32, row_format::int8}) {
    settings.rows = rows;
    const started_session made = computing->start(std::span(tiny.text).first(100), settings, 8, session_kind::single);
    CHECK(difference(made.logits, tiny.wanted[99]) < tolerance);
    for (std::size_t n = 100; n < 108; ++n)
      CHECK(difference(made.at->step(tiny.text[n]), tiny.wanted[n]) < (rows == row_format::int8 ? 5e-2 : tolerance));
    CHECK(made.at->statistics().tokens_attended == 8 * window * tiny.shape.layers);
  }
}

TEST_CASE("in a sequence that no token leaves the window of, the policy is the one asked for") {
  mistral tiny;
  const policy_settings settings = policy_of(policy_name::pq);
  for (const std::size_t room : {6u, 7u}) {  // the window's 40 tokens, and one more
    CAPTURE(room);
    host_session session(*tiny.llama, tiny.runner, settings, prefill(*tiny.llama, std::span(tiny.text).first(34), tiny.runner), room,
                         session_kind::single);
    session.step(tiny.text[34]);
    CHECK(session.statistics().tokens_attended == (room == 6 ? 24 : 35) * tiny.shape.layers);
  }
}

TEST_CASE("keys and values in a file: the logits of those in memory, to the bit, and memory for the window alone") {
  mistral tiny;
  const temporary_directory files;
  std::size_t turn = 0;
  for (const row_format rows : {row_format::float32, row_format::int8})
    for (const std::size_t prompt : {7u, 38u, 40u, 41u, 150u})
      for (const std::size_t block : {1u, 16u, 256u})
        for (const session_kind kind : {session_kind::single, session_kind::forked}) {
          CAPTURE(static_cast<int>(rows));
          CAPTURE(prompt);
          CAPTURE(block);
          policy_settings memory = policy_of(policy_name::pq);
          memory.rows = rows;
          policy_settings file = memory;
          file.tier.folder = files.path().string();
          file.tier.cache_tokens = std::array{0, 256, 4096}[turn % 3];
          file.tier.block_tokens = block;
          file.tier.eviction = std::array{eviction_name::lfu, eviction_name::lru, eviction_name::tiny_lfu}[turn / 3 % 3];
          file.tier.scope = turn % 2 == 0 ? pqkv::block_scope::layer : pqkv::block_scope::head;
          ++turn;
          const auto given = prefill(*tiny.llama, std::span(tiny.text).first(prompt), tiny.runner);
          host_session wanted(*tiny.llama, tiny.runner, memory, given, 100, kind), got(*tiny.llama, tiny.runner, file, given, 100, kind);
          const auto check_equal = [](std::span<const float> a, std::span<const float> b) {
            CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
          };
          for (std::size_t round = 0; round < (kind == session_kind::forked ? 2u : 1u); ++round) {
            std::size_t n = prompt;
            for (; n < prompt + 5; ++n) check_equal(got.step(tiny.text[n]), wanted.step(tiny.text[n]));
            const auto turns = std::span(tiny.text).subspan(n, 70);
            check_equal(got.feed(turns), wanted.feed(turns));
            n += 70;
            for (const std::size_t end = n + 3; n < end; ++n) {
              const auto logits = got.step(tiny.text[n]);
              if (rows == row_format::float32) CHECK(difference(logits, tiny.wanted[n]) < tolerance);
              check_equal(logits, wanted.step(tiny.text[n]));
            }
            if (kind == session_kind::forked) got.fork(), wanted.fork();
          }
          CHECK(got.statistics().tokens_attended == wanted.statistics().tokens_attended);
          const tier_record tiers = got.statistics().tiers.value();
          CHECK(tiers.counts.hits + tiers.counts.misses + tiers.counts.admissions == 0);  // nothing is selected
          CHECK(tiers.counts.slow_bytes > 0);
          CHECK(tiers.samples == 0);
          const std::size_t slots = kind == session_kind::forked ? 2 : 1;
          const footprint planned =
              plan_footprint(tiny.llama->config(), file, {.prompt = prompt, .capacity = prompt + 100, .slots = slots}, {});
          CHECK(planned.caches.kv_bytes == got.memory().kv_bytes);
          CHECK(planned.tier_file > 0);
        }
  CHECK(std::filesystem::is_empty(files.path()));
  // Memory has the window's rows, of each layer, and some bytes for each block that a sequence may have.
  policy_settings settings = policy_of(policy_name::pq);
  const auto bytes = [&](std::size_t capacity) {
    return plan_footprint(tiny.llama->config(), settings, {.prompt = 50, .capacity = capacity}, {}).caches.kv_bytes;
  };
  const std::size_t held = bytes(4000);
  CHECK(held == tiny.shape.layers * tiny.shape.kv_heads * 4000 * 2 * tiny.shape.head_dim * sizeof(float));
  settings.tier.folder = files.path().string();
  CHECK(bytes(4000) >= held / 100);
  CHECK(bytes(4000) < held / 20);
}

TEST_CASE("a prompt that is handed over layer by layer to a file") {
  mistral tiny;
  const temporary_directory files;
  const auto computing = make_engine(device_name::host, *tiny.llama, tiny.runner);
  policy_settings settings = policy_of(policy_name::pq);
  settings.tier.folder = files.path().string();
  for (const std::size_t threads : {0u, 2u}) {
    settings.index_threads = threads;
    const started_session made = computing->start(std::span(tiny.text).first(100), settings, 8, session_kind::single);
    CHECK(difference(made.logits, tiny.wanted[99]) < tolerance);
    for (std::size_t n = 100; n < 108; ++n) CHECK(difference(made.at->step(tiny.text[n]), tiny.wanted[n]) < tolerance);
    CHECK(made.at->statistics().tokens_attended == 8 * window * tiny.shape.layers);
  }
}

TEST_CASE("what becomes of the settings where tokens leave the window, and not before") {
  const mistral tiny;
  const model_config& config = tiny.llama->config();
  for (const policy_name name : every_policy) {
    policy_settings settings = policy_of(name);
    settings.tier.folder = "somewhere";
    const policy_settings before = settings_of_layers(settings, config, 40), after = settings_of_layers(settings, config, 41);
    CHECK(before.name == name);
    CHECK(before.tier.cache_tokens == settings.tier.cache_tokens);
    CHECK(after.name == policy_name::streaming);
    CHECK(after.budget_for(30, config.head_dim).at(1000).window == window);
    CHECK(after.budget_for(30, config.head_dim).at(1000).sinks + after.budget_for(30, config.head_dim).at(1000).retrieve == 0);
    CHECK(after.tier.folder == "somewhere");
    CHECK(after.tier.cache_tokens == 0);
    CHECK(after.shown_queries() == 0);
    using pqkv::selector::coverage;
    CHECK(cuda::settings_for(settings, 30, config, 1, 40).middle ==
          (name == policy_name::streaming ? coverage::nothing : coverage::listed));
    const cuda::cache_settings there = cuda::settings_for(settings, 30, config, 1, 41);
    CHECK(there.middle == coverage::nothing);
    CHECK(there.budget.at(1000).window == window);
    CHECK(there.budget.at(1000).sinks + there.budget.at(1000).retrieve == 0);
  }
}
