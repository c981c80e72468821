// SPDX-License-Identifier: Apache-2.0
// Where a sequence stands: three classes that cover every token once, a window that follows its rule and never takes a token back, looks
// back at a shorter length, what leaves between two lengths, coverage, bounds of a shape, totals of a memory plan.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include <pqkv/cache/sequence.hpp>
#include <pqkv/cache/step_plan.hpp>

#include "cases/cache_model.hpp"
#include "cases/inputs.hpp"

namespace {
using pqkv::budget_rule;
using pqkv::sequence;
using pqkv::selector::coverage;

std::size_t window_begin(const sequence& s, const budget_rule& rule) { return s.window_begin(rule.flat()); }
pqkv::middle_range middle(const sequence& s, const budget_rule& rule) { return pqkv::middle_of(s, rule); }

/// A prompt that is complete.
sequence prompt_of(std::uint32_t n) {
  sequence s;
  s.n = s.prompt = s.longest = n;
  return s;
}
budget_rule random_rule(pqkv_cases::random_source& random) {
  budget_rule rule;
  rule.ratio = static_cast<double>(random.below(101)) / 100;
  rule.min_tokens = 1 + random.below(40);
  rule.sinks = random.below(rule.min_tokens);
  rule.window_share = static_cast<double>(random.below(101)) / 100;
  if (random.below(3) == 0) rule.tokens = rule.sinks + 1 + random.below(60);
  if (random.below(4) == 0) rule.window = 1 + random.below(40);
  if (random.below(4) == 0) rule.retrieve = random.below(40);
  if (random.below(4) == 0) rule.growth = pqkv::budget_growth::frozen_at_prompt;
  return rule;
}
}  // namespace

TEST_CASE("sequence: sinks fill first, then the window, then its oldest token leaves for every one that comes") {
  const budget_rule rule{.sinks = 4, .window = 3, .retrieve = 2};
  sequence s = sequence{}.grown(4);
  CHECK(middle(s, rule).size() == 0);
  CHECK(window_begin(s, rule) == 4);
  s = s.grown(3);
  CHECK(middle(s, rule).size() == 0);
  s = s.grown(1);
  CHECK(middle(s, rule).begin == 4);
  CHECK(middle(s, rule).end == 5);
  CHECK(middle(s, rule).selected() == 1);
  s = s.grown(10);
  CHECK(middle(s, rule).begin == 4);
  CHECK(middle(s, rule).end == 15);
  CHECK(middle(s, rule).selected() == 2);
  CHECK(s.longest == 18);
}

TEST_CASE("sequence: nothing of an empty one, nothing in the middle of a prompt that is not complete") {
  const budget_rule rule{.sinks = 4, .window = 3, .retrieve = 2};
  CHECK(window_begin({}, rule) == 0);
  CHECK(middle({}, rule).size() == 0);
  sequence half = prompt_of(100);
  half.prefilling = 1;
  CHECK(window_begin(half, rule) == 0);
  CHECK(middle(half, rule).size() == 0);
  half.prefilling = 0;
  CHECK(middle(half, rule).size() == 93);
  const sequence begun = sequence{}.prefilled(40, pqkv::chunk::more), whole = begun.prefilled(60, pqkv::chunk::last);
  CHECK(begun.prefilling == 1);
  CHECK(begun.prompt == 40);
  CHECK(whole.prefilling == 0);
  CHECK(whole.prompt == 100);
  CHECK(whole.longest == 100);
}

TEST_CASE("sequence: random rules and growth keep every token in one class, and none returns to the window") {
  pqkv_cases::random_source random(0x510);
  for (int round = 0; round < 300; ++round) {
    const budget_rule rule = random_rule(random);
    sequence s = prompt_of(static_cast<std::uint32_t>(random.below(300)));
    const std::size_t prompt = s.n;
    std::size_t before = window_begin(s, rule);
    for (int step = 0; step < 150; ++step) {
      const pqkv::middle_range ranked = middle(s, rule);
      const std::size_t begin = window_begin(s, rule);
      const pqkv_cases::plain_budget budget =
          pqkv_cases::budget_at(rule, rule.growth == pqkv::budget_growth::frozen_at_prompt ? prompt : s.n);
      REQUIRE(ranked.begin == std::min<std::size_t>(rule.sinks, s.n));  // sinks [0, begin)
      REQUIRE(ranked.begin <= ranked.end);                              // middle [begin, end)
      REQUIRE(ranked.end == begin);
      REQUIRE(ranked.end <= s.n);  // window [end, n)
      REQUIRE(begin >= before);
      REQUIRE(begin <= before + 1);
      REQUIRE(s.n - begin <= budget.window);
      REQUIRE((begin == std::max(s.n > budget.window ? s.n - budget.window : 0, std::min<std::size_t>(rule.sinks, s.n))));
      if (s.n > rule.sinks) REQUIRE(s.n > begin);  // the newest token is in the window
      REQUIRE(ranked.retrieve == budget.retrieve);
      before = begin;
      s = s.grown(1);
    }
  }
}

