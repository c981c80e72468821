// SPDX-License-Identifier: Apache-2.0
// Memory and counters of a pqcache: the plan against the bytes that construction takes, no allocation in any step after the prompt,
// statistics worked out by hand, keys and queries that are not finite.
#include <doctest/doctest.h>

#include "cases/allocation_count.hpp"
#include "cases/cache_driver.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;
const pqkv::exec::host<> cpu;

/// What construction takes beside its plan: 16 bytes a slot that product quantization keeps on the host whatever the cache's space, and the
/// codes of the cells, which are made once and given back.
template <class Params>
std::size_t beside_plan(const Params& p) {
  if constexpr (requires { p.selector.index_of(p); })
    return p.batch * 16 + p.selector.subspaces * p.selector.index_of(p).cells();
  else
    return 0;
}

/// Bytes that constructing a cache takes from the heap.
template <class Cache>
std::size_t constructed_bytes(const typename Cache::params& p) {
  const std::size_t before = allocated_bytes();
  const Cache cache(p);
  return allocated_bytes() - before;
}

template <class Cache>
void check_plan(const typename Cache::params& p) {
  const pqkv::memory_plan plan = Cache::plan(p);
  const Cache cache(p);
  if constexpr (requires { cache.store().keys; }) {
    const auto keys = cache.store().keys;
    CHECK(plan.kv_bytes == keys.extent(0) * keys.stride(0) * sizeof(*keys.data));
  } else {
    CHECK(plan.kv_bytes == 0);  // the engine's pages
  }
  const std::size_t taken = constructed_bytes<Cache>(p);
  CHECK(plan.scratch_bytes != 0);
  CHECK(taken == plan.total_bytes() + beside_plan(p));
}

/// Allocations of 60 steps: append, attend and retrieve, after a prompt.
template <class Cache>
std::size_t allocations_of_steps(typename Cache::params p) {
  Cache cache(p);
  prompt given(p.kv_heads, 600, p.head_dim, 3);
  for (std::size_t slot = 0; slot < p.batch; ++slot) prefill(cpu, cache, slot, given);
  const std::vector<float> query = random_query(cache, 4);
  const auto keys = make_rows<float>(content::gaussian, p.batch, p.kv_heads, p.head_dim, 5);
  std::vector<float> out(query.size());
  const std::size_t k = p.budget.at(p.capacity).retrieve + p.capacity;
  std::vector<std::int32_t> indices(p.batch * cache.lists() * k);
  std::vector<std::uint32_t> counts(p.batch * cache.lists());
  const auto q = pqkv::make_view(query.data(), p.batch, p.query_heads, p.head_dim);
  const std::size_t before = allocations();
  for (int step = 0; step < 60; ++step) {
    cache.append(cpu, keys.view(), keys.view());
    cache.attend(cpu, q, pqkv::make_view(out.data(), p.batch, p.query_heads, p.head_dim));
    cache.retrieve(cpu, q, pqkv::make_view(indices.data(), p.batch, cache.lists(), k),
                   pqkv::make_view(counts.data(), p.batch, cache.lists()));
  }
  return allocations() - before;
}
}  // namespace

TEST_CASE("pqcache: this program's allocations are counted") {
  const std::size_t before = allocations();
  void* one = ::operator new(100);  // called as a function: a compiler may leave out what a new-expression or a container asks for
  const pqkv::buffer<float> two(100);
  ::operator delete(one);
  CHECK(allocations() == before + 2);
}

