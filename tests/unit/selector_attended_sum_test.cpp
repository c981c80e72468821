// SPDX-License-Identifier: Apache-2.0
// Softmax sums of sinks and window: against double for spans of every kind, the same bits on every instruction set and in every layout;
// keys that are not finite count for nothing; what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <pqkv/pqkv.hpp>
#include <vector>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;

/// Keys of two heads, and queries of their groups.
struct summing {
  std::size_t group, d, n;
  rows<float> keys;
  std::vector<float> queries;

  summing(std::size_t g, std::size_t dim, std::size_t length, std::uint64_t seed, layout where)
      : group(g), d(dim), n(length), keys(make_rows<float>(content::gaussian, 2, length, dim, seed, where)), queries(2 * g * dim) {
    random_source random(seed);
    for (float& x : queries) x = 2 * random.gaussian();
  }
  std::size_t heads() const { return 2 * group; }
  template <class Policy>
  std::vector<pqkv::attended_sum> sums(const Policy& policy, const std::vector<pqkv::token_span>& spans, float scale) const {
    std::vector<pqkv::attended_sum> made(heads(), {9.0f, 9});  // written whatever was there
    pqkv::sum_attended(policy, pqkv::make_view(queries.data(), heads(), d), pqkv::strided_kv(keys.view(), keys.view()),
                       pqkv::make_view(spans.data(), spans.size()), pqkv::make_view(made.data(), heads()), scale);
    return made;
  }
  /// The finite inner products of query head q with the keys of a span.
  std::vector<double> logits(std::size_t q, const pqkv::token_span& span) const {
    std::vector<double> all;
    for (std::size_t t = 0; t < n; ++t) {
      if (t >= span.leading && (t < span.window_begin || t >= span.window_end)) continue;
      double z = 0;
      for (std::size_t i = 0; i < d; ++i) z += static_cast<double>(queries[q * d + i]) * static_cast<double>(keys.view()(q / group, t, i));
      if (std::isfinite(z)) all.push_back(z);
    }
    return all;
  }
};

bool same_bits(const std::vector<pqkv::attended_sum>& a, const std::vector<pqkv::attended_sum>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i].weight != b[i].weight || (a[i].weight != 0 && a[i].top != b[i].top)) return false;
  return a.size() == b.size();
}
}  // namespace

TEST_CASE("attended sum: equals double, with the same bits on every instruction set, by KV head and by query head") {
  const std::uint32_t n = 200;
  // Sinks alone, a window alone, both, more than a tile of 64 of each, one token, none.
  const std::vector<pqkv::token_span> kinds = {{4, 0, 0}, {0, 150, 200}, {4, 180, 200}, {70, 100, 199}, {1, 0, 0}, {0, 0, 0}};
  std::uint64_t seed = 0;
  for (const std::size_t g : {1u, 3u, 8u})
    for (std::size_t kind = 0; kind < kinds.size(); ++kind)
      for (const bool by_query : {false, true}) {
        const float scale = kind % 2 == 0 ? 0.0f : 0.3f;
        ++seed;
        summing given(g, 8 * (1 + g), n, seed, every_layout[seed % 5]);
        given.keys(1, 2, 3) = nonfinite(seed);
        given.keys(0, 190, 0) = nonfinite(seed + 1);
        std::vector<pqkv::token_span> spans;
        for (std::size_t list = 0; list < (by_query ? given.heads() : 2); ++list) spans.push_back(kinds[(kind + list) % kinds.size()]);
        const auto first = given.sums(pqkv::exec::host<pqkv::isa::scalar>{}, spans, scale);
        for (std::size_t q = 0; q < given.heads(); ++q) {
          const auto logits = given.logits(q, spans[by_query ? q : q / g]);
          CAPTURE(q);
          if (logits.empty()) {
            REQUIRE(first[q].weight == 0);
            continue;
          }
          const double top = *std::max_element(logits.begin(), logits.end());
          const double softmax = scale == 0 ? 1 / std::sqrt(static_cast<double>(given.d)) : static_cast<double>(scale);
          double wanted = 0;
          for (const double z : logits) wanted += std::exp(softmax * (z - top));
          REQUIRE(std::fabs(static_cast<double>(first[q].top) - top) < 1e-4);
          REQUIRE(std::fabs(static_cast<double>(first[q].weight) * 0x1p-40 - wanted) < 1e-4 * wanted);
        }
        for_each_isa([&](auto isa) {
          const pqkv::exec::host<decltype(isa), threaded_runner> threads;
          REQUIRE(same_bits(given.sums(threads, spans, scale), first));
        });
        summing elsewhere = given;
        elsewhere.keys = make_rows<float>(content::gaussian, 2, n, given.d, seed, every_layout[(seed + 1) % 5]);
        for (std::size_t head = 0; head < 2; ++head)
          for (std::size_t t = 0; t < n; ++t)
            for (std::size_t i = 0; i < given.d; ++i) elsewhere.keys(head, t, i) = given.keys.view()(head, t, i);
        REQUIRE(same_bits(elsewhere.sums(pqkv::exec::host<>{}, spans, scale), first));
      }
}

TEST_CASE("attended sum: two sets of tokens are merged in either order; a query that is not finite has no sum") {
  summing given(2, 16, 100, 5, layout::dense);
  given.queries[16] = nonfinite(1);  // the second query head
  const auto scale = pqkv::canonical::softmax_scale::of(16, 0);
  const pqkv::exec::host<> cpu;
  const auto sinks = given.sums(cpu, {{10, 0, 0}, {10, 0, 0}}, 0), window = given.sums(cpu, {{0, 60, 100}, {0, 60, 100}}, 0);
  const auto both = given.sums(cpu, {{10, 60, 100}, {10, 60, 100}}, 0);
  for (std::size_t q = 0; q < 4; ++q) {
    const auto one = sinks[q].merged(window[q], scale), other = window[q].merged(sinks[q], scale);
    CHECK(one.weight == other.weight);
    CHECK(one.weight == both[q].weight);
    CHECK((one.weight == 0) == (q == 1));
    if (q != 1) CHECK(one.top == both[q].top);
  }
}

TEST_CASE("attended sum: extents that disagree are refused") {
  const summing given(2, 16, 30, 3, layout::dense);
  const auto store = pqkv::strided_kv(given.keys.view(), given.keys.view());
  const std::vector<pqkv::token_span> spans(4, {1, 20, 30});
  std::vector<pqkv::attended_sum> sums(4);
  const auto refused = [&](std::size_t heads, std::size_t d, std::size_t lists, std::size_t written, const char* where, double expected,
                           double got) {
    const auto run = [&] {
      pqkv::sum_attended(pqkv::exec::host<>{}, pqkv::make_view(given.queries.data(), heads, d), store, pqkv::make_view(spans.data(), lists),
                         pqkv::make_view(sums.data(), written));
    };
    CHECK(unless_refused<pqkv::shape_error>(run, where, expected, got) == "");
  };
  refused(3, 16, 2, 3, "sum_attended: query.extent(0)", 2, 3);
  refused(4, 8, 2, 4, "sum_attended: query.extent(1)", 16, 8);
  refused(4, 16, 3, 4, "sum_attended: spans.extent(0)", 2, 3);
  refused(4, 16, 2, 3, "sum_attended: sums.extent(0)", 4, 3);
}
