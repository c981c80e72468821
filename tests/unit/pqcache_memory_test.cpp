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
  const auto keys = cache.store().keys;
  CHECK(plan.kv_bytes == keys.extent(0) * keys.stride(0) * sizeof(*keys.data));
  const std::size_t taken = constructed_bytes<Cache>(p);
  CHECK(taken <= plan.total_bytes());
  CHECK(taken >= plan.kv_bytes + plan.index_bytes);
  // The plan is an upper bound in the lists alone.
  const std::size_t lists = p.batch * cache.lists(), hq = p.batch * p.query_heads,
                    k = std::min(p.capacity, p.budget.at(p.capacity).retrieve);
  CHECK(taken == plan.total_bytes() - (hq - lists) * (k * sizeof(std::int32_t) + sizeof(std::uint32_t) + sizeof(pqkv::token_span)));
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
  pqcache<pqkv::half>::params h;
  static_cast<pqkv::cache_shape&>(h) = p;
  check_plan<pqcache<pqkv::half>>(h);
  check_plan<pqcache<float, pqkv::selector::full>>(cache_params<pqcache<float, pqkv::selector::full>>(2, 2, 4, 24, 300, 4, 16, 50));
  check_plan<pqcache<float, pqkv::selector::streaming>>(
      cache_params<pqcache<float, pqkv::selector::streaming>>(2, 2, 4, 24, 300, 4, 16, 0));
  check_plan<pqcache<float, pqkv::selector::oracle>>(cache_params<pqcache<float, pqkv::selector::oracle>>(2, 2, 4, 24, 300, 4, 16, 9));
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
  CHECK(allocations_of_steps<pqcache<float, pqkv::selector::oracle>>(
            cache_params<pqcache<float, pqkv::selector::oracle>>(2, 2, 4, 32, 700, 4, 16, 50)) == 0);
  CHECK(allocations_of_steps<pqcache<float, pqkv::selector::full>>(
            cache_params<pqcache<float, pqkv::selector::full>>(2, 2, 4, 32, 700, 4, 16, 50)) == 0);
  CHECK(allocations_of_steps<pqcache<pqkv::bfloat16, pqkv::selector::streaming>>(
            cache_params<pqcache<pqkv::bfloat16, pqkv::selector::streaming>>(2, 2, 4, 32, 700, 4, 16, 50)) == 0);
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
