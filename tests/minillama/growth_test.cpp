// SPDX-License-Identifier: Apache-2.0
// A context that grows by decoding: facts that were never in the prompt, only in text that went through the decode path, are found
// after they have left the window. With the shipped model, between lines of the
// repository's licence.
#include <doctest/doctest.h>

#include <filesystem>

#include "decoder.hpp"
#include "interview.hpp"
#include "questions.hpp"
#include "tokenizer.hpp"
#include "../cases/sanitized.hpp"

namespace {

using namespace minillama;

/// Right answers after the last three quarters of a context were fed.
std::size_t right_after_growth(const model& llama, pool_runner& runner, const policy_settings& settings, const question_context& context) {
  const std::size_t prompt = context.text.size() / 4;
  const prefilled_prompt prefilled = prefill(llama, byte_tokens(std::string_view(context.text).substr(0, prompt)), runner);
  host_session session(llama, runner, settings, prefilled, context.text.size() + 1024, session_kind::single);
  session.feed(byte_tokens(std::string_view(context.text).substr(prompt)));

  std::size_t right = 0, asked = 0;
  for (const question& one : context.questions) {
    const std::size_t fact = context.text.find(one.value);
    // In the prompt, or perhaps in a window: that of streaming attention is a fifth of the tokens, which are bytes.
    if (fact < prompt || fact > context.text.size() - context.text.size() / 4) continue;
    ++asked;
    char next = 0;
    for (const char c : one.text()) next = static_cast<char>(greedy(session.step(static_cast<std::uint8_t>(c))));
    std::string answer;
    while (next != '\n' && answer.size() < 16) {
      answer += next;
      next = static_cast<char>(greedy(session.step(static_cast<std::uint8_t>(next))));
    }
    session.step('\n');
    right += answer == one.value;
  }
  CHECK(asked >= 3);
  return right;
}

}  // namespace

TEST_CASE("facts fed through the decode path are found after they have left the window" * doctest::skip(pqkv_cases::under_sanitizers)) {
  const std::filesystem::path root = MINILLAMA_REPOSITORY;
  const std::string text = load_text({root / "LICENSE"});
  random_source random(3);
  const question_context context = make_context(context_kind::needles, text, 4608, 9, random);
  const model llama(root / "examples/minillama/model");
  pool_runner runner(2);

  policy_settings settings;
  settings.budget.ratio = 0.2;
  const std::size_t right = right_after_growth(llama, runner, settings, context);
  settings.name = policy_name::streaming;
  const std::size_t without = right_after_growth(llama, runner, settings, context);
  settings.name = policy_name::full;
  const std::size_t dense = right_after_growth(llama, runner, settings, context);
  MESSAGE("right answers: full " << dense << ", pq " << right << ", streaming " << without);
  CHECK(right >= 3);
  CHECK(right + 1 >= dense);
  CHECK(without == 0);
}
