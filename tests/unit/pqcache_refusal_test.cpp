// SPDX-License-Identifier: Apache-2.0
// What a pqcache refuses: every bad parameter at construction, every bad call afterwards, with which text, and that the cache answers
// after a refused call as it did before.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::capacity_error;
using pqkv::shape_error;
using pqkv::value_error;
using cache_type = pqkv::pqcache<>;
const pqkv::exec::host<> cpu;

template <class Error, class Spoil>
std::string construction(Spoil spoil, const std::string& where, double expected, double got) {
  auto p = pq_params(2, 2, 4, 32, 300, 4, 16, 20);
  spoil(p);
  if (cache_type::can_construct(p).ok()) return "can_construct() accepts it";
  const std::string planned = unless_refused<Error>([&] { cache_type::plan(p); }, "pqcache: " + where, expected, got);
  return planned != "" ? planned : unless_refused<Error>([&] { cache_type cache(p); }, "pqcache: " + where, expected, got);
}

/// A cache of two slots with 100 and 40 tokens, capacity 110, and its answer.
struct fixture {
  cache_type cache{pq_params(2, 2, 4, 32, 110, 4, 16, 20)};
  std::vector<float> query = random_query(cache, 5);
  std::vector<float> out = std::vector<float>(2 * 4 * 32, -9.0f), lse = std::vector<float>(8, -9.0f);
  std::vector<std::int32_t> indices = std::vector<std::int32_t>(2 * 2 * 20, -7);
  std::vector<std::uint32_t> counts = std::vector<std::uint32_t>(4, 99);
  prompt token{2, 2, 32, 6};  // as one step: [batch, h, d]
  reply before;

  fixture() {
    prefill(cpu, cache, 0, prompt(2, 100, 32, 1));
    prefill(cpu, cache, 1, prompt(2, 40, 32, 2));
    before = ask(cpu, cache, query);
  }
  pqkv::view<const float, 3> q() const { return pqkv::make_view(query.data(), 2, 4, 32); }
  pqkv::view<float, 3> o() { return pqkv::make_view(out.data(), 2, 4, 32); }
  pqkv::view<std::int32_t, 3> i() { return pqkv::make_view(indices.data(), 2, 2, 20); }
  pqkv::view<std::uint32_t, 2> c() { return pqkv::make_view(counts.data(), 2, 2); }

  /// A refused call says what it must, writes nothing, and leaves the cache as it was.
  template <class Error, class Call>
  std::string refused(Call call, const std::string& where, double expected, double got) {
    const auto steps = cache.statistics(0).steps;
    const std::string text = unless_refused<Error>(call, where, expected, got);
    if (text != "") return text;
    for (const float x : out)
      if (x != -9.0f) return "wrote out";
    for (const std::int32_t x : indices)
      if (x != -7) return "wrote indices";
    if (cache.size(0) != 100 || cache.size(1) != 40 || cache.statistics(0).steps != steps) return "changed sizes or statistics";
    return ask(cpu, cache, query) == before ? "" : "answers differently";
  }
};
}  // namespace