TEST_CASE("pqcache: the memory plan is what construction takes") {
  using pqkv::pqcache;
  auto p = pq_params(3, 2, 8, 40, 1000, 4, 16, 50);
  check_plan<pqcache<>>(p);
  p.selector.path = search_path::scan;
  check_plan<pqcache<>>(p);
  p.selector.path = search_path::joint;
  p.selector.reduction = group_reduction::none;
  check_plan<pqcache<>>(p);
  p.selector.residual = {.subspaces = 4, .bits = 6, .shortlist = 3};
  check_plan<pqcache<>>(p);
  p.selector.residual = {};
  p.selector.path = search_path::automatic;
  p.selector.subspaces = 4;
  p.selector.bits = 8;
  p.budget = {};
  check_plan<pqcache<>>(p);
  pqcache<pqkv::dense_rows<pqkv::half>>::params h;
  static_cast<pqkv::cache_shape&>(h) = p;
  check_plan<pqcache<pqkv::dense_rows<pqkv::half>>>(h);
  for (const std::size_t queries : {1u, 2u, 5u, 16u}) {
    p.step_queries = queries;
    check_plan<pqcache<>>(p);
  }
  check_plan<pqcache<pqkv::dense_rows<float>, pqkv::selector::full>>(
      cache_params<pqcache<pqkv::dense_rows<float>, pqkv::selector::full>>(2, 2, 4, 24, 300, 4, 16, 50));
  check_plan<pqcache<pqkv::dense_rows<float>, pqkv::selector::streaming>>(
      cache_params<pqcache<pqkv::dense_rows<float>, pqkv::selector::streaming>>(2, 2, 4, 24, 300, 4, 16, 0));
  check_plan<pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>>(
      cache_params<pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>>(2, 2, 4, 24, 300, 4, 16, 9));
  check_plan<pqcache<pqkv::dense_rows<float>, pqkv::selector::sparq>>(
      cache_params<pqcache<pqkv::dense_rows<float>, pqkv::selector::sparq>>(2, 2, 4, 24, 300, 4, 16, 9));
}

TEST_CASE("pqcache: the memory plan of every selector over every kind of rows") {
  const auto plans = []<class Rows>(Rows*, auto set) {
    using namespace pqkv::selector;
    const auto check = [&]<class Selector>(Selector*) {
      for (const std::size_t queries : {0u, 1u, 7u}) {
        auto p = cache_params<pqkv::pqcache<Rows, Selector>>(2, 3, 6, 24, 333, 4, 16, 50);
        p.step_queries = queries;
        set(p);
        check_plan<pqkv::pqcache<Rows, Selector>>(p);
      }
    };
    check(static_cast<pq*>(nullptr)), check(static_cast<full*>(nullptr)), check(static_cast<streaming*>(nullptr));
    check(static_cast<oracle*>(nullptr));
  };
  plans(static_cast<pqkv::dense_rows<float>*>(nullptr), [](auto&) {});
  plans(static_cast<pqkv::dense_rows<pqkv::half>*>(nullptr), [](auto&) {});
  plans(static_cast<pqkv::dense_rows<pqkv::bfloat16>*>(nullptr), [](auto&) {});
  std::vector<float> pool(2 * 42 * 16 * 3 * 24);
  const std::vector<std::uint32_t> table(42);
  plans(static_cast<pqkv::paged_rows<float>*>(nullptr), [&](auto& p) {
    p.rows = {pool.data(), pool.data() + pool.size() / 2, 42, 16, pqkv::page_strides::nhd(16, 3, 24), pqkv::make_view(table.data(), 2, 21)};
  });
}

TEST_CASE("pqcache: a cache of more bytes than can be counted is refused, by plan and constructor alike") {
  const auto refuses = [](const auto& call) {
    try {
      call();
    } catch (const pqkv::capacity_error&) {
      return true;
    } catch (...) {
    }
    return false;
  };
  // Each number is within its bounds; a product of them is not, or the sum of several is not.
  auto p = pq_params(65535, 65535, 65535, 256, (std::size_t{1} << 23) - 1, 4, 16, 50);
  CHECK(refuses([&] { pqkv::pqcache<>::plan(p); }));
  CHECK(refuses([&] { pqkv::pqcache<> cache(p); }));
  const auto other = []<class Selector>(Selector*) {
    return cache_params<pqkv::pqcache<pqkv::dense_rows<float>, Selector>>(65535, 65535, 65535, 256, 2147483647, 4, 16, 50);
  };
  const auto refused_of = [&]<class Selector>(Selector* which) {
    const auto params = other(which);
    using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, Selector>;
    return refuses([&] { cache_type::plan(params); }) && refuses([&] { cache_type cache(params); }) &&
           !cache_type::can_construct(params).ok();
  };
  CHECK(refused_of(static_cast<pqkv::selector::oracle*>(nullptr)));
  CHECK(refused_of(static_cast<pqkv::selector::full*>(nullptr)));
  CHECK(refused_of(static_cast<pqkv::selector::streaming*>(nullptr)));
  // 2^64 bytes of K and V by numbers each of which looks harmless: refused, whatever is said of it.
  auto wrapped = cache_params<pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::streaming>>(std::size_t{1} << 23, 1024, 1024, 256,
                                                                                                 std::size_t{1} << 20, 4, 16, 50);
  CHECK_THROWS((pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::streaming>::plan(wrapped)));
  // Scratch alone: the logits of every query head, of a step of many queries; the rows and the index are small.
  using oracle_cache = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>;
  auto few = cache_params<oracle_cache>(1, 1, 65535, 8, 2147483647, 4, 16, 50);
  few.step_queries = 65535;
  CHECK(oracle_cache::can_construct(few).ok());
  CHECK(refuses([&] { oracle_cache::plan(few); }));
  CHECK(refuses([&] { oracle_cache cache(few); }));
  few.step_queries = 100;
  CHECK(oracle_cache::plan(few).scratch_bytes > std::size_t{100} * 65535 * 2147483647 * 4);
}

