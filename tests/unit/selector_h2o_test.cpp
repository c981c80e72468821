// SPDX-License-Identifier: Apache-2.0
// H2O beside a plain formulation in double, through random lives with chunks, several tokens at once, cuts, forks and resets. A set may
// differ only in tokens whose scores are within 1e-5 of the last one kept, and at most one list in fifty may differ at all.
#include <doctest/doctest.h>

#include "cases/kept_lives.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::h2o>;
const pqkv::exec::host<> cpu;

/// Accumulated attention, as the paper says it.
struct plain_h2o {
  std::vector<std::vector<double>> scores;

  void begin(const plain_keys& keys, const std::vector<std::vector<float>>& shown, std::size_t n) {
    scores.assign(keys.h, std::vector<double>(n, 0.0));
    for (std::size_t i = 0; i < shown.size(); ++i) {
      const kept_list seen = tokens_up_to(n - shown.size() + i + 1);
      query(keys, shown[i].data(), std::vector<kept_list>(keys.h, seen));
    }
  }
  void query(const plain_keys& keys, const float* asked, const std::vector<kept_list>& attended) {
    for (std::size_t q = 0; q < keys.hq; ++q) {
      const std::size_t head = q * keys.h / keys.hq;
      scores[head].resize(keys.size());
      const std::vector<double> w = keys.weights(asked, q, attended[head]);
      for (std::size_t i = 0; i < w.size(); ++i) scores[head][attended[head][i]] += w[i];
    }
  }
  void cut(std::size_t n) {
    for (auto& one : scores) one.resize(std::min(n, one.size()));
  }
  double score(std::size_t head, std::size_t token) const { return token < scores[head].size() ? scores[head][token] : 0; }
};

cache_type::params small(std::size_t h, std::size_t hq, std::size_t retrieve) {
  return cache_params<cache_type>(3, h, hq, 16, 120, 3, 8, retrieve);
}
}  // namespace

TEST_CASE("selector h2o: keeps what a plain formulation keeps, through random lives") {
  std::uint64_t seed = 1;
  const std::pair<std::size_t, std::size_t> heads[] = {{1, 1}, {2, 4}, {1, 3}};
  for (const auto& [h, hq] : heads) {
    kept_life<cache_type, plain_h2o> life(small(h, hq, 14), {}, ++seed);
    CHECK(life.live(400, [](std::size_t n) { return n; }) == "");
  }
  auto p = small(2, 4, 0);
  p.budget.retrieve.reset();
  p.budget.window.reset();
  p.budget.ratio = 0.4;
  p.budget.min_tokens = 12;
  p.step_queries = 2;
  p.softmax_scale = 0.7f;
  kept_life<cache_type, plain_h2o> growing(p, {}, ++seed);
  CHECK(growing.live(400, [](std::size_t n) { return n; }) == "");
  p.budget.growth = pqkv::budget_growth::frozen_at_prompt;
  kept_life<cache_type, plain_h2o> frozen(p, {}, ++seed);
  CHECK(frozen.live(400, [](std::size_t n) { return 1 + n / 2; }) == "");
}

TEST_CASE("selector h2o: scores are the attention received, and asking again adds nothing") {
  kept_life<cache_type, plain_h2o> life(small(2, 4, 10), {}, 5);
  life.prefill(0, 70, 70);
  double largest = 0;
  const auto check = [&] {
    for (std::size_t head = 0; head < 2; ++head)
      for (std::size_t t = 0; t < life.cache.size(0); ++t) {
        const double wanted = life.slots[0].method().score(head, t);
        largest = std::max(largest, wanted);
        REQUIRE(std::fabs(life.cache.selection().score(0, head, t) - wanted) < 1e-5 * (1 + wanted));
      }
  };
  check();
  REQUIRE(life.ask(life.only(0, 1)) == "");  // what the prompt's end left; adds nothing
  for (std::uint32_t count : {1u, 3u, 1u, 2u}) {
    life.append({count, 0, 0});
    REQUIRE(life.ask({count, 0, 0}, true) == "");
    check();
  }
  CHECK(largest > 2);
  // Statistics: 7 queries by attend(), each with the keys of sinks, k + 1 tokens and window, of two heads.
  const auto& counted = life.cache.statistics(0);
  CHECK(counted.steps == 7);
  CHECK(counted.tokens_attended == 7 * (3 + 10 + 8));
  CHECK(counted.selector_bytes == 7 * 2 * (3 + 11 + 8) * 16 * sizeof(float));
  std::uint64_t index = 0;
  for (std::uint64_t n = 71; n <= 77; ++n) index += 2 * ((n - 11) * 4 + (3 + 11 + 8) * 8);
  CHECK(counted.index_bytes == index);
}

