// SPDX-License-Identifier: Apache-2.0
// The bookkeeping of slots: three classes that cover every token once, a window that follows its rule and never takes a token back,
// masks of active slots, totals of a memory plan.
#include <doctest/doctest.h>

#include <pqkv/cache/slots.hpp>

#include "cases/cache_model.hpp"
#include "cases/inputs.hpp"

namespace {
using pqkv::budget_rule;
using pqkv::slot_state;

/// Tokens one at a time.
void grow(slot_state& slot, const budget_rule& rule, std::size_t tokens) {
  for (; tokens != 0; --tokens) {
    ++slot.n;
    slot.slide_window(rule);
  }
}
}  // namespace

TEST_CASE("slots: sinks fill first, then the window, then its oldest token leaves for every one that comes") {
  const budget_rule rule{.sinks = 4, .window = 3, .retrieve = 2};
  slot_state slot;
  grow(slot, rule, 4);
  CHECK(slot.middle(rule).size() == 0);
  CHECK(slot.window_begin == 4);
  grow(slot, rule, 3);
  CHECK(slot.middle(rule).size() == 0);
  grow(slot, rule, 1);
  CHECK(slot.middle(rule).begin == 4);
  CHECK(slot.middle(rule).end == 5);
  CHECK(slot.middle(rule).selected() == 1);
  grow(slot, rule, 10);
  CHECK(slot.middle(rule).begin == 4);
  CHECK(slot.middle(rule).end == 15);
  CHECK(slot.middle(rule).selected() == 2);
}

TEST_CASE("slots: random rules and growth keep every token in one class, and none returns to the window") {
  pqkv_cases::random_source random(0x510);
  for (int round = 0; round < 200; ++round) {
    budget_rule rule;
    rule.ratio = static_cast<double>(random.below(100)) / 100;
    rule.min_tokens = 1 + random.below(40);
    rule.sinks = random.below(rule.min_tokens);
    rule.window_share = static_cast<double>(random.below(51)) / 100;
    if (random.below(3) == 0) rule.tokens = rule.sinks + 1 + random.below(60);
    if (random.below(4) == 0) rule.window = 1 + random.below(40);
    slot_state slot;
    std::size_t before = 0;
    for (int step = 0; step < 150; ++step) {
      const std::size_t tokens = step == 0 ? random.below(300) : 1;
      slot.n += tokens;
      slot.slide_window(rule);
      const pqkv::middle_range middle = slot.middle(rule);
      const pqkv_cases::plain_budget budget = pqkv_cases::budget_at(rule, slot.n);
      REQUIRE(middle.begin == std::min<std::size_t>(rule.sinks, slot.n));  // sinks [0, begin)
      REQUIRE(middle.begin <= middle.end);                                 // middle [begin, end)
      REQUIRE(middle.end == slot.window_begin);
      REQUIRE(middle.end <= slot.n);  // window [end, n)
      REQUIRE(slot.window_begin >= before);
      REQUIRE(slot.n - slot.window_begin <= budget.window);
      if (slot.n > rule.sinks) REQUIRE(slot.n > slot.window_begin);  // the newest token is in the window
      if (slot.window_begin > before && step > 0 && before >= rule.sinks) REQUIRE(slot.n - slot.window_begin == budget.window);
      REQUIRE(middle.retrieve == budget.retrieve);
      before = slot.window_begin;
    }
  }
}

TEST_CASE("slots: a window whose rule grows takes new tokens only") {
  const budget_rule rule{.ratio = 0.5, .min_tokens = 1, .sinks = 0, .window_share = 0.5};
  slot_state slot;
  slot.n = 100;
  slot.slide_window(rule);
  CHECK(slot.window_begin == 75);
  grow(slot, rule, 3);
  CHECK(slot.window_begin == 78);  // w is 25 still
  grow(slot, rule, 1);
  CHECK(slot.window_begin == 78);  // w is 26: nothing leaves, nothing returns
  slot.n = 400;
  slot.slide_window(rule);
  CHECK(slot.window_begin == 300);
}

TEST_CASE("slots: a frozen budget stays the prompt's, however far the sequence grows") {
  budget_rule rule{.ratio = 0.5, .min_tokens = 10, .sinks = 2};
  slot_state follows, frozen;
  follows.n = frozen.n = follows.prompt = frozen.prompt = 200;
  grow(follows, rule, 300);
  CHECK(follows.budget(rule).retrieve == rule.at(500).retrieve);
  rule.growth = pqkv::budget_growth::frozen_at_prompt;
  frozen.slide_window(rule);
  const std::uint32_t listed = frozen.middle(rule).selected();
  grow(frozen, rule, 300);
  CHECK(frozen.budget(rule).window == rule.at(200).window);
  CHECK(frozen.budget(rule).window < rule.at(500).window);
  CHECK(frozen.middle(rule).selected() == listed);
  CHECK(frozen.n - frozen.window_begin == rule.at(200).window);
  slot_state without_prompt;
  grow(without_prompt, rule, 100);
  CHECK(without_prompt.budget(rule).retrieve == rule.at(0).retrieve);
}

TEST_CASE("slots: an empty mask means all, a zero means not this one") {
  const std::uint8_t mask[] = {0, 1, 7};
  CHECK(pqkv::is_active({}, 0));
  const auto active = pqkv::make_view(static_cast<const std::uint8_t*>(mask), 3);
  CHECK_FALSE(pqkv::is_active(active, 0));
  CHECK(pqkv::is_active(active, 1));
  CHECK(pqkv::is_active(active, 2));
}

TEST_CASE("slots: a memory plan adds up, and statistics begin at zero") {
  CHECK(pqkv::memory_plan{3, 50, 700}.total_bytes() == 753);
  const pqkv::slot_statistics fresh;
  CHECK(fresh.steps + fresh.tokens_attended + fresh.attended_bytes + fresh.index_bytes + fresh.selector_bytes + fresh.nonfinite_keys +
            fresh.nonfinite_values + fresh.nonfinite_queries ==
        0);
}