TEST_CASE("pqcache: no step allocates") {
  using pqkv::pqcache;
  auto p = pq_params(2, 2, 4, 32, 700, 4, 16, 50);
  for (const group_reduction reduction : {group_reduction::probability_sum, group_reduction::logit_max, group_reduction::none})
    for (const search_path path : {search_path::automatic, search_path::joint, search_path::scan}) {
      p.selector.reduction = reduction;
      p.selector.path = path;
      CHECK(allocations_of_steps<pqcache<>>(p) == 0);
      p.selector.residual = {.subspaces = 4, .bits = 5, .shortlist = 4};
      CHECK(allocations_of_steps<pqcache<>>(p) == 0);
      p.selector.residual = {};
    }
  p.budget = {.ratio = 0.2, .min_tokens = 20, .sinks = 3};
  CHECK(allocations_of_steps<pqcache<>>(p) == 0);
  CHECK(allocations_of_steps<pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>>(
            cache_params<pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>>(2, 2, 4, 32, 700, 4, 16, 50)) == 0);
  CHECK(allocations_of_steps<pqcache<pqkv::dense_rows<float>, pqkv::selector::sparq>>(
            cache_params<pqcache<pqkv::dense_rows<float>, pqkv::selector::sparq>>(2, 2, 4, 32, 700, 4, 16, 50)) == 0);
  CHECK(allocations_of_steps<pqcache<pqkv::dense_rows<float>, pqkv::selector::full>>(
            cache_params<pqcache<pqkv::dense_rows<float>, pqkv::selector::full>>(2, 2, 4, 32, 700, 4, 16, 50)) == 0);
  CHECK(allocations_of_steps<pqcache<pqkv::dense_rows<pqkv::bfloat16>, pqkv::selector::streaming>>(
            cache_params<pqcache<pqkv::dense_rows<pqkv::bfloat16>, pqkv::selector::streaming>>(2, 2, 4, 32, 700, 4, 16, 50)) == 0);
}