TEST_CASE("sequence: looked at as it was, it is what it was, and what leaves between two lengths adds up") {
  pqkv_cases::random_source random(0x511);
  for (int round = 0; round < 300; ++round) {
    const budget_rule rule = random_rule(random);
    const pqkv::flat_budget_rule flat = rule.flat();
    sequence s = prompt_of(static_cast<std::uint32_t>(random.below(120)));
    s.learned = 1;
    std::vector<sequence> past;  // at lengths from the prompt's on
    for (int step = 0; step < 80; ++step) past.push_back(s), s = s.grown(static_cast<std::uint32_t>(random.below(4)));
    std::uint32_t joined = std::max<std::uint32_t>(past[0].window_begin(flat), static_cast<std::uint32_t>(rule.sinks));
    for (std::size_t i = 0; i < past.size(); ++i) {
      const sequence then = s.at(past[i].n);
      REQUIRE(then.n == past[i].n);
      REQUIRE(then.prompt == past[i].prompt);
      REQUIRE(then.window_begin(flat) == past[i].window_begin(flat));
      REQUIRE(then.learned == 1);
      REQUIRE(s.truncated(past[i].n).n == past[i].n);
      if (i == 0) continue;
      // Tokens join the middle in order, each once; the same tokens leave it again when the sequence is cut.
      const pqkv::leaving_tokens leaving = leaving_between(7, past[i - 1], past[i], flat);
      REQUIRE(leaving.slot == 7);
      REQUIRE(leaving.first == joined);
      joined = leaving.last;
      REQUIRE(joined == std::max<std::uint32_t>(past[i].window_begin(flat), static_cast<std::uint32_t>(rule.sinks)));
      REQUIRE(leaving_between(7, past[i], past[i - 1], flat).size() == 0);  // none the other way
    }
  }
}

TEST_CASE("sequence: cut to nothing it is a fresh one, cut below its prompt it is one of a shorter prompt") {
  sequence s = prompt_of(50).grown(30);
  s.learned = 1;
  CHECK(s.longest == 80);
  const sequence cut = s.truncated(60);
  CHECK(cut.n == 60);
  CHECK(cut.prompt == 50);
  CHECK(cut.longest == 80);  // id lists may still hold what was cut off
  CHECK(cut.learned == 1);
  CHECK(s.truncated(20).prompt == 20);
  CHECK(cut.grown(5).longest == 80);
  CHECK(cut.grown(25).longest == 85);
  const sequence nothing = s.truncated(0);
  CHECK(nothing.n + nothing.prompt + nothing.longest + nothing.learn_again + nothing.learned + nothing.prefilling == 0);
  const budget_rule frozen{.ratio = 0.5, .min_tokens = 4, .sinks = 2, .growth = pqkv::budget_growth::frozen_at_prompt};
  CHECK(s.truncated(20).budget(frozen.flat()).retrieve == frozen.at(20).retrieve);
  CHECK(s.truncated(60).budget(frozen.flat()).retrieve == frozen.at(50).retrieve);
}

TEST_CASE("sequence: a window whose rule grows takes new tokens only") {
  const budget_rule rule{.ratio = 0.5, .min_tokens = 1, .sinks = 0, .window_share = 0.5};
  sequence s = prompt_of(100);
  CHECK(window_begin(s, rule) == 75);
  s = s.grown(3);
  CHECK(window_begin(s, rule) == 78);  // w is 25 still
  s = s.grown(1);
  CHECK(window_begin(s, rule) == 78);  // w is 26: nothing leaves, nothing returns
  CHECK(window_begin(prompt_of(400), rule) == 300);
}

TEST_CASE("sequence: a frozen budget stays the prompt's, however far the sequence grows") {
  budget_rule rule{.ratio = 0.5, .min_tokens = 10, .sinks = 2};
  const sequence prompt = prompt_of(200);
  CHECK(budget_of(prompt.grown(300), rule).retrieve == rule.at(500).retrieve);
  rule.growth = pqkv::budget_growth::frozen_at_prompt;
  const sequence grown = prompt.grown(300);
  CHECK(budget_of(grown, rule).window == rule.at(200).window);
  CHECK(budget_of(grown, rule).window < rule.at(500).window);
  CHECK(middle(grown, rule).selected() == middle(prompt, rule).selected());
  CHECK(grown.n - window_begin(grown, rule) == rule.at(200).window);
  CHECK(budget_of(sequence{}.grown(100), rule).retrieve == rule.at(0).retrieve);
}

