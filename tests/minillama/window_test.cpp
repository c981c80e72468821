// SPDX-License-Identifier: Apache-2.0
// A model with a sliding window: prompts and tokens below, at and beyond the window's length give the logits of the double-precision
// oracle, whose queries attend only to the last tokens, under every policy; what cannot be computed with a window is refused.
#include <doctest/doctest.h>

#include <memory>

#include "command_line.hpp"
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

TEST_CASE("a tier and a GPU are refused where tokens leave the window, and not before") {
  const mistral tiny;
  const model_config& config = tiny.llama->config();
  policy_settings settings = policy_of(policy_name::pq);
  CHECK(cuda::settings_for(settings, 30, config, 1, 40).shape.capacity == 40);
  CHECK_THROWS_WITH_AS(cuda::settings_for(settings, 30, config, 1, 41),
                       "--device: cuda: the model attends to the last 40 tokens (sliding_window in config.json), which only the host does: "
                       "not with sequences of more, got up to 41",
                       usage_error);
  settings.tier.folder = tiny.folder.path().string();
  CHECK(settings_of_layers(settings, config, 40).name == policy_name::pq);
  const std::string refusal =
      "--kv-tier: the model attends to the last 40 tokens (sliding_window in config.json), all of which are in memory: not with sequences "
      "of "
      "more, got up to 41";
  CHECK_THROWS_WITH_AS(settings_of_layers(settings, config, 41), refusal.c_str(), usage_error);
  CHECK_THROWS_WITH_AS(plan_footprint(config, settings, {.prompt = 30, .capacity = 41}, {}), refusal.c_str(), usage_error);
}
