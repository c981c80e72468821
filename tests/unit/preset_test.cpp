// SPDX-License-Identifier: Apache-2.0
// The presets. The paper's: what it sets, and that a cache made from it trains on all rows, by the overlap rule, and keeps its budget. The
// accurate one: its bytes are those of 16-bit rows, and its axes follow the queries that it is shown.
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>

#include "cases/cache_driver.hpp"

namespace {
using namespace pqkv_cases;
const pqkv::exec::host<> cpu;
const pqkv::cache_shape shape{.batch = 1, .kv_heads = 2, .query_heads = 4, .head_dim = 32, .capacity = 9000};
}  // namespace

TEST_CASE("preset paper: half of the budget to the window, frozen, all rows, 3 to 300 iterations") {
  const auto p = pqkv::preset::paper(shape, 0.2, {.b1 = 1e-3, .a2 = 1e-3});
  CHECK(p.capacity == 9000);
  CHECK(p.budget.ratio == 0.2);
  CHECK(p.budget.window_share == 0.5);
  CHECK(p.budget.growth == pqkv::budget_growth::frozen_at_prompt);
  CHECK(p.selector.train.rows_per_centroid == 0);
  CHECK(p.selector.overlap_most == 300);
  CHECK(p.selector.refresh == 0);
  CHECK(p.selector.subspaces == 2);
  CHECK(p.selector.bits == 6);
}

TEST_CASE("preset paper: a cache trains for as long as the model's layer takes, and keeps the prompt's budget") {
  const auto iterations = [&](double layer_seconds, std::size_t n) {
    auto p = pqkv::preset::paper(shape, 0.2, {.b1 = 1e-3, .a2 = layer_seconds});
    p.selector.bits = 4;
    pqkv::pqcache<> cache(p);
    CHECK(cache.selection().iterations(0) == 0);
    prefill(cpu, cache, 0, prompt(2, n, 32, 1));
    const auto before = cache.budget(0);
    for (std::uint64_t step = 0; step < 30; ++step) append_random(cpu, cache, step);
    CHECK(cache.budget(0).retrieve == before.retrieve);
    CHECK(cache.budget(0).window == before.window);
    return cache.selection().iterations(0);
  };
  // The sinks are left out: 168 and 8168 training rows, all of them, each 1e-3 s an iteration.
  CHECK(iterations(0.168 * 7.5, 200) == 7);
  CHECK(iterations(0, 200) == 3);
  CHECK(iterations(1e9, 200) == 300);
  CHECK(iterations(8.168 * 4.5, 8200) == 4);  // a sample of 256 * 16 rows would say 8
}

TEST_CASE("preset accurate: as many bytes as 16-bit rows of the share, and axes by the prompt's queries") {
  const auto p = pqkv::preset::accurate(shape, 0.1);
  pqkv::pqcache<pqkv::quantized_rows<>> cache(p);
  CHECK(p.budget.ratio == doctest::Approx(0.1 * 4 * 32 / static_cast<double>(pqkv::quantized_rows<>::token_bytes(32))));
  std::vector<float> query(4 * 32), out(query.size());
  random_source random(3);
  for (float& x : query) x = random.gaussian();
  cache.observe(cpu, 0, pqkv::make_view(std::as_const(query).data(), 1, 4, 32));
  const prompt of(2, 4000, 32, 1);
  cache.prefill(cpu, 0, pqkv::as_const(of.keys.view()), pqkv::as_const(of.values.view()));
  CHECK(cache.selection().weighted_heads(0) == 2);
  CHECK(cache.selection().index().book.subspaces() == 8);
  CHECK(cache.statistics(0).trainings == 1);
  cache.attend(cpu, pqkv::make_view(std::as_const(query).data(), 1, 4, 32), pqkv::make_view(out.data(), 1, 4, 32));
  CHECK(pqkv::preset::accurate<pqkv::dense_rows<pqkv::bfloat16>>(shape, 0.1).budget.ratio == 0.1);
}

TEST_CASE("preset paper: an overlap model by which clustering costs nothing is refused by name") {
  CHECK_THROWS_WITH_AS(pqkv::pqcache<>(pqkv::preset::paper(shape, 0.2, {})),
                       "pqkv::pqcache: selector.overlap.b1 must be above 0 (seconds per row and iteration), got 0", pqkv::value_error);
  auto p = pqkv::preset::paper(shape, 0.2, {.b1 = 1});
  p.selector.overlap_most = 2;
  CHECK_THROWS_WITH_AS(pqkv::pqcache<>{p}, "pqkv::pqcache: selector.overlap_most must be at least 3 (L of the overlap rule), got 2",
                       pqkv::value_error);
}
