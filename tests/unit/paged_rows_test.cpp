// SPDX-License-Identifier: Apache-2.0
// A cache in an engine's pages selects and attends as one with rows of its own, to the bit: pages of any size and layout, shuffled,
// shared by forks, written by the cache or by the engine, on the host and on the backend that queues. And what it refuses.
#include <doctest/doctest.h>

#include "cases/paged_twins.hpp"
#include "cases/queued_backend.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::search_path;
const pqkv::exec::host<> cpu;

template <class Twins>
void live(Twins& twins, std::size_t batch, std::size_t capacity, std::size_t events, random_source& random) {
  for (std::size_t slot = 0; slot < batch; ++slot) twins.prefill(slot, 1 + random.below(capacity - 30));
  for (std::size_t event = 0; event < events; ++event) {
    CAPTURE(event);
    const std::size_t slot = random.below(batch), other = random.below(batch);
    switch (random.below(12)) {
      case 0:
        twins.fork(slot, other);
        break;
      case 1:
        twins.maintain();
        break;
      case 2:
        if (twins.size(slot) + 20 > capacity || twins.size(slot) == 0) twins.prefill(slot, 1 + random.below(capacity - 1));
        break;
      case 3:
        twins.truncate(slot, twins.size(slot) - random.below(1 + twins.size(slot) / (1 + random.below(6))));
        break;
      case 4:
        twins.reset(slot);
        break;
      default:
        twins.step(7);
    }
  }
}

template <class Selector>
typename pqkv::pqcache<pqkv::dense_rows<float>, Selector>::params shape_of(random_source& random) {
  typename pqkv::pqcache<pqkv::dense_rows<float>, Selector>::params p;
  p.batch = 3, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 100 + random.below(100);
  p.step_queries = random.below(2) == 0 ? 0 : 5;
  p.selection = static_cast<pqkv::draft_selection>(random.below(4) == 0);
  p.budget.sinks = random.below(6), p.budget.window = 4 + random.below(12), p.budget.retrieve = 5 + random.below(20);
  if constexpr (requires { p.selector.train; }) {
    p.selector.subspaces = std::size_t{1} << random.below(3);
    p.selector.bits = 4;
    p.selector.train.iterations = 2;
    p.selector.train.seed = random.bits();
    const std::size_t samples[] = {0, 2, 5, 256};  // rows a centroid: a prompt's sample is all of it, or a part
    p.selector.train.rows_per_centroid = samples[random.below(4)];
    p.selector.tail_tokens = 1 + random.below(30);
    p.selector.path = static_cast<search_path>(random.below(3));
    p.selector.metric = static_cast<pqkv::key_metric>(random.below(3) == 0);
    if (p.selector.subspaces == 4) p.selector.path = search_path::automatic;
  }
  return p;
}

/// Every layout once.
template <class T, class HostSelector, class Selector, class Policy>
void lives(const Policy& policy, std::uint64_t seed, std::size_t fine = 0) {
  random_source random(seed);
  std::size_t checked = 0, ranked = 0, shared = 0;
  for (const std::size_t page_tokens : {1u, 3u, 16u, 64u})
    for (const bool heads_first : {false, true})
      for (const bool together : {false, true}) {
        CAPTURE(page_tokens);
        CAPTURE(heads_first);
        CAPTURE(together);
        typename pqkv::pqcache<pqkv::dense_rows<T>, HostSelector>::params p;
        const auto drawn = shape_of<HostSelector>(random);
        static_cast<pqkv::cache_shape&>(p) = drawn;
        p.budget = drawn.budget, p.selector = drawn.selector;
        if constexpr (requires { p.selector.residual; })
          if (fine != 0) p.selector.residual = {.subspaces = fine, .bits = 4, .shortlist = 3};
        const content what = every_content[random.below(3)];
        const std::uint64_t own = random.bits();
        paged_twins<T, Policy, HostSelector, Selector> twins(policy, p, {page_tokens, heads_first, together}, what, own);
        live(twins, p.batch, p.capacity, 40, random);
        pqkv::sync(policy);  // what is pending must run before its memory goes
        checked += twins.checked, ranked += twins.ranked, shared += twins.shared;
      }
  MESSAGE("steps checked ", checked, ", with a ranked list ", ranked, ", pages shared at forks ", shared);
  CHECK(shared > 0);
  CHECK(checked > 200);
}

