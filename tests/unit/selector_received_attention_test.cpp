// SPDX-License-Identifier: Apache-2.0
// Attention that tokens receive: against double on every instruction set, causal and over lists, in strips and in pieces; bad keys get
// nothing and hide nothing; what is refused.
#include <doctest/doctest.h>

#include "cases/kept_lives.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;

/// Keys of three heads, of which two are used, and queries of lists.
struct weighing {
  std::size_t h = 2, g, d, n, lists, tokens;  // tokens: whose queries there are
  rows<float> keys;
  std::vector<float> queries;

  weighing(std::size_t group, std::size_t dim, std::size_t length, std::size_t asked, std::uint64_t seed, layout where)
      : g(group), d(dim), n(length), lists(2), tokens(asked), keys(make_rows<float>(content::gaussian, 3, length, dim, seed, where)) {
    random_source random(seed);
    queries.resize(lists * tokens * g * d);
    for (float& x : queries) x = 2 * random.gaussian();
  }
  pqkv::weighed_queries call() const {
    pqkv::weighed_queries made{pqkv::make_view(queries.data(), lists, tokens * g, d), 1, h};
    made.first_token = n - tokens;
    made.rows_per_token = g;
    return made;
  }
  /// What tokens get from row r of a list.
  std::vector<double> weights(std::size_t list, std::size_t row, const kept_list& of, float scale) const {
    plain_keys plain{1, 1, d, scale};
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) plain.rows.push_back(keys.view()(1 + list, t, i));
    return plain.weights(queries.data() + (list * tokens * g + row) * d, 0, of);
  }
};
}  // namespace

TEST_CASE("received attention: equals double for causal queries, in strips and in pieces") {
  std::uint64_t seed = 1;
  for (const std::size_t g : {1u, 3u, 8u, 11u})
    for (const std::size_t asked : {1u, 7u, 90u}) {
      const float scale = g == 3 ? 0.3f : 0.0f;
      ++seed;
      weighing given(g, 8 * (1 + g), 100, asked, seed, every_layout[seed % 5]);
      given.keys(1, 30, 2) = nonfinite(seed);
      std::vector<std::vector<double>> wanted(2, std::vector<double>(100));
      for (std::size_t list = 0; list < 2; ++list)
        for (std::size_t row = 0; row < asked * g; ++row) {
          const auto w = given.weights(list, row, tokens_up_to(100 - asked + row / g + 1), scale);
          for (std::size_t t = 0; t < w.size(); ++t) wanted[list][t] += w[t];
        }
      for_each_isa([&](auto isa) {
        std::vector<double> sums(2 * 105, 1.0);
        const pqkv::exec::host<decltype(isa), threaded_runner> threads;
        const auto store = pqkv::strided_kv(given.keys.view(), given.keys.view());
        pqkv::received_attention(threads, given.call(), store, pqkv::make_view(sums.data(), 2, 105), scale);
        for (std::size_t list = 0; list < 2; ++list)
          for (std::size_t t = 0; t < 105; ++t)
            REQUIRE(std::fabs(sums[list * 105 + t] - 1 - (t < 100 ? wanted[list][t] : 0)) < 1e-5 * (1 + sums[list * 105 + t]));
        CHECK(sums[30] == 1);
        // In two pieces, by one thread: the same, but for the order of additions.
        std::vector<double> pieces(2 * 105, 1.0);
        for (const auto& [first, last] : {std::pair{asked / 2, asked}, std::pair{std::size_t{0}, asked / 2}}) {
          auto part = given.call();
          part.queries = part.queries.slice(1, first * g, (last - first) * g);
          part.first_token += first;
          pqkv::received_attention(pqkv::exec::host<decltype(isa)>{}, part, store, pqkv::make_view(pieces.data(), 2, 105), scale);
        }
        for (std::size_t i = 0; i < sums.size(); ++i) REQUIRE(std::fabs(pieces[i] - sums[i]) < 1e-12 * sums[i]);
      });
    }
}

