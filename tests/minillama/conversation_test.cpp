// SPDX-License-Identifier: Apache-2.0
// Conversations, comparisons and scores against the double-precision oracle of the whole history.
#include "conversation.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "command_line.hpp"
#include "comparison.hpp"
#include "decoder.hpp"
#include "footprint.hpp"
#include "load_error.hpp"
#include "perplexity.hpp"
#include "plain_llama.hpp"
#include "tiny_model.hpp"

using namespace minillama_test;
using namespace minillama;

namespace {

constexpr float no_tie = 1e-3f;  // of the logits, whose rounding is far below it

/// A tiny model on which the tokens `ends` end a reply.
struct talker {
  explicit talker(std::vector<token_id> ends = {}) : shape{.max_positions = 256}, weights(random_weights(shape, 1)) {
    nlohmann::json config = config_of(shape);
    if (!ends.empty()) config["eos_token_id"] = ends;
    write_text(folder.path() / "config.json", config.dump());
    parts_of(weights, shape.type).write(folder.path() / "model.safetensors");
    llama = std::make_unique<model>(folder.path());
  }

  std::vector<reply> talk(const std::string& prompt, const std::vector<std::string>& texts, conversation_settings settings,
                          std::size_t context, policy_name name = policy_name::full, const listener& listening = {}) {
    std::vector<turn> turns;
    for (const std::string& text : texts) turns.push_back({text, byte_tokens(text)});
    const auto tokens = byte_tokens(prompt);
    const std::size_t room = conversation_room("test", tokens.size(), turns, context, settings);
    const auto prefilled = prefill(*llama, tokens, runner);
    policy_settings policy;
    policy.name = name;
    host_session at(*llama, runner, policy, prefilled, room,
                    settings.start == turn_start::fresh ? session_kind::forked : session_kind::single);
    return converse(at, room, llama->config(), byte_tokenizer(), prefilled.logits, tokens.back(), turns, settings, {}, listening);
  }

  /// Checks that each token is the oracle's likeliest one behind the history, which grows by the reply.
  void check_likeliest(std::vector<token_id>& history, const reply& given) const {
    for (const token_id token : given.tokens) {
      const numbers logits = plain_logits(shape, weights, history).back();
      CHECK(logits[token] >= *std::max_element(logits.begin(), logits.end()) - static_cast<double>(no_tie));
      history.push_back(token);
    }
  }

  tiny_shape shape;
  tensors weights;
  temporary_directory folder;
  std::unique_ptr<model> llama;
  pool_runner runner{2};
};

void append(std::vector<token_id>& history, const std::string& text) {
  const auto tokens = byte_tokens(text);
  history.insert(history.end(), tokens.begin(), tokens.end());
}

}  // namespace

TEST_CASE("each turn goes on behind everything before it, end tokens included") {
  std::vector<token_id> ends;
  for (const bool ending_soon : {false, true}) {
    talker model(ends);
    const std::vector<std::string> texts{"", "who?", "and why, then?"};
    const auto replies = model.talk("once upon a time", texts, {.tokens = 5}, 200);
    if (!ending_soon) ends = {replies[0].tokens[2]};  // for the second round, where it ends the first reply
    std::vector<token_id> history = byte_tokens("once upon a time");
    REQUIRE(replies.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
      append(history, texts[i]);
      model.check_likeliest(history, replies[i]);
      const bool ended = replies[i].ended == ending::end_token;
      CHECK(ended == model.llama->config().ends(replies[i].tokens.back()));
      CHECK(replies[i].text.size() == replies[i].tokens.size() - (ended ? 1 : 0));
      CHECK((ended || replies[i].tokens.size() == 5));
      CHECK((i > 0 || ended == ending_soon));
    }
  }
}

TEST_CASE("fresh turns are what each would be alone") {
  talker model;
  const auto fresh = model.talk("once upon", {"a", "longer one", "a"}, {.tokens = 6, .start = turn_start::fresh}, 200);
  for (const auto& [turn, text] : {std::pair{0u, "a"}, {1u, "longer one"}, {2u, "a"}})
    CHECK(fresh[turn].tokens == model.talk("once upon", {text}, {.tokens = 6}, 200).front().tokens);
}

