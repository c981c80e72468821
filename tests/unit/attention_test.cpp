// SPDX-License-Identifier: Apache-2.0
// Attention against plain double within 1e-5 in norm: dense, gathered, one list per query head, every layout and storage type, long
// sequences, empty lists, merges, and inputs that are not finite.
#include <doctest/doctest.h>

#include <numeric>

#include <pqkv/detail/host/attention.hpp>

#include "cases/float_modes.hpp"
#include "cases/inputs.hpp"
#include "cases/plain_attention.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::token_span;
using pqkv::exec::host;

/// Lists of tokens as attention() takes them.
struct lists_of_tokens {
  std::vector<token_span> spans;
  std::vector<std::int32_t> indices;
  std::vector<std::uint32_t> counts;
  std::size_t k_max = 0, padding = 0;

  pqkv::token_set<> set() const {
    pqkv::token_set<> tokens;
    tokens.spans = pqkv::make_view(spans.data(), spans.size());
    if (k_max == 0) return tokens;
    tokens.indices = {indices.data(), {spans.size(), k_max}, {k_max + padding, 1}};
    tokens.counts = pqkv::make_view(counts.data(), counts.size());
    return tokens;
  }
  std::vector<std::size_t> tokens_of(std::size_t list) const {
    std::vector<std::size_t> all(spans[list].leading);
    std::iota(all.begin(), all.end(), std::size_t{0});
    for (std::size_t i = 0; k_max != 0 && i < counts[list]; ++i)
      all.push_back(static_cast<std::size_t>(indices[list * (k_max + padding) + i]));
    for (std::size_t t = spans[list].window_begin; t < spans[list].window_end; ++t) all.push_back(t);
    return all;
  }
};

lists_of_tokens dense_lists(std::size_t lists, std::uint32_t n) { return {std::vector<token_span>(lists, {n, 0, 0}), {}, {}, 0, 0}; }

/// Sinks, an ascending list of any length, and a window; some lists are empty.
lists_of_tokens random_lists(std::size_t lists, std::size_t n, random_source& random) {
  lists_of_tokens all;
  all.k_max = 1 + random.below(n);
  all.padding = random.below(4);
  all.indices.assign(lists * (all.k_max + all.padding), -1);
  for (std::size_t list = 0; list < lists; ++list) {
    const std::size_t sinks = random.below(5), window = n - random.below(std::min<std::size_t>(n - 5, 90));
    all.spans.push_back({static_cast<std::uint32_t>(sinks), static_cast<std::uint32_t>(window), static_cast<std::uint32_t>(n)});
    std::uint32_t count = 0;
    for (std::size_t t = sinks; t < window && count < all.k_max; ++t)
      if (random.below(3) == 0) all.indices[list * (all.k_max + all.padding) + count++] = static_cast<std::int32_t>(t);
    all.counts.push_back(count);
    if (random.below(9) == 0) all.spans.back() = {}, all.counts.back() = 0;
  }
  return all;
}

struct answer {
  std::vector<float> out, lse;
};

template <class Policy, class Store>
answer run_attention(const Policy& policy, const std::vector<float>& query, const Store& store, const lists_of_tokens& lists,
                     bool with_lse = true, float scale = 0) {
  const std::size_t d = store.head_dim(), hq = query.size() / d, row = d + 3;
  answer a{std::vector<float>(hq * row, -9.0f), std::vector<float>(hq, -9.0f)};
  pqkv::attention(policy, pqkv::make_view(query.data(), hq, d), store, lists.set(), pqkv::view<float, 2>{a.out.data(), {hq, d}, {row, 1}},
                  with_lse ? pqkv::make_view(a.lse.data(), hq) : pqkv::view<float, 1>{}, scale);
  for (std::size_t q = 0; q < hq; ++q)
    for (std::size_t i = d; i < row; ++i) CHECK(a.out[q * row + i] == -9.0f);
  return a;
}

