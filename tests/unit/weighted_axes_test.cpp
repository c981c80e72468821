// SPDX-License-Identifier: Apache-2.0
// Pairs of coordinates by their weight: the sums of squares are exact and free of order; a cache that has seen queries has the codes and
// finds the tokens of a plain cache that is given keys and queries which the test has dealt and weighted itself, in double precision;
// what was seen lives as the slot does; without it, and on a device, nothing is done in silence.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cases/cache_driver.hpp"
#include "cases/queued_backend.hpp"
#include "cases/slot_bytes.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::axis_order;
const pqkv::exec::host<> cpu;
constexpr std::size_t h = 2, hq = 4, d = 16, m = 2;

pqkv::pqcache<>::params params_of(axis_order order, std::size_t batch = 1) {
  auto p = pq_params(batch, h, hq, d, 400, 4, 10, 20, m, 4);
  p.selector.axes = order;
  p.selector.over = pqkv::selector::normalisation::middle;  // logits of sinks and window depend on the order of coordinates
  p.selector.refresh = 0;
  return p;
}

/// Queries [n, hq, d] whose coordinates have very different sizes, other ones in each head.
std::vector<float> make_queries(std::size_t n, std::uint64_t seed) {
  random_source random(seed);
  std::vector<float> all(n * hq * d);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::size_t coordinate = i % d, head = i / d % hq / (hq / h);
    all[i] = random.gaussian() * std::pow(2.0f, static_cast<float>((coordinate * 5 + head * 3) % 7) - 3.0f);
  }
  return all;
}
pqkv::view<const float, 3> view_of(const std::vector<float>& queries) {
  return pqkv::make_view(queries.data(), queries.size() / (hq * d), hq, d);
}

/// For each head what stands at each place, and its weight: the rule's text, in double.
struct plain_axes {
  std::vector<std::size_t> source[h];
  std::vector<float> weight[h];

  /// @param keys  [h, n, d] of which tokens from `first` on are trained on
  plain_axes(const std::vector<float>& queries, const rows<float>& keys, std::size_t first, std::size_t n) {
    for (std::size_t head = 0; head < h; ++head) {
      std::vector<double> e(d), var(d);
      for (std::size_t row = 0; row < queries.size() / d; ++row)
        for (std::size_t i = 0; row % hq / (hq / h) == head && i < d; ++i) e[i] += std::pow(static_cast<double>(queries[row * d + i]), 2);
      const double mean_e = std::accumulate(e.begin(), e.end(), 0.0) / d;
      for (std::size_t i = 0; i < d; ++i) {
        double mean = 0;
        for (std::size_t t = first; t < n; ++t) mean += static_cast<double>(keys.view()(head, t, i)) / static_cast<double>(n - first);
        for (std::size_t t = first; t < n; ++t) var[i] += std::pow(static_cast<double>(keys.view()(head, t, i)) - mean, 2);
      }
      std::vector<std::size_t> order(d / 2);
      std::iota(order.begin(), order.end(), std::size_t{0});
      const auto energy = [&](std::size_t i) { return (e[i] + e[i + d / 2]) / 2 + 1e-3 * mean_e; };
      const auto matter = [&](std::size_t i) { return (var[i] + var[i + d / 2]) * energy(i); };
      std::sort(order.begin(), order.end(),
                [&](std::size_t a, std::size_t b) { return matter(a) != matter(b) ? matter(a) > matter(b) : a < b; });
      std::vector<std::size_t> dealt[m];
      for (std::size_t i = 0; i < order.size(); ++i) dealt[i / m % 2 == 0 ? i % m : m - 1 - i % m].push_back(order[i]);
      for (const auto& pairs : dealt)
        for (const std::size_t half : {std::size_t{0}, d / 2})
          for (const std::size_t pair : pairs) {
            source[head].push_back(pair + half);
            weight[head].push_back(static_cast<float>(std::exp2(std::round(std::log2(std::sqrt(energy(pair) / mean_e))))));
          }
    }
  }
  std::vector<float> keys(const rows<float>& given, std::size_t n) const {
    std::vector<float> all;
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t t = 0; t < n; ++t)
        for (std::size_t i = 0; i < d; ++i) all.push_back(given.view()(head, t, source[head][i]) * weight[head][i]);
    return all;
  }
  std::vector<float> queries(const std::vector<float>& given) const {
    std::vector<float> all;
    for (std::size_t row = 0; row < given.size() / d; ++row)
      for (std::size_t i = 0; i < d; ++i) {
        const std::size_t head = row % hq / (hq / h);
        all.push_back(given[row * d + source[head][i]] / weight[head][i]);
      }
    return all;
  }
};