TEST_CASE("a context that fills up: later turns keep their place, the last reply's last token needs none") {
  talker model;
  const auto replies = model.talk("0123456789", {"ab", "cde"}, {.tokens = 50}, 10 + 2 + 4 + 3);
  CHECK(replies[0].tokens.size() == 4);  // all that the second turn leaves
  CHECK(replies[0].ended == ending::context_limit);
  CHECK(replies[1].tokens.size() == 1);
  CHECK(replies[1].ended == ending::context_limit);
  CHECK(model.talk("0123456789", {"ab", "cde"}, {.tokens = 50}, 10 + 2 + 1 + 3)[0].tokens.size() == 1);
  CHECK_THROWS_AS(model.talk("0123456789", {"ab", "cde"}, {.tokens = 50}, 10 + 2 + 3), load_error);
  CHECK(model.talk("0123456789", {"ab", "cde"}, {.tokens = 0}, 10 + 2 + 3)[1].tokens.empty());

  const auto fresh = model.talk("0123456789", {"ab", "cde"}, {.tokens = 50, .start = turn_start::fresh}, 14);
  CHECK(fresh[0].tokens.size() == 3);
  CHECK(fresh[1].tokens.size() == 2);
  CHECK_THROWS_AS(model.talk("0123456789", {"ab", "cdefg"}, {.tokens = 50, .start = turn_start::fresh}, 14), load_error);
}

TEST_CASE("a reply that did not end itself gets its end before the next turn, and room for it") {
  std::vector<token_id> ends;
  for (const bool ends_itself : {false, true}) {  // in the second round the first reply ends itself
    talker model(ends);
    const std::vector<std::string> texts{"a", "who?", "why?"};
    const std::vector<token_id> missing{'<', '/', '>'};
    const auto replies = model.talk("once upon a time", texts, {.missing_end = missing, .tokens = 4}, 200);
    if (!ends_itself) ends = {replies[0].tokens[1]};
    std::vector<token_id> history = byte_tokens("once upon a time");
    REQUIRE(replies.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
      if (i > 0 && replies[i - 1].ended != ending::end_token) history.insert(history.end(), missing.begin(), missing.end());
      append(history, texts[i]);
      model.check_likeliest(history, replies[i]);
    }
    CHECK((replies[0].ended == ending::end_token) == ends_itself);
    CHECK((ends_itself || replies[0].tokens.size() == 4));
  }
}

TEST_CASE("the room of a conversation has the ends that replies may lack, of all but the last") {
  std::vector<turn> turns;
  for (const char* text : {"ab", "cde", "f"}) turns.push_back({text, byte_tokens(text)});
  const auto room = [&](std::size_t context, const conversation_settings& settings) {
    return conversation_room("test", 10, turns, context, settings);
  };
  const std::vector<token_id> end{1, 2};
  CHECK(room(1000, {.tokens = 5}) == 6 + 3 * 5);
  CHECK(room(1000, {.missing_end = end, .tokens = 5}) == 6 + 3 * 5 + 2 * 2);
  CHECK(room(1000, {.missing_end = end, .tokens = 5, .start = turn_start::fresh}) == 3 + 5);  // nothing follows a reply
  CHECK(room(10 + 6 + 2 + 4, {.missing_end = end, .tokens = 5}) == 12);                       // a token of each reply that a turn follows
  CHECK_THROWS_WITH_AS(room(10 + 6 + 2 + 3, {.missing_end = end, .tokens = 5}),
                       "test: prompt: 22 tokens with the turns are longer than the context of 21", load_error);
  talker model;
  const auto tight = model.talk("0123456789", {"ab", "cde", "f"}, {.missing_end = end, .tokens = 50}, 10 + 6 + 2 + 4 + 3);
  CHECK(tight[0].tokens.size() == 4);  // its own, and what three free places give
  CHECK(tight[1].tokens.size() == 1);
  CHECK(tight[2].tokens.size() == 1);
  CHECK(tight[0].ended == ending::context_limit);
}

TEST_CASE("sampled conversations repeat with their seed") {
  talker model;
  const auto tokens = [&](std::uint64_t seed) {
    std::vector<token_id> all;
    for (const reply& one : model.talk("once", {"", "x"}, {.tokens = 20, .sampling = {2.0, 0.95, seed}}, 200))
      all.insert(all.end(), one.tokens.begin(), one.tokens.end());
    return all;
  };
  CHECK(tokens(1) == tokens(1));
  CHECK(tokens(1) != tokens(2));
}