template <class Store>
void check_answer(const answer& a, const std::vector<float>& query, const Store& store, const lists_of_tokens& lists,
                  double tolerance = 1e-5, float scale = 0) {
  const std::size_t d = store.head_dim(), hq = query.size() / d, per_list = hq / lists.spans.size();
  for (std::size_t q = 0; q < hq; ++q) {
    const plain_result exact = plain_attention(query.data() + q * d, store, q / (hq / store.heads()), lists.tokens_of(q / per_list), scale);
    REQUIRE(relative_error(a.out.data() + q * (d + 3), exact.out) < tolerance);
    if (std::isinf(exact.lse))
      REQUIRE(a.lse[q] == -INFINITY);
    else
      REQUIRE(std::fabs(static_cast<double>(a.lse[q]) - exact.lse) < tolerance * std::max(1.0, std::fabs(exact.lse)));
  }
}

std::size_t attention_bytes(std::size_t lists, std::size_t hq, std::size_t d, std::size_t tokens) {
  return pqkv::scratch_bytes<pqkv::op::attention>(host<>{}, {.lists = lists, .query_heads = hq, .head_dim = d, .tokens = tokens});
}

std::vector<float> random_query(std::size_t hq, std::size_t d, std::uint64_t seed, float scale = 1.5f) {
  random_source random(seed);
  std::vector<float> query(hq * d);
  for (float& x : query) x = scale * random.gaussian();
  return query;
}

template <class T>
void check_layouts(std::uint64_t seed) {
  random_source random(seed);
  const std::size_t groups[] = {1, 2, 4, 8, 9, 17};
  std::size_t turn = 0;
  for (const layout k : every_layout)
    for (const layout v : every_layout) {
      if (!looks_at(turn++)) continue;
      const std::size_t h = 1 + random.below(3), g = groups[random.below(6)], d = 8 * (1 + random.below(32)), n = 6 + random.below(300);
      const auto keys = make_rows<T>(content::gaussian, h, n, d, random.bits(), k),
                 values = make_rows<T>(content::clustered, h, n, d, random.bits(), v);
      const auto store = pqkv::strided_kv(keys.view(), values.view());
      const std::vector<float> query = random_query(h * g, d, random.bits());
      for (const lists_of_tokens& lists : {dense_lists(h, static_cast<std::uint32_t>(n)), dense_lists(h * g, static_cast<std::uint32_t>(n)),
                                           random_lists(h, n, random), random_lists(h * g, n, random)})
        for_each_isa([&](auto isa) { check_answer(run_attention(host<decltype(isa)>{}, query, store, lists), query, store, lists); });
    }
}
}  // namespace

TEST_CASE("attention: float stores of every layout, dense and gathered") { check_layouts<float>(1); }
TEST_CASE("attention: half stores of every layout, dense and gathered") { check_layouts<pqkv::half>(2); }
TEST_CASE("attention: bfloat16 stores of every layout, dense and gathered") { check_layouts<pqkv::bfloat16>(3); }

TEST_CASE("attention: 20000 tokens, dense, flat and peaked") {
  const std::size_t n = 20000, d = 64;
  const auto keys = make_rows<float>(content::gaussian, 1, n, d, 4), values = make_rows<float>(content::clustered, 1, n, d, 5);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  for (const float scale : {0.01f, 1.0f, 12.0f}) {
    const std::vector<float> query = random_query(2, d, 6, scale);
    const lists_of_tokens lists = dense_lists(1, n);
    for_each_isa([&](auto isa) { check_answer(run_attention(host<decltype(isa)>{}, query, store, lists), query, store, lists); });
  }
}