TEST_CASE("sequence: how its middle is attended to") {
  const pqkv::selector::coverage_rule late{coverage::everything, coverage::listed}, always{coverage::listed, coverage::listed},
      full{coverage::everything, coverage::everything}, none{coverage::nothing, coverage::nothing};
  sequence s = prompt_of(100);
  const pqkv::middle_range short_list{4, 90, 10}, whole{4, 90, 86}, one_less{4, 90, 85}, of_none{4, 90, 0}, empty{4, 4, 10};
  CHECK(s.coverage(short_list, late) == coverage::everything);
  CHECK(s.coverage(of_none, late) == coverage::everything);  // whatever the budget says
  CHECK(s.coverage(short_list, always) == coverage::listed);
  s.learned = 1;
  CHECK(s.coverage(short_list, late) == coverage::listed);
  CHECK(s.coverage(one_less, late) == coverage::listed);
  CHECK(s.coverage(whole, late) == coverage::everything);
  CHECK(s.coverage(of_none, late) == coverage::nothing);
  CHECK(s.coverage(empty, late) == coverage::nothing);
  CHECK(s.coverage(short_list, full) == coverage::everything);
  CHECK(s.coverage(empty, full) == coverage::nothing);
  CHECK(s.coverage(whole, none) == coverage::nothing);
}

TEST_CASE("sequence: the bounds of a shape") {
  static_assert(noexcept(pqkv::can_cache({})));
  const pqkv::cache_shape good{.batch = 2, .kv_heads = 2, .query_heads = 4, .head_dim = 16, .capacity = 100};
  CHECK(pqkv::can_cache(good).ok());
  CHECK(good.queries_at_once() == 2);
  const auto refused = [&](auto spoil) {
    pqkv::cache_shape shape = good;
    spoil(shape);
    return std::string(pqkv::can_cache(shape).parameter);
  };
  using shape = pqkv::cache_shape;
  CHECK(refused([](shape& s) { s.batch = 65536; }) == "batch");
  CHECK(refused([](shape& s) { s.query_heads = 65536; }) == "query_heads");
  CHECK(refused([](shape& s) { s.step_queries = 65535; }) == "");
  CHECK(refused([](shape& s) { s.step_queries = 65536; }) == "step_queries");
  CHECK(refused([](shape& s) { s.softmax_scale = -1; }) == "softmax_scale");
  CHECK(refused([](shape& s) { s.softmax_scale = INFINITY; }) == "softmax_scale");
  CHECK(refused([](shape& s) { s.softmax_scale = NAN; }) == "softmax_scale");
  CHECK(refused([](shape& s) { s.softmax_scale = 0.3f; }) == "");
  pqkv::cache_shape of_three = good;
  of_three.step_queries = 3;
  CHECK(of_three.queries_at_once() == 3);
}

TEST_CASE("sequence: a memory plan adds up, and so do statistics, which begin at zero") {
  CHECK(pqkv::memory_plan{3, 50, 700}.total_bytes() == 753);
  const auto numbers = [](const pqkv::slot_statistics& s) {
    return std::vector<std::uint64_t>{s.steps,          s.tokens_attended, s.attended_bytes,   s.index_bytes,
                                      s.selector_bytes, s.nonfinite_keys,  s.nonfinite_values, s.nonfinite_queries,
                                      s.trainings,      s.codes_trained,   s.refused};
  };
  CHECK(numbers({}) == std::vector<std::uint64_t>(11, 0));
  static_assert(sizeof(pqkv::slot_statistics) == 11 * sizeof(std::uint64_t));  // every one of them is below
  pqkv::slot_statistics sum{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  sum += {10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110};
  CHECK(numbers(sum) == std::vector<std::uint64_t>{11, 22, 33, 44, 55, 66, 77, 88, 99, 110, 121});
}

TEST_CASE("sequence: a cut ends the wait for a length that it has not any more") {
  pqkv::sequence s;
  s.n = s.longest = s.prompt = 2000, s.learn_again = 2032;
  CHECK(s.truncated(100).learn_again == 0);
  CHECK(s.truncated(2000).learn_again == 2032);
  CHECK(s.grown(5).learn_again == 2032);
  s.learned = 1;
  CHECK(s.truncated(100).learn_again == 2032);  // the index that is to be renewed is still there
  CHECK(s.truncated(0).learn_again == 0);
}
