// SPDX-License-Identifier: Apache-2.0
// Causal attention of a block of queries against plain double within 1e-5 in norm, every row of it: ragged blocks, positions, groups,
// head dimensions, layouts and types; what is not finite shows where it takes part alone; threads, slices and scratch change no bit.
#include <doctest/doctest.h>

#include <numeric>

#include <pqkv/detail/host/attention.hpp>
#include <pqkv/detail/host/prefill_attention.hpp>

#include "cases/allocation_count.hpp"
#include "cases/float_modes.hpp"
#include "cases/inputs.hpp"
#include "cases/plain_attention.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::exec::host;

/// Queries and outputs of one call, both with gaps between heads and between queries.
struct block {
  block(std::size_t query_heads, std::size_t count, std::size_t head_dim, std::uint64_t seed, float scale = 1.5f)
      : hq(query_heads), queries(count), d(head_dim), query(hq * (queries + 1) * (d + 2), std::numeric_limits<float>::quiet_NaN()) {
    random_source random(seed);
    for (std::size_t q = 0; q < hq; ++q)
      for (std::size_t t = 0; t < queries; ++t)
        for (std::size_t i = 0; i < d; ++i) query[at(q, t) + i] = scale * random.gaussian();
  }
  /// Of query heads in [hq, queries, d], from token-major memory as a projection leaves it.
  std::size_t at(std::size_t q, std::size_t t) const { return (t * hq + q) * (d + 2); }
  pqkv::view<const float, 3> view() const { return {query.data(), {hq, queries, d}, {d + 2, hq * (d + 2), 1}}; }

  std::size_t hq, queries, d;
  std::vector<float> query;
};

struct answer {
  std::vector<float> out, lse;  // [queries, hq, d + 3], [hq, queries]
  bool operator==(const answer&) const = default;
};

template <class Policy, class Store>
answer run_block(const Policy& policy, const block& b, const Store& store, std::size_t first, bool with_lse = true, float scale = 0) {
  const std::size_t row = b.d + 3;
  answer a{std::vector<float>(b.queries * b.hq * row, -9.0f), std::vector<float>(b.hq * b.queries, -9.0f)};
  pqkv::prefill_attention(policy, b.view(), store, first, pqkv::view<float, 3>{a.out.data(), {b.hq, b.queries, b.d}, {row, b.hq * row, 1}},
                          with_lse ? pqkv::make_view(a.lse.data(), b.hq, b.queries) : pqkv::view<float, 2>{}, scale);
  bool kept = true;
  for (std::size_t r = 0; r < b.queries * b.hq; ++r)
    for (std::size_t i = b.d; i < row; ++i) kept = kept && a.out[r * row + i] == -9.0f;
  CHECK(kept);
  return a;
}

template <class Store>
std::vector<plain_result> plain_block(const block& b, const Store& store, std::size_t first, float scale = 0) {
  std::vector<plain_result> all;
  for (std::size_t t = 0; t < b.queries; ++t) {
    std::vector<std::size_t> tokens(first + t + 1);
    std::iota(tokens.begin(), tokens.end(), std::size_t{0});
    for (std::size_t q = 0; q < b.hq; ++q)
      all.push_back(plain_attention(b.query.data() + b.at(q, t), store, q / (b.hq / store.heads()), tokens, scale));
  }
  return all;
}

/// The largest error of a row, and of a log-sum-exp.
double worst_error(const answer& a, const block& b, const std::vector<plain_result>& exact) {
  double worst = 0;
  for (std::size_t t = 0; t < b.queries; ++t)
    for (std::size_t q = 0; q < b.hq; ++q) {
      const plain_result& wanted = exact[t * b.hq + q];
      const double of_lse = std::fabs(static_cast<double>(a.lse[q * b.queries + t]) - wanted.lse) / std::max(1.0, std::fabs(wanted.lse));
      const double error = relative_error(a.out.data() + (t * b.hq + q) * (b.d + 3), wanted.out);
      worst = error <= worst ? worst : error;  // NaN shows
      worst = of_lse <= worst ? worst : of_lse;
    }
  return worst;
}

