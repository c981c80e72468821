// SPDX-License-Identifier: Apache-2.0
// Budgets by their formulas: by ratio, outright, with window or list given; and what is refused.
#include <doctest/doctest.h>

#include <cmath>

#include "cases/cache_model.hpp"
#include "cases/inputs.hpp"
#include "cases/refusals.hpp"

namespace {
using pqkv::budget_rule;
using pqkv::can_budget;
using pqkv::token_budget;

bool equal(const token_budget& b, std::size_t s, std::size_t w, std::size_t k) { return b.sinks == s && b.window == w && b.retrieve == k; }

std::string text_of(const budget_rule& rule) {
  const pqkv::status s = can_budget(rule);
  return s.ok() ? "" : s.message();
}
}  // namespace

TEST_CASE("budget: by ratio, sinks included, a tenth of the rest to the window") {
  budget_rule rule{.ratio = 0.1, .min_tokens = 0, .sinks = 32};
  CHECK(equal(rule.at(10000), 32, 96, 872));
  CHECK(equal(rule.at(10319), 32, 99, 900));
  CHECK(equal(rule.at(10320), 32, 100, 900));
  CHECK(equal(rule.at(1910), 32, 16, 143));  // at least 16
  CHECK(equal(rule.at(640), 32, 16, 16));
  CHECK(equal(rule.at(620), 32, 15, 15));  // at most half
  CHECK(equal(rule.at(340), 32, 1, 1));
  CHECK(equal(rule.at(330), 32, 1, 0));
  CHECK(equal(rule.at(320), 32, 1, 0));  // nothing is left: the window is never empty
}

TEST_CASE("budget: the paper's rule, halves to window and list") {
  budget_rule rule{.ratio = 0.1, .min_tokens = 0, .sinks = 32, .window_share = 0.5};
  CHECK(equal(rule.at(10000), 32, 484, 484));
  CHECK(equal(rule.at(10010), 32, 484, 485));  // an odd rest goes to the list
  CHECK(equal(rule.at(10009), 32, 484, 484));  // floor
  CHECK(equal(rule.at(340), 32, 1, 1));
  CHECK(equal(rule.at(330), 32, 1, 0));
  CHECK(equal(rule.at(320), 32, 1, 0));  // nothing is left: the window is never empty
  CHECK(equal(rule.at(0), 32, 1, 0));
  rule.min_tokens = 64;
  CHECK(equal(rule.at(100), 32, 16, 16));
  CHECK(equal(rule.at(640), 32, 16, 16));
  CHECK(equal(rule.at(660), 32, 17, 17));
  rule.ratio = 1;
  CHECK(equal(rule.at(1000), 32, 484, 484));
}

TEST_CASE("budget: a share above a half leaves the list what the window does not take") {
  budget_rule rule{.ratio = 0.1, .min_tokens = 0, .sinks = 4, .window_share = 0.75};
  CHECK(equal(rule.at(10040), 4, 750, 250));
  CHECK(equal(rule.at(140), 4, 10, 0));  // at least 16, and no more than there are
  rule.window_share = 1;
  CHECK(equal(rule.at(10040), 4, 1000, 0));  // streaming attention
  CHECK(equal(rule.at(40), 4, 1, 0));
}

TEST_CASE("budget: outright, and its parts outright") {
  CHECK(equal(budget_rule{.tokens = 132, .sinks = 32}.at(1000000), 32, 16, 84));
  CHECK(equal(budget_rule{.tokens = 33, .sinks = 32}.at(5), 32, 1, 0));
  CHECK(equal(budget_rule{.tokens = 132, .sinks = 32, .window = 10}.at(7), 32, 10, 90));
  CHECK(equal(budget_rule{.tokens = 132, .sinks = 32, .window = 400}.at(7), 32, 400, 0));
  CHECK(equal(budget_rule{.tokens = 132, .sinks = 32, .retrieve = 7}.at(7), 32, 16, 7));
  CHECK(equal(budget_rule{.ratio = 0, .min_tokens = 0, .sinks = 0, .window = 3, .retrieve = 0}.at(99), 0, 3, 0));
}

TEST_CASE("budget: equals its text for random rules and lengths") {
  pqkv_cases::random_source random(0xb0d);
  for (int round = 0; round < 2000; ++round) {
    budget_rule rule;
    rule.ratio = static_cast<double>(random.below(101)) / 100;
    rule.min_tokens = random.below(200);
    rule.tokens = random.below(3) == 0 ? random.below(300) : 0;
    rule.sinks = random.below(70);
    rule.window_share = static_cast<double>(random.below(101)) / 100;
    if (random.below(3) == 0) rule.window = 1 + random.below(90);
    if (random.below(3) == 0) rule.retrieve = random.below(90);
    const std::size_t n = random.below(100000);
    const pqkv_cases::plain_budget wanted = pqkv_cases::budget_at(rule, n);
    REQUIRE(equal(rule.at(n), wanted.sinks, wanted.window, wanted.retrieve));
    REQUIRE(rule.at(n + 1).retrieve >= rule.at(n).retrieve);  // a cache sizes its lists for its capacity
    REQUIRE(rule.at(n + 1).window >= rule.at(n).window);
  }
}

TEST_CASE("budget: an empty window, a total below sinks + 1 and a ratio outside 0..1 are refused") {
  static_assert(noexcept(can_budget(budget_rule{})));
  CHECK(text_of({}) == "");
  CHECK(text_of({.window = 0}) == "pqkv::budget_rule: budget.window must be at least 1 (w), got 0");
  CHECK(text_of({.min_tokens = 32, .sinks = 32}) == "pqkv::budget_rule: budget.min_tokens must be at least 33 (sinks + 1), got 32");
  CHECK(text_of({.min_tokens = 33, .sinks = 32}) == "");
  CHECK(text_of({.tokens = 32, .sinks = 32}) == "pqkv::budget_rule: budget.tokens must be at least 33 (sinks + 1), got 32");
  CHECK(text_of({.min_tokens = 0, .tokens = 33, .sinks = 32}) == "");
  CHECK(text_of({.min_tokens = 0, .sinks = 32, .window = 5, .retrieve = 5}) == "");  // the total does not matter
  CHECK(text_of({.ratio = -0.1}).find("budget.ratio") != std::string::npos);
  CHECK(text_of({.ratio = 1.1}).find("budget.ratio") != std::string::npos);
  CHECK(text_of({.ratio = std::nan("")}).find("budget.ratio") != std::string::npos);
  CHECK(text_of({.window_share = -0.1}).find("budget.window_share") != std::string::npos);
  CHECK(text_of({.window_share = 1.1}).find("budget.window_share") != std::string::npos);
  CHECK(can_budget({.window = 0}, "pqcache").message().find("pqkv::pqcache: ") == 0);
}
