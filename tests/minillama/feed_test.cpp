// SPDX-License-Identifier: Apache-2.0
// Tokens that are known beforehand go through the layers together: a turn fed at once is the turn fed token by token, in its logits, its
// counts and what an observer sees, under every policy, also where the codebook is trained in the middle of the turn.
#include <doctest/doctest.h>

#include <cmath>
#include <memory>

#include "../cases/sanitized.hpp"
#include "conversation.hpp"
#include "decoder.hpp"
#include "engine.hpp"
#include "plain_llama.hpp"
#include "quality.hpp"
#include "tiny_model.hpp"
#include "tokenizer.hpp"

using namespace minillama_test;
using namespace minillama;

namespace {

constexpr double tolerance = 1e-4;

struct fed_model {
  fed_model() : shape{.max_positions = 1024}, weights(random_weights(shape, 4)) {
    write_model(folder.path(), shape, weights);
    llama = std::make_unique<model>(folder.path());
  }
  std::unique_ptr<host_session> session(std::span<const token_id> prompt, const policy_settings& policy, std::size_t room,
                                        session_kind kind = session_kind::single) {
    return std::make_unique<host_session>(*llama, runner, policy, prefill(*llama, prompt, runner, {}, policy.shown_queries()), room, kind);
  }
  tiny_shape shape;
  tensors weights;
  temporary_directory folder;
  std::unique_ptr<model> llama;
  pool_runner runner{2};
};

policy_settings policy_of(policy_name name) {
  policy_settings settings;
  settings.name = name;
  settings.budget.ratio = 0.25;
  settings.quantizer.bits = 4;
  return settings;
}

/// A session that feeds as one does that knows no better.
class one_by_one final : public session {
 public:
  explicit one_by_one(session& of) : of_(of) {}
  void fork() override { of_.fork(); }
  std::span<const float> step(token_id token, const step_observer& observe = {}) override { return of_.step(token, observe); }
  const session_statistics& statistics() const override { return of_.statistics(); }
  pqkv::memory_plan memory() const override { return of_.memory(); }

 private:
  session& of_;
};

double largest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

}  // namespace

TEST_CASE("tokens fed at once are tokens fed one by one: logits, counts and what is observed") {
  fed_model tiny;
  const auto text = random_tokens(560, 12);
  using enum policy_name;
  std::size_t turn = 0;
  for (const policy_name name : {full, pq, oracle, streaming, snapkv, h2o, sparq, quest, infllm})
    for (const std::size_t prompt : {5u, 300u})  // from 5 tokens a codebook is trained in the middle of what is fed
      for (const std::size_t count : {1u, 2u, 64u, 65u, 200u})
        for (const session_kind kind : {session_kind::single, session_kind::forked}) {
          if (!pqkv_cases::looks_at(turn++ / 3)) continue;  // of 180, three of fifteen in turn: each policy, prompt, count and kind
          CAPTURE(static_cast<int>(name));
          CAPTURE(prompt);
          CAPTURE(count);
          const auto at_once = tiny.session(std::span(text).first(prompt), policy_of(name), 240, kind);
          const auto single = tiny.session(std::span(text).first(prompt), policy_of(name), 240, kind);
          one_by_one slow(*single);
          quality_meter seen_at_once(tiny.llama->config()), seen(tiny.llama->config());
          const auto fed = std::span(text).subspan(prompt, count);
          const auto logits = at_once->feed(fed, seen_at_once.observer({tiny.runner, {}}));
          CHECK(largest_difference(logits, slow.feed(fed, seen.observer({tiny.runner, {}}))) < tolerance);
          CHECK(seen_at_once.summary().steps == 1);
          CHECK(seen_at_once.summary().mass == doctest::Approx(seen.summary().mass).epsilon(1e-5));
          CHECK(seen_at_once.summary().recall == doctest::Approx(seen.summary().recall));
          for (std::size_t t = prompt + count; t < prompt + count + 5; ++t)
            CHECK(largest_difference(at_once->step(text[t]), slow.step(text[t])) < tolerance);
          const session_statistics &a = at_once->statistics(), &b = single->statistics();
          CHECK(a.steps == count + 5);
          CHECK(a.steps == b.steps);
          CHECK((a.fed > 0) == (count > 1));
          CHECK((a.fed_per_second() > 0) == (count > 1));
          CHECK(b.fed == 0);
          CHECK(a.tokens_attended == b.tokens_attended);
          CHECK(a.attended_bytes == b.attended_bytes);
          CHECK(a.selection->index == b.selection->index);
          CHECK(a.selection->selector == b.selection->selector);
        }
}

TEST_CASE("turns that are fed at once get the replies of turns fed token by token") {
  fed_model tiny;
  const auto prompt = random_tokens(400, 13);
  const auto logits_of = prefill(*tiny.llama, prompt, tiny.runner).logits;
  using enum policy_name;
  std::size_t turn_of_loop = 0;
  for (const policy_name name : {full, pq, streaming, infllm})
    for (const turn_start start : {turn_start::continued, turn_start::fresh}) {
      if (pqkv_cases::under_sanitizers && turn_of_loop++ % 3 != 0) continue;  // three of eight, both starts among them
      std::vector<turn> turns;
      for (const std::size_t length : {70u, 3u, 150u}) turns.push_back({"", random_tokens(length, 20 + length)});
      const conversation_settings settings{.tokens = 12, .start = start, .keep = kept_logits::all};
      const std::size_t room = conversation_room("test", prompt.size(), turns, 1024, settings);
      const auto kind = start == turn_start::fresh ? session_kind::forked : session_kind::single;
      const auto at_once = tiny.session(prompt, policy_of(name), room, kind), single = tiny.session(prompt, policy_of(name), room, kind);
      one_by_one slow(*single);
      const auto talk = [&](session& at) {
        return converse(at, room, tiny.llama->config(), byte_tokenizer(), logits_of, prompt.back(), turns, settings);
      };
      const auto got = talk(*at_once), wanted = talk(slow);
      for (std::size_t i = 0; i < turns.size(); ++i) {
        CHECK(got[i].tokens == wanted[i].tokens);
        CHECK(largest_difference(got[i].logits, wanted[i].logits) < tolerance);
      }
    }
}

TEST_CASE("more tokens than there is room for are refused, and a token outside of the vocabulary") {
  fed_model tiny;
  const auto text = random_tokens(100, 14);
  const auto at = tiny.session(std::span(text).first(10), policy_of(policy_name::full), 20);
  CHECK_THROWS_AS(at->feed(std::span(text).first(21)), pqkv::capacity_error);
  const std::vector<token_id> unknown{1, 256};
  CHECK_THROWS_AS(at->feed(unknown), std::out_of_range);
  const auto wanted = plain_logits(tiny.shape, tiny.weights, std::span(text).first(30));
  CHECK(difference(at->feed(std::span(text).subspan(10, 20)), wanted[29]) < 2e-5);  // neither left anything behind
}