TEST_CASE("turns from a file: one a line, with escapes; anything else after a backslash is refused by line") {
  const temporary_directory folder;
  const auto file = folder.path() / "turns";
  write_text(file, "\\nQuestion: a?\\nAnswer: \n\n  two \\\\ three");
  CHECK(read_turns(file) == std::vector<std::string>{"\nQuestion: a?\nAnswer: ", "  two \\ three"});
  for (const char* bad : {"fine\n\\t", "fine\nends with \\"}) {
    write_text(file, bad);
    CHECK_THROWS_WITH(read_turns(file), (file.string() + ": line 2: after a backslash expected n or a backslash").c_str());
  }
}

TEST_CASE("a comparison stops at the token that differs, and later turns are compared only where they start afresh") {
  const std::vector<reply> ours{{.tokens = {1, 2, 3}, .logits = {0, 1, 2, 3, 4, 5}}, {.tokens = {4}, .logits = {1, 1}}};
  std::vector<reply> theirs{{.tokens = {1, 9, 3}, .logits = {0, 1.5f, 2, 2, 9, 9}}, {.tokens = {4}, .logits = {1, 4}}};
  auto found = compare(ours, theirs, 2, turn_start::continued);
  CHECK(found[0].departs == 1);
  REQUIRE(found[0].steps.size() == 2);
  CHECK(found[0].steps[0].largest == 0.5);
  CHECK(found[0].steps[0].mean == 0.25);
  CHECK(found[0].steps[1].largest == 1);
  CHECK(found[0].steps[1].mean == 0.5);
  CHECK_FALSE(found[1].same_before);
  CHECK(found[1].steps.empty());
  found = compare(ours, theirs, 2, turn_start::fresh);
  CHECK(found[1].same_before);
  CHECK_FALSE(found[1].departs);
  CHECK(found[1].steps.at(0).largest == 3);

  theirs[0].tokens = {1, 2};  // it ended, we went on
  theirs[0].logits.resize(4);
  found = compare(ours, theirs, 2, turn_start::continued);
  CHECK(found[0].departs == 2);
  CHECK(found[0].steps.size() == 2);
}

TEST_CASE("kept logits are those that the tokens were picked from") {
  talker model;
  const auto replies = model.talk("once upon", {"a", "b"}, {.tokens = 4, .keep = kept_logits::all}, 200);
  std::vector<token_id> history = byte_tokens("once upon");
  for (std::size_t turn = 0; turn < 2; ++turn) {
    append(history, turn == 0 ? "a" : "b");
    REQUIRE(replies[turn].logits.size() == 4 * 256);
    for (std::size_t step = 0; step < 4; ++step) {
      const numbers wanted = plain_logits(model.shape, model.weights, history).back();
      for (std::size_t i = 0; i < 256; ++i)
        CHECK(static_cast<double>(replies[turn].logits[step * 256 + i]) == doctest::Approx(wanted[i]).epsilon(1e-3));
      history.push_back(replies[turn].tokens[step]);
    }
  }
  CHECK(model.talk("once upon", {"a"}, {.tokens = 4}, 200)[0].logits.empty());
}

TEST_CASE("a text's score is that of the oracle, and logits of any size are scored") {
  talker model;
  const std::string text = "the quick brown fox jumps over the lazy dog and into the river behind the old mill";
  const auto tokens = byte_tokens(text);
  const auto wanted = plain_logits(model.shape, model.weights, tokens);
  for (const std::size_t first : {1u, 40u, 81u}) {
    double sum = 0;
    for (std::size_t i = first; i < tokens.size(); ++i) {
      double total = 0;
      for (const double logit : wanted[i - 1]) total += std::exp(logit);
      sum -= wanted[i - 1][tokens[i]] - std::log(total);
    }
    const auto prefilled = prefill(*model.llama, std::span(tokens).first(first), model.runner);
    policy_settings policy;
    policy.name = policy_name::full;
    host_session at(*model.llama, model.runner, policy, prefilled, tokens.size() - first, session_kind::single);
    const text_score found = score(at, prefilled.logits, std::span(tokens).subspan(first));
    CHECK(found.tokens == tokens.size() - first);
    CHECK(found.perplexity() == doctest::Approx(std::exp(sum / static_cast<double>(tokens.size() - first))).epsilon(1e-4));
  }
  CHECK(negative_log_likelihood(std::vector<float>{3e38f, 0.0f}, 0) == 0);
  CHECK(negative_log_likelihood(std::vector<float>{-1000, -1000, -1000, -1000}, 2) == doctest::Approx(std::log(4.0)));
}

