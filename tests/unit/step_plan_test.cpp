// SPDX-License-Identifier: Apache-2.0
// The plan of a step: which token belongs to which row and slot, what each query attends to whole and what is ranked for it, when a slot is
// trained. Every answer is compared with one that is counted out token by token.
#include <doctest/doctest.h>

#include <vector>

#include <pqkv/detail/host/step_plan.hpp>

#include "cases/cache_model.hpp"
#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::cache_step;
using pqkv::sequence;
using pqkv::selector::coverage;
const pqkv::exec::host<pqkv::isa::scalar> cpu;
const pqkv::selector::coverage_rule late{coverage::everything, coverage::listed};

/// A step's rows, and its tokens written out.
struct drawn {
  std::vector<std::uint32_t> slots, counts;
  bool has_slots, has_counts;

  drawn(std::size_t batch, random_source& random) : has_slots(random.below(3) != 0), has_counts(random.below(3) != 0) {
    std::vector<std::uint32_t> order(batch);
    for (std::uint32_t i = 0; i < batch; ++i) order[i] = i;
    for (std::size_t i = batch; has_slots && i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    order.resize(has_slots ? random.below(batch + 1) : has_counts ? random.below(batch + 1) : batch);
    slots = order;
    for (std::size_t i = 0; i < slots.size(); ++i) counts.push_back(has_counts ? static_cast<std::uint32_t>(random.below(5)) : 1u);
  }
  cache_step step() const {
    cache_step made;
    if (has_slots) made.slots = pqkv::make_view(slots.data(), slots.size());
    if (has_counts) made.counts = pqkv::make_view(counts.data(), counts.size());
    return made;
  }
  std::vector<pqkv::step_token> tokens() const {
    std::vector<pqkv::step_token> all;
    for (std::uint32_t row = 0; row < slots.size(); ++row)
      for (std::uint32_t i = 0; i < counts[row]; ++i) all.push_back({row, slots[row], i, counts[row]});
    return all;
  }
};

/// What a query attends to, from the method's text: tokens [0, s), the middle, the window, of a sequence of `n` tokens.
struct plain_plan {
  std::vector<std::size_t> whole;  // tokens attended to without a list
  std::size_t begin = 0, end = 0;  // ranked
};
plain_plan plan_of(std::size_t n, std::size_t prompt, const pqkv::budget_rule& rule, bool learned) {
  const auto b = budget_at(rule, rule.growth == pqkv::budget_growth::frozen_at_prompt ? std::min(prompt, n) : n);
  const std::size_t begin = std::max(n > b.window ? n - b.window : 0, std::min(b.sinks, n)), first = std::min(b.sinks, begin);
  plain_plan plan;
  const bool all = !learned || b.retrieve >= begin - first;
  for (std::size_t t = 0; t < n; ++t)
    if (all || t < first || t >= begin) plan.whole.push_back(t);
  if (!all && b.retrieve != 0) plan.begin = first, plan.end = begin;
  return plan;
}
std::vector<std::size_t> tokens_of(const pqkv::token_span& span) {
  std::vector<std::size_t> all;
  for (std::size_t t = 0; t < span.leading; ++t) all.push_back(t);
  for (std::size_t t = span.window_begin; t < span.window_end; ++t) all.push_back(t);
  return all;
}

pqkv::budget_rule random_rule(random_source& random) {
  pqkv::budget_rule rule;
  rule.ratio = static_cast<double>(random.below(60)) / 100;
  rule.min_tokens = 1 + random.below(40);
  rule.sinks = random.below(rule.min_tokens);
  rule.window_share = static_cast<double>(random.below(101)) / 100;
  if (random.below(4) == 0) rule.window = 1 + random.below(40);
  if (random.below(4) == 0) rule.retrieve = random.below(40);
  if (random.below(4) == 0) rule.growth = pqkv::budget_growth::frozen_at_prompt;
  return rule;
}
sequence random_sequence(random_source& random) {
  sequence s;
  s.prompt = static_cast<std::uint32_t>(random.below(150));
  s = s.grown(s.prompt).grown(static_cast<std::uint32_t>(random.below(60)));
  s.learned = random.below(2) == 0 ? 1 : 0;
  return s;
}
}  // namespace

TEST_CASE("step plan: rows, slots and counts as they are given, and every slot in order where they are not") {
  const cache_step all;
  CHECK(all.is_in_order());
  CHECK(all.rows(5) == 5);
  CHECK(all.slot(3) == 3);
  CHECK(all.count(3) == 1);
  const std::uint32_t slots[] = {4, 1}, counts[] = {0, 7};
  cache_step some;
  some.slots = pqkv::make_view(slots, 2);
  CHECK_FALSE(some.is_in_order());
  CHECK(some.rows(5) == 2);
  CHECK(some.slot(0) == 4);
  CHECK(some.count(1) == 1);
  some.counts = pqkv::make_view(counts, 2);
  CHECK(some.count(0) == 0);
  CHECK(some.count(1) == 7);
  cache_step of_first;
  of_first.counts = pqkv::make_view(counts, 2);
  CHECK_FALSE(of_first.is_in_order());
  CHECK(of_first.rows(5) == 2);
  CHECK(of_first.slot(1) == 1);
  // An empty list names no slot, also without memory.
  cache_step none;
  none.slots = pqkv::view<const std::uint32_t, 1>{nullptr, {0}, {1}};
  CHECK(none.has_slots());
  CHECK(none.rows(5) == 0);
}