/// Tokens [first, last) of [h, n, d] as a step's [tokens, h, d], one slot of a batch.
template <class Cache>
void append(Cache& cache, std::uint32_t slot, pqkv::view<const float, 3> keys, std::size_t first, std::size_t last) {
  const auto count = static_cast<std::uint32_t>(last - first);
  pqkv::cache_step step;
  step.slots = pqkv::make_view(&slot, 1);
  step.counts = pqkv::make_view(&count, 1);
  const auto part = keys.slice(1, first, count);
  const pqkv::view<const float, 3> tokens{part.data, {count, h, d}, {part.stride(1), part.stride(0), 1}};
  cache.append(cpu, tokens, tokens, step);
}
/// What a slot of a batch of one retrieves for ten questions.
template <class Cache>
std::vector<std::int32_t> answers(Cache& cache, std::size_t slot = 0, const plain_axes* axes = nullptr) {
  std::vector<std::int32_t> all;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const std::vector<float> plain = make_queries(1, 70 + seed), query = axes != nullptr ? axes->queries(plain) : plain;
    const auto which = static_cast<std::uint32_t>(slot);
    pqkv::cache_step step;
    step.slots = pqkv::make_view(&which, 1);
    std::vector<std::int32_t> list(h * cache.retrieve_capacity(slot), -7);
    std::vector<std::uint32_t> counts(h);
    cache.retrieve(cpu, view_of(query), pqkv::make_view(list.data(), std::size_t{1}, h, list.size() / h),
                   pqkv::make_view(counts.data(), std::size_t{1}, h), step);
    all.insert(all.end(), list.begin(), list.end());
  }
  return all;
}
std::vector<std::uint8_t> codes_of(const pqkv::pqcache<>& cache, std::size_t slot = 0) {
  const auto codes = cache.selection().index().sequence(slot).codes;
  std::vector<std::uint8_t> all;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t t = cache.middle(slot).begin; t < cache.middle(slot).end; ++t) all.push_back(codes(head, j, t));
  return all;
}
}  // namespace

TEST_CASE("weighted axes: a sum of squares is exact to its last place, and free of order") {
  random_source random(1);
  std::vector<float> terms;
  for (int i = 0; i < 4000; ++i) terms.push_back(random.gaussian() * std::pow(2.0f, static_cast<float>(random.below(34)) - 20.0f));
  terms.insert(terms.end(), {0x1p-33f, 0x1p-32f, 0x1p30f, 0.0f, -0.0f});
  __extension__ using wide = unsigned __int128;
  wide exact = 0;
  pqkv::square_sum forward, backward;
  for (const float x : terms) {
    const long double square = std::min(static_cast<long double>(x) * static_cast<long double>(x), 0x1p40L);
    exact += static_cast<wide>(square * 0x1p64L);
    forward.add(x);
  }
  std::reverse(terms.begin(), terms.end());
  for (const float x : terms) backward.add(x);
  CHECK(forward.whole == static_cast<std::uint64_t>(exact >> 64));
  CHECK(forward.fraction == static_cast<std::uint64_t>(exact));
  CHECK(backward.whole == forward.whole);
  CHECK(backward.fraction == forward.fraction);
}