TEST_CASE("pqcache: statistics by hand") {
  auto p = pq_params(1, 2, 4, 16, 400, 4, 8, 10);  // m 2, b 4: 256 cells
  for (const search_path path : {search_path::scan, search_path::joint}) {
    p.selector.path = path;
    pqkv::pqcache<> cache(p);
    prefill(cpu, cache, 0, prompt(2, 100, 16, 1));
    ask(cpu, cache, random_query(cache, 1));
    ask(cpu, cache, random_query(cache, 2));
    const pqkv::slot_statistics& s = cache.statistics(0);
    CHECK(s.steps == 2);                                                                      // calls of attend(), not of retrieve()
    CHECK(s.tokens_attended == 2 * (4 + 10 + 8));                                             // per KV head
    CHECK(s.attended_bytes == 2 * 2 * 22 * 2 * 16 * 4);                                       // steps, heads, tokens, K and V, d, float
    CHECK(s.index_bytes == 2 * 2 * (path == search_path::scan ? 2 * 88 : 256 * 4 + 10 * 4));  // codes of 88 tokens, or counts and ids
    CHECK(s.selector_bytes == 2 * 2 * 16 * (16 + 1) * 4);                                     // both heads' codebooks: d * (c + 1) floats
    append_random(cpu, cache, 1);
    ask(cpu, cache, random_query(cache, 3));
    CHECK(s.steps == 3);
    CHECK(s.tokens_attended == 3 * 22);
    CHECK(s.nonfinite_keys + s.nonfinite_values + s.nonfinite_queries == 0);
  }
  // A second stage: 40 tokens on the shortlist, each with 2 codes and 4 fine ones, and a codebook more, of d * (16 + 1) floats a head.
  p.selector.residual = {.subspaces = 4, .bits = 4, .shortlist = 4};
  pqkv::pqcache<> refined(p);
  prefill(cpu, refined, 0, prompt(2, 100, 16, 1));
  ask(cpu, refined, random_query(refined, 1));
  CHECK(refined.statistics(0).tokens_attended == 4 + 10 + 8);
  CHECK(refined.statistics(0).index_bytes == 2 * (256 * 4 + 40 * 4 + 40 * (2 + 4)));
  CHECK(refined.statistics(0).selector_bytes == 2 * 2 * 16 * (16 + 1) * 4);
  p.selector.residual = {};
  // While everything is attended to, no index is read.
  p.budget.retrieve = 500;
  pqkv::pqcache<> dense(p);
  prefill(cpu, dense, 0, prompt(2, 100, 16, 1));
  ask(cpu, dense, random_query(dense, 1));
  CHECK(dense.statistics(0).tokens_attended == 100);
  CHECK(dense.statistics(0).attended_bytes == 2 * 100 * 2 * 16 * 4);
  CHECK(dense.statistics(0).index_bytes == 0);
  CHECK(dense.statistics(0).selector_bytes == 0);
}

TEST_CASE("pqcache: one list per query head counts every list") {
  auto p = pq_params(1, 2, 4, 16, 400, 4, 8, 10);
  p.selector.reduction = group_reduction::none;
  pqkv::pqcache<> cache(p);
  CHECK(cache.lists() == 4);
  prefill(cpu, cache, 0, prompt(2, 100, 16, 1));
  ask(cpu, cache, random_query(cache, 1));
  CHECK(cache.statistics(0).tokens_attended == 22);
  CHECK(cache.statistics(0).attended_bytes == 4 * 22 * 2 * 16 * 4);
}

TEST_CASE("pqcache: keys, values and queries that are not finite are counted, and selection goes on") {
  pqkv::pqcache<> cache(pq_params(1, 2, 4, 16, 400, 4, 8, 10));
  prompt given(2, 100, 16, 1);
  given.keys(0, 30, 2) = nonfinite(0);
  given.keys(0, 30, 3) = nonfinite(1);  // the same row
  given.keys(1, 40, 0) = nonfinite(1);
  given.values(1, 41, 0) = nonfinite(2);
  prefill(cpu, cache, 0, given);
  CHECK(cache.statistics(0).nonfinite_keys == 2);
  CHECK(cache.statistics(0).nonfinite_values == 1);
  auto token = make_rows<float>(content::gaussian, 1, 2, 16, 9);
  token(0, 1, 5) = nonfinite(2);
  cache.append(cpu, token.view(), token.view());
  CHECK(cache.statistics(0).nonfinite_keys == 3);
  CHECK(cache.statistics(0).nonfinite_values == 2);
  CHECK(cache.retrieve_capacity(0) == 10);  // the codebook was trained on the finite rows

  for (std::uint64_t step = 0; step < 12; ++step) append_random(cpu, cache, step);  // the bad token leaves the window
  std::vector<float> query = random_query(cache, 3);
  const reply clean = ask(cpu, cache, query);
  CHECK(clean.counts == std::vector<std::uint32_t>{10, 10});
  query[16 + 4] = nonfinite(1);  // query head 1, of KV head 0
  const reply spoiled = ask(cpu, cache, query);
  CHECK(cache.statistics(0).nonfinite_queries == 2);
  CHECK(spoiled.counts == std::vector<std::uint32_t>{10, 10});
  CHECK(spoiled.list(1) == clean.list(1));
  CHECK_FALSE(std::isfinite(spoiled.out[16]));
  for (std::size_t i = 32; i < 64; ++i) CHECK((std::isnan(clean.out[i]) ? std::isnan(spoiled.out[i]) : spoiled.out[i] == clean.out[i]));
  cache.reset(0);
  CHECK(cache.statistics(0).nonfinite_keys == 0);
}