TEST_CASE("step plan: every token is found in its row, and those behind the last row in none") {
  random_source random(0x57e9);
  for (int round = 0; round < 500; ++round) {
    const std::size_t batch = 1 + random.below(6);
    const drawn given(batch, random);
    const auto tokens = given.tokens();
    const cache_step step = given.step();
    REQUIRE(step.rows(batch) == given.slots.size());
    for (std::size_t i = 0; i < tokens.size() + 3; ++i) {
      const pqkv::step_token token = locate(step, batch, i);
      if (i >= tokens.size()) {
        REQUIRE(token.row == given.slots.size());
        REQUIRE(token.count == 0);
        continue;
      }
      REQUIRE(token.row == tokens[i].row);
      REQUIRE(token.slot == tokens[i].slot);
      REQUIRE(token.index == tokens[i].index);
      REQUIRE(token.count == tokens[i].count);
    }
  }
}

TEST_CASE("step plan: a query attends to sinks, middle and window as they were when its token was the last") {
  random_source random(0x57ea);
  std::size_t listed = 0, dense = 0;
  for (int round = 0; round < 3000; ++round) {
    const pqkv::budget_rule rule = random_rule(random);
    const sequence now = random_sequence(random);
    const auto count = static_cast<std::uint32_t>(1 + random.below(6)), index = static_cast<std::uint32_t>(random.below(count));
    const pqkv::query_plan plan = pqkv::plan_query(now, {index, count}, rule.flat(), late);
    const pqkv::middle_range whole = pqkv::whole_middle(now, {index, count}, rule.flat(), late);
    if (count > now.n) {  // more queries than there are tokens
      REQUIRE(tokens_of(plan.span).empty());
      REQUIRE(plan.range.size() == 0);
      REQUIRE(whole.size() == 0);
      continue;
    }
    const std::size_t n = now.n - count + index + 1;
    const plain_plan wanted = plan_of(n, now.prompt, rule, now.learned != 0);
    REQUIRE(tokens_of(plan.span) == wanted.whole);
    REQUIRE(plan.range.size() == wanted.end - wanted.begin);
    if (plan.range.size() != 0) {
      ++listed;
      REQUIRE(plan.range.begin == wanted.begin);
      REQUIRE(plan.range.end == wanted.end);
      REQUIRE(plan.range.selected() < plan.range.size());
      REQUIRE(whole.size() == 0);
    } else if (whole.size() != 0) {
      ++dense;
      const sequence then = now.at(static_cast<std::uint32_t>(n));
      REQUIRE(whole.begin == then.middle(rule.flat()).begin);
      REQUIRE(whole.end == then.middle(rule.flat()).end);
      REQUIRE(wanted.whole.size() == n);
    }
  }
  CHECK(listed > 300);
  CHECK(dense > 300);
}

TEST_CASE("step plan: nothing for an empty sequence, and for one whose prompt is not complete") {
  const pqkv::budget_rule rule{.sinks = 2, .window = 4, .retrieve = 3};
  sequence half;
  half = half.grown(50);
  half.prefilling = 1;
  for (const sequence& s : {sequence{}, half}) {
    const pqkv::query_plan plan = pqkv::plan_query(s, {0, 1}, rule.flat(), late);
    CHECK(attended_tokens_of(plan.span) == 0);
    CHECK(plan.range.size() == 0);
    CHECK(pqkv::whole_middle(s, {0, 1}, rule.flat(), late).size() == 0);
  }
}

TEST_CASE("step plan: a pass of any queries plans each as if it were alone, for every list") {
  random_source random(0x57eb);
  for (int round = 0; round < 400; ++round) {
    const std::size_t batch = 1 + random.below(5), h = 1 + random.below(3), lists = h * (1 + random.below(2));
    const pqkv::budget_rule rule = random_rule(random);
    std::vector<sequence> sequences;
    for (std::size_t slot = 0; slot < batch; ++slot) sequences.push_back(random_sequence(random));
    const drawn given(batch, random);
    const auto all = given.tokens();
    const std::size_t first = random.below(all.size() + 1), count = random.below(all.size() - first + 3);  // perhaps beyond the last one
    std::vector<std::uint32_t> slots(count, 77), counts(count * lists, 77);
    std::vector<pqkv::token_span> spans(count * lists, {77, 77, 77});
    std::vector<pqkv::middle_range> ranges(count * h, {77, 78, 77});
    const pqkv::step_plan<pqkv::space::host> plan{pqkv::make_view(slots.data(), count), pqkv::make_view(spans.data(), count * lists),
                                                  pqkv::make_view(ranges.data(), count * h), pqkv::make_view(counts.data(), count * lists)};
    const bool any =
        plan_step(cpu, {pqkv::make_view(std::as_const(sequences).data(), batch), given.step(), first, rule.flat(), late}, plan);
    bool wanted_any = false;
    for (std::size_t i = 0; i < count; ++i) {
      pqkv::query_plan wanted{};
      if (first + i < all.size()) {
        const pqkv::step_token& token = all[first + i];
        wanted = pqkv::plan_query(sequences[token.slot], {token.index, token.count}, rule.flat(), late);
        REQUIRE(slots[i] == token.slot);
      } else {
        REQUIRE(slots[i] < batch);  // whoever reads it finds a slot
      }
      wanted_any = wanted_any || wanted.range.size() != 0;
      for (std::size_t list = 0; list < lists; ++list) {
        REQUIRE(tokens_of(spans[i * lists + list]) == tokens_of(wanted.span));
        REQUIRE(counts[i * lists + list] == 0);
      }
      for (std::size_t head = 0; head < h; ++head) {
        REQUIRE(ranges[i * h + head].begin == wanted.range.begin);
        REQUIRE(ranges[i * h + head].end == wanted.range.end);
        REQUIRE(ranges[i * h + head].retrieve == wanted.range.retrieve);
      }
    }
    REQUIRE(any == wanted_any);
  }
}

