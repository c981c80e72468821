// SPDX-License-Identifier: Apache-2.0
// SnapKV beside a plain formulation in double, through random lives with chunks, several tokens at once, cuts, forks and resets. A set may
// differ only in tokens whose scores are within 1e-5 of the last one kept, and at most one list in fifty may differ at all.
#include <doctest/doctest.h>

#include "cases/kept_lives.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::snapkv>;
using pqkv::selector::vote_pooling;
const pqkv::exec::host<> cpu;

/// Votes of the observation window, as the paper says it; then the rule for what came later.
struct plain_snapkv {
  pqkv::selector::snapkv::params settings;
  std::vector<std::vector<double>> scores;  // of tokens before the observation window
  std::size_t first_recent = 0;

  void begin(const plain_keys& keys, const std::vector<std::vector<float>>& shown, std::size_t n) {
    const std::size_t voters = std::min(shown.size(), settings.observation_tokens);
    first_recent = n - voters;
    if (voters == 0) first_recent = 0;
    scores.assign(keys.h, std::vector<double>(first_recent, 0.0));
    for (std::size_t q = 0; q < keys.hq; ++q) {
      std::vector<double> votes(first_recent, 0.0);
      for (std::size_t i = 0; i < voters; ++i) {
        const auto w = keys.weights(shown[shown.size() - voters + i].data(), q, tokens_up_to(first_recent + i + 1));
        for (std::size_t t = 0; t < first_recent; ++t) votes[t] += w[t];
      }
      const auto reach = static_cast<std::ptrdiff_t>(settings.pool_tokens / 2);
      for (std::size_t t = 0; t < first_recent; ++t) {
        double sum = 0, most = 0;
        for (std::ptrdiff_t i = -reach; i <= reach; ++i) {
          const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(t) + i;
          if (at < 0 || at >= static_cast<std::ptrdiff_t>(first_recent)) continue;
          sum += votes[static_cast<std::size_t>(at)];
          most = std::max(most, votes[static_cast<std::size_t>(at)]);
        }
        const double pooled = settings.pooling == vote_pooling::maximum ? most : sum / static_cast<double>(settings.pool_tokens);
        scores[q * keys.h / keys.hq][t] += pooled * static_cast<double>(keys.h) / static_cast<double>(keys.hq);
      }
    }
  }
  void query(const plain_keys&, const float*, const std::vector<kept_list>&) {}
  void cut(std::size_t n) { first_recent = std::min(first_recent, n); }
  double score(std::size_t head, std::size_t token) const {
    return token >= first_recent ? 1e6 * static_cast<double>(token + 1) : scores[head][token];
  }
};
using life_type = kept_life<cache_type, plain_snapkv>;

cache_type::params small(std::size_t h, std::size_t hq, std::size_t retrieve, pqkv::selector::snapkv::params settings = {12}) {
  auto p = cache_params<cache_type>(3, h, hq, 16, 120, 3, 8, retrieve);
  p.selector = settings;
  return p;
}
life_type make_life(const cache_type::params& p, std::uint64_t seed) { return {p, {p.selector, {}}, seed}; }
}  // namespace

TEST_CASE("selector snapkv: keeps what a plain formulation keeps, through random lives") {
  std::uint64_t seed = 1;
  const std::pair<std::size_t, std::size_t> heads[] = {{1, 1}, {2, 4}, {1, 3}};
  const pqkv::selector::snapkv::params settings[] = {{32}, {5, 7, vote_pooling::maximum}, {12, 1}};  // shorter and longer than the window
  for (std::size_t i = 0; i < 3; ++i) {
    life_type life = make_life(small(heads[i].first, heads[i].second, 14, settings[i]), ++seed);
    CHECK(life.live(400, [](std::size_t n) { return n; }) == "");
  }
  auto p = small(2, 4, 0);
  p.budget.retrieve.reset();
  p.budget.window.reset();
  p.budget.ratio = 0.4;
  p.budget.min_tokens = 12;
  p.step_queries = 2;
  p.softmax_scale = 0.7f;
  life_type growing = make_life(p, ++seed);
  CHECK(growing.live(400, [](std::size_t n) { return n; }) == "");
  p.budget.growth = pqkv::budget_growth::frozen_at_prompt;
  life_type frozen = make_life(p, ++seed);
  CHECK(frozen.live(400, [](std::size_t n) { return 1 + n / 9; }) == "");  // often fewer than the window has
}

TEST_CASE("selector snapkv: scores are the pooled votes, whatever the chunks") {
  for (const vote_pooling pooling : {vote_pooling::average, vote_pooling::maximum})
    for (const std::size_t pool : {1u, 5u, 7u, 301u}) {
      life_type life = make_life(small(2, 6, 10, {9, pool, pooling}), pool);
      life.prefill(1, 80, 80);
      double largest = 0;
      for (std::size_t head = 0; head < 2; ++head)
        for (std::size_t t = 0; t < 71; ++t) {
          const double wanted = life.slots[1].method().score(head, t);
          largest = std::max(largest, wanted);
          REQUIRE(std::fabs(life.cache.selection().score(1, head, t) - wanted) < 1e-5 * (1e-3 + wanted));
        }
      CHECK(largest > 0.3 / static_cast<double>(pool));
    }
}