TEST_CASE("attention: a scale of the caller's, and 0 for the usual one to the bit") {
  random_source random(41);
  for (const float scale : {0.02f, 0.3f, 1.0f, 2.5f}) {
    const std::size_t h = 2, g = 3, d = 40, n = 310;
    const auto keys = make_rows<float>(content::gaussian, h, n, d, random.bits()),
               values = make_rows<float>(content::clustered, h, n, d, random.bits());
    const auto store = pqkv::strided_kv(keys.view(), values.view());
    const std::vector<float> query = random_query(h * g, d, random.bits());
    for (const lists_of_tokens& lists : {dense_lists(h, n), random_lists(h, n, random), random_lists(h * g, n, random)})
      for_each_isa([&](auto isa) {
        const host<decltype(isa)> cpu;
        check_answer(run_attention(cpu, query, store, lists, true, scale), query, store, lists, 1e-5, scale);
        const answer usual = run_attention(cpu, query, store, lists);
        const answer named = run_attention(cpu, query, store, lists, true, static_cast<float>(1 / std::sqrt(static_cast<double>(d))));
        check_answer(named, query, store, lists);
        CHECK(run_attention(cpu, query, store, lists, true, 0).out == usual.out);
        CHECK(run_attention(cpu, query, store, lists, true, scale).out != usual.out);
      });
  }
  // Lists of several parts, which are merged.
  const std::size_t d = 16, n = 2 * pqkv::detail::attention_part_tokens + 9;
  const auto keys = make_rows<float>(content::gaussian, 1, n, d, 4), values = make_rows<float>(content::clustered, 1, n, d, 5);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const std::vector<float> query = random_query(2, d, 6);
  const lists_of_tokens lists = dense_lists(1, static_cast<std::uint32_t>(n));
  check_answer(run_attention(host<>{}, query, store, lists, true, 0.7f), query, store, lists, 1e-5, 0.7f);
}

TEST_CASE("attention: logits that rise and fall over hundreds of nats") {
  const std::size_t n = 500, d = 16;
  auto keys = make_rows<float>(content::gaussian, 1, n, d, 4);
  const auto values = make_rows<float>(content::gaussian, 1, n, d, 5);
  std::vector<float> query(d, 0.0f);
  query[0] = 4.0f;  // logit = key[0]
  for (const bool rising : {true, false})
    for (const float range : {50.0f, 300.0f, 100000.0f}) {
      for (std::size_t t = 0; t < n; ++t) keys(0, rising ? t : n - 1 - t, 0) = range * static_cast<float>(t) / static_cast<float>(n);
      const auto store = pqkv::strided_kv(keys.view(), values.view());
      const lists_of_tokens lists = dense_lists(1, n);
      for_each_isa([&](auto isa) { check_answer(run_attention(host<decltype(isa)>{}, query, store, lists), query, store, lists, 2e-5); });
    }
}

TEST_CASE("attention: an empty list gives zeros and a log-sum-exp of minus infinity") {
  const auto keys = make_rows<float>(content::gaussian, 2, 10, 16, 4), values = make_rows<float>(content::gaussian, 2, 10, 16, 5);
  lists_of_tokens lists = dense_lists(2, 10);
  lists.spans[1] = {0, 10, 10};
  const answer a = run_attention(host<>{}, random_query(4, 16, 3), pqkv::strided_kv(keys.view(), values.view()), lists);
  for (std::size_t q = 2; q < 4; ++q) {
    for (std::size_t i = 0; i < 16; ++i) CHECK(a.out[q * 19 + i] == 0.0f);
    CHECK(a.lse[q] == -INFINITY);
  }
  CHECK(std::isfinite(a.lse[1]));
}