TEST_CASE("pqcache: parameters out of range are refused, by question, plan and constructor alike") {
  static_assert(noexcept(cache_type::can_construct(cache_type::params{})));
  using params = cache_type::params;
  CHECK(cache_type::can_construct(pq_params(2, 2, 4, 32, 300, 4, 16, 20)).ok());
  CHECK(construction<value_error>([](params& p) { p.batch = 0; }, "batch", 1, 0) == "");
  CHECK(construction<value_error>([](params& p) { p.kv_heads = 0; }, "kv_heads", 1, 0) == "");
  CHECK(construction<shape_error>([](params& p) { p.query_heads = 3; }, "query_heads", 2, 3) == "");
  CHECK(construction<shape_error>([](params& p) { p.query_heads = 0; }, "query_heads", 2, 0) == "");
  CHECK(construction<value_error>([](params& p) { p.head_dim = 0; }, "head_dim", 8, 0) == "");
  CHECK(construction<value_error>([](params& p) { p.head_dim = 36; }, "head_dim", 8, 36) == "");
  CHECK(construction<value_error>([](params& p) { p.head_dim = 264; }, "head_dim", 256, 264) == "");
  CHECK(construction<value_error>([](params& p) { p.head_dim = 24, p.selector.subspaces = 16; }, "head_dim", 16, 24) == "");
  CHECK(construction<value_error>([](params& p) { p.capacity = 0; }, "capacity", 1, 0) == "");
  CHECK(construction<value_error>([](params& p) { p.capacity = std::size_t{1} << 31; }, "capacity", 2147483647.0, 2147483648.0) == "");
  CHECK(construction<value_error>([](params& p) { p.capacity = std::size_t{1} << 23; }, "capacity", 8388607, 8388608) == "");
  CHECK(construction<value_error>([](params& p) { p.budget.window = 0; }, "budget.window", 1, 0) == "");
  CHECK(construction<value_error>([](params& p) { p.budget = {.min_tokens = 4, .sinks = 4}; }, "budget.min_tokens", 5, 4) == "");
  CHECK(construction<value_error>([](params& p) { p.budget = {.tokens = 4, .sinks = 4}; }, "budget.tokens", 5, 4) == "");
  CHECK(construction<value_error>([](params& p) { p.budget.ratio = 1.5; }, "budget.ratio", 1, 1.5) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.subspaces = 3; }, "subspaces", 2, 3) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.subspaces = 32; }, "subspaces", 2, 32) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.bits = 3; }, "bits", 4, 3) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.bits = 9; }, "bits", 8, 9) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.residual.subspaces = 3; }, "selector.residual.subspaces", 4, 3) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.residual.subspaces = 32; }, "selector.residual.subspaces", 4, 32) == "");
  CHECK(construction<value_error>([](params& p) { p.head_dim = 24, p.selector.residual.subspaces = 16; }, "head_dim", 16, 24) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.residual = {2, 3}; }, "selector.residual.bits", 4, 3) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.residual = {2, 9}; }, "selector.residual.bits", 8, 9) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.residual = {2, 8, 0}; }, "selector.residual.shortlist", 1, 0) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.residual = {2, 8, 1025}; }, "selector.residual.shortlist", 1024, 1025) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.train.iterations = 0; }, "selector.train.iterations", 1, 0) == "");
  CHECK(construction<value_error>([](params& p) { p.selector.train.start = pqkv::kmeans_start::given; }, "selector.train.start", 0, 1) ==
        "");
  CHECK(construction<value_error>(
            [](params& p) { p.selector.subspaces = 4, p.selector.bits = 5, p.selector.path = pqkv::search_path::joint; }, "selector.path",
            16, 20) == "");
}

TEST_CASE("pqcache: prefill refuses tokens in the slot, extents that disagree, more than fits, and a slot that is none") {
  fixture f;
  const prompt good(2, 10, 32, 3), heads(3, 10, 32, 3), wide(2, 10, 40, 3), large(2, 111, 32, 3);
  const auto call = [&](std::size_t slot, const rows<float>& keys, const rows<float>& values) {
    return [&, slot] { f.cache.prefill(cpu, slot, keys.view(), values.view()); };
  };
  CHECK(f.refused<value_error>(call(0, good.keys, good.values), "prefill: slot", 0, 100) == "");
  CHECK(f.refused<value_error>(call(2, good.keys, good.values), "prefill: slot", 2, 2) == "");
  cache_type empty(f.cache.parameters());
  const auto into_empty = [&](const rows<float>& keys, const rows<float>& values) {
    return [&] { empty.prefill(cpu, 0, keys.view(), values.view()); };
  };
  CHECK(unless_refused<shape_error>(into_empty(heads.keys, good.values), "prefill: keys.extent(0)", 2, 3) == "");
  CHECK(unless_refused<shape_error>(into_empty(wide.keys, good.values), "prefill: keys.extent(2)", 32, 40) == "");
  CHECK(unless_refused<shape_error>(into_empty(good.keys, heads.values), "prefill: values.extent(0)", 2, 3) == "");
  CHECK(unless_refused<shape_error>(into_empty(good.keys, large.values), "prefill: values.extent(1)", 10, 111) == "");
  CHECK(unless_refused<shape_error>(into_empty(good.keys, wide.values), "prefill: values.extent(2)", 32, 40) == "");
  CHECK(unless_refused<capacity_error>(into_empty(large.keys, large.values), "prefill: keys.extent(1)", 110, 111) == "");
  CHECK(empty.size(0) == 0);
  empty.prefill(cpu, 0, good.keys.view(), good.values.view(), pqkv::chunk::more);
  CHECK(unless_refused<capacity_error>(
            [&] { empty.prefill(cpu, 0, large.keys.view().slice(1, 0, 101), large.values.view().slice(1, 0, 101)); },
            "prefill: keys.extent(1)", 100, 101) == "");
  CHECK(empty.size(0) == 10);
}