TEST_CASE("step plan: memory for fewer tokens is the first part, and queries of all slots in order need no map") {
  constexpr std::size_t batch = 3, h = 2, lists = 4;
  std::vector<std::uint32_t> slots(5), counts(5 * lists), named{2, 0, 1};
  std::vector<pqkv::token_span> spans(5 * lists);
  std::vector<pqkv::middle_range> ranges(5 * h);
  const pqkv::step_plan<pqkv::space::host> all{pqkv::make_view(slots), pqkv::make_view(spans), pqkv::make_view(ranges),
                                               pqkv::make_view(counts)};
  const auto plan = all.of(batch);
  CHECK(plan.slots.extent(0) == batch);
  CHECK(plan.spans.extent(0) == batch * lists);
  CHECK(plan.ranges.extent(0) == batch * h);
  CHECK(plan.counts.extent(0) == batch * lists);
  CHECK(plan.counts.data == counts.data());
  CHECK(plan.map({}, 0, batch).empty());
  CHECK(plan.map({}, 0, batch + 1).slots.data == slots.data());
  CHECK(plan.map({}, 1, batch).slots.data == slots.data());
  cache_step step;
  step.slots = pqkv::make_view(std::as_const(named));
  CHECK(plan.map(step, 0, batch).slots.extent(0) == batch);
  CHECK(plan.map(step, 0, batch).kv_heads == h);
}

TEST_CASE("step plan: cutting queries into passes leaves none out") {
  std::vector<std::size_t> passes;
  pqkv::detail::for_passes(7, 3, [&](std::size_t first, std::size_t count) { passes.insert(passes.end(), {first, count}); });
  CHECK(passes == std::vector<std::size_t>{0, 3, 3, 3, 6, 1});
  pqkv::detail::for_passes(0, 3, [](std::size_t, std::size_t) { FAIL("there are no queries"); });
}

TEST_CASE("step plan: a slot is trained once it has the rows, and after a failure not in every step") {
  const pqkv::budget_rule rule{.sinks = 4, .window = 10, .retrieve = 5};
  const auto due = [&](const sequence& s) { return pqkv::is_learning_due(s, rule.flat(), 16); };
  sequence s;
  CHECK_FALSE(due(s));
  CHECK_FALSE(pqkv::is_learning_due(s, rule.flat(), 0));  // an empty one has nothing to learn from
  CHECK_FALSE(due(s.grown(19)));
  CHECK(due(s.grown(20)));  // 16 rows behind 4 sinks
  s = s.grown(200);
  CHECK(due(s));
  sequence half = s;
  half.prefilling = 1;
  CHECK_FALSE(due(half));
  const sequence learned = pqkv::after_learning(s, true, 0);
  CHECK(learned.learned == 1);
  CHECK(learned.n == 200);
  CHECK_FALSE(due(learned));
  CHECK_FALSE(due(learned.grown(100000)));
  const sequence ages = pqkv::after_learning(s, true, 300);
  CHECK(ages.learned == 1);
  CHECK_FALSE(due(ages.grown(99)));
  CHECK(due(ages.grown(100)));
  CHECK(due(ages.truncated(50).grown(250)));  // a cut does not make a codebook younger
  CHECK_FALSE(due(ages.truncated(0).grown(19)));
  const sequence failed = pqkv::after_learning(s, false, 300);
  CHECK(failed.learned == 0);
  CHECK_FALSE(due(failed));
  std::uint32_t waits = 0;
  while (!due(failed.grown(waits))) ++waits;
  CHECK(waits == 200 / 64 + 1);
  std::size_t tries = 0;  // of a sequence that never succeeds
  sequence hopeless;
  for (int i = 0; i < 100000; ++i) {
    hopeless = hopeless.grown(1);
    if (due(hopeless)) hopeless = pqkv::after_learning(hopeless, false, 0), ++tries;
  }
  CHECK(tries < 700);
  // One that is cut to nothing starts afresh.
  CHECK(due(failed.truncated(0).grown(20)));
}