TEST_CASE("attention: merging parts of the tokens gives the whole") {
  const std::size_t n = 400, d = 48, hq = 4;
  const auto keys = make_rows<float>(content::gaussian, 2, n, d, 14), values = make_rows<float>(content::clustered, 2, n, d, 15);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const std::vector<float> query = random_query(hq, d, 16, 3.0f);
  const lists_of_tokens all = dense_lists(2, n);
  for (const std::size_t parts : {1u, 2u, 7u}) {
    answer merged{std::vector<float>(hq * (d + 3), 0.0f), std::vector<float>(hq, -INFINITY)};
    for (std::size_t part = 0; part <= parts; ++part) {  // the last one is empty
      lists_of_tokens some{std::vector<token_span>(2), std::vector<std::int32_t>(2 * n), std::vector<std::uint32_t>(2), n, 0};
      for (std::size_t list = 0; list < 2; ++list)
        for (std::size_t t = part; t < n && part < parts; t += parts)
          some.indices[list * n + some.counts[list]++] = static_cast<std::int32_t>(t);
      const answer one = run_attention(host<>{}, query, store, some);
      for (std::size_t q = 0; q < hq; ++q) {
        float* into = merged.out.data() + q * (d + 3);
        if (part % 2 == 0) {
          pqkv::merge(into, merged.lse[q], one.out.data() + q * (d + 3), one.lse[q], d);
        } else {  // the other way round
          std::vector<float> own(one.out.begin() + static_cast<std::ptrdiff_t>(q * (d + 3)),
                                 one.out.begin() + static_cast<std::ptrdiff_t>(q * (d + 3) + d));
          float lse = one.lse[q];
          pqkv::merge(own.data(), lse, into, merged.lse[q], d);
          std::copy(own.begin(), own.end(), into);
          merged.lse[q] = lse;
        }
      }
    }
    check_answer(merged, query, store, all);
  }
}

TEST_CASE("attention: a key, value or query that is not finite shows in the outputs that meet it, and in no other") {
  const std::size_t n = 150, d = 24;
  for (std::size_t turn = 0; turn < 3; ++turn) {
    for (const char* where : {"key", "value", "query"}) {
      auto keys = make_rows<float>(content::gaussian, 2, n, d, 24), values = make_rows<float>(content::gaussian, 2, n, d, 25);
      std::vector<float> query = random_query(4, d, 26);
      if (where[0] == 'k') keys(0, 77, 5) = nonfinite(turn);
      if (where[0] == 'v') values(0, 77, 5) = nonfinite(turn);
      if (where[0] == 'q') query[5] = query[d + 9] = nonfinite(turn);
      const auto store = pqkv::strided_kv(keys.view(), values.view());
      lists_of_tokens lists = dense_lists(4, n);
      lists.spans[1] = {77, 78, n};  // query head 1 does not attend to token 77
      for_each_isa([&](auto isa) {
        const answer a = run_attention(host<decltype(isa)>{}, query, store, lists);
        const auto finite = [&](std::size_t q) {
          bool all = true;
          for (std::size_t i = 0; i < d; ++i) all = all && std::isfinite(a.out[q * (d + 3) + i]);
          return all;
        };
        CHECK_FALSE(finite(0));
        CHECK(finite(1) == (where[0] != 'q'));
        CHECK(finite(2));
        CHECK(finite(3));
      });
    }
  }
}

TEST_CASE("attention: threads, foreign float modes, no log-sum-exp, and a second call give the same bits") {
  const auto keys = make_rows<float>(content::gaussian, 2, 300, 40, 4), values = make_rows<float>(content::gaussian, 2, 300, 40, 5);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const std::vector<float> query = random_query(18, 40, 7);
  random_source random(8);
  const lists_of_tokens lists = random_lists(18, 300, random);
  const answer wanted = run_attention(host<>{}, query, store, lists);
  const answer threads = run_attention(host<pqkv::isa::best, threaded_runner>{}, query, store, lists);
  CHECK(threads.out == wanted.out);
  CHECK(threads.lse == wanted.lse);
  CHECK(run_attention(host<>{}, query, store, lists, false).out == wanted.out);
  answer foreign;
  bool intact = false;
  {
    const foreign_float_modes modes;
    foreign = run_attention(host<>{}, query, store, lists);
    intact = modes.intact();
  }
  CHECK(intact);
  CHECK(foreign.out == wanted.out);
}

