// SPDX-License-Identifier: Apache-2.0
// draft_selection::first_query: the queries of a row attend to the list of its first one and to all tokens since the window of
// then; rows of one token, untrained slots and passes of few queries as they should.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
const pqkv::exec::host<> cpu;

struct answer {
  std::vector<float> out;
  std::vector<std::int32_t> indices;
  std::vector<std::uint32_t> counts;
  std::vector<std::int32_t> list(std::size_t row, std::size_t k) const {
    const auto first = indices.begin() + static_cast<std::ptrdiff_t>(row * k);
    return {first, first + static_cast<std::ptrdiff_t>(counts[row])};
  }
};

answer ask_rows(pqkv::pqcache<>& cache, const pqkv::cache_step& step, const std::vector<float>& query, std::size_t tokens, std::size_t k) {
  const auto& p = cache.parameters();
  answer a{std::vector<float>(query.size(), 7.0f), std::vector<std::int32_t>(tokens * cache.lists() * k, -7),
           std::vector<std::uint32_t>(tokens * cache.lists(), 99)};
  const auto q = pqkv::make_view(query, tokens, p.query_heads, p.head_dim);
  cache.retrieve(cpu, q, pqkv::make_view(a.indices, tokens, cache.lists(), k), pqkv::make_view(a.counts, tokens, cache.lists()), step);
  cache.attend(cpu, q, pqkv::make_view(a.out, tokens, p.query_heads, p.head_dim), {}, step);
  return a;
}
}  // namespace

TEST_CASE("draft selection: a row shares the first query's list, the others' queries do not matter to it") {
  for (const std::size_t at_once : {0u, 2u, 16u}) {
    auto p = pq_params(2, 2, 4, 32, 400, 4, 16, 20);
    p.selection = pqkv::draft_selection::first_query;
    p.step_queries = at_once;
    auto q = p;
    q.selection = pqkv::draft_selection::each_query;
    pqkv::pqcache<> shared(p), each(q);
    slot_model<float> model(2, 32, p.budget);
    for (auto* cache : {&shared, &each})
      for (const std::size_t slot : {0u, 1u}) prefill(cpu, *cache, slot, prompt(2, 200, 32, slot));
    const std::uint32_t slots[] = {1, 0}, counts[] = {5, 1};
    const pqkv::cache_step step{.slots = pqkv::make_view(slots, 2), .counts = pqkv::make_view(counts, 2)};
    const auto keys = make_rows<float>(content::gaussian, 6, 2, 32, 40);
    for (auto* cache : {&shared, &each}) cache->append(cpu, keys.view(), keys.view(), step);
    random_source random(5);
    std::vector<float> query(6 * 4 * 32);
    for (float& x : query) x = 2 * random.gaussian();
    const answer own = ask_rows(each, step, query, 6, 20), all = ask_rows(shared, step, query, 6, 20);
    const std::size_t most = p.queries_at_once();
    for (std::size_t t = 0; t < 5; ++t) {
      const std::size_t leader = t / most * most;  // of its pass
      for (std::size_t list = 0; list < 2; ++list) {
        CHECK(all.list(t * 2 + list, 20) == all.list(leader * 2 + list, 20));
        if (t == 0) CHECK(all.list(list, 20) == own.list(list, 20));
      }
    }
    for (std::size_t list = 0; list < 2; ++list) CHECK(all.list(5 * 2 + list, 20) == own.list(5 * 2 + list, 20));
    // Attention over sinks, the list, and everything since the first query's window.
    const auto stored = shared.store();
    model.add(stored.keys.slice(0, 2, 2).slice(1, 0, 205), stored.values.slice(0, 2, 2).slice(1, 0, 205));
    for (std::size_t t = 0; t < 5; ++t)
      for (std::size_t h = 0; h < 4; ++h) {
        std::vector<std::size_t> tokens;
        for (std::size_t i = 0; i < 4; ++i) tokens.push_back(i);
        for (const std::int32_t i : all.list(t * 2 + h / 2, 20)) tokens.push_back(static_cast<std::size_t>(i));
        for (std::size_t i = 201 - 16; i < 201 + t; ++i) tokens.push_back(i);
        const pqkv::strided_store<float> store{stored.keys.slice(0, 2, 2), stored.values.slice(0, 2, 2)};
        const plain_result exact = plain_attention(query.data() + (t * 4 + h) * 32, store, h / 2, tokens);
        CHECK(relative_error(all.out.data() + (t * 4 + h) * 32, exact.out) < 1e-5);
      }
  }
}

TEST_CASE("draft selection: without a codebook a row's queries attend to everything up to their own") {
  auto p = pq_params(1, 1, 2, 16, 100, 2, 4, 8);
  p.selection = pqkv::draft_selection::first_query;
  auto q = p;
  q.selection = pqkv::draft_selection::each_query;
  pqkv::pqcache<> shared(p), each(q);
  const std::uint32_t counts[] = {9};
  const pqkv::cache_step step{.counts = pqkv::make_view(counts, 1)};
  const auto keys = make_rows<float>(content::gaussian, 9, 1, 16, 40);
  std::vector<float> query(9 * 2 * 16, 0.5f);
  for (auto* cache : {&shared, &each}) cache->append(cpu, keys.view(), keys.view(), step);
  const answer a = ask_rows(shared, step, query, 9, 20), b = ask_rows(each, step, query, 9, 20);
  CHECK(a.out == b.out);
  // What is listed are middle tokens of the first query's length: it had none yet, the others attend to theirs as part of the window.
  CHECK(a.counts == std::vector<std::uint32_t>(9, 0));
  CHECK(b.counts == std::vector<std::uint32_t>{0, 0, 0, 0, 0, 0, 1, 2, 3});
}
