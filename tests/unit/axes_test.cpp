// SPDX-License-Identifier: Apache-2.0
// The order of a key's coordinates: a permutation that keeps rotary pairs in one subspace, and a cache that orders them retrieves what a
// cache without an order retrieves from keys and queries that the test has ordered itself, through a life of both, on the host and on
// the backend that queues.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/placed_array.hpp"
#include "cases/queued_backend.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::axis_order;

/// The coordinates of rotary pairs (i, i + d / 2), every m-th pair for a subspace: its lower halves, then its upper ones.
std::vector<std::size_t> plain_order(std::size_t m, std::size_t d) {
  std::vector<std::size_t> all;
  for (std::size_t j = 0; j < m; ++j)
    for (const std::size_t half : {std::size_t{0}, d / 2})
      for (std::size_t pair = j; pair < d / 2; pair += m) all.push_back(half + pair);
  return all;
}
std::vector<float> plain_ordered(const std::vector<float>& rows, std::size_t m, std::size_t d) {
  const std::vector<std::size_t> order = plain_order(m, d);
  std::vector<float> all;
  for (std::size_t row = 0; row < rows.size(); row += d)
    for (const std::size_t i : order) all.push_back(rows[row + i]);
  return all;
}

/// Two caches of the same settings but for the order, given the same tokens; the one without an order gets them ordered.
template <class Rows, class Policy>
class twins {
 public:
  using selector_type = pqkv::selector::basic_pq<typename Policy::space_type>;
  using cache_type = pqkv::pqcache<Rows, selector_type>;

  twins(const Policy& policy, typename cache_type::params p, std::uint64_t seed)
      : policy_(policy),
        p_(p),
        random_(seed),
        own_(policy, with(p, axis_order::rotary_halves)),
        plain_(policy, with(p, axis_order::contiguous)) {}

  std::size_t size(std::size_t slot) const { return own_.size(policy_, slot); }
  void prefill(std::size_t slot, std::size_t n) {
    const auto keys = drawn(p_.kv_heads * n), values = drawn(p_.kv_heads * n);
    both(keys, values, p_.kv_heads, n, [&](cache_type& cache, auto k, auto v) { cache.prefill(policy_, slot, k, v); });
  }
  /// One token for every slot, then both are asked.
  void step() {
    const std::size_t b = p_.batch, h = p_.kv_heads, hq = p_.query_heads, d = p_.head_dim, room = p_.capacity;
    const auto keys = drawn(b * h), values = drawn(b * h), query = drawn(b * hq);
    both(keys, values, b, h, [&](cache_type& cache, auto k, auto v) { cache.append(policy_, k, v); });
    std::vector<std::int32_t> list[2];
    std::vector<float> out[2];
    for (const bool is_own : {true, false}) {
      cache_type& cache = is_own ? own_ : plain_;
      const placed_array<float, Policy> asked(policy_, is_own ? query : plain_ordered(query, p_.selector.subspaces, d)),
          got(policy_, query.size());
      const placed_array<std::int32_t, Policy> indices(policy_, b * h * room);
      const placed_array<std::uint32_t, Policy> counts(policy_, b * h);
      cache.retrieve(policy_, asked.const_view(b, hq, d), indices.view(b, h, room), counts.view(b, h));
      cache.attend(policy_, asked.const_view(b, hq, d), got.view(b, hq, d));
      list[is_own] = indices.read();
      out[is_own] = got.read();
      for (const std::uint32_t count : counts.read()) ranked += count != 0 && count + 40 < size(0) ? 1 : 0;
    }
    REQUIRE(list[0] == list[1]);
    float largest = 0, worst = 0;
    for (std::size_t i = 0; i < out[0].size(); ++i)
      largest = std::max(largest, std::fabs(out[0][i])), worst = std::max(worst, std::fabs(out[0][i] - out[1][i]));
    REQUIRE(worst <= 1e-5f * largest);
    ++checked;
  }
  template <class F>
  void each(F&& f) {
    f(own_), f(plain_);
  }
  cache_type& own() { return own_; }

  std::size_t checked = 0, ranked = 0;

 private:
  static typename cache_type::params with(typename cache_type::params p, axis_order order) {
    p.selector.axes = order;
    return p;
  }
  std::vector<float> drawn(std::size_t rows) {
    std::vector<float> all(rows * p_.head_dim);
    for (float& x : all) x = static_cast<float>(random_.gaussian());
    return all;
  }
  /// f(cache, keys, values) with rows [first, second, d]; values are not ordered.
  template <class F>
  void both(const std::vector<float>& keys, const std::vector<float>& values, std::size_t first, std::size_t second, F&& f) {
    const placed_array<float, Policy> k(policy_, keys), ordered(policy_, plain_ordered(keys, p_.selector.subspaces, p_.head_dim)),
        v(policy_, values);
    const std::size_t d = p_.head_dim;
    f(own_, k.const_view(first, second, d), v.const_view(first, second, d));
    f(plain_, ordered.const_view(first, second, d), v.const_view(first, second, d));
    pqkv::sync(policy_);
  }

  Policy policy_;
  typename cache_type::params p_;
  random_source random_;
  cache_type own_, plain_;
};

