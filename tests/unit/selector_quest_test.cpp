// SPDX-License-Identifier: Apache-2.0
// Quest against its paper's words: the bounds of every page from all keys, in every step of random lives; pages of one token are the
// oracle's; what is read is counted; page boundaries, bad keys, bad parameters, saved slots.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"
#include "cases/selector_life.hpp"
#include "cases/slot_bytes.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::selector::quest;
using quest_cache = pqkv::pqcache<pqkv::dense_rows<float>, quest>;
static_assert(pqkv::selector_for<quest, pqkv::exec::host<>>);
const pqkv::exec::host<> cpu;

/// Quest by the paper: a page's bound is the sum over the coordinates of max(q min, q max) over its keys.
struct plain_quest {
  explicit plain_quest(const auto& p)
      : page(p.selector.page_tokens),
        lists(pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads)),
        reduction(p.selector.reduction) {}

  void learned(const given_tokens&, const plain_range&, bool) {}
  void asked(const given_tokens&, const plain_range&) {}
  void cut(std::size_t, std::size_t) {}

  double bound(const given_tokens& given, std::size_t head, const float* query, std::size_t begin, std::size_t end) const {
    double sum = 0;
    bool any = false;
    for (std::size_t i = 0; i < given.d; ++i) {
      double least = HUGE_VAL, most = -HUGE_VAL;
      for (std::size_t t = begin; t < end; ++t)
        if (given.is_finite_key(head, t)) {
          least = std::min(least, static_cast<double>(given.key(head, t)[i]));
          most = std::max(most, static_cast<double>(given.key(head, t)[i]));
          any = true;
        }
      if (any) sum += std::max(static_cast<double>(query[i]) * least, static_cast<double>(query[i]) * most);
    }
    return any ? sum : -HUGE_VAL;
  }
  /// The score of each token is its page's.
  std::vector<double> scores(const given_tokens& given, std::size_t list, const plain_range& range) const {
    const std::size_t g = given.hq / lists, head = list * given.h / lists;
    std::vector<std::vector<double>> pages(g);
    for (std::size_t q = 0; q < g; ++q)
      for (std::size_t p = range.begin / page; p * page < range.end; ++p)
        pages[q].push_back(bound(given, head, given.query(list * g + q, range.position), std::max(p * page, range.begin),
                                 std::min((p + 1) * page, range.end)));
    const std::vector<double> reduced = plain_reduce(pages, reduction, 1 / std::sqrt(static_cast<double>(given.d)));
    std::vector<double> all;
    for (std::size_t t = range.begin; t < range.end; ++t) all.push_back(reduced[t / page - range.begin / page]);
    return all;
  }
  std::vector<std::int32_t> list(const given_tokens& given, std::size_t list, const plain_range& range) const {
    return plain_best(scores(given, list, range), range.begin, range.k);
  }

  std::size_t page, lists;
  group_reduction reduction;
};

/// Of a prompt as a cache stores it.
given_tokens given_of(const prompt& one, const std::vector<float>& query, std::size_t hq) {
  const auto keys = one.keys.view();
  given_tokens given{keys.extent(0), hq, keys.extent(2), {}, {}};
  for (std::size_t t = 0; t < keys.extent(1); ++t) {
    for (std::size_t h = 0; h < given.h; ++h)
      for (std::size_t i = 0; i < given.d; ++i) given.keys.push_back(keys(h, t, i));
    given.queries.insert(given.queries.end(), query.begin(), query.end());
  }
  return given;
}
}  // namespace

TEST_CASE("selector quest: lists what the paper's words give, over random lives") {
  random_source random(0x9e57);
  using rounded_cache = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>, quest>;  // small whole numbers are not rounded
  std::size_t listed = 0, failed = 0;
  for (std::size_t life = 0; life < 60; ++life) {
    auto p = random_life_params<rounded_cache>(random);
    const std::size_t pages[] = {1, 3, 4, 8, 16, 100};
    const group_reduction of_whole_numbers[] = {group_reduction::none, group_reduction::logit_sum, group_reduction::logit_max};
    p.selector.page_tokens = pages[random.below(6)];
    p.selector.reduction = of_whole_numbers[random.below(3)];
    if (p.query_heads == p.kv_heads && random.below(2) == 0) p.selector.reduction = group_reduction::probability_sum;
    selector_life<rounded_cache, plain_quest> one(p, random.bits());
    one.run(40);
    listed += one.listed, failed += one.failed;
  }
  CHECK(listed > 3000);
  CHECK(failed > 300);
}