using pq = pqkv::selector::basic_pq<>;
using device_pq = pqkv::selector::basic_pq<pqkv::space::device>;
using cache_type = pqkv::pqcache<pqkv::paged_rows<float>>;

cache_type::params small(const engine_pages<float, pqkv::exec::host<>>& pages, const pqkv::cache_shape& shape) {
  cache_type::params p;
  static_cast<pqkv::cache_shape&>(p) = shape;
  p.budget.sinks = 4, p.budget.window = 8, p.budget.retrieve = 10;
  p.selector.bits = 4;
  p.rows = pages.params();
  return p;
}
constexpr pqkv::cache_shape small_shape{.batch = 2, .kv_heads = 2, .query_heads = 4, .head_dim = 16, .capacity = 50};
}  // namespace

TEST_CASE("paged rows: random lives equal rows of the cache's own, float") { lives<float, pq, pq>(cpu, 31); }
TEST_CASE("paged rows: random lives equal rows of the cache's own, bfloat16") { lives<pqkv::bfloat16, pq, pq>(cpu, 32); }
TEST_CASE("paged rows: a second stage") { lives<float, pq, pq>(cpu, 33, 4); }
TEST_CASE("paged rows: dense attention and exact scores") {
  lives<pqkv::half, pqkv::selector::full, pqkv::selector::full>(cpu, 34);
  lives<float, pqkv::selector::oracle, pqkv::selector::oracle>(cpu, 35);
}
TEST_CASE("paged rows: on the backend that queues") {
  queue q;
  lives<float, pq, device_pq>(queued_policy{&q}, 36);
  lives<pqkv::bfloat16, pq, device_pq>(queued_policy{&q}, 37);
}
TEST_CASE("paged rows: a prompt that is encoded in several runs, trained on a sample") {
  for (const std::size_t fine : {0u, 4u}) {
    pqkv::pqcache<>::params p;
    p.batch = 2, p.kv_heads = 1, p.query_heads = 2, p.head_dim = 16, p.capacity = 9100;
    p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 100;
    p.selector.bits = 4, p.selector.train.iterations = 2;
    if (fine != 0) p.selector.residual = {.subspaces = fine, .bits = 4, .shortlist = 3};
    paged_twins<float, pqkv::exec::host<>, pq, pq> twins(cpu, p, {16, false, true}, content::clustered, 8);
    twins.prefill(1, 9000);
    for (int i = 0; i < 5; ++i) twins.step(9);
    CHECK(twins.ranked > 0);
    if (fine != 0) continue;
    queue q;
    paged_twins<float, queued_policy, pq, device_pq> queued(queued_policy{&q}, p, {16, true, false}, content::clustered, 9);
    queued.prefill(0, 9000);
    for (int i = 0; i < 5; ++i) queued.step(9);
    CHECK(queued.ranked > 0);
  }
}

TEST_CASE("paged rows: what no cache can be made of") {
  const engine_pages<float, pqkv::exec::host<>> pages(cpu, small_shape, {16, false, false}, 1);
  const auto good = small(pages, small_shape);
  CHECK(cache_type::can_construct(good).ok());
  const auto refused = [](const cache_type::params& p, const std::string& where, double expected, double got, auto error) {
    CHECK_FALSE(cache_type::can_construct(p).ok());
    CHECK(unless_refused<decltype(error)>([&] { cache_type(cpu, p); }, "pqcache: " + where, expected, got) == "");
  };
  const pqkv::value_error value("");
  const pqkv::shape_error shape("");
  auto p = good;
  p.rows.keys = nullptr;
  refused(p, "rows.keys, rows.values", 2, 1, value);
  p.rows.values = nullptr;
  refused(p, "rows.keys, rows.values", 2, 0, value);
  p = good;
  p.rows.pages = 0;
  refused(p, "rows.pages", 1, 0, value);
  p = good;
  p.rows.page_tokens = 0;
  refused(p, "rows.page_tokens", 1, 0, value);
  p = good;
  p.rows.strides.page = 0;
  refused(p, "rows.strides.page", 1, 0, value);
  p = good;
  p.rows.table = {};
  refused(p, "rows.table.extent(0)", 2, 0, shape);
  p = good;
  p.rows.table.extents[0] = 3;
  refused(p, "rows.table.extent(0)", 2, 3, shape);
  p = good;
  p.rows.table.extents[1] = 0;
  refused(p, "rows.table.extent(1)", 1, 0, value);
}

