// SPDX-License-Identifier: Apache-2.0
// The steps of a question, of a session that says what the test wants: where an answer ends, what is kept of it, and the room it takes.
#include "interview.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "sampling.hpp"

using namespace minillama;

namespace {

constexpr token_id silent = 256, end = 257;  // a token that says nothing, and one that ends a text

/// Bytes, and the two above.
class test_words final : public tokenizer {
 public:
  std::vector<token_id> encode(std::string_view text, text_place) const override { return byte_tokens(text); }
  std::string decode(token_id, token_id token) const override { return token < 256 ? std::string(1, static_cast<char>(token)) : ""; }
  std::size_t vocabulary() const override { return 258; }
  std::optional<token_id> begin_token() const override { return std::nullopt; }
};

/// What was asked of a session, and what it says behind every question: the script, then its last token again and again.
struct script {
  std::vector<token_id> says;
  std::size_t room = 0, forks = 0, steps = 0;
  std::vector<token_id> fed{};
};

class scripted_session final : public session {
 public:
  explicit scripted_session(script& told) : told_(told) {}

  void fork() override {
    ++told_.forks;
    said_ = 0;
    told_.steps = 0;
    told_.fed.clear();
  }
  std::span<const float> step(token_id token, const step_observer&) override {
    told_.fed.push_back(token);
    ++told_.steps;
    REQUIRE(told_.fed.size() <= told_.room);
    return next();
  }
  std::span<const float> feed(std::span<const token_id> tokens, const step_observer&) override {
    told_.fed.insert(told_.fed.end(), tokens.begin(), tokens.end());
    return next();
  }
  const session_statistics& statistics() const override { return statistics_; }
  pqkv::memory_plan memory() const override { return {}; }

 private:
  std::span<const float> next() {
    logits_.assign(258, 0.0f);
    logits_[told_.says[std::min(said_++, told_.says.size() - 1)]] = 1;
    return logits_;
  }

  script& told_;
  std::size_t said_ = 0;
  std::vector<float> logits_;
  session_statistics statistics_;
};

struct scripted_prompt final : held_prompt {
  explicit scripted_prompt(script& one) : told(one) {}
  std::span<const float> logits() const override { return {}; }
  std::optional<part_seconds> parts() const override { return std::nullopt; }
  std::unique_ptr<session> start(const policy_settings&, std::size_t room, session_kind kind) const override {
    CHECK(kind == session_kind::forked);
    told.room = room;
    return std::make_unique<scripted_session>(told);
  }
  script& told;
};

std::vector<token_id> saying(const std::string& text, std::vector<token_id> more = {}) {
  std::vector<token_id> tokens = byte_tokens(text);
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

examination exam_of(answer_form form, const std::string& asked, std::size_t questions = 1) {
  examination exam{context_kind::numbers, form, {}, {}};
  for (std::size_t i = 0; i < questions; ++i) exam.questions.push_back({{"key", "1234567"}, byte_tokens(asked)});
  return exam;
}

struct outcome {
  std::vector<answer> answers;
  std::string spoken;
};

outcome ask(script& told, const examination& exam) {
  static const test_words words;
  model_config config;
  config.layers = config.query_heads = config.kv_heads = 1;
  config.end_tokens = {end};
  interview one(contestant_at(policy_name::full, 1), config, words, std::nullopt);
  outcome got;
  one.run(scripted_prompt(told), exam, {.asked = {}, .spoken = [&](const std::string& added) { got.spoken += added; }, .answered = {}});
  got.answers = one.answers();
  return got;
}

}  // namespace

TEST_CASE("a number ends with what stands behind it, or with an end token, and is right or not") {
  const auto number = exam_of(answer_form::number, "how many? it is");
  for (const auto& [says, text, right] : {std::tuple{saying(" 1234567."), " 1234567.", true},
                                          {saying(" 1234567", {end}), " 1234567", true},
                                          {saying(" 12345\n"), " 12345", false},
                                          {saying("x"), "x", false},
                                          {saying("", {end}), "", false},
                                          {saying(" ", {silent, silent, '1', end}), " 1", false}}) {
    script told{says};
    const outcome got = ask(told, number);
    REQUIRE(got.answers.size() == 1);
    CHECK(got.answers[0].text == text);
    CHECK(got.answers[0].right == right);
    CHECK(got.spoken == text);
    CHECK(told.steps + 1 == says.size());  // the last token is not fed
    CHECK(told.fed.size() == 15 + told.steps);
  }
}

TEST_CASE("a line ends with its line feed alone") {
  script told{saying("1234567\n")};
  CHECK(ask(told, exam_of(answer_form::line, "?")).answers[0].right);
  script ended{saying("12", {end, '\n'})};
  const outcome got = ask(ended, exam_of(answer_form::line, "?"));
  CHECK(got.answers[0].text == "12");
  CHECK(got.spoken == "12");
  CHECK(ended.steps == 3);
}

TEST_CASE("tokens that say nothing do not use up the room, and each question starts from a fork") {
  for (const auto form : {answer_form::line, answer_form::number}) {
    script told{{silent}};
    const outcome got = ask(told, exam_of(form, "?", 3));
    CHECK(got.answers.size() == 3);
    CHECK(got.answers[2].text == "");
    CHECK_FALSE(got.answers[2].right);
    CHECK(told.steps == 23);
    CHECK(told.forks == 3);
    CHECK(told.room == question_room);
  }
}

TEST_CASE("a question of many tokens gets the room that it needs") {
  script told{{silent}};
  ask(told, exam_of(answer_form::number, std::string(300, 'q')));
  CHECK(told.room >= 323);
  CHECK(told.fed.size() == 323);
}
