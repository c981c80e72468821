// SPDX-License-Identifier: Apache-2.0
// InfLLM against its paper's words: representatives by the mean inner product with the queries after a token, relevance by their sum, over
// random lives; prompts without queries are refused, tokens without queries are counted; steps of one token or several; bad parameters.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"
#include "cases/selector_life.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::selector::infllm;
using infllm_cache = pqkv::pqcache<pqkv::dense_rows<float>, infllm>;
static_assert(pqkv::selector_for<infllm, pqkv::exec::host<>>);
const pqkv::exec::host<> cpu;

/// InfLLM by the paper. Representatives are chosen from all keys and queries when a query first finds a block whole in the middle.
struct plain_infllm {
  explicit plain_infllm(const infllm_cache::params& p)
      : settings(p.selector), lists(pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads)) {}

  void learned(const given_tokens& given, const plain_range& range, bool shown) {
    seen.assign(given.size(), shown ? 1 : 0);
    choose(given, range);
  }
  void asked(const given_tokens& given, const plain_range& range) {
    seen.resize(given.size(), 0);
    seen[range.position] = 1;
    choose(given, range);
  }
  void cut(std::size_t n, std::size_t middle_end) {
    seen.resize(std::min(seen.size(), n));
    chosen.resize(std::min(chosen.size(), middle_end / settings.block_tokens));
  }

  double dot(const given_tokens& given, std::size_t q, std::size_t position, std::size_t head, std::size_t t) const {
    double sum = 0;
    for (std::size_t i = 0; i < given.d; ++i)
      sum += static_cast<double>(given.query(q, position)[i]) * static_cast<double>(given.key(head, t)[i]);
    return sum;
  }
  /// Mean over the queries after a token, summed over the group; -infinity without any.
  double representative_score(const given_tokens& given, std::size_t head, std::size_t t, std::size_t newest, bool& any) const {
    double sum = 0;
    std::size_t count = 0;
    for (std::size_t j = t + 1; j <= newest && j <= t + settings.local_tokens; ++j) {
      if (seen[j] == 0) continue;
      ++count;
      for (std::size_t q = head * given.hq / given.h; q < (head + 1) * given.hq / given.h; ++q) sum += dot(given, q, j, head, t);
    }
    any |= count != 0;
    return count == 0 || !given.is_finite_key(head, t) ? -HUGE_VAL : sum / static_cast<double>(count);
  }
  void choose(const given_tokens& given, const plain_range& range) {
    while ((chosen.size() + 1) * settings.block_tokens <= range.end) {
      const std::size_t end = (chosen.size() + 1) * settings.block_tokens, begin = std::max(end - settings.block_tokens, range.begin);
      chosen.emplace_back();
      for (std::size_t head = 0; head < given.h; ++head) {
        std::vector<double> scores;
        bool any = begin >= end;
        for (std::size_t t = begin; t < end; ++t) scores.push_back(representative_score(given, head, t, range.position, any));
        chosen.back().push_back(plain_best(scores, begin, settings.representatives));
        blind += any ? 0 : 1;
      }
    }
  }
  double relevance(const given_tokens& given, std::size_t q, std::size_t head, std::size_t block, const plain_range& range) const {
    double sum = 0;
    std::size_t count = 0;
    for (const std::int32_t t : chosen[block][head])
      if (given.is_finite_key(head, static_cast<std::size_t>(t))) {
        sum += dot(given, q, range.position, head, static_cast<std::size_t>(t));
        ++count;
      }
    return count == 0 ? -HUGE_VAL : sum;
  }
  std::vector<std::int32_t> list(const given_tokens& given, std::size_t list, const plain_range& range) const {
    const std::size_t g = given.hq / lists, head = list * given.h / lists, first = range.begin / settings.block_tokens;
    const std::size_t end = std::max(range.begin, range.end - range.end % settings.block_tokens);
    const std::size_t newest = std::min(range.k, range.end - end);  // of tokens that fill no block yet
    std::vector<std::vector<double>> blocks(g);
    for (std::size_t q = 0; q < g; ++q)
      for (std::size_t block = first; block * settings.block_tokens < end && range.begin < end; ++block)
        blocks[q].push_back(relevance(given, list * g + q, head, block, range));
    std::vector<double> scores;
    if (range.begin < end) {
      const std::vector<double> reduced = plain_reduce(blocks, settings.reduction, 1);
      for (std::size_t t = range.begin; t < end; ++t) scores.push_back(reduced[t / settings.block_tokens - first]);
    }
    std::vector<std::int32_t> tokens = plain_best(scores, range.begin, range.k - newest);
    for (std::size_t t = range.end - newest; t < range.end; ++t) tokens.push_back(static_cast<std::int32_t>(t));
    return tokens;
  }

  infllm::params settings;
  std::size_t lists;
  std::vector<std::uint8_t> seen;                              // [n]
  std::vector<std::vector<std::vector<std::int32_t>>> chosen;  // [blocks][h] representatives
  std::uint64_t blind = 0;
};