template <class T>
void check_layouts(std::uint64_t seed) {
  random_source random(seed);
  const std::size_t dims[] = {64, 80, 128, 256, 17, 33, 96};
  std::size_t turn = 0;
  for (const layout k : every_layout)
    for (const layout v : every_layout) {
      if (!looks_at(turn++)) continue;
      const std::size_t g = 1 + turn % 8, d = dims[turn % 7], h = 1 + random.below(2);
      const std::size_t queries = 1 + random.below(turn % 3 == 0 ? 7 : 110), first = turn % 2 == 0 ? 0 : random.below(150);
      const std::size_t n = first + queries + random.below(5);
      const auto keys = make_rows<T>(content::gaussian, h, n, d, random.bits(), k),
                 values = make_rows<T>(content::clustered, h, n, d, random.bits(), v);
      const auto store = pqkv::strided_kv(keys.view(), values.view());
      const block b(h * g, queries, d, random.bits());
      const std::vector<plain_result> exact = plain_block(b, store, first);
      for_each_isa([&](auto isa) { CHECK(worst_error(run_block(host<decltype(isa)>{}, b, store, first), b, exact) < 1e-5); });
    }
}
}  // namespace

TEST_CASE("prefill_attention: float stores of every layout") { check_layouts<float>(1); }
TEST_CASE("prefill_attention: half stores of every layout") { check_layouts<pqkv::half>(2); }
TEST_CASE("prefill_attention: bfloat16 stores of every layout") { check_layouts<pqkv::bfloat16>(3); }

TEST_CASE("prefill_attention: blocks that end on, before and behind a tile of rows and of keys") {
  const std::size_t d = 16, rows = pqkv::detail::prefill_tile_rows, tile = pqkv::detail::prefill_tile_keys;
  for (const std::size_t g : {1u, 5u})
    for (const std::size_t queries : {rows / g - 1, rows / g, rows / g + 1})
      for (const std::size_t first : {std::size_t{0}, tile - 1, tile, tile + 1}) {
        const auto keys = make_rows<float>(content::gaussian, 2, first + queries, d, 4 + first),
                   values = make_rows<float>(content::gaussian, 2, first + queries, d, 5 + queries);
        const auto store = pqkv::strided_kv(keys.view(), values.view());
        const block b(2 * g, queries, d, 6);
        const std::vector<plain_result> exact = plain_block(b, store, first);
        for_each_isa([&](auto isa) { CHECK(worst_error(run_block(host<decltype(isa)>{}, b, store, first), b, exact) < 1e-5); });
      }
}

TEST_CASE("prefill_attention: a scale of the caller's, and 0 for the usual one to the bit") {
  const std::size_t n = 170, d = 40;
  const auto keys = make_rows<pqkv::half>(content::gaussian, 2, n, d, 4), values = make_rows<pqkv::half>(content::clustered, 2, n, d, 5);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const block b(6, 90, d, 6);
  const answer usual = run_block(host<>{}, b, store, n - 90);
  CHECK(run_block(host<>{}, b, store, n - 90, true, 0.0f) == usual);
  for (const float scale : {0.02f, 0.3f, 1.0f, 2.5f}) {
    const std::vector<plain_result> exact = plain_block(b, store, n - 90, scale);
    for_each_isa([&](auto isa) {
      const answer a = run_block(host<decltype(isa)>{}, b, store, n - 90, true, scale);
      CHECK(worst_error(a, b, exact) < 1e-5);
      CHECK(a.out != usual.out);
    });
  }
}

TEST_CASE("prefill_attention: head dimensions of a few elements") {
  const std::size_t n = 130;
  for (const std::size_t d : {1u, 2u, 7u}) {
    const auto keys = make_rows<float>(content::gaussian, 1, n, d, 4);
    auto values = make_rows<float>(content::gaussian, 1, n, d, 5);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) values(0, t, i) = std::fabs(values(0, t, i));  // sums of so few elements may cancel
    const auto store = pqkv::strided_kv(keys.view(), values.view());
    const block b(3, n, d, 6);
    const std::vector<plain_result> exact = plain_block(b, store, 0);
    for_each_isa([&](auto isa) { CHECK(worst_error(run_block(host<decltype(isa)>{}, b, store, 0), b, exact) < 1e-5); });
  }
}