TEST_CASE("pqcache: no step for a slot whose prompt is not complete") {
  fixture f;
  cache_type cache(f.cache.parameters());
  const prompt part(2, 10, 32, 3);
  prefill(cpu, cache, 0, part);
  cache.prefill(cpu, 1, part.keys.view(), part.values.view(), pqkv::chunk::more);
  CHECK(unless_refused<value_error>([&] { append_random(cpu, cache, 1); }, "append: step.slots", 0, 1) == "");
  CHECK(unless_refused<value_error>([&] { cache.attend(cpu, f.q(), f.o()); }, "attend: step.slots", 0, 1) == "");
  CHECK(unless_refused<value_error>([&] { cache.retrieve(cpu, f.q(), f.i(), f.c()); }, "retrieve: step.slots", 0, 1) == "");
  CHECK(cache.size(0) == 10);
  CHECK_NOTHROW(append_random(cpu, cache, 1, {1, 0}));
  cache.maintain(cpu);  // leaves the slot alone
  CHECK(cache.size(1) == 10);
}

TEST_CASE("pqcache: append refuses extents that disagree, and a full slot before any slot has changed") {
  fixture f;
  const auto call = [&](pqkv::view<const float, 3> keys, pqkv::view<const float, 3> values) {
    return [&, keys, values] { f.cache.append(cpu, keys, values); };
  };
  const rows<float>& keys = f.token.keys;
  const rows<float> heads(2, 3, 32), wide(2, 2, 40), batch(3, 2, 32);
  CHECK(f.refused<shape_error>(call(batch.view(), keys.view()), "append: keys.extent(0)", 2, 3) == "");
  CHECK(f.refused<shape_error>(call(heads.view(), keys.view()), "append: keys.extent(1)", 2, 3) == "");
  CHECK(f.refused<shape_error>(call(wide.view(), keys.view()), "append: keys.extent(2)", 32, 40) == "");
  CHECK(f.refused<shape_error>(call(keys.view(), batch.view()), "append: values.extent(0)", 2, 3) == "");
  CHECK(f.refused<shape_error>(call(keys.view(), heads.view()), "append: values.extent(1)", 2, 3) == "");
  CHECK(f.refused<shape_error>(call(keys.view(), wide.view()), "append: values.extent(2)", 32, 40) == "");
  for (std::uint64_t step = 0; step < 10; ++step) append_random(cpu, f.cache, step);
  CHECK(f.cache.size(0) == 110);
  const reply full = ask(cpu, f.cache, f.query);
  CHECK(unless_refused<capacity_error>([&] { append_random(cpu, f.cache, 11); }, "append: step", 110, 111) == "");
  CHECK(f.cache.size(1) == 50);
  CHECK((ask(cpu, f.cache, f.query) == full));
  CHECK_NOTHROW(append_random(cpu, f.cache, 11, {0, 1}));
  CHECK(f.cache.size(1) == 51);
}

TEST_CASE("pqcache: attend refuses extents that disagree and scratch that is too small") {
  fixture f;
  const auto l = pqkv::make_view(f.lse.data(), 2, 4);
  const auto call = [&](auto query, auto out, auto lse) { return [&, query, out, lse] { f.cache.attend(cpu, query, out, lse); }; };
  CHECK(f.refused<shape_error>(call(f.q().slice(0, 0, 1), f.o(), l), "attend: query.extent(0)", 2, 1) == "");
  CHECK(f.refused<shape_error>(call(f.q().slice(1, 0, 3), f.o(), l), "attend: query.extent(1)", 4, 3) == "");
  CHECK(f.refused<shape_error>(call(f.q().slice(2, 0, 24), f.o(), l), "attend: query.extent(2)", 32, 24) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.o().slice(0, 0, 1), l), "attend: out.extent(0)", 2, 1) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.o().slice(1, 0, 3), l), "attend: out.extent(1)", 4, 3) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.o().slice(2, 0, 24), l), "attend: out.extent(2)", 32, 24) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.o(), l.slice(0, 0, 1)), "attend: lse.extent(0)", 2, 1) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.o(), l.slice(1, 0, 3)), "attend: lse.extent(1)", 4, 3) == "");
  pqkv::exec::host<> tight;
  const pqkv::buffer<std::byte> block(64);
  tight.scratch = pqkv::arena(block);
  f.query[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(f.cache.attend(tight, f.q(), f.o(), l), capacity_error);
  CHECK(f.cache.statistics(0).nonfinite_queries == 0);
  CHECK(f.out[0] == -9.0f);
}

