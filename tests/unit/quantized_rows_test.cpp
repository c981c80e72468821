// SPDX-License-Identifier: Apache-2.0
// Rows of 8-bit integers: what is read back is the plain formula's to the bit on every instruction set, from every type and stride; every
// row where its position says; attention to them against double precision; a cache of them lives as one of the same numbers in floats.
#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <set>

#include "cases/plain_attention.hpp"
#include "cases/policies.hpp"
#include "cases/quantized_twins.hpp"
#include "cases/queued_backend.hpp"

namespace {
using namespace pqkv_cases;
constexpr float infinity = std::numeric_limits<float>::infinity();

/// One head of rows of `T` through store_tokens, every `stride`-th element; returns rows whose read-back differs from the plain formula.
template <class T, class Policy>
std::size_t wrong_rows(const Policy& policy, const std::vector<float>& rows, std::size_t d, std::size_t stride) {
  const std::size_t n = rows.size() / d;
  std::vector<T> given(n * d * stride);
  std::vector<float> plain(n * d);
  for (std::size_t i = 0; i < n * d; ++i) given[i * stride] = T(rows[i]), plain[i] = static_cast<float>(T(rows[i]));
  for (std::size_t t = 0; t < n; ++t) plain_rounded(&plain[t * d], d);
  const pqkv::quantized_rows<> memory(policy, {.batch = 1, .kv_heads = 1, .query_heads = 1, .head_dim = d, .capacity = n});
  std::uint32_t bad[2] = {};
  const pqkv::view<const T, 3> from{given.data(), {1, n, d}, {n * d * stride, d * stride, stride}};
  pqkv::kernel<pqkv::op::store_tokens, pqkv::backend::host>::run(
      policy, memory.view(), pqkv::stored_tokens<pqkv::space::host>{0, 0, pqkv::make_view(bad, std::size_t{2})}, from, from);
  std::size_t wrong = 0, broken = 0;
  for (std::size_t t = 0; t < n; ++t) {
    const auto key = memory.store().key(0, t), value = memory.store().value(0, t);
    bool same = true, finite = true;
    for (std::size_t i = 0; i < d; ++i) {
      const float want = plain[t * d + i];
      finite = finite && std::isfinite(want);
      same = same && (std::isnan(want) ? std::isnan(key[i]) && std::isnan(value[i]) : key[i] == want && value[i] == want);
    }
    wrong += same ? 0 : 1;
    broken += finite ? 0 : 1;
  }
  CHECK(bad[0] == broken);
  CHECK(bad[1] == broken);
  return wrong;
}

std::vector<float> rows_to_store(std::size_t d, random_source& random) {
  const float magnitudes[] = {1.0f, 1e-3f, 3e4f, 1e-42f, 1e-38f, 1e30f, 0.0f, 3e38f};
  std::vector<float> rows;
  for (std::size_t t = 0; t < 64; ++t)
    for (std::size_t i = 0; i < d; ++i) {
      float x = magnitudes[t % 8] * static_cast<float>(random.gaussian());
      if (t % 9 == 1 && i == random.below(d)) x = infinity;
      if (t % 9 == 2 && i == d - 1) x = std::nanf("");
      if (t % 9 == 4) x = (i % 3 == 0 ? 127.0f : 0.5f) * (i % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>(i % 5);  // ties
      rows.push_back(x);
    }
  return rows;
}
}  // namespace

TEST_CASE("quantized rows: read back as the plain formula rounds, on every instruction set") {
  random_source random(3);
  for (const std::size_t d : {8u, 16u, 24u, 64u, 104u, 128u, 256u}) {
    CAPTURE(d);
    const auto rows = rows_to_store(d, random);
    for_each_isa([&](auto isa) {
      const pqkv::exec::host<decltype(isa)> cpu;
      CHECK(wrong_rows<float>(cpu, rows, d, 1) == 0);
      CHECK(wrong_rows<pqkv::half>(cpu, rows, d, 3) == 0);
      CHECK(wrong_rows<pqkv::bfloat16>(cpu, rows, d, 1) == 0);
    });
  }
}

TEST_CASE("quantized rows: within half a step, and the largest element is kept") {
  random_source random(4);
  std::vector<float> row(128);
  for (int round = 0; round < 200; ++round) {
    for (float& x : row) x = static_cast<float>(random.gaussian()) * 7.0f;
    std::vector<float> stored = row;
    plain_rounded(stored.data(), row.size());
    float largest = 0;
    for (const float x : row) largest = std::max(largest, std::fabs(x));
    for (std::size_t i = 0; i < row.size(); ++i) {
      REQUIRE(std::fabs(stored[i] - row[i]) <= largest / 127.0f * 0.50001f);
      if (std::fabs(row[i]) == largest) REQUIRE(stored[i] == doctest::Approx(row[i]).epsilon(1e-6));
    }
  }
}

TEST_CASE("quantized rows: every row where its position says, bytes as counted") {
  for (const std::size_t d : {8u, 24u, 64u, 136u}) {
    const pqkv::cache_shape shape{.batch = 3, .kv_heads = 2, .query_heads = 2, .head_dim = d, .capacity = 13};
    const pqkv::quantized_rows<> rows(pqkv::exec::host<>{}, shape);
    static_assert(pqkv::kv_rows<pqkv::quantized_rows<>::view_type>);
    CHECK(pqkv::quantized_rows<>::token_bytes(d) == 2 * d + 16);
    CHECK(rows.size_bytes() == pqkv::quantized_rows<>::required_bytes(shape));
    CHECK(rows.size_bytes() >= 6 * 13 * (2 * d + 16));
    CHECK(rows.size_bytes() < 6 * 13 * (2 * d + 16) + pqkv::cache_line_bytes);
    std::set<const void*> places;
    for (std::size_t head = 0; head < 6; ++head)
      for (std::size_t t = 0; t < 13; ++t) {
        const auto key = rows.view().key_slot(head, t), value = rows.view().value_slot(head, t);
        REQUIRE(reinterpret_cast<std::uintptr_t>(key.data) % 16 == 0);
        REQUIRE(value.data == key.data + d);
        REQUIRE(reinterpret_cast<const std::int8_t*>(key.scale) == value.data + d);
        REQUIRE(value.scale == key.scale + 1);
        REQUIRE(places.insert(key.data).second);
        REQUIRE(rows.store().key(head, t).data == key.data);
        REQUIRE(rows.store().value(head, t).scale == value.scale);
      }
    const pqkv::slot_parts parts = rows.parts();
    REQUIRE(parts.count == 1);
    CHECK(parts.part[0].bytes(3) == 3 * (2 * d + 16));
    CHECK(static_cast<const void*>(parts.part[0].segment(2, 1)) == rows.store().key(5, 0).data);
  }
  const pqkv::cache_shape huge{.batch = 65535, .kv_heads = 65535, .query_heads = 65535, .head_dim = 256, .capacity = 2147483647};
  CHECK(pqkv::quantized_rows<>::required_bytes(huge) > static_cast<std::size_t>(-1) / 2);
}

TEST_CASE("quantized rows: attention against double precision, on every instruction set") {
  random_source random(5);
  for (const std::size_t d : {8u, 40u, 64u, 128u, 200u})
    for (const std::size_t g : {1u, 2u, 3u, 4u, 8u, 9u}) {
      const std::size_t n = 100;
      const pqkv::cache_shape shape{.batch = 1, .kv_heads = 1, .query_heads = g, .head_dim = d, .capacity = n};
      const pqkv::quantized_rows<> rows(pqkv::exec::host<>{}, shape);
      const auto keys = make_rows<float>(content::gaussian, 1, n, d, random.bits()),
                 values = make_rows<float>(content::gaussian, 1, n, d, random.bits());
      std::uint32_t bad[2] = {};
      pqkv::kernel<pqkv::op::store_tokens, pqkv::backend::host>::run(
          pqkv::exec::host<>{}, rows.view(), pqkv::stored_tokens<pqkv::space::host>{0, 0, pqkv::make_view(bad, std::size_t{2})},
          keys.view(), values.view());
      std::vector<float> query(g * d), out(g * d), lse(g);
      for (float& x : query) x = static_cast<float>(random.gaussian());
      const std::size_t leading = random.below(4), listed = random.below(60), window = 1 + random.below(30);
      std::vector<std::int32_t> list;
      std::vector<std::size_t> tokens;
      for (std::size_t t = 0; t < leading; ++t) tokens.push_back(t);
      for (std::size_t i = 0, t = leading; i < listed && t + window < n; ++i, t += 1 + random.below(2))
        list.push_back(static_cast<std::int32_t>(t)), tokens.push_back(t);
      for (std::size_t t = n - window; t < n; ++t) tokens.push_back(t);
      std::vector<pqkv::token_span> spans{
          {static_cast<std::uint32_t>(leading), static_cast<std::uint32_t>(n - window), static_cast<std::uint32_t>(n)}};
      std::vector<std::uint32_t> counts{static_cast<std::uint32_t>(list.size())};
      list.resize(n);
      const pqkv::token_set<> set{pqkv::make_view(std::as_const(spans)), pqkv::make_view(std::as_const(list).data(), std::size_t{1}, n),
                                  pqkv::make_view(std::as_const(counts))};
      for_each_isa([&](auto isa) {
        pqkv::attention(pqkv::exec::host<decltype(isa)>{}, pqkv::make_view(std::as_const(query).data(), g, d), rows.store(), set,
                        pqkv::make_view(out.data(), g, d), pqkv::make_view(lse.data(), g));
        for (std::size_t q = 0; q < g; ++q) {
          const auto want = plain_attention(&query[q * d], rows.store(), 0, tokens);
          for (std::size_t i = 0; i < d; ++i) REQUIRE(std::fabs(static_cast<double>(out[q * d + i]) - want.out[i]) <= want.tolerance());
          REQUIRE(static_cast<double>(lse[q]) == doctest::Approx(want.lse).epsilon(1e-5));
        }
      });
    }
}

TEST_CASE("quantized rows: a row that is not finite gives a NaN, as in any attention") {
  using cache_type = pqkv::pqcache<pqkv::quantized_rows<>, pqkv::selector::full>;
  cache_type::params p;
  p.batch = 1, p.kv_heads = 1, p.query_heads = 1, p.head_dim = 16, p.capacity = 20;
  const pqkv::exec::host<> cpu;
  for (const bool in_key : {false, true}) {
    cache_type cache(p);
    auto keys = make_rows<float>(content::gaussian, 1, 9, 16, 1), values = make_rows<float>(content::gaussian, 1, 9, 16, 2);
    (in_key ? keys : values)(0, 4, 3) = infinity;
    cache.prefill(cpu, 0, keys.view(), values.view());
    CHECK(cache.statistics(0).nonfinite_keys == (in_key ? 1 : 0));
    CHECK(cache.statistics(0).nonfinite_values == (in_key ? 0 : 1));
    const std::vector<float> query(16, 0.25f);
    std::vector<float> out(16);
    cache.attend(cpu, pqkv::make_view(query.data(), std::size_t{1}, std::size_t{1}, std::size_t{16}),
                 pqkv::make_view(out.data(), std::size_t{1}, std::size_t{1}, std::size_t{16}));
    for (const float x : out) CHECK(std::isnan(x));
  }
}

namespace {
template <class HostSelector, class Selector, class Policy>
void lives(const Policy& policy, std::uint64_t seed, std::size_t rounds, std::size_t fine = 0) {
  random_source random(seed);
  std::size_t checked = 0, ranked = 0, reloaded = 0;
  double worst = 0;
  for (std::size_t round = 0; round < rounds; ++round) {
    CAPTURE(round);
    typename pqkv::pqcache<pqkv::dense_rows<float>, HostSelector>::params p;
    p.batch = 3, p.kv_heads = 2, p.query_heads = 2 * (1 + random.below(4)), p.head_dim = 8 * (1 + random.below(6)),
    p.capacity = 100 + random.below(100);
    p.budget.sinks = random.below(6), p.budget.window = 4 + random.below(12), p.budget.retrieve = 5 + random.below(20);
    if constexpr (requires { p.selector.train; }) {
      p.selector.subspaces = std::size_t{1} << random.below(3), p.selector.bits = 4;
      p.selector.train.iterations = 2, p.selector.train.seed = random.bits();
      p.selector.tail_tokens = 1 + random.below(30);
      if (fine != 0) p.selector.residual = {.subspaces = fine, .bits = 4, .shortlist = 3};
    }
    quantized_twins<Policy, HostSelector, Selector> twins(policy, p, every_content[random.below(3)], random.bits());
    live_quantized(twins, p.batch, p.capacity, 40, random);
    pqkv::sync(policy);
    checked += twins.checked, ranked += twins.ranked, reloaded += twins.reloaded ? 1 : 0, worst = std::max(worst, twins.worst);
  }
  MESSAGE("steps checked ", checked, ", with a ranked list ", ranked, ", largest difference of outputs ", worst);
  CHECK(checked > rounds * 15);
  CHECK(reloaded > 0);
  CHECK(worst < 1e-4);
  if constexpr (!std::is_same_v<HostSelector, pqkv::selector::full>) CHECK(ranked > rounds);
}
using pq = pqkv::selector::basic_pq<>;
using device_pq = pqkv::selector::basic_pq<pqkv::space::device>;
}  // namespace

TEST_CASE("quantized rows: random lives equal a cache of the same numbers") { lives<pq, pq>(pqkv::exec::host<>{}, 41, 12); }
TEST_CASE("quantized rows: a second stage") { lives<pq, pq>(pqkv::exec::host<>{}, 42, 6, 4); }
TEST_CASE("quantized rows: dense attention") { lives<pqkv::selector::full, pqkv::selector::full>(pqkv::exec::host<>{}, 43, 4); }
TEST_CASE("quantized rows: on the backend that queues") {
  queue q;
  lives<pq, device_pq>(queued_policy{&q}, 44, 6);
}

TEST_CASE("quantized rows: a file of another element type is refused") {
  using other_cache = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>>;
  using cache_type = pqkv::pqcache<pqkv::quantized_rows<>>;
  other_cache::params p;
  p.batch = 1, p.kv_heads = 1, p.query_heads = 1, p.head_dim = 16, p.capacity = 64;
  cache_type::params own;
  static_cast<pqkv::cache_shape&>(own) = p;
  other_cache other(p);
  const pqkv::exec::host<> cpu;
  const auto rows = make_rows<float>(content::gaussian, 1, 20, 16, 1);
  other.prefill(cpu, 0, rows.view(), rows.view());
  std::vector<std::byte> file;
  other.save(cpu, 0, [&](const std::byte* piece, std::size_t bytes) { file.insert(file.end(), piece, piece + bytes); });
  cache_type cache(own);
  std::size_t at = 0;
  const auto source = [&](std::byte* to, std::size_t bytes) {
    const std::size_t given = std::min(bytes, file.size() - at);
    std::memcpy(to, file.data() + at, given);
    at += given;
    return given;
  };
  CHECK_THROWS_AS(cache.load(cpu, 0, source), pqkv::value_error);
  CHECK(cache.size(0) == 0);
}