template <class Rows, class Policy>
void life(const Policy& policy, std::uint64_t seed, std::size_t fine = 0, pqkv::key_metric metric = pqkv::key_metric::squared_l2) {
  using twins_type = twins<Rows, Policy>;
  for (const std::size_t m : {1u, 2u, 4u}) {
    typename twins_type::cache_type::params p;
    p.batch = 2, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 300;
    p.budget.sinks = 3, p.budget.window = 9, p.budget.retrieve = 15;
    p.selector.subspaces = m, p.selector.bits = 4, p.selector.train.iterations = 2, p.selector.metric = metric, p.selector.tail_tokens = 20;
    if (fine != 0) p.selector.residual = {.subspaces = fine, .bits = 4, .shortlist = 2};
    twins_type all(policy, p, seed + m);
    all.prefill(0, 120), all.prefill(1, 60);
    for (std::size_t step = 0; step < 60; ++step) {
      all.step();
      if (step % 20 == 19) all.each([&](auto& cache) { cache.maintain(policy); });
      if (step == 30) all.each([&](auto& cache) { cache.truncate(policy, 0, 100); });
      if (step == 45) all.each([&](auto& cache) { cache.fork(policy, 1, 0); });
    }
    CHECK(all.checked == 60);
    CHECK(all.ranked > 50);
    CHECK(all.own().statistics(policy, 1).trainings > 1);  // renewed
    pqkv::sync(policy);
  }
}
}  // namespace

TEST_CASE("axes: rotary halves are a permutation with both of a pair in one subspace") {
  for (const std::size_t d : {8u, 16u, 64u, 128u, 256u})
    for (const std::size_t m : {1u, 2u, 4u}) {
      const pqkv::axis_map map{axis_order::rotary_halves, static_cast<std::uint32_t>(m), static_cast<std::uint32_t>(d)};
      const std::vector<std::size_t> order = plain_order(m, d);
      std::set<std::size_t> seen;
      for (std::size_t i = 0; i < d; ++i) {
        REQUIRE(map(i) == order[i]);
        seen.insert(map(i));
        const std::size_t partner = map(i) < d / 2 ? map(i) + d / 2 : map(i) - d / 2;
        const auto at = std::find(order.begin(), order.end(), partner) - order.begin();
        REQUIRE(static_cast<std::size_t>(at) / (d / m) == i / (d / m));
      }
      CHECK(seen.size() == d);
      CHECK(*seen.rbegin() == d - 1);
      const pqkv::axis_map as_it_is{axis_order::contiguous, static_cast<std::uint32_t>(m), static_cast<std::uint32_t>(d)};
      for (std::size_t i = 0; i < d; ++i) REQUIRE(as_it_is(i) == i);
    }
}

TEST_CASE("axes: a cache that orders coordinates lives as one that is given them ordered") {
  const pqkv::exec::host<> cpu;
  life<pqkv::dense_rows<float>>(cpu, 1);
  life<pqkv::dense_rows<float>>(cpu, 2, 4);
  life<pqkv::dense_rows<float>>(cpu, 3, 0, pqkv::key_metric::inner_product);
  life<pqkv::quantized_rows<>>(cpu, 4);
}
TEST_CASE("axes: on the backend that queues") {
  queue q;
  life<pqkv::dense_rows<pqkv::bfloat16, pqkv::space::device>>(queued_policy{&q}, 5);
}

TEST_CASE("axes: what cannot be ordered is refused by name, and so is a file of another order") {
  using cache_type = pqkv::pqcache<>;
  cache_type::params p;
  p.kv_heads = 1, p.query_heads = 1, p.head_dim = 8, p.capacity = 100;
  p.selector.subspaces = 8, p.selector.bits = 4;
  const pqkv::status refused = cache_type::can_construct(p);
  CHECK_FALSE(refused.ok());
  CHECK(refused.parameter == std::string("selector.axes"));
  CHECK_THROWS_WITH_AS(cache_type{p}, doctest::Contains("contiguous unless head_dim is a multiple of 2 * subspaces"), pqkv::value_error);
  p.selector.axes = axis_order::contiguous;
  CHECK(cache_type::can_construct(p).ok());
  p.selector.axes = static_cast<axis_order>(7);
  CHECK(cache_type::can_construct(p).parameter == std::string("selector.axes"));

  p.selector.subspaces = 2, p.selector.axes = axis_order::rotary_halves;
  cache_type ordered(p);
  p.selector.axes = axis_order::contiguous;
  cache_type other(p);
  const auto rows = make_rows<float>(content::gaussian, 1, 60, 8, 1);
  const pqkv::exec::host<> cpu;
  ordered.prefill(cpu, 0, rows.view(), rows.view());
  std::vector<std::byte> file;
  ordered.save(cpu, 0, [&](const std::byte* piece, std::size_t bytes) { file.insert(file.end(), piece, piece + bytes); });
  std::size_t at = 0;
  const auto source = [&](std::byte* to, std::size_t bytes) {
    const std::size_t given = std::min(bytes, file.size() - at);
    std::memcpy(to, file.data() + at, given);
    at += given;
    return given;
  };
  CHECK_THROWS_WITH_AS(other.load(cpu, 0, source), doctest::Contains("file.selector.axes"), pqkv::value_error);
  CHECK(other.size(0) == 0);
}