TEST_CASE("pqcache: retrieve refuses extents that disagree and lists that do not fit") {
  fixture f;
  const auto call = [&](auto query, auto indices, auto counts) {
    return [&, query, indices, counts] { f.cache.retrieve(cpu, query, indices, counts); };
  };
  CHECK(f.refused<shape_error>(call(f.q().slice(1, 0, 2), f.i(), f.c()), "retrieve: query.extent(1)", 4, 2) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.i().slice(0, 0, 1), f.c()), "retrieve: indices.extent(0)", 2, 1) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.i().slice(1, 0, 1), f.c()), "retrieve: indices.extent(1)", 2, 1) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.i(), f.c().slice(0, 0, 1)), "retrieve: counts.extent(0)", 2, 1) == "");
  CHECK(f.refused<shape_error>(call(f.q(), f.i(), f.c().slice(1, 0, 1)), "retrieve: counts.extent(1)", 2, 1) == "");
  CHECK(f.refused<capacity_error>(call(f.q(), f.i().slice(2, 0, 19), f.c()), "retrieve: indices.extent(2)", 20, 19) == "");
  CHECK(f.counts[0] == 99);
}

TEST_CASE("pqcache: fork and reset refuse a slot that is none") {
  fixture f;
  CHECK(f.refused<value_error>([&] { f.cache.fork(cpu, 2, 0); }, "fork: from", 2, 2) == "");
  CHECK(f.refused<value_error>([&] { f.cache.fork(cpu, 0, 7); }, "fork: to", 2, 7) == "");
  CHECK(f.refused<value_error>([&] { f.cache.reset(2); }, "reset: slot", 2, 2) == "");
}

TEST_CASE("pqcache: every verb refuses a step that names no slot, names one twice, or has other tokens than it says") {
  fixture f;
  const prompt many(5, 2, 32, 6);  // rows of up to five tokens: [tokens, h, d]
  std::vector<float> queries(5 * 4 * 32, 0.5f), outs(5 * 4 * 32, -9.0f);
  std::vector<std::int32_t> indices(5 * 2 * 20);
  std::vector<std::uint32_t> counts(5 * 2);
  struct rows_of_step {
    std::vector<std::uint32_t> slots, counts;
    bool has_counts = false;
  };
  const auto step_of = [](const rows_of_step& given) {
    pqkv::cache_step step;
    step.slots = pqkv::make_view(given.slots.data(), given.slots.size());
    if (given.has_counts) step.counts = pqkv::make_view(given.counts.data(), given.counts.size());
    return step;
  };
  const auto check = [&]<class Error>(Error*, const rows_of_step& given, std::size_t tokens, const std::string& parameter, double expected,
                                      double got, bool of_tokens = false) {
    const auto step = step_of(given);
    const auto keys = many.keys.view().slice(0, 0, tokens);
    const auto q = pqkv::as_const(pqkv::make_view(queries.data(), tokens, 4, 32));
    const std::string of_keys = of_tokens ? "keys.extent(0)" : parameter, of_query = of_tokens ? "query.extent(0)" : parameter;
    CHECK_FALSE(f.cache.can_append(keys, keys, step).ok());
    CHECK(f.refused<Error>([&] { f.cache.append(cpu, keys, keys, step); }, "append: " + of_keys, expected, got) == "");
    CHECK(f.refused<Error>([&] { f.cache.attend(cpu, q, pqkv::make_view(outs.data(), tokens, 4, 32), {}, step); }, "attend: " + of_query,
                           expected, got) == "");
    CHECK(f.refused<Error>(
              [&] {
                f.cache.retrieve(cpu, q, pqkv::make_view(indices.data(), tokens, 2, 20), pqkv::make_view(counts.data(), tokens, 2), step);
              },
              "retrieve: " + of_query, expected, got) == "");
  };
  shape_error* const shape = nullptr;
  value_error* const value = nullptr;
  check(value, {{2}, {}}, 1, "step.slots", 2, 2);
  check(value, {{0, 4294967295u}, {}}, 2, "step.slots", 2, 4294967295.0);
  check(value, {{1, 1}, {}}, 2, "step.slots", 1, 2);
  check(value, {{1, 1}, {2, 0}, true}, 2, "step.slots", 1, 2);
  check(shape, {{0, 1}, {1}, true}, 1, "step.counts.extent(0)", 2, 1);
  check(value, {{0, 1, 0}, {}}, 3, "step.slots.extent(0)", 2, 3);
  check(shape, {{1}, {}}, 2, "", 1, 2, true);
  check(shape, {{1, 0}, {2, 2}, true}, 5, "", 4, 5, true);
  check(shape, {{1, 0}, {2, 2}, true}, 3, "", 4, 3, true);
  check(shape, {{}, {}, true}, 1, "", 0, 1, true);

  // What names no slot, or no token of it, is a step of nothing.
  const auto none = many.keys.view().slice(0, 0, 0);
  for (const rows_of_step& given : {rows_of_step{{}, {}, false}, rows_of_step{{}, {}, true}, rows_of_step{{1, 0}, {0, 0}, true}}) {
    CHECK_NOTHROW(f.cache.append(cpu, none, none, step_of(given)));
    CHECK_NOTHROW(f.cache.attend(cpu, f.q().slice(0, 0, 0), f.o().slice(0, 0, 0), {}, step_of(given)));
    CHECK_NOTHROW(f.cache.retrieve(cpu, f.q().slice(0, 0, 0), f.i().slice(0, 0, 0), f.c().slice(0, 0, 0), step_of(given)));
  }
  CHECK((ask(cpu, f.cache, f.query) == f.before));

  // Eleven tokens fit slot 1 and not slot 0, which is refused before slot 1 has changed.
  const prompt eleven(12, 2, 32, 7);
  const rows_of_step too_many{{1, 0}, {1, 11}, true};
  CHECK(f.refused<capacity_error>([&] { f.cache.append(cpu, eleven.keys.view(), eleven.values.view(), step_of(too_many)); }, "append: step",
                                  110, 111) == "");
}