TEST_CASE("paged rows: a table that names no page of the pool, or has too few of them, is refused before anything changes") {
  engine_pages<float, pqkv::exec::host<>> pages(cpu, small_shape, {16, false, false}, 1);
  cache_type cache(cpu, small(pages, small_shape));
  const auto rows = make_rows<float>(content::gaussian, 2, 50, 16, 3);
  const auto pool = static_cast<double>(pages.pages());
  const auto prefill = [&](std::size_t n) { cache.prefill(cpu, 0, rows.view().slice(1, 0, n), rows.view().slice(1, 0, n)); };
  pages.make_writable(0, 0, 32);
  pages.spoil(0, 1, static_cast<std::uint32_t>(pages.pages()));
  CHECK(unless_refused<pqkv::value_error>([&] { prefill(17); }, "prefill: rows.table", pool, pool) == "");
  CHECK(unless_refused<pqkv::value_error>([&] { cache.prefill(cpu, 0, 17); }, "prefill: rows.table", pool, pool) == "");
  CHECK_FALSE(cache.can_prefill(0, rows.view().slice(1, 0, 17), rows.view().slice(1, 0, 17)).ok());
  CHECK(cache.size(0) == 0);
  CHECK(cache.can_prefill(0, rows.view().slice(1, 0, 16), rows.view().slice(1, 0, 16)).ok());
  prefill(16);
  // The 17th token would go to the spoilt page.
  const std::uint32_t slot = 0, count = 1;
  const pqkv::basic_step<> step{pqkv::make_view(&slot, 1), pqkv::make_view(&count, 1)};
  const auto token = make_rows<float>(content::gaussian, 1, 2, 16, 4);
  CHECK(unless_refused<pqkv::value_error>([&] { cache.append(cpu, token.view(), token.view(), step); }, "append: rows.table", pool, pool) ==
        "");
  CHECK(unless_refused<pqkv::value_error>([&] { cache.append(cpu, 1, step); }, "append: rows.table", pool, pool) == "");
  CHECK_FALSE(cache.can_append(token.view(), token.view(), step).ok());
  CHECK(cache.size(0) == 16);
  pages.spoil(0, 1, static_cast<std::uint32_t>(pages.pages() - 1));
  CHECK(cache.can_append(token.view(), token.view(), step).ok());
  cache.append(cpu, token.view(), token.view(), step);
  CHECK(cache.size(0) == 17);

  // Two pages of a slot hold 32 of the 50 tokens.
  auto p = small(pages, small_shape);
  p.rows.table.extents[1] = 2;
  cache_type narrow(cpu, p);
  const auto long_prompt = rows.view().slice(1, 0, 33);
  CHECK(unless_refused<pqkv::capacity_error>([&] { narrow.prefill(cpu, 0, long_prompt, long_prompt); }, "prefill: keys.extent(1)", 32,
                                             33) == "");
  CHECK_FALSE(narrow.can_prefill(0, long_prompt, long_prompt).ok());
  narrow.prefill(cpu, 0, 32);
  CHECK(unless_refused<pqkv::capacity_error>([&] { narrow.append(cpu, 1, step); }, "append: step", 32, 33) == "");
  CHECK_FALSE(narrow.can_append(token.view(), token.view(), step).ok());
  CHECK(narrow.size(0) == 32);
}