TEST_CASE("selector h2o: budgets at the edge") {
  for (const std::size_t k : {0u, 1u, 40u, 200u}) {
    kept_life<cache_type, plain_h2o> life(small(1, 2, k), {}, k);
    for (const std::size_t n : {1u, 3u, 11u, 12u, 50u}) {  // no middle up to 11 tokens
      life.reset(1);
      life.prefill(1, n, n);
      REQUIRE(life.ask(life.only(1, 1)) == "");
      for (std::uint32_t count : {1u, 2u, 5u}) {
        life.append(life.only(1, count));
        REQUIRE(life.ask(life.only(1, count), true) == "");
      }
    }
  }
}

TEST_CASE("selector h2o: what is dropped does not return when the budget grows") {
  auto p = small(1, 1, 0);
  p.budget.retrieve.reset();
  p.budget.window = 4;
  p.budget.min_tokens = 16;
  p.budget.ratio = 0.25;
  kept_life<cache_type, plain_h2o> life(p, {}, 8);
  life.prefill(0, 40, 40);
  const std::size_t before = life.cache.budget(0).retrieve;
  REQUIRE(life.ask(life.only(0, 1)) == "");
  for (int i = 0; i < 60; ++i) {
    life.append(life.only(0, 1));
    REQUIRE(life.ask(life.only(0, 1)) == "");
  }
  CHECK(life.cache.budget(0).retrieve > before + 5);
}

TEST_CASE("selector h2o: a slot without a prompt counts from the first maintain() on") {
  kept_life<cache_type, plain_h2o> life(small(2, 2, 6), {}, 3);
  for (int i = 0; i < 30; ++i) {
    life.append(life.only(2, 1));
    REQUIRE(life.ask(life.only(2, 1)) == "");  // the whole middle
  }
  life.cache.maintain(cpu);
  life.slots[2].begin({}, false);
  for (int i = 0; i < 20; ++i) {
    REQUIRE(life.ask(life.only(2, 1), true) == "");
    life.append(life.only(2, 1));
  }
  CHECK(life.slots[2].chosen > 20);
}

TEST_CASE("selector h2o: what it refuses, and that a refused prompt can be completed") {
  auto p = small(1, 2, 5);
  p.selection = pqkv::draft_selection::first_query;
  CHECK(unless_refused<pqkv::value_error>([&] { cache_type cache(p); }, "pqcache: selection", 0, 0) == "");
  CHECK_FALSE(cache_type::can_construct(p).ok());
  p.selection = pqkv::draft_selection::each_query;
  cache_type cache(p);
  const prompt given(1, 30, 16, 1);
  const std::vector<float> rows(31 * 2 * 16, 0.5f);
  const auto queries = pqkv::make_view(rows.data(), 31, 2, 16);
  const auto refused = [&](auto call, const char* text) { CHECK_THROWS_WITH_AS(call(), doctest::Contains(text), pqkv::value_error); };
  refused([&] { prefill(cpu, cache, 0, given); }, "prefill: selector must be shown queries of the prompt: call observe()");
  CHECK(cache.size(0) == 0);
  cache.observe(cpu, 0, queries);
  refused([&] { prefill(cpu, cache, 0, given); }, "prefill: observed queries must be at most 30 (tokens of the prompt), got 31");
  cache.reset(0);
  cache.observe(cpu, 0, queries.slice(0, 0, 30));
  prefill(cpu, cache, 0, given);
  CHECK(cache.size(0) == 30);
  CHECK_FALSE(cache.can_observe(0, queries).ok());
  refused([&] { cache.observe(cpu, 0, queries); }, "observe: slot must be before the last chunk of its prompt");
  refused([&] { cache.observe(cpu, 3, queries); }, "observe: slot");
  CHECK(cache.can_observe(1, queries).ok());
}

TEST_CASE("selector h2o: a fork in the middle of a prompt shares its queries") {
  cache_type cache(small(2, 4, 9));
  const prompt given(2, 60, 16, 4);
  std::vector<float> rows(60 * 4 * 16);
  random_source random(6);
  for (float& x : rows) x = random.gaussian();
  const auto queries = pqkv::make_view(std::as_const(rows).data(), 60, 4, 16);
  const auto part = [&](std::size_t slot, std::size_t first, std::size_t last, pqkv::chunk which) {
    cache.observe(cpu, slot, queries.slice(0, first, last - first));
    const auto k = given.keys.view().slice(1, first, last - first);
    cache.prefill(cpu, slot, k, k, which);
  };
  part(0, 0, 35, pqkv::chunk::more);
  cache.fork(cpu, 0, 1);
  for (const std::size_t slot : {1u, 0u}) part(slot, 35, 60, pqkv::chunk::last);
  part(2, 0, 60, pqkv::chunk::last);
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t t = 0; t < 60; ++t) {
      REQUIRE(cache.selection().score(0, head, t) == cache.selection().score(1, head, t));
      REQUIRE(std::fabs(cache.selection().score(0, head, t) - cache.selection().score(2, head, t)) < 1e-12);
    }
}