TEST_CASE("pqcache: truncate refuses a slot that is none, one whose prompt is not complete, and more tokens than there are") {
  fixture f;
  CHECK(f.refused<value_error>([&] { f.cache.truncate(cpu, 2, 0); }, "truncate: slot", 2, 2) == "");
  CHECK(f.refused<value_error>([&] { f.cache.truncate(cpu, 1, 41); }, "truncate: n", 40, 41) == "");
  const std::vector<std::uint32_t> slots = {0, 1}, lengths = {50, 41}, few = {50};
  const auto all = pqkv::make_view(lengths.data(), 2), one = pqkv::make_view(few.data(), 1), which = pqkv::make_view(slots.data(), 2);
  // Slot 0 could be cut: it is not, since slot 1 cannot.
  CHECK(f.refused<value_error>([&] { f.cache.truncate(cpu, all, which); }, "truncate: n", 40, 41) == "");
  CHECK(f.refused<value_error>([&] { f.cache.truncate(cpu, all); }, "truncate: n", 40, 41) == "");
  CHECK(f.refused<shape_error>([&] { f.cache.truncate(cpu, one); }, "truncate: lengths.extent(0)", 2, 1) == "");
  CHECK(f.refused<shape_error>([&] { f.cache.truncate(cpu, one, which); }, "truncate: lengths.extent(0)", 2, 1) == "");
  const std::vector<std::uint32_t> beyond = {0, 2};
  CHECK(f.refused<value_error>([&] { f.cache.truncate(cpu, pqkv::make_view(slots.data(), 2), pqkv::make_view(beyond.data(), 2)); },
                               "truncate: slot", 2, 2) == "");
  CHECK_NOTHROW(f.cache.truncate(cpu, 0, 100));  // as it is
  CHECK((ask(cpu, f.cache, f.query) == f.before));
  cache_type cache(f.cache.parameters());
  const prompt part(2, 10, 32, 3);
  cache.prefill(cpu, 1, part.keys.view(), part.values.view(), pqkv::chunk::more);
  CHECK(unless_refused<value_error>([&] { cache.truncate(cpu, 1, 5); }, "truncate: slot", 0, 1) == "");
  CHECK(cache.size(1) == 10);
}