TEST_CASE("prefill_attention: logits that rise and fall over hundreds of nats, flat and peaked ones") {
  const std::size_t n = 400, d = 16;
  auto keys = make_rows<float>(content::gaussian, 1, n, d, 4);
  const auto values = make_rows<float>(content::gaussian, 1, n, d, 5);
  for (const bool rising : {true, false})
    for (const float range : {0.01f, 50.0f, 300.0f, 100000.0f}) {
      for (std::size_t t = 0; t < n; ++t) keys(0, rising ? t : n - 1 - t, 0) = range * static_cast<float>(t) / static_cast<float>(n);
      const auto store = pqkv::strided_kv(keys.view(), values.view());
      block b(1, 60, d, 6, 0.0f);
      for (std::size_t t = 0; t < b.queries; ++t) b.query[b.at(0, t)] = 4.0f;  // logit = key[0]
      const std::vector<plain_result> exact = plain_block(b, store, n - 60);
      for_each_isa([&](auto isa) { CHECK(worst_error(run_block(host<decltype(isa)>{}, b, store, n - 60), b, exact) < 2e-5); });
    }
}

TEST_CASE("prefill_attention: one query is decode attention, and the chunks of a prompt are the prompt") {
  const std::size_t n = 230, d = 48, h = 2, hq = 6;
  const auto keys = make_rows<pqkv::bfloat16>(content::gaussian, h, n, d, 14),
             values = make_rows<pqkv::bfloat16>(content::clustered, h, n, d, 15);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const block b(hq, n, d, 16);
  std::vector<float> whole(hq * n * d), chunks(hq * n * d, -9.0f), one(hq * d);
  pqkv::prefill_attention(host<>{}, b.view(), store, 0, pqkv::make_view(whole.data(), hq, n, d));
  const auto into = pqkv::make_view(chunks.data(), hq, n, d);
  for (std::size_t first = 0, size = 1; first < n; first += size, size = std::min(n - first, size * 2 + 1))
    pqkv::prefill_attention(host<>{}, b.view().slice(1, first, size), store, first, into.slice(1, first, size));
  const pqkv::token_span span{static_cast<std::uint32_t>(n), 0, 0};
  const std::vector<pqkv::token_span> spans(h, span);
  pqkv::attention(host<>{}, pqkv::view<const float, 2>{b.query.data() + b.at(0, n - 1), {hq, d}, {d + 2, 1}}, store,
                  {pqkv::make_view(spans.data(), h), {}, {}}, pqkv::make_view(one.data(), hq, d));
  for (std::size_t q = 0; q < hq; ++q) {
    for (std::size_t t = 0; t < n; ++t) {
      const float* row = whole.data() + (q * n + t) * d;
      CHECK(relative_error(chunks.data() + (q * n + t) * d, {row, row + d}) < 1e-5);
    }
    CHECK(relative_error(whole.data() + (q * n + n - 1) * d, {one.begin() + static_cast<std::ptrdiff_t>(q * d),
                                                              one.begin() + static_cast<std::ptrdiff_t>((q + 1) * d)}) < 1e-5);
  }
}