TEST_CASE("attention: lists of several parts and of one, in threads, in slices, and in scratch of the size asked for, to the same bits") {
  const std::size_t n = 3 * pqkv::detail::attention_part_tokens + 77, d = 40, h = 2, g = 9, hq = h * g;
  const auto keys = make_rows<pqkv::bfloat16>(content::gaussian, h, n, d, 4),
             values = make_rows<pqkv::bfloat16>(content::clustered, h, n, d, 5);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const std::vector<float> query = random_query(hq, d, 7);
  for (const std::size_t first : {std::size_t{0}, pqkv::detail::attention_part_tokens - 1, pqkv::detail::attention_part_tokens,
                                  pqkv::detail::attention_part_tokens + 1}) {
    lists_of_tokens lists{std::vector<token_span>(h), std::vector<std::int32_t>(h * n), std::vector<std::uint32_t>(h), n, 0};
    lists.spans[0] = {static_cast<std::uint32_t>(first), 0, 0};
    lists.spans[1] = {5, static_cast<std::uint32_t>(n - 130), static_cast<std::uint32_t>(n)};
    for (std::size_t t = 5; t < n - 130; t += 1 + t % 2) lists.indices[n + lists.counts[1]++] = static_cast<std::int32_t>(t);
    for_each_isa([&](auto isa) {
      using tested = decltype(isa);
      const answer wanted = run_attention(host<tested>{}, query, store, lists);
      check_answer(wanted, query, store, lists);
      const answer threads = run_attention(host<tested, threaded_runner>{}, query, store, lists);
      CHECK(threads.out == wanted.out);
      CHECK(threads.lse == wanted.lse);
      const pqkv::buffer<std::byte> block(attention_bytes(h, hq, d, n));
      CHECK(run_attention(host<tested>{{}, pqkv::arena(block)}, query, store, lists).out == wanted.out);
      answer sliced{std::vector<float>(hq * d), {}};
      for (const std::size_t ith : {1u, 0u, 2u})
        pqkv::attention(host<tested, pqkv::exec::slice>{{ith, 3}, {}}, pqkv::make_view(query.data(), hq, d), store, lists.set(),
                        pqkv::make_view(sliced.out.data(), hq, d));
      for (std::size_t q = 0; q < hq; ++q)
        CHECK(std::equal(sliced.out.begin() + static_cast<std::ptrdiff_t>(q * d),
                         sliced.out.begin() + static_cast<std::ptrdiff_t>((q + 1) * d),
                         wanted.out.begin() + static_cast<std::ptrdiff_t>(q * (d + 3))));
    });
  }
}

TEST_CASE("attention: a part that is not finite is not hidden by the others, and scratch that is too small is refused") {
  const std::size_t n = 2 * pqkv::detail::attention_part_tokens + 1, d = 16;
  auto keys = make_rows<float>(content::gaussian, 1, n, d, 4);
  const auto values = make_rows<float>(content::gaussian, 1, n, d, 5);
  const std::vector<float> query = random_query(2, d, 7);
  const lists_of_tokens lists = dense_lists(1, n);
  for (const std::size_t broken : {std::size_t{0}, n / 2, n - 1}) {
    const float before = keys(0, broken, 3);
    keys(0, broken, 3) = nonfinite(broken);
    const answer a = run_attention(host<>{}, query, pqkv::strided_kv(keys.view(), values.view()), lists);
    for (std::size_t q = 0; q < 2; ++q) {
      CHECK(std::isnan(a.out[q * (d + 3)]));
      CHECK(std::isnan(a.lse[q]));
    }
    keys(0, broken, 3) = before;
  }
  CHECK(attention_bytes(1, 2, d, pqkv::detail::attention_part_tokens) == 0);
  const std::size_t bytes = attention_bytes(1, 2, d, n);
  const pqkv::buffer<std::byte> block(bytes);
  std::vector<float> out(2 * d, -9.0f);
  const auto call = [&] {
    pqkv::attention(host<>{{}, pqkv::arena(block.data(), bytes - 1)}, pqkv::make_view(query.data(), 2, d),
                    pqkv::strided_kv(keys.view(), values.view()), lists.set(), pqkv::make_view(out.data(), 2, d));
  };
  CHECK(unless_refused<pqkv::capacity_error>(call, "attention: policy.scratch", static_cast<double>(bytes),
                                             static_cast<double>(bytes - 1)) == "");
  for (const float x : out) CHECK(x == -9.0f);
}