TEST_CASE("selector quest: every reduction, at page boundaries and for every k") {
  for (const group_reduction reduction : every_reduction)
    for (const std::size_t middle : {1u, 15u, 16u, 17u, 31u, 32u, 33u, 130u})
      for (const std::size_t sinks : {0u, 5u, 16u})
        for (const std::size_t k : {std::size_t{1}, middle / 3, middle - 1}) {
          auto p = cache_params<quest_cache>(1, 2, 6, 16, 200, sinks, 7, k);
          p.selector.reduction = reduction;
          const prompt given(2, sinks + middle + 7, 16, middle + k);
          quest_cache cache(p);
          prefill(cpu, cache, 0, given);
          const std::vector<float> query = random_query(cache, k);
          const reply r = ask(cpu, cache, query);
          const given_tokens all = given_of(given, query, 6);
          const plain_quest plain(p);
          for (std::size_t list = 0; list < cache.lists(); ++list) {
            const std::vector<std::int32_t> got = r.list(list);
            REQUIRE(got.size() == std::min(k, middle));
            REQUIRE(std::is_sorted(got.begin(), got.end()));
            if (got.empty() || k >= middle) continue;
            const auto scores = plain.scores(all, list, {sinks, sinks + middle, k, all.size() - 1});
            std::vector<double> sorted = scores;
            std::sort(sorted.begin(), sorted.end(), std::greater<double>());
            const double threshold = sorted[k - 1], slack = 1e-5 * (std::fabs(threshold) + std::fabs(sorted[0]));
            std::vector<bool> in(middle);
            for (const std::int32_t t : got) in[static_cast<std::size_t>(t) - sinks] = true;
            for (std::size_t t = 0; t < middle; ++t) REQUIRE((in[t] ? scores[t] >= threshold - slack : scores[t] <= threshold + slack));
          }
        }
}

TEST_CASE("selector quest: with pages of one token it is the oracle") {
  using oracle_cache = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>;
  auto p = cache_params<quest_cache>(2, 2, 6, 16, 200, 4, 9, 30);
  auto q = cache_params<oracle_cache>(2, 2, 6, 16, 200, 4, 9, 30);
  p.selector.page_tokens = 1;
  quest_cache pages(p);
  oracle_cache exact(q);
  const pqkv::exec::host<pqkv::isa::best, threaded_runner> threads{};
  for (std::size_t slot = 0; slot < 2; ++slot) {
    const prompt given(2, 100 + 60 * slot, 16, slot);
    prefill(cpu, pages, slot, given), prefill(cpu, exact, slot, given);
  }
  for (std::uint64_t step = 0; step < 10; ++step) {
    append_random(threads, pages, step), append_random(cpu, exact, step);
    const std::vector<float> query = random_query(pages, step);
    REQUIRE(ask(threads, pages, query).indices == ask(cpu, exact, query).indices);
  }
}

TEST_CASE("selector quest: the page at the threshold is cut to its first tokens, and equal pages to the earlier one") {
  auto p = cache_params<quest_cache>(1, 1, 1, 8, 100, 0, 4, 6);
  p.selector.page_tokens = 4;
  quest_cache cache(p);
  prompt given(1, 20, 8, 1);
  for (std::size_t t = 0; t < 20; ++t)
    for (std::size_t i = 0; i < 8; ++i) given.keys(0, t, i) = t / 4 == 2 ? 2.0f : 1.0f;
  prefill(cpu, cache, 0, given);
  CHECK(ask(cpu, cache, std::vector<float>(8, 1.0f)).list(0) == std::vector<std::int32_t>{0, 1, 8, 9, 10, 11});
  CHECK(ask(cpu, cache, std::vector<float>(8, -1.0f)).list(0) == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("selector quest: no page keeps a bound of tokens that were cut off") {
  auto p = cache_params<quest_cache>(1, 1, 1, 8, 100, 0, 4, 4);
  p.selector.page_tokens = 4;
  quest_cache cache(p);
  prompt given(1, 24, 8, 1, content::gaussian);
  for (std::size_t t = 0; t < 24; ++t)
    for (std::size_t i = 0; i < 8; ++i) given.keys(0, t, i) = t == 10 ? 50.0f : t / 4 == 1 ? 2.0f : 1.0f;
  prefill(cpu, cache, 0, given);
  const std::vector<float> query(8, 1.0f);
  CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{8, 9, 10, 11});
  cache.truncate(cpu, 0, 10);  // token 10 was the page's largest
  const std::vector<float> low(8, 1.0f);
  for (std::size_t t = 0; t < 14; ++t) cache.append(cpu, pqkv::make_view(low.data(), 1, 1, 8), pqkv::make_view(low.data(), 1, 1, 8));
  CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{4, 5, 6, 7});
}

TEST_CASE("selector quest: a page of keys that are not finite comes last; a query head that is not finite contributes nothing") {
  for (std::size_t turn = 0; turn < 3; ++turn) {
    auto p = cache_params<quest_cache>(1, 1, 2, 8, 100, 0, 4, 4);
    p.selector.page_tokens = 4;
    quest_cache cache(p);
    prompt given(1, 20, 8, 1);
    for (std::size_t t = 0; t < 20; ++t)
      for (std::size_t i = 0; i < 8; ++i) given.keys(0, t, i) = t / 4 == 2 ? 2.0f : t / 4 == 3 ? 5.0f : 1.0f;
    for (std::size_t t = 12; t < 16; ++t) given.keys(0, t, t % 8) = nonfinite(turn);
    given.keys(0, 9, 3) = nonfinite(turn);
    prefill(cpu, cache, 0, given);
    std::vector<float> query(16, 1.0f);
    CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{8, 9, 10, 11});
    query[3] = nonfinite(turn);
    CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{8, 9, 10, 11});
    CHECK(cache.statistics(0).nonfinite_queries == 2);  // retrieve() and attend()
  }
}