TEST_CASE("weighted axes: codes and lists are those of a plain cache with keys and queries dealt and weighted by hand") {
  for (const content what : {content::gaussian, content::clustered, content::offset})
    for (const std::uint64_t seed : {11u, 12u}) {
      const prompt given(h, 300, d, seed, what);
      const std::vector<float> seen = make_queries(40, seed);
      auto of_own = params_of(axis_order::weighted_pairs), of_plain = params_of(axis_order::contiguous);
      of_own.selector.refresh = of_plain.selector.refresh = 1.2;
      pqkv::pqcache<> own(of_own), plain(of_plain);
      own.observe(cpu, 0, view_of(seen));
      const auto part = given.keys.view().slice(1, 0, 200);
      own.prefill(cpu, 0, part, part);
      CHECK(own.selection().weighted_heads(0) == h);
      const plain_axes axes(seen, given.keys, 4, 200);
      const std::vector<float> keys = axes.keys(given.keys, 300);
      const pqkv::view<const float, 3> dealt = pqkv::make_view(keys.data(), h, std::size_t{300}, d);
      plain.prefill(cpu, 0, dealt.slice(1, 0, 200), dealt.slice(1, 0, 200));
      append(own, 0, given.keys.view(), 200, 260);
      append(plain, 0, dealt, 200, 260);
      CHECK(codes_of(own) == codes_of(plain));
      CHECK(answers(own) == answers(plain, 0, &axes));
      own.maintain(cpu), plain.maintain(cpu);  // renews codebooks and keeps the order
      CHECK(own.statistics(0).trainings == 2);
      CHECK(codes_of(own) == codes_of(plain));
      CHECK(answers(own) == answers(plain, 0, &axes));
      own.truncate(cpu, 0, 150), plain.truncate(cpu, 0, 150);
      append(own, 0, given.keys.view(), 260, 300);
      append(plain, 0, dealt, 260, 300);
      own.maintain(cpu), plain.maintain(cpu);
      CHECK(codes_of(own) == codes_of(plain));
      CHECK(answers(own) == answers(plain, 0, &axes));
    }
}

TEST_CASE("weighted axes: neither pieces nor order nor layout of what is observed matter, and queries that are not finite are left out") {
  const prompt given(h, 200, d, 5);
  const std::vector<float> seen = make_queries(30, 6);
  pqkv::pqcache<> whole(params_of(axis_order::weighted_pairs)), pieces(params_of(axis_order::weighted_pairs));
  whole.observe(cpu, 0, view_of(seen));
  std::vector<float> wide(30 * d * hq);  // [n, d, hq]
  for (std::size_t t = 0; t < 30; ++t)
    for (std::size_t q = 0; q < hq; ++q)
      for (std::size_t i = 0; i < d; ++i) wide[(t * d + i) * hq + q] = seen[(t * hq + q) * d + i];
  const pqkv::view<const float, 3> transposed{wide.data(), {30, hq, d}, {hq * d, 1, hq}};
  std::vector<float> bad = make_queries(1, 9);
  for (std::size_t q = 0; q < hq; ++q) bad[q * d + q] = q % 2 == 0 ? std::nanf("") : INFINITY;
  prefill(cpu, whole, 0, given);
  pieces.observe(cpu, 0, transposed.slice(0, 17, 13));
  pieces.prefill(cpu, 0, given.keys.view().slice(1, 0, 70), given.keys.view().slice(1, 0, 70), pqkv::chunk::more);
  pieces.observe(cpu, 0, transposed.slice(0, 0, 17));
  pieces.observe(cpu, 0, view_of(bad));
  pieces.prefill(cpu, 0, given.keys.view().slice(1, 70, 130), given.keys.view().slice(1, 70, 130));
  CHECK(codes_of(whole) == codes_of(pieces));
  CHECK(answers(whole) == answers(pieces));
}

TEST_CASE("weighted axes: without queries a slot is cut as under rotary_halves, and says so") {
  const prompt given(h, 200, d, 7);
  pqkv::pqcache<> own(params_of(axis_order::weighted_pairs, 2)), halves(params_of(axis_order::rotary_halves, 2));
  own.observe(cpu, 1, view_of(make_queries(8, 1)));  // of another slot
  prefill(cpu, own, 0, given), prefill(cpu, halves, 0, given);
  CHECK(own.selection().weighted_heads(0) == 0);
  CHECK(codes_of(own) == codes_of(halves));
  CHECK(answers(own) == answers(halves));
  prefill(cpu, own, 1, given);
  CHECK(own.selection().weighted_heads(1) == h);
  CHECK(codes_of(own, 1) != codes_of(own, 0));
  own.reset(1);
  prefill(cpu, own, 1, given);
  CHECK(own.selection().weighted_heads(1) == 0);
  CHECK(codes_of(own, 1) == codes_of(own, 0));
}