TEST_CASE("the plan of a run's memory is what the run holds") {
  talker model;
  const auto tokens = byte_tokens(std::string(150, 'x'));
  std::size_t weights = 0;
  for (const auto& [name, tensor] : model.weights) weights += tensor.values.size() * sizeof(float);
  for (const auto& policy_name : policy_names()) {
    for (const auto kind : {session_kind::single, session_kind::forked}) {
      CAPTURE(policy_name.first);
      policy_settings policy;
      policy.name = policy_name.second;
      const auto prefilled = prefill(*model.llama, tokens, model.runner, {}, policy.shown_queries());
      std::size_t rows = 0;
      for (const auto& layer : prefilled.layers) rows += (layer.keys.size() + layer.values.size() + layer.queries.size()) * sizeof(float);
      const host_session at(*model.llama, model.runner, policy, prefilled, 30, kind);
      const std::size_t slots = kind == session_kind::forked ? 2 : 1;
      run_shape shape{.prompt = 150, .capacity = 180, .slots = slots, .threads = 2, .sessions = 2};
      const footprint planned = plan_footprint(model.llama->config(), policy, shape, plan_weights(open_checkpoint(model.folder.path())));
      CHECK(planned.caches.kv_bytes == at.memory().kv_bytes);
      CHECK(planned.caches.index_bytes == at.memory().index_bytes);
      CHECK(planned.caches.scratch_bytes == at.memory().scratch_bytes);
      CHECK(planned.prompt_rows == rows);
      CHECK(planned.weights == weights);
      CHECK(planned.most() >= weights + rows + planned.caches.total_bytes());
      // A session alone takes each layer's rows when they are there, so that its caches stand beside what prefill works with.
      shape.sessions = 1;
      const footprint once = plan_footprint(model.llama->config(), policy, shape, plan_float_weights(model.llama->config()));
      CHECK(once.weights == weights);
      CHECK(once.most() <= planned.most() + once.prefill_scratch);
      CHECK(once.most() >= weights + std::max(rows, once.caches.total_bytes()));
    }
  }
  model_config deep = model.llama->config();
  deep.layers = 64;
  policy_settings full;
  full.name = policy_name::full;
  const footprint kept = plan_footprint(deep, full, {.prompt = 4000, .capacity = 4000, .sessions = 2}, {});
  const footprint taken = plan_footprint(deep, full, {.prompt = 4000, .capacity = 4000}, {});
  CHECK(static_cast<double>(kept.most() - taken.most()) > 0.9 * static_cast<double>(kept.prompt_rows - taken.prefill_scratch));
  model_config vast = model.llama->config();
  vast.hidden = vast.intermediate = vast.layers = std::size_t{1} << 24;
  CHECK_THROWS_AS(plan_float_weights(vast), std::length_error);
  CHECK_THROWS_AS(plan_footprint(vast, {}, {.prompt = std::size_t{1} << 40, .capacity = 1}, {}), std::length_error);
}

TEST_CASE("a conversation that is interrupted ends with the token that was being picked") {
  talker one;
  const conversation_settings settings{.tokens = 20};
  std::size_t picked = 0;
  const listener until_five{.picked = [&](token_id) { ++picked; }, .spoken{}, .finished{}, .stopped = [&] { return picked == 5; }};
  const auto whole = one.talk("a prompt of some words", {"and a turn", "and another"}, settings, 200);
  const auto cut = one.talk("a prompt of some words", {"and a turn", "and another"}, settings, 200, policy_name::full, until_five);
  REQUIRE(whole.size() == 2);
  REQUIRE(cut.size() == 1);
  CHECK(cut[0].ended == ending::interrupted);
  CHECK(cut[0].tokens == std::vector<token_id>(whole[0].tokens.begin(), whole[0].tokens.begin() + 5));
}

TEST_CASE("Ctrl-C is noted once while it is watched for") {
  struct sigaction before {
  }, now{};
  ::sigaction(SIGINT, nullptr, &before);
  {
    const interrupt_watch watch;
    CHECK_FALSE(interrupt_watch::is_interrupted());
    if (before.sa_handler != SIG_IGN) {
      ::raise(SIGINT);
      CHECK(interrupt_watch::is_interrupted());
      ::sigaction(SIGINT, nullptr, &now);
      CHECK((now.sa_handler == before.sa_handler));  // a second one is answered as before: it ends the program
    }
  }
  ::sigaction(SIGINT, nullptr, &now);
  CHECK((now.sa_handler == before.sa_handler));
}