TEST_CASE("selector quest: counts the bounds of whole pages and the keys of parts of pages") {
  const auto read = [](std::size_t sinks, std::size_t n, std::size_t page) {
    auto p = cache_params<quest_cache>(1, 2, 4, 16, 300, sinks, 10, 5);
    p.selector.page_tokens = page;
    quest_cache cache(p);
    prefill(cpu, cache, 0, prompt(2, n, 16, 1));
    ask(cpu, cache, random_query(cache, 1));
    return pqkv::selector::traffic{cache.statistics(0).index_bytes, cache.statistics(0).selector_bytes};
  };
  const std::size_t bounds = 2 * 2 * 16 * 4, key = 2 * 16 * 4;  // of both heads
  const auto is = [](pqkv::selector::traffic got, std::size_t index, std::size_t keys) {
    return got.index_bytes == index && got.selector_bytes == keys;
  };
  CHECK(is(read(0, 10 + 160, 16), 10 * bounds, 0));
  CHECK(is(read(4, 10 + 160, 16), 9 * bounds, 12 * key));
  CHECK(is(read(4, 10 + 163, 16), 9 * bounds, 15 * key));
  CHECK(is(read(4, 10 + 14, 16), 0, 10 * key));        // one page, cut on both sides
  CHECK(is(read(4, 10 + 20, 16), 0, (12 + 4) * key));  // two parts
  CHECK(is(read(0, 10 + 20, 1), 20 * bounds, 0));
}

TEST_CASE("selector quest: nothing is ranked without a middle, for k = 0, or where k is the whole middle") {
  for (const std::size_t k : {0u, 20u, 21u}) {
    quest_cache cache(cache_params<quest_cache>(1, 1, 1, 8, 100, 4, 10, k));
    prefill(cpu, cache, 0, prompt(1, 34, 8, 1));
    CHECK(ask(cpu, cache, random_query(cache, 1)).list(0).size() == (k == 0 ? 0 : 20));
    CHECK(cache.statistics(0).index_bytes + cache.statistics(0).selector_bytes == 0);
    cache.truncate(cpu, 0, 1);
    CHECK(ask(cpu, cache, random_query(cache, 1)).list(0).empty());
  }
}

TEST_CASE("selector quest: a saved slot selects the same tokens in another cache") {
  auto p = cache_params<quest_cache>(2, 2, 4, 16, 300, 4, 10, 30);
  quest_cache cache(p), other(p);
  prefill(cpu, cache, 1, prompt(2, 150, 16, 1));
  for (std::uint64_t i = 0; i < 9; ++i) append_random(cpu, cache, i, {0, 1});
  const auto file = saved(cpu, cache, 1);
  load(cpu, other, 1, file, pqkv::slot_contents::index_and_rows, 1000);
  for (std::uint64_t i = 0; i < 20; ++i) {
    CHECK(ask(cpu, cache, random_query(cache, i), {0, 1}) == ask(cpu, other, random_query(cache, i), {0, 1}));
    append_random(cpu, cache, i, {0, 1}), append_random(cpu, other, i, {0, 1});
  }
  p.selector.page_tokens = 8;
  quest_cache smaller(p);
  CHECK(unless_refused<pqkv::value_error>([&] { load(cpu, smaller, 0, file, pqkv::slot_contents::index_and_rows, 1000); },
                                          "load: file.selector.subspaces", 8, 16) == "");
}

TEST_CASE("selector quest: bad parameters are refused, and what it takes is planned") {
  auto p = cache_params<quest_cache>(3, 2, 4, 16, 100, 4, 10, 5);
  // 6 pages of 16 tokens for each of 6 heads, in whole bytes a token; queries, rows of parts, scores, ranges, and a list of 8 pages
  const std::size_t lines = 6 * 100 * 8 + 12 * 32 * 4 + 6 * 2 * 32 * 4 + 6 * 8 * 4 + 6 * 12 + 8 * 4;
  CHECK(quest_cache::plan(p).index_bytes >= lines);
  CHECK(quest_cache::plan(p).index_bytes < lines + 6 * 64);
  p.selector.page_tokens = 0;
  CHECK(unless_refused<pqkv::value_error>([&] { quest_cache cache(p); }, "pqcache: selector.page_tokens", 1, 0) == "");
  p.selector.page_tokens = 4097;
  CHECK(unless_refused<pqkv::value_error>([&] { quest_cache cache(p); }, "pqcache: selector.page_tokens", 4096, 4097) == "");
  p.selector.page_tokens = 4096;  // more than the capacity: every page is a part
  quest_cache cache(p);
  prefill(cpu, cache, 0, prompt(2, 90, 16, 1));
  CHECK(ask(cpu, cache, random_query(cache, 1)).list(0) == std::vector<std::int32_t>{4, 5, 6, 7, 8});
}