TEST_CASE("prefill_attention: what is not finite shows in the outputs that meet it, and in no other") {
  const std::size_t n = 210, d = 24, h = 2, hq = 4, first = 5, broken = 107;
  for (std::size_t turn = 0; turn < 3; ++turn)
    for (const char where : {'k', 'v', 'q'}) {
      auto keys = make_rows<float>(content::gaussian, h, n, d, 24), values = make_rows<float>(content::gaussian, h, n, d, 25);
      block b(hq, n - first, d, 26);
      if (where == 'k') keys(0, broken, 5) = nonfinite(turn);
      if (where == 'v') values(0, broken, 5) = nonfinite(turn);
      if (where == 'q') b.query[b.at(1, broken - first) + 5] = nonfinite(turn);
      const auto store = pqkv::strided_kv(keys.view(), values.view());
      for_each_isa([&](auto isa) {
        const answer a = run_block(host<decltype(isa)>{}, b, store, first);
        std::size_t wrong = 0;
        for (std::size_t q = 0; q < hq; ++q)
          for (std::size_t t = 0; t < b.queries; ++t) {
            bool finite = true;
            for (std::size_t i = 0; i < d; ++i) finite = finite && std::isfinite(a.out[(t * hq + q) * (d + 3) + i]);
            const bool meets = where == 'q' ? q == 1 && first + t == broken : q < 2 && first + t >= broken;
            wrong += finite == meets;
          }
        CHECK(wrong == 0);
      });
    }
}

TEST_CASE("prefill_attention: threads, slices, foreign float modes, scratch and a second call give the same bits") {
  const std::size_t queries = 60 + problems(240), d = 40, h = 3, g = 9, hq = h * g, first = 70;
  const auto keys = make_rows<pqkv::bfloat16>(content::gaussian, h, first + queries, d, 4),
             values = make_rows<pqkv::bfloat16>(content::clustered, h, first + queries, d, 5);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const block b(hq, queries, d, 7);
  for_each_isa([&](auto isa) {
    using tested = decltype(isa);
    const answer wanted = run_block(host<tested>{}, b, store, first);
    for (const std::size_t threads : {1u, 2u, 7u})
      CHECK(run_block(host<tested, threaded_runner>{{threads}, {}}, b, store, first) == wanted);
    CHECK(run_block(host<tested>{}, b, store, first, false).out == wanted.out);
    const std::size_t bytes = pqkv::scratch_bytes<pqkv::op::prefill_attention>(host<>{}, {h, hq, queries, d});
    const pqkv::buffer<std::byte> memory(bytes);
    std::fill(memory.begin(), memory.end(), std::byte{0xff});  // NaN in all of it
    std::vector<float> out(hq * queries * d), sliced(hq * queries * d, -9.0f);
    const host<tested> brings{{}, pqkv::arena(memory)};
    const std::size_t before = allocations();
    pqkv::prefill_attention(brings, b.view(), store, first, pqkv::make_view(out.data(), hq, queries, d));
    CHECK(allocations() == before);
    for (const std::size_t ith : {1u, 0u, 2u})
      pqkv::prefill_attention(host<tested, pqkv::exec::slice>{{ith, 3}, {}}, b.view(), store, first,
                              pqkv::make_view(sliced.data(), hq, queries, d));
    CHECK(sliced == out);
    bool same = true;
    for (std::size_t q = 0; q < hq; ++q)
      for (std::size_t t = 0; t < queries; ++t)
        for (std::size_t i = 0; i < d; ++i) same = same && out[(q * queries + t) * d + i] == wanted.out[(t * hq + q) * (d + 3) + i];
    CHECK(same);
    answer foreign;
    bool intact = false;
    {
      const foreign_float_modes modes;
      foreign = run_block(host<tested>{}, b, store, first);
      intact = modes.intact();
    }
    CHECK(intact);
    CHECK(foreign == wanted);
  });
}

TEST_CASE("prefill_attention: more tiles than pieces of scratch, and no query at all") {
  const std::size_t queries = pqkv::detail::prefill_tile_rows * (pqkv::detail::prefill_slots + 3) / 8 / 4, h = 4, hq = 32, d = 8;
  const auto keys = make_rows<float>(content::gaussian, h, queries, d, 4), values = make_rows<float>(content::gaussian, h, queries, d, 5);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const block b(hq, queries, d, 7);
  CHECK(pqkv::detail::prefill_tiles(h, hq, queries) > pqkv::detail::prefill_slots);
  const std::vector<plain_result> exact = plain_block(b, store, 0);
  CHECK(worst_error(run_block(host<>{}, b, store, 0), b, exact) < 1e-5);
  CHECK(worst_error(run_block(host<pqkv::isa::best, threaded_runner>{}, b, store, 0), b, exact) < 1e-5);
  CHECK(pqkv::scratch_bytes<pqkv::op::prefill_attention>(host<>{}, {h, hq, 0, d}) == 0);
  run_block(host<>{}, block(hq, 0, d, 7), store, queries);
}