/// A cache of 8 coordinates, one head, blocks of 4 tokens with 1 representative.
infllm_cache::params small_params(std::size_t sinks, std::size_t window, std::size_t retrieve) {
  auto p = cache_params<infllm_cache>(1, 1, 1, 8, 100, sinks, window, retrieve);
  p.selector.block_tokens = 4;
  p.selector.representatives = 1;
  return p;
}
/// Shows the queries of a prompt and takes it.
void take(infllm_cache& cache, std::size_t slot, const prompt& given, std::uint64_t seed) {
  const auto& p = cache.parameters();
  const auto queries = make_rows<float>(content::gaussian, given.keys.view().extent(1), p.query_heads, p.head_dim, seed);
  cache.observe(cpu, slot, queries.view());
  prefill(cpu, cache, slot, given);
}
}  // namespace

TEST_CASE("selector infllm: lists what the paper's words give, over random lives") {
  random_source random(0x1f11a);
  std::size_t listed = 0, failed = 0;
  for (std::size_t life = 0; life < 60; ++life) {
    auto p = random_life_params<infllm_cache>(random);
    const std::size_t blocks[] = {1, 4, 8, 11, 32};
    const group_reduction of_whole_numbers[] = {group_reduction::none, group_reduction::logit_sum, group_reduction::logit_max};
    p.selector.block_tokens = blocks[random.below(5)];
    p.selector.representatives = 1 + random.below(std::min<std::size_t>(p.selector.block_tokens, 5));
    p.selector.local_tokens = random.below(2) == 0 ? 1 + random.below(20) : 4096;
    p.selector.reduction = of_whole_numbers[random.below(3)];
    selector_life<infllm_cache, plain_infllm> one(p, random.bits());
    one.run(40);
    listed += one.listed, failed += one.failed;
  }
  CHECK(listed > 3000);
  CHECK(failed > 300);
}

TEST_CASE("selector infllm: the key that the queries after it look at represents its block") {
  infllm_cache cache(small_params(0, 4, 4));
  prompt given(1, 20, 8, 1);
  // Block 1 has a key along axis 0 and one along axis 1; block 2 has half a key along each. The prompt's queries look along axis 1.
  for (std::size_t t = 0; t < 20; ++t)
    for (std::size_t i = 0; i < 8; ++i)
      given.keys(0, t, i) = t == 5 && i == 0 ? 8.0f : t == 6 && i == 1 ? 4.0f : t == 9 && i < 2 ? 2.0f : 0.0f;
  std::vector<float> queries(20 * 8);
  for (std::size_t t = 0; t < 20; ++t) queries[t * 8 + 1] = 1.0f;
  cache.observe(cpu, 0, pqkv::make_view(std::as_const(queries).data(), 20, 1, 8));
  prefill(cpu, cache, 0, given);
  std::vector<float> query(8);
  query[1] = 1.0f;
  CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{4, 5, 6, 7});
  query = {1, 0, 0, 0, 0, 0, 0, 0};  // the key along axis 0 does not represent block 1
  CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{8, 9, 10, 11});
}