TEST_CASE("attention: extents that disagree are refused and nothing is written") {
  const rows<float> keys(2, 10, 16), wide(2, 10, 264);
  const auto store = pqkv::strided_kv(keys.view(), keys.view());
  const std::vector<float> query(6 * 264, 1.0f);
  std::vector<float> out(6 * 264, -9.0f), lse(6, -9.0f);
  const auto q = pqkv::make_view(query.data(), 4, 16);
  const auto o = pqkv::make_view(out.data(), 4, 16);
  const auto l = pqkv::make_view(lse.data(), 4);
  const lists_of_tokens good = dense_lists(2, 10);
  const std::vector<std::int32_t> indices(40, 1);
  const std::vector<std::uint32_t> counts(4, 1);
  const auto call = [](auto one, auto two, auto three, auto four, auto five) {
    return [=] { pqkv::attention(host<>{}, one, two, three, four, five); };
  };
  using pqkv::shape_error;
  const auto refused = [&](auto f, const char* where, double expected, double got) {
    return unless_refused<shape_error>(f, std::string("attention: ") + where, expected, got);
  };
  CHECK(refused(call(q.slice(0, 0, 3), store, good.set(), o, l), "query.extent(0)", 2, 3) == "");
  CHECK(refused(call(q.slice(1, 0, 8), store, good.set(), o, l), "query.extent(1)", 16, 8) == "");
  CHECK(refused(call(q, store, good.set(), o.slice(0, 0, 3), l), "out.extent(0)", 4, 3) == "");
  CHECK(refused(call(q, store, good.set(), o.slice(1, 0, 8), l), "out.extent(1)", 16, 8) == "");
  CHECK(refused(call(q, store, good.set(), o, l.slice(0, 0, 3)), "lse.extent(0)", 4, 3) == "");
  CHECK(refused(call(q, store, dense_lists(3, 10).set(), o, l), "tokens.spans.extent(0)", 2, 3) == "");
  auto strided = q;
  strided.strides[1] = 2;
  CHECK(refused(call(strided, store, good.set(), o, l), "query.stride(1)", 1, 2) == "");
  auto set = good.set();
  set.indices = pqkv::make_view(indices.data(), 1, 5);
  set.counts = pqkv::make_view(counts.data(), 2);
  CHECK(refused(call(q, store, set, o, l), "tokens.indices.extent(0)", 2, 1) == "");
  set.indices = pqkv::make_view(indices.data(), 2, 5);
  set.counts = pqkv::make_view(counts.data(), 1);
  CHECK(refused(call(q, store, set, o, l), "tokens.counts.extent(0)", 2, 1) == "");
  set.counts = pqkv::make_view(counts.data(), 2);
  set.indices.strides[1] = 2;
  CHECK(refused(call(q, store, set, o, l), "tokens.indices.stride(1)", 1, 2) == "");
  CHECK(unless_refused<pqkv::value_error>(call(pqkv::make_view(query.data(), 4, 264), pqkv::strided_kv(wide.view(), wide.view()),
                                               good.set(), pqkv::make_view(out.data(), 4, 264), l),
                                          "attention: store.head_dim", 256, 264) == "");
  for (const float x : out) CHECK(x == -9.0f);
}