TEST_CASE("prefill_attention: what does not fit is refused and nothing is written") {
  const rows<float> keys(2, 10, 16), wide(2, 10, 264);
  const auto store = pqkv::strided_kv(keys.view(), keys.view());
  const std::vector<float> query(4 * 5 * 264, 1.0f);
  std::vector<float> out(4 * 5 * 264, -9.0f), lse(20, -9.0f);
  const auto q = pqkv::make_view(query.data(), 4, 5, 16);
  const auto o = pqkv::make_view(out.data(), 4, 5, 16);
  const auto l = pqkv::make_view(lse.data(), 4, 5);
  const auto call = [](auto one, auto two, std::size_t first, auto four, auto five) {
    return [=] { pqkv::prefill_attention(host<>{}, one, two, first, four, five); };
  };
  using pqkv::shape_error;
  using pqkv::value_error;
  const auto refused = [&](auto f, const char* where, double expected, double got) {
    return unless_refused<shape_error>(f, std::string("prefill_attention: ") + where, expected, got);
  };
  CHECK(refused(call(q.slice(0, 0, 3), store, 0, o, l), "query.extent(0)", 2, 3) == "");
  CHECK(refused(call(q.slice(2, 0, 8), store, 0, o, l), "query.extent(2)", 16, 8) == "");
  CHECK(refused(call(q, store, 0, o.slice(0, 0, 3), l), "out.extent(0)", 4, 3) == "");
  CHECK(refused(call(q, store, 0, o.slice(1, 0, 3), l), "out.extent(1)", 5, 3) == "");
  CHECK(refused(call(q, store, 0, o.slice(2, 0, 8), l), "out.extent(2)", 16, 8) == "");
  CHECK(refused(call(q, store, 0, o, l.slice(0, 0, 3)), "lse.extent(0)", 4, 3) == "");
  CHECK(refused(call(q, store, 0, o, l.slice(1, 0, 3)), "lse.extent(1)", 5, 3) == "");
  auto strided = q;
  strided.strides[2] = 2;
  CHECK(refused(call(strided, store, 0, o, l), "query.stride(2)", 1, 2) == "");
  auto strided_out = o;
  strided_out.strides[2] = 2;
  CHECK(refused(call(q, store, 0, strided_out, l), "out.stride(2)", 1, 2) == "");
  CHECK(unless_refused<value_error>(call(q, store, 6, o, l), "prefill_attention: first", 5, 6) == "");
  CHECK(unless_refused<value_error>(call(q, store, 1000, o, l), "prefill_attention: first", 5, 1000) == "");
  CHECK(unless_refused<value_error>(call(pqkv::make_view(query.data(), 4, 5, 264), pqkv::strided_kv(wide.view(), wide.view()), 0,
                                         pqkv::make_view(out.data(), 4, 5, 264), l),
                                    "prefill_attention: store.head_dim", 256, 264) == "");
  const std::size_t bytes = pqkv::scratch_bytes<pqkv::op::prefill_attention>(host<>{}, {2, 4, 5, 16});
  const pqkv::buffer<std::byte> memory(bytes);
  CHECK(unless_refused<pqkv::capacity_error>(
            [&] {
              pqkv::prefill_attention(host<>{{}, pqkv::arena(memory.data(), bytes - 1)}, q, store, 0, o, l);
            },
            "prefill_attention: policy.scratch", static_cast<double>(bytes), static_cast<double>(bytes - 1)) == "");
  for (const float x : out) CHECK(x == -9.0f);
  for (const float x : lse) CHECK(x == -9.0f);
}