TEST_CASE("selector snapkv: generated tokens come first, newest first, then the votes, and k holds in every step") {
  life_type life = make_life(small(1, 2, 10, {4}), 9);
  life.prefill(0, 60, 60);
  REQUIRE(life.ask(life.only(0, 1)) == "");
  for (std::uint32_t i = 1; i <= 40; ++i) {
    life.append(life.only(0, 1));
    REQUIRE(life.ask(life.only(0, 1), true) == "");
    const reply r = ask(cpu, life.cache, life.query_rows(3), {1, 0, 0});
    const std::vector<std::int32_t> list = r.list(0);
    REQUIRE(list.size() == 10);
    std::size_t recent = 0;
    for (const std::int32_t t : list) recent += t >= 56 ? 1 : 0;
    REQUIRE(recent == std::min<std::size_t>(10, i > 4 ? i - 4 : 0));  // of the observation window [56, 60), and generated
  }
  const auto& counted = life.cache.statistics(0);
  CHECK(counted.selector_bytes == 0);
  std::uint64_t index = 0;
  for (std::uint64_t n = 61; n <= 100; ++n) index += 2 * ((n - 11) * 4 + 11 * 8);  // asked twice by attend()
  CHECK(counted.index_bytes == index);
}

TEST_CASE("selector snapkv: budgets and prompts at the edge") {
  for (const std::size_t k : {0u, 1u, 40u, 200u}) {
    life_type life = make_life(small(1, 2, k), k);
    for (const std::size_t n : {1u, 3u, 11u, 12u, 13u, 50u}) {  // no middle up to 11 tokens, no votes up to 12
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

TEST_CASE("selector snapkv: a slot without a prompt keeps the newest tokens") {
  life_type life = make_life(small(2, 2, 6), 3);
  for (int i = 0; i < 30; ++i) life.append(life.only(2, 1));
  life.cache.maintain(cpu);
  life.slots[2].begin({}, false);
  for (int i = 0; i < 10; ++i) {
    REQUIRE(life.ask(life.only(2, 1), true) == "");
    life.append(life.only(2, 1));
  }
  CHECK(life.slots[2].chosen >= 20);
}

TEST_CASE("selector snapkv: a fork in the middle of a prompt copies the observed queries") {
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
  part(0, 0, 55, pqkv::chunk::more);  // seven of its queries are of the observation window
  cache.fork(cpu, 0, 1);
  for (const std::size_t slot : {1u, 0u}) part(slot, 55, 60, pqkv::chunk::last);
  part(2, 0, 60, pqkv::chunk::last);
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t t = 0; t < 48; ++t) {
      REQUIRE(cache.selection().score(0, head, t) == cache.selection().score(1, head, t));
      REQUIRE(cache.selection().score(0, head, t) == cache.selection().score(2, head, t));
    }
}

TEST_CASE("selector snapkv: what it refuses") {
  const auto refused_as = [](auto change, const char* where, double expected, double got) {
    auto p = small(1, 2, 5);
    change(p);
    CHECK_FALSE(cache_type::can_construct(p).ok());
    CHECK(unless_refused<pqkv::value_error>([&] { cache_type cache(p); }, where, expected, got) == "");
  };
  refused_as([](auto& p) { p.selector.observation_tokens = 0; }, "pqcache: selector.observation_tokens", 1, 0);
  refused_as([](auto& p) { p.selector.observation_tokens = 65536; }, "pqcache: selector.observation_tokens", 65535, 65536);
  refused_as([](auto& p) { p.selector.pool_tokens = 4; }, "pqcache: selector.pool_tokens", 5, 4);
  refused_as([](auto& p) { p.selector.pool_tokens = 0; }, "pqcache: selector.pool_tokens", 5, 0);
  refused_as([](auto& p) { p.selector.pool_tokens = 65537; }, "pqcache: selector.pool_tokens", 65535, 65537);
  refused_as([](auto& p) { p.selector.pooling = static_cast<vote_pooling>(2); }, "pqcache: selector.pooling", 1, 2);
  refused_as([](auto& p) { p.selection = pqkv::draft_selection::first_query; }, "pqcache: selection", 0, 0);

  cache_type cache(small(1, 2, 5));
  const prompt given(1, 30, 16, 1);
  const std::vector<float> rows(31 * 2 * 16, 0.5f);
  const auto queries = pqkv::make_view(rows.data(), 31, 2, 16);
  const auto refused = [&](auto call, const char* text) { CHECK_THROWS_WITH_AS(call(), doctest::Contains(text), pqkv::value_error); };
  refused([&] { prefill(cpu, cache, 0, given); }, "prefill: selector must be shown queries of the prompt: call observe()");
  CHECK(cache.size(0) == 0);
  cache.observe(cpu, 0, queries);
  refused([&] { prefill(cpu, cache, 0, given); }, "prefill: observed queries must be at most 30 (tokens of the prompt), got 31");
  cache.reset(0);
  cache.observe(cpu, 0, queries.slice(0, 0, 1));
  prefill(cpu, cache, 0, given);
  CHECK(cache.size(0) == 30);
  refused([&] { cache.observe(cpu, 0, queries); }, "observe: slot must be before the last chunk of its prompt");
  cache.truncate(cpu, 0, 0);
  CHECK(cache.can_observe(0, queries).ok());
  refused([&] { prefill(cpu, cache, 0, given); }, "prefill: selector must be shown");
}