TEST_CASE("received attention: over lists of tokens, from the policy's scratch; rows without a finite logit add nothing") {
  weighing given(3, 16, 60, 1, 9, layout::dense);
  std::vector<std::uint32_t> tokens(2 * 40, 9999);
  const std::vector<std::uint32_t> counts = {33, 5};
  random_source random(2);
  kept_list lists[2];
  for (std::size_t list = 0; list < 2; ++list)
    for (std::uint32_t i = 0; i < counts[list]; ++i) {
      lists[list].push_back(i == 0 ? static_cast<std::uint32_t>(random.below(4)) : lists[list][i - 1] + 1);
      tokens[list * 40 + i] = lists[list][i];
    }
  given.queries[16] = nonfinite(0);  // the second row of the first list
  auto call = given.call();
  call.tokens = pqkv::as_const(pqkv::make_view(tokens.data(), 2, 40));
  call.counts = pqkv::make_view(counts.data(), 2);
  const auto store = pqkv::strided_kv(given.keys.view(), given.keys.view());
  std::vector<double> sums(2 * 40);
  const auto to = pqkv::make_view(sums.data(), 2, 40);
  pqkv::exec::host<> cpu;
  const std::size_t bytes = pqkv::scratch_bytes<pqkv::op::received_attention>(cpu, {2, 3, 33});
  const pqkv::buffer<std::byte> block(bytes);
  cpu.scratch = pqkv::arena(block.data(), 128);
  CHECK_THROWS_WITH_AS(pqkv::received_attention(cpu, call, store, to), doctest::Contains("policy.scratch"), pqkv::capacity_error);
  CHECK(std::all_of(sums.begin(), sums.end(), [](double x) { return x == 0; }));
  cpu.scratch = pqkv::arena(block);
  pqkv::received_attention(cpu, call, store, to);
  for (std::size_t list = 0; list < 2; ++list) {
    double total = 0;
    for (std::size_t i = 0; i < 40; ++i) {
      double wanted = 0;
      for (std::size_t row = 0; row < 3 && i < counts[list]; ++row)
        wanted += list == 0 && row == 1 ? 0 : given.weights(list, row, lists[list], 0)[i];
      REQUIRE(std::fabs(to(list, i) - wanted) < 1e-5);
      total += to(list, i);
    }
    CHECK(total == doctest::Approx(list == 0 ? 2.0 : 3.0));
  }
}

TEST_CASE("received attention: extents that disagree are refused") {
  const weighing given(2, 16, 30, 4, 3, layout::dense);
  std::vector<double> sums(2 * 30);
  const auto refused = [&](auto change, const char* where, double expected, double got) {
    auto call = given.call();
    auto to = pqkv::make_view(sums.data(), 2, 30);
    change(call, to);
    const auto store = pqkv::strided_kv(given.keys.view(), given.keys.view());
    const auto run = [&] { pqkv::received_attention(pqkv::exec::host<>{}, call, store, to); };
    const std::string as_shape = unless_refused<pqkv::shape_error>(run, where, expected, got);
    CHECK((as_shape.empty() || unless_refused<pqkv::value_error>(run, where, expected, got).empty()));
  };
  refused([](auto& call, auto&) { call.heads = 3; }, "received_attention: queries.extent(0)", 3, 2);
  refused([](auto& call, auto&) { call.first_head = 2; }, "received_attention: first_head", 3, 4);
  refused([](auto& call, auto&) { call.queries = call.queries.slice(2, 0, 8); }, "received_attention: queries.extent(2)", 16, 8);
  refused([](auto& call, auto&) { call.rows_per_token = 3; }, "received_attention: queries.extent(1)", 3, 8);
  refused([](auto&, auto& to) { to = to.slice(0, 0, 1); }, "received_attention: sums.extent(0)", 2, 1);
  refused([](auto&, auto& to) { to = to.slice(1, 0, 29); }, "received_attention: tokens", 29, 30);
}