TEST_CASE("selector infllm: a prompt without all of its queries is refused, and can be given again") {
  infllm_cache cache(small_params(2, 4, 6));
  const prompt given(1, 30, 8, 1);
  const auto queries = make_rows<float>(content::gaussian, 30, 1, 8, 2);
  const auto take_it = [&] { prefill(cpu, cache, 0, given); };
  CHECK(unless_refused<pqkv::value_error>(take_it, "prefill: queries", 30, 0) == "");
  CHECK(cache.size(0) == 0);
  cache.observe(cpu, 0, queries.view().slice(0, 0, 29));
  CHECK(cache.selection().observed(0) == 29);
  CHECK(unless_refused<pqkv::value_error>(take_it, "prefill: queries", 30, 29) == "");
  cache.observe(cpu, 0, queries.view().slice(0, 29, 1));
  take_it();
  CHECK(cache.size(0) == 30);
  CHECK(ask(cpu, cache, random_query(cache, 1)).list(0).size() == 6);
  CHECK(cache.selection().blind_blocks(0) == 0);
  const auto later = [&] { cache.observe(cpu, 0, queries.view().slice(0, 0, 1)); };
  CHECK(unless_refused<pqkv::value_error>(later, "observe: slot", 0, 1) == "");
  cache.reset(0);
  CHECK(cache.selection().observed(0) == 0);
  const auto many = make_rows<float>(content::gaussian, 101, 1, 8, 2);
  cache.observe(cpu, 0, many.view().slice(0, 0, 90));
  CHECK(unless_refused<pqkv::capacity_error>([&] { cache.observe(cpu, 0, many.view().slice(0, 0, 11)); }, "observe: queries.extent(0)", 10,
                                             11) == "");
  CHECK(unless_refused<pqkv::value_error>(take_it, "prefill: queries", 30, 90) == "");
  const auto wide = make_rows<float>(content::gaussian, 3, 2, 8, 2);
  CHECK(unless_refused<pqkv::shape_error>([&] { cache.observe(cpu, 0, wide.view()); }, "observe: queries.extent(1)", 1, 2) == "");
}

TEST_CASE("selector infllm: blocks of tokens whose queries nobody asked are counted") {
  infllm_cache cache(small_params(0, 4, 4));
  take(cache, 0, prompt(1, 16, 8, 1), 2);
  for (std::uint64_t i = 0; i < 12; ++i) append_random(cpu, cache, i);
  CHECK(cache.selection().blind_blocks(0) == 0);
  ask(cpu, cache, random_query(cache, 3));  // finds blocks 3, 4 and 5; only its own query, of token 27, was seen behind them
  CHECK(cache.selection().blind_blocks(0) == 0);
  auto p = small_params(0, 4, 4);
  p.selector.local_tokens = 2;
  infllm_cache narrow(p);
  take(narrow, 0, prompt(1, 16, 8, 1), 2);
  for (std::uint64_t i = 0; i < 12; ++i) append_random(cpu, narrow, i);
  ask(cpu, narrow, random_query(narrow, 3));
  CHECK(narrow.selection().blind_blocks(0) == 2);  // blocks 4 and 5: behind token 12 of block 3 there are queries of the prompt
  narrow.truncate(cpu, 0, 0);
  CHECK(narrow.selection().blind_blocks(0) == 0);
}

TEST_CASE("selector infllm: several tokens in a step are the same as one after the other, and asking twice changes nothing") {
  auto p = cache_params<infllm_cache>(1, 2, 6, 16, 400, 4, 9, 40);
  p.selector.block_tokens = 16;
  infllm_cache single(p), several(p);
  p.step_queries = 3;
  infllm_cache parts(p);
  const pqkv::exec::host<pqkv::isa::best, threaded_runner> threads{};
  const prompt given(2, 150, 16, 1);
  for (infllm_cache* cache : {&single, &several, &parts}) take(*cache, 0, given, 2);
  random_source random(3);
  for (std::size_t turn = 0; turn < 12; ++turn) {
    const std::uint32_t count = 1 + static_cast<std::uint32_t>(random.below(19));
    const auto keys = make_rows<float>(content::gaussian, count, 2, 16, random.bits());
    const auto queries = make_rows<float>(content::gaussian, count, 6, 16, random.bits());
    std::vector<float> one(count * 6 * 16), all(one.size()), other(one.size());
    const auto out = [&](std::vector<float>& to, std::size_t first, std::size_t n) { return pqkv::make_view(&to[first * 96], n, 6, 16); };
    for (std::uint32_t t = 0; t < count; ++t) {
      single.append(cpu, keys.view().slice(0, t, 1), keys.view().slice(0, t, 1));
      ask(cpu, single, std::vector<float>(&queries.view()(t, 0, 0), &queries.view()(t, 0, 0) + 96));
      single.attend(cpu, queries.view().slice(0, t, 1), out(one, t, 1));
    }
    const pqkv::cache_step step{.counts = pqkv::make_view(&count, 1)};
    several.append(cpu, keys.view(), keys.view(), step), parts.append(cpu, keys.view(), keys.view(), step);
    several.attend(cpu, queries.view(), out(all, 0, count), {}, step);
    parts.attend(threads, queries.view(), out(other, 0, count), {}, step);
    REQUIRE(one == all);
    REQUIRE(one == other);
  }
  CHECK(single.selection().blind_blocks(0) == 0);
}

