// SPDX-License-Identifier: Apache-2.0
// What a cache says of itself: where its slots stand by every question that it answers, for the host directly and through a policy, the
// ranges of the next query, and lists of retrieve() that go on to attention() as they are.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
using cache_type = pqkv::pqcache<>;
const pqkv::exec::host<> cpu;
}  // namespace

TEST_CASE("pqcache state: every question has the plain model's answer while slots grow and shrink") {
  auto p = pq_params(2, 2, 4, 32, 300, 4, 16, 20);
  p.budget = {.ratio = 0.2, .min_tokens = 20, .sinks = 3};
  cache_type cache(p);
  CHECK(cache.parameters().capacity == 300);
  CHECK(cache.lists() == 2);
  slot_model<float> models[] = {{2, 32, p.budget}, {2, 32, p.budget}};
  const auto token = make_rows<float>(content::gaussian, 1, 2, 32, 1);
  for (std::uint32_t step = 0; step < 260; ++step) {
    const std::uint32_t slot = step % 3 == 0 ? 1 : 0;
    const pqkv::cache_step one{.slots = pqkv::make_view(&slot, 1)};
    cache.append(cpu, token.view(), token.view(), one);
    const pqkv::view<const float, 3> row{token.view().data, {2, 1, 32}, {32, 0, 1}};
    models[slot].add(row, row);
    models[slot].commit();
    for (std::size_t s = 0; s < 2; ++s) {
      REQUIRE(cache.size(s) == models[s].size());
      REQUIRE(cache.size(cpu, s) == models[s].size());
      REQUIRE(cache.at(s).n == cache.at(cpu, s).n);
      REQUIRE(cache.middle(s).begin == models[s].first());
      REQUIRE(cache.middle(cpu, s).end == models[s].window_begin());
      REQUIRE(cache.budget(s).retrieve == models[s].budget().retrieve);
      REQUIRE(cache.budget(cpu, s).window == models[s].budget().window);
      REQUIRE(cache.statistics(s).steps == cache.statistics(cpu, s).steps);
      // Untrained: all is taken whole.
      const pqkv::query_plan next = cache.plan_query(s);
      REQUIRE(pqkv::attended_tokens_of(next.span) == models[s].size());
      REQUIRE(next.range.size() == 0);
      REQUIRE(cache.retrieve_capacity(s) == models[s].middle_size());
    }
  }
}

TEST_CASE("pqcache state: an engine that attends by itself gets the ranges and the lists that attend() uses") {
  auto p = pq_params(1, 2, 4, 32, 400, 4, 16, 20);
  p.selector.axes = pqkv::axis_order::contiguous;  // so that the query needs no order before it meets the codebook
  p.selector.over = pqkv::selector::normalisation::middle;  // as retrieve() below
  cache_type cache(p);
  prefill(cpu, cache, 0, prompt(2, 300, 32, 3));
  for (std::uint64_t step = 0; step < 30; ++step) append_random(cpu, cache, step);
  const std::vector<float> query = random_query(cache, 9);
  const reply r = ask(cpu, cache, query);
  const pqkv::query_plan plan = cache.plan_query(0);
  CHECK(plan.span.leading == 4);
  CHECK(plan.span.window_begin == 330 - 16);
  CHECK(plan.span.window_end == 330);
  CHECK(plan.range.begin == 4);
  CHECK(plan.range.end == 330 - 16);
  CHECK(plan.range.selected() == 20);

  // The same by the parts: table, lists, attention.
  const auto index = cache.selection().index();
  pqkv::distance_table table(4, {2, 32, 2, 4});
  const std::vector<pqkv::middle_range> ranges(2, plan.range);
  const std::vector<pqkv::token_span> spans(2, plan.span);
  std::vector<std::int32_t> indices(2 * 20);
  std::vector<std::uint32_t> counts(2);
  std::vector<float> out(4 * 32);
  const pqkv::token_lists<> lists{pqkv::make_view(indices, 2, 20), pqkv::make_view(counts)};
  pqkv::inner_product_table(cpu, pqkv::make_view(query, 4, 32), index.book, table.mutable_view());
  pqkv::retrieve(cpu, table.view(), pqkv::as_const(index.codes), index.index, pqkv::make_view(ranges), lists, {.head_dim = 32});
  pqkv::attention(cpu, pqkv::make_view(query, 4, 32), cache.store(), pqkv::token_set<>::of(pqkv::make_view(spans), lists),
                  pqkv::make_view(out, 4, 32));
  for (std::size_t h = 0; h < 2; ++h)
    CHECK(r.list(h) == std::vector<std::int32_t>(indices.begin() + static_cast<std::ptrdiff_t>(h * 20),
                                                 indices.begin() + static_cast<std::ptrdiff_t>(h * 20 + 20)));
  CHECK(out == r.out);
}

TEST_CASE("pqcache state: a step of an empty list names no slot") {
  cache_type cache(pq_params(2, 1, 1, 16, 100, 2, 4, 8));
  const std::vector<std::uint32_t> none;
  const pqkv::cache_step nobody{.slots = pqkv::make_view(none)}, nothing{.slots = pqkv::make_view(none), .counts = pqkv::make_view(none)};
  const float unread = 1;
  const auto rows = pqkv::make_view(&unread, 0, 1, 16);
  for (const pqkv::cache_step& step : {nobody, nothing}) {
    cache.append(cpu, rows, rows, step);
    float unwritten = 7;
    cache.attend(cpu, rows, pqkv::make_view(&unwritten, 0, 1, 16), {}, step);
    CHECK(unwritten == 7);
  }
  CHECK(cache.size(0) + cache.size(1) == 0);
  CHECK_FALSE(cache.can_append(rows, rows).ok());  // without a step both slots want a token
}
