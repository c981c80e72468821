// SPDX-License-Identifier: Apache-2.0
// The checks that a pqcache offers to engines without exceptions: noexcept, they say what the verbs would throw, and accept what
// the verbs accept. Every refusal of a verb is in pqcache_refusal_test.cpp.
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>
#include <string>
#include <vector>

namespace {

using cache = pqkv::pqcache<>;

struct fixture {
  std::vector<float> rows = std::vector<float>(4096, 0.5f);
  std::vector<std::int32_t> indices = std::vector<std::int32_t>(4096);
  std::vector<std::uint32_t> counts = std::vector<std::uint32_t>(64);
  pqkv::exec::host<> cpu;
  cache subject{params()};

  static cache::params params() {
    cache::params p;
    p.batch = 2, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 8, p.capacity = 40;
    p.budget.min_tokens = 16, p.budget.sinks = 4;
    return p;
  }
  pqkv::view<float, 3> block(std::size_t a, std::size_t b, std::size_t c) noexcept { return pqkv::make_view(rows.data(), a, b, c); }
};

/// What a call throws, or nothing.
template <class Call>
std::string thrown(Call call) {
  try {
    call();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return {};
}

std::string said(const pqkv::status& checked) { return checked.ok() ? std::string() : checked.message(); }

}  // namespace

TEST_CASE("cache checks: every check says what its verb throws") {
  fixture b;
  cache& c = b.subject;
  static_assert(noexcept(c.can_prefill(0, b.block(2, 8, 8), b.block(2, 8, 8)))&& noexcept(c.can_append(
      b.block(2, 2, 8),
      b.block(2, 2,
              8)))&& noexcept(c.can_attend(b.block(2, 4, 8),
                                           b.block(2, 4,
                                                   8)))&& noexcept(c.can_fork(0,
                                                                              1))&& noexcept(c.can_truncate(0,
                                                                                                            1))&& noexcept(c.can_reset(0)));

  const auto prefill = [&](std::size_t slot, pqkv::view<float, 3> k, pqkv::view<float, 3> v) {
    const std::string checked = said(c.can_prefill(slot, k, v));
    CHECK(checked == thrown([&] { c.prefill(b.cpu, slot, k, v); }));
    return checked;
  };
  CHECK(prefill(2, b.block(2, 8, 8), b.block(2, 8, 8)) == "pqkv::prefill: slot must be below 2 (batch), got 2");
  CHECK(prefill(0, b.block(3, 8, 8), b.block(2, 8, 8)) == "pqkv::prefill: keys.extent(0) must be 2 (h, from params), got 3");
  CHECK(prefill(0, b.block(2, 8, 8), b.block(2, 7, 8)) == "pqkv::prefill: values.extent(1) must be 8 (n, from keys), got 7");
  CHECK(prefill(0, b.block(2, 41, 8), b.block(2, 41, 8)) ==
        "pqkv::prefill: keys.extent(1) must be at most 40 (n, free tokens of the slot), got 41");
  CHECK(prefill(0, b.block(2, 39, 8), b.block(2, 39, 8)) == "");
  CHECK(prefill(0, b.block(2, 1, 8), b.block(2, 1, 8)) ==
        "pqkv::prefill: slot must be empty: append() takes the tokens that follow a prompt, reset() empties a slot, got 39");

  const auto append = [&](pqkv::view<float, 3> k, pqkv::view<float, 3> v, const pqkv::cache_step& step) {
    const std::string checked = said(c.can_append(k, v, step));
    CHECK(checked == thrown([&] { c.append(b.cpu, k, v, step); }));
    return checked;
  };
  const std::uint32_t slots[3] = {0, 1, 1}, of_rows[2] = {1, 2};
  pqkv::cache_step first_only, three, twice, ragged;
  first_only.slots = pqkv::make_view(slots, 1);
  three.slots = pqkv::make_view(slots, 3);
  twice.slots = pqkv::make_view(slots + 1, 2);
  ragged.counts = pqkv::make_view(of_rows, 2);
  CHECK(append(b.block(2, 2, 16), b.block(2, 2, 8), {}) == "pqkv::append: keys.extent(2) must be 8 (d, from params), got 16");
  CHECK(append(b.block(3, 2, 8), b.block(3, 2, 8), {}) ==
        "pqkv::append: keys.extent(0) must be 2 (tokens of the step: one for every row), got 3");
  CHECK(append(b.block(3, 2, 8), b.block(3, 2, 8), three) == "pqkv::append: step.slots.extent(0) must be at most 2 (rows, batch), got 3");
  CHECK(append(b.block(2, 2, 8), b.block(2, 2, 8), twice) ==
        "pqkv::append: step.slots must be distinct: a step names a slot once");
  CHECK(append(b.block(2, 2, 8), b.block(2, 2, 8), ragged) == "pqkv::append: keys.extent(0) must be 3 (tokens of the step), got 2");
  CHECK(append(b.block(1, 2, 8), b.block(1, 2, 8), first_only) == "");
  CHECK(append(b.block(2, 2, 8), b.block(2, 2, 8), {}) ==
        "pqkv::append: step must be at most 40 (tokens of the slot then, capacity), got 41");
  CHECK(c.size(1) == 0);  // the slot with room was not changed either

  const auto attend = [&](pqkv::view<const float, 3> q, pqkv::view<float, 3> out, pqkv::view<float, 2> lse) {
    const std::string checked = said(c.can_attend(q, out, lse));
    CHECK(checked == thrown([&] { c.attend(b.cpu, q, out, lse); }));
    return checked;
  };
  CHECK(attend(b.block(2, 2, 8), b.block(2, 4, 8), {}) == "pqkv::attend: query.extent(1) must be 4 (hq, from params), got 2");
  CHECK(attend(b.block(2, 4, 8), b.block(1, 4, 8), {}) == "pqkv::attend: out.extent(0) must be 2 (tokens, from query), got 1");
  CHECK(attend(b.block(2, 4, 8), b.block(2, 4, 8), pqkv::make_view(b.rows.data(), 2, 3)) ==
        "pqkv::attend: lse.extent(1) must be 4 (hq, from params), got 3");

  const auto retrieve = [&](std::size_t lists, std::size_t k_max) {
    const auto query = pqkv::as_const(b.block(2, 4, 8));
    const auto indices = pqkv::make_view(b.indices.data(), 2, lists, k_max);
    const auto counts = pqkv::make_view(b.counts.data(), 2, lists);
    const std::string checked = said(c.can_retrieve(query, indices, counts));
    CHECK(checked == thrown([&] { c.retrieve(b.cpu, query, indices, counts); }));
    return checked;
  };
  CHECK(retrieve(3, 40) == "pqkv::retrieve: indices.extent(1) must be 2 (h, or hq under reduction none), got 3");
  CHECK(retrieve(2, c.retrieve_capacity(0)) == "");
  CHECK(retrieve(2, c.retrieve_capacity(0) - 1).find("indices.extent(2) must be at least") != std::string::npos);

  const auto truncate = [&](std::size_t slot, std::size_t n) {
    const std::string checked = said(c.can_truncate(slot, n));
    CHECK(checked == thrown([&] { c.truncate(b.cpu, slot, n); }));
    return checked;
  };
  CHECK(truncate(2, 0) == "pqkv::truncate: slot must be below 2 (batch), got 2");
  CHECK(truncate(0, 41) == "pqkv::truncate: n must be at most 40 (tokens of the slot), got 41");
  CHECK(truncate(0, 40) == "");
  CHECK(truncate(0, 30) == "");
  CHECK(truncate(0, 31) == "pqkv::truncate: n must be at most 30 (tokens of the slot), got 31");
  CHECK(said(c.can_reset(2)) == "pqkv::reset: slot must be below 2 (batch), got 2");

  CHECK(said(c.can_fork(0, 5)) == thrown([&] { c.fork(b.cpu, 0, 5); }));
  CHECK(said(c.can_fork(7, 0)) == "pqkv::fork: from must be below 2 (batch), got 7");
  CHECK(c.can_fork(0, 1).ok());
}