TEST_CASE("selector infllm: keys that are not finite represent nothing; a query head that is not finite contributes nothing") {
  for (std::size_t turn = 0; turn < 3; ++turn) {
    auto p = small_params(0, 4, 4);
    p.query_heads = 2;
    infllm_cache cache(p);
    prompt given(1, 20, 8, 1);
    for (std::size_t t = 0; t < 20; ++t)
      for (std::size_t i = 0; i < 8; ++i) given.keys(0, t, i) = t == 9 ? 9.0f : t / 4 == 2 ? 2.0f : t / 4 == 3 ? 5.0f : 1.0f;
    for (std::size_t t = 12; t < 16; ++t) given.keys(0, t, t % 8) = nonfinite(turn);
    given.keys(0, 9, 3) = nonfinite(turn);
    std::vector<float> queries(20 * 16, 1.0f);
    for (std::size_t t = 0; t < 20; ++t) queries[t * 16 + t % 16] = nonfinite(turn);
    cache.observe(cpu, 0, pqkv::make_view(std::as_const(queries).data(), 20, 2, 8));
    prefill(cpu, cache, 0, given);
    CHECK(cache.selection().blind_blocks(0) == 0);
    std::vector<float> query(16, 1.0f);
    CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{8, 9, 10, 11});
    query[3] = nonfinite(turn);
    CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{8, 9, 10, 11});
  }
}

TEST_CASE("selector infllm: unfinished block first, the last block that is taken is cut to its first tokens; what is read is counted") {
  auto p = small_params(2, 4, 6);
  infllm_cache cache(p);
  prompt given(1, 22, 8, 1);  // a middle of [2, 18): a part of block 0, blocks 1 to 3, two tokens of block 4
  for (std::size_t t = 0; t < 22; ++t)
    for (std::size_t i = 0; i < 8; ++i) given.keys(0, t, i) = t / 4 == 2 ? 3.0f : t / 4 == 0 ? 2.0f : t / 4 == 3 ? 1.5f : 1.0f;
  take(cache, 0, given, 2);
  const std::vector<float> query(8, 1.0f);
  CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{8, 9, 10, 11, 16, 17});
  CHECK(cache.statistics(0).index_bytes == 4 * 8 * 4);
  cache.truncate(cpu, 0, 21);
  CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{2, 8, 9, 10, 11, 16});
  cache.truncate(cpu, 0, 20);
  CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{2, 3, 8, 9, 10, 11});
  cache.truncate(cpu, 0, 6);
  CHECK(ask(cpu, cache, query).list(0).empty());
  CHECK(cache.statistics(0).selector_bytes == 0);
  p.budget.retrieve = 1;  // fewer than the unfinished block has
  infllm_cache short_of(p);
  take(short_of, 0, given, 2);
  CHECK(ask(cpu, short_of, query).list(0) == std::vector<std::int32_t>{17});
}

TEST_CASE("selector infllm: bad parameters are refused, and what it takes is planned") {
  const auto refused = [](auto change, const char* where, double expected, double got) {
    auto p = small_params(2, 4, 6);
    change(p.selector);
    return unless_refused<pqkv::value_error>([&] { infllm_cache cache(p); }, where, expected, got);
  };
  using params = infllm::params;
  CHECK(refused([](params& s) { s.block_tokens = 0; }, "pqcache: selector.block_tokens", 1, 0) == "");
  CHECK(refused([](params& s) { s.block_tokens = 4097; }, "pqcache: selector.block_tokens", 4096, 4097) == "");
  CHECK(refused([](params& s) { s.representatives = 0; }, "pqcache: selector.representatives", 1, 0) == "");
  CHECK(refused([](params& s) { s.representatives = 5; }, "pqcache: selector.representatives", 4, 5) == "");
  CHECK(refused([](params& s) { s = {.block_tokens = 128, .representatives = 65}; }, "pqcache: selector.representatives", 64, 65) == "");
  CHECK(refused([](params& s) { s.local_tokens = 0; }, "pqcache: selector.local_tokens", 1, 0) == "");
  CHECK(refused([](params& s) { s.local_tokens = 2147483648u; }, "pqcache: selector.local_tokens", 2147483647.0, 2147483648.0) == "");
  auto p = cache_params<infllm_cache>(3, 2, 4, 16, 100, 4, 10, 5);
  const std::size_t queries = 6 * 100 * (16 * 4 + 1);
  CHECK(infllm_cache::plan(p).index_bytes > queries);
  CHECK(infllm_cache::plan(p).index_bytes < queries + 4000);
}
