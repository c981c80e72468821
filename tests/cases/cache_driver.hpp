// SPDX-License-Identifier: Apache-2.0
// Short words for driving a pqcache in tests: parameters, random prompts and tokens, one question with all that comes back.
#pragma once

#include <vector>

#include <pqkv/pqkv.hpp>

#include "inputs.hpp"

namespace pqkv_cases {

/// A small cache with window and list given outright.
template <class Cache>
typename Cache::params cache_params(std::size_t batch, std::size_t h, std::size_t hq, std::size_t d, std::size_t capacity,
                                    std::size_t sinks, std::size_t window, std::size_t retrieve) {
  typename Cache::params p;
  p.batch = batch;
  p.kv_heads = h;
  p.query_heads = hq;
  p.head_dim = d;
  p.capacity = capacity;
  p.budget.sinks = sinks;
  p.budget.window = window;
  p.budget.retrieve = retrieve;
  return p;
}

/// The same with a quantizer.
inline pqkv::pqcache<>::params pq_params(std::size_t batch, std::size_t h, std::size_t hq, std::size_t d, std::size_t capacity,
                                         std::size_t sinks, std::size_t window, std::size_t retrieve, std::size_t m = 2,
                                         unsigned bits = 4) {
  auto p = cache_params<pqkv::pqcache<>>(batch, h, hq, d, capacity, sinks, window, retrieve);
  p.selector.subspaces = m;
  p.selector.bits = bits;
  p.selector.train.iterations = 3;
  return p;
}

/// Keys and values of one sequence.
struct prompt {
  rows<float> keys, values;
  prompt(std::size_t h, std::size_t n, std::size_t d, std::uint64_t seed, content what = content::gaussian)
      : keys(make_rows<float>(what, h, n, d, seed)), values(make_rows<float>(content::gaussian, h, n, d, seed + 1000)) {}
};

template <class Policy, class Cache>
void prefill(const Policy& policy, Cache& cache, std::size_t slot, const prompt& given) {
  cache.prefill(policy, slot, given.keys.view(), given.values.view());
}

/// One random token for every active slot.
template <class Policy, class Cache>
void append_random(const Policy& policy, Cache& cache, std::uint64_t seed, const std::vector<std::uint8_t>& active = {}) {
  const auto& p = cache.parameters();
  const auto keys = make_rows<float>(content::gaussian, p.batch, p.kv_heads, p.head_dim, seed);
  const auto values = make_rows<float>(content::gaussian, p.batch, p.kv_heads, p.head_dim, seed + 1000);
  cache.append(policy, keys.view(), values.view(), active.empty() ? pqkv::active_slots{} : pqkv::make_view(active.data(), active.size()));
}

/// All that comes back from retrieve() and attend().
struct reply {
  std::vector<float> out, lse;
  std::vector<std::int32_t> indices;  // [batch, lists, k_max]
  std::vector<std::uint32_t> counts;  // [batch, lists]
  std::size_t k_max = 0;

  std::vector<std::int32_t> list(std::size_t row) const {
    const auto first = indices.begin() + static_cast<std::ptrdiff_t>(row * k_max);
    return {first, first + static_cast<std::ptrdiff_t>(counts[row])};
  }
  bool operator==(const reply&) const = default;
};

/// Poisoned before, so that what was not written shows.
template <class Policy, class Cache>
reply ask(const Policy& policy, Cache& cache, const std::vector<float>& query, const std::vector<std::uint8_t>& active = {}) {
  const auto& p = cache.parameters();
  const auto mask = active.empty() ? pqkv::active_slots{} : pqkv::make_view(active.data(), active.size());
  const auto queries = pqkv::make_view(query.data(), p.batch, p.query_heads, p.head_dim);
  reply r;
  for (std::size_t slot = 0; slot < p.batch; ++slot) r.k_max = std::max(r.k_max, cache.retrieve_capacity(slot));
  r.out.assign(query.size(), 77.0f);
  r.lse.assign(p.batch * p.query_heads, 77.0f);
  r.indices.assign(p.batch * cache.lists() * r.k_max, -7);
  r.counts.assign(p.batch * cache.lists(), 0);
  cache.retrieve(policy, queries, pqkv::make_view(r.indices.data(), p.batch, cache.lists(), r.k_max),
                 pqkv::make_view(r.counts.data(), p.batch, cache.lists()), mask);
  cache.attend(policy, queries, pqkv::make_view(r.out.data(), p.batch, p.query_heads, p.head_dim),
               pqkv::make_view(r.lse.data(), p.batch, p.query_heads), mask);
  return r;
}

template <class Cache>
std::vector<float> random_query(const Cache& cache, std::uint64_t seed) {
  const auto& p = cache.parameters();
  random_source random(seed);
  std::vector<float> query(p.batch * p.query_heads * p.head_dim);
  for (float& x : query) x = 1.5f * random.gaussian();
  return query;
}

}  // namespace pqkv_cases