TEST_CASE("weighted axes: forks, files and renewed codebooks keep what was seen; with a second stage and for inner products too") {
  for (const int kind : {0, 1, 2}) {
    CAPTURE(kind);
    auto p = params_of(axis_order::weighted_pairs, 2);
    p.selector.refresh = 1.5;
    if (kind == 1) p.selector.residual = {.subspaces = 4, .bits = 4, .shortlist = 2};
    if (kind == 2) p.selector.metric = pqkv::key_metric::inner_product;
    const prompt given(h, 200, d, 21);
    const std::vector<float> seen = make_queries(25, 22);
    const auto keys = given.keys.view();
    pqkv::pqcache<> grown(p), whole(p), other(p);
    for (pqkv::pqcache<>* cache : {&grown, &whole}) cache->observe(cpu, 0, view_of(seen));
    grown.prefill(cpu, 0, keys.slice(1, 0, 100), keys.slice(1, 0, 100));
    whole.prefill(cpu, 0, keys, keys);
    grown.fork(cpu, 0, 1);
    CHECK(answers(grown, 1) == answers(grown, 0));
    load(cpu, other, 0, saved(cpu, grown, 0));
    CHECK(other.selection().weighted_heads(0) == h);
    CHECK(answers(other) == answers(grown));
    append(grown, 1, keys, 100, 200);
    append(other, 0, keys, 100, 200);
    grown.maintain(cpu), other.maintain(cpu);
    CHECK(grown.statistics(1).trainings == 2);
    CHECK(codes_of(grown, 1) == codes_of(whole));
    CHECK(codes_of(other) == codes_of(whole));
    CHECK(answers(grown, 1) == answers(whole));
    CHECK(answers(other) == answers(whole));
    pqkv::pqcache<> halves([&] {
      auto q = p;
      q.selector.axes = axis_order::rotary_halves;
      return q;
    }());
    CHECK_THROWS_WITH_AS(load(cpu, halves, 0, saved(cpu, grown, 0)), doctest::Contains("file.selector.axes"), pqkv::value_error);
  }
}

TEST_CASE("weighted axes: refusals name what is wrong and change nothing") {
  pqkv::pqcache<> cache(params_of(axis_order::weighted_pairs)), halves(params_of(axis_order::rotary_halves));
  const std::vector<float> seen = make_queries(8, 1);
  const auto queries = view_of(seen);
  CHECK_THROWS_WITH_AS(halves.observe(cpu, 0, queries), doctest::Contains("selector.axes"), pqkv::value_error);
  CHECK_THROWS_WITH_AS(cache.observe(cpu, 1, queries), doctest::Contains("slot"), pqkv::value_error);
  CHECK_THROWS_WITH_AS(cache.observe(cpu, 0, queries.slice(1, 0, 3)), doctest::Contains("queries.extent(1)"), pqkv::shape_error);
  CHECK_THROWS_WITH_AS(cache.observe(cpu, 0, queries.slice(2, 0, 8)), doctest::Contains("queries.extent(2)"), pqkv::shape_error);
  const auto energy = cache.selection().index().pairs.energy;
  for (std::size_t i = 0; i < h * d; ++i) CHECK(energy.data[i].is_zero());

  using device_cache = pqkv::pqcache<pqkv::dense_rows<float, pqkv::space::device>>;
  device_cache::params there;
  there.kv_heads = 1, there.query_heads = 1, there.head_dim = 16, there.capacity = 100;
  CHECK(device_cache::can_construct(there).ok());
  there.selector.axes = axis_order::weighted_pairs;
  CHECK(device_cache::can_construct(there).ok());
  there.selector.over = pqkv::selector::normalisation::attended;
  there.selector.renewal = pqkv::selector::renewal_scope::new_keys;
  CHECK(device_cache::can_construct(there).ok());
}
