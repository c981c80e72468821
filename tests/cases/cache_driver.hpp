// SPDX-License-Identifier: Apache-2.0
// Short words for driving a pqcache in tests: parameters, random prompts and tokens, one question with all that comes back.
#pragma once

#include <algorithm>
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

/// A step of one token for every slot that a mask [batch] names; an empty mask: the default step.
struct masked_step {
  std::vector<std::uint32_t> slots;
  bool given;

  explicit masked_step(const std::vector<std::uint8_t>& active) : given(!active.empty()) {
    for (std::size_t slot = 0; slot < active.size(); ++slot)
      if (active[slot] != 0) slots.push_back(static_cast<std::uint32_t>(slot));
  }
  pqkv::cache_step step() const {
    pqkv::cache_step made;
    if (given) made.slots = pqkv::make_view(slots.data(), slots.size());
    return made;
  }
  /// Tokens of the step, and the slot of each.
  std::size_t tokens(std::size_t batch) const { return given ? slots.size() : batch; }
  std::size_t slot(std::size_t token) const { return given ? slots[token] : token; }

  /// What a batch [batch, size] holds for the step's tokens, one after the other.
  template <class T>
  std::vector<T> gather(const T* all, std::size_t batch, std::size_t size) const {
    std::vector<T> some;
    for (std::size_t i = 0; i < tokens(batch); ++i) some.insert(some.end(), all + slot(i) * size, all + (slot(i) + 1) * size);
    return some;
  }
  /// The way back; what belongs to other slots is not touched.
  template <class T>
  void scatter(const std::vector<T>& some, std::vector<T>& all, std::size_t batch, std::size_t size) const {
    for (std::size_t i = 0; i < tokens(batch); ++i) std::copy_n(some.data() + i * size, size, all.data() + slot(i) * size);
  }
};

/// One random token for every active slot. The rows of a slot are the same whoever else is active.
template <class Policy, class Cache>
void append_random(const Policy& policy, Cache& cache, std::uint64_t seed, const std::vector<std::uint8_t>& active = {}) {
  const auto& p = cache.parameters();
  const masked_step mask(active);
  const auto all_keys = make_rows<float>(content::gaussian, p.batch, p.kv_heads, p.head_dim, seed);
  const auto all_values = make_rows<float>(content::gaussian, p.batch, p.kv_heads, p.head_dim, seed + 1000);
  const std::size_t size = p.kv_heads * p.head_dim, tokens = mask.tokens(p.batch);
  const auto keys = mask.gather(all_keys.view().data, p.batch, size), values = mask.gather(all_values.view().data, p.batch, size);
  cache.append(policy, pqkv::make_view(keys.data(), tokens, p.kv_heads, p.head_dim),
               pqkv::make_view(values.data(), tokens, p.kv_heads, p.head_dim), mask.step());
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

/// Poisoned before, so that what was not written shows; what belongs to slots that are not active stays so.
template <class Policy, class Cache>
reply ask(const Policy& policy, Cache& cache, const std::vector<float>& query, const std::vector<std::uint8_t>& active = {}) {
  const auto& p = cache.parameters();
  const masked_step mask(active);
  const std::size_t hq = p.query_heads, d = p.head_dim, lists = cache.lists(), tokens = mask.tokens(p.batch);
  const auto some = mask.gather(query.data(), p.batch, hq * d);
  const auto queries = pqkv::make_view(some.data(), tokens, hq, d);
  reply r;
  for (std::size_t slot = 0; slot < p.batch; ++slot) r.k_max = std::max(r.k_max, cache.retrieve_capacity(slot));
  r.out.assign(query.size(), 77.0f);
  r.lse.assign(p.batch * hq, 77.0f);
  r.indices.assign(p.batch * lists * r.k_max, -7);
  r.counts.assign(p.batch * lists, 0);
  std::vector<float> out(tokens * hq * d, 77.0f), lse(tokens * hq, 77.0f);
  std::vector<std::int32_t> indices(tokens * lists * r.k_max, -7);
  std::vector<std::uint32_t> counts(tokens * lists);
  cache.retrieve(policy, queries, pqkv::make_view(indices.data(), tokens, lists, r.k_max), pqkv::make_view(counts.data(), tokens, lists),
                 mask.step());
  cache.attend(policy, queries, pqkv::make_view(out.data(), tokens, hq, d), pqkv::make_view(lse.data(), tokens, hq), mask.step());
  mask.scatter(out, r.out, p.batch, hq * d);
  mask.scatter(lse, r.lse, p.batch, hq);
  mask.scatter(indices, r.indices, p.batch, lists * r.k_max);
  mask.scatter(counts, r.counts, p.batch, lists);
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
