// SPDX-License-Identifier: Apache-2.0
// merge() of all query heads against the formula in double, with empty parts and NaNs; attention_test.cpp merges what attention() wrote.
#include <pqkv/detail/host/merge.hpp>

#include <doctest/doctest.h>

#include "cases/float_modes.hpp"
#include "cases/merge_cases.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::exec::host;

template <class Policy>
partial_result merged(const Policy& policy, partial_result a, partial_result b) {
  pqkv::merge(policy, a.out_view(), a.lse_view(), b.out_view(), b.lse_view());
  return a;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (pqkv::float_bits(a[i]) != pqkv::float_bits(b[i])) return false;
  return a.size() == b.size();
}
}  // namespace

TEST_CASE("merge: both parts count by their log-sum-exp, empty ones not at all, a NaN spoils its query head alone") {
  random_source random(5);
  for (const std::size_t hq : {1u, 7u, 64u})
    for (const std::size_t d : {1u, 40u, 128u, 256u})
      for (int turn = 0; turn < 10; ++turn) {
        const partial_result a = make_partial(hq, d, random.below(3), random), b = make_partial(hq, d, random.below(3), random);
        CHECK(merge_error(a, b, merged(host<>{}, a, b)) < 4e-7);
      }
}

TEST_CASE("merge: an empty part changes no bit of the other, on either side") {
  random_source random(6);
  const partial_result a = make_partial(30, 16, 2, random);
  partial_result empty(30, 16, 2);
  for (std::size_t q = 0; q < 30; ++q) {
    empty.lse[q] = -INFINITY;
    for (std::size_t i = 0; i < 16; ++i) empty.out_view()(q, i) = 0;
  }
  for (const partial_result& both : {merged(host<>{}, a, empty), merged(host<>{}, empty, a)}) {
    for (std::size_t q = 0; q < 30; ++q) {
      if (std::isnan(a.lse[q])) continue;
      CHECK(both.lse[q] == a.lse[q]);
      for (std::size_t i = 0; i < 16; ++i) CHECK(both.out[q * 18 + i] == a.out[q * 18 + i]);
    }
  }
}

TEST_CASE("merge: threads, foreign float modes and one head at a time give the same bits") {
  random_source random(7);
  const partial_result a = make_partial(50, 40, 1, random), b = make_partial(50, 40, 0, random);
  const partial_result wanted = merged(host<>{}, a, b), threads = merged(host<pqkv::isa::best, threaded_runner>{}, a, b);
  CHECK(same_bits(threads.out, wanted.out));
  CHECK(same_bits(threads.lse, wanted.lse));
  partial_result one = a;
  for (std::size_t q = 0; q < 50; ++q) pqkv::merge(&one.out[q * 41], one.lse[q], &b.out[q * 40], b.lse[q], 40);
  CHECK(same_bits(one.out, wanted.out));
  CHECK(same_bits(one.lse, wanted.lse));
  const foreign_float_modes modes;
  const partial_result foreign = merged(host<>{}, a, b);
  CHECK(same_bits(foreign.out, wanted.out));
  CHECK(modes.intact());
}

TEST_CASE("merge: extents that disagree are refused and nothing is written") {
  partial_result a(4, 8, 0), b(4, 8, 0), transposed(8, 8, 0);
  const auto call = [](auto one, auto two, auto three, auto four) { return [=] { pqkv::merge(host<>{}, one, two, three, four); }; };
  const auto refused = [&](auto f, const char* where, double expected, double got) {
    return unless_refused<pqkv::shape_error>(f, std::string("merge: ") + where, expected, got);
  };
  const auto out = a.out_view(), other = b.out_view();
  const auto lse = a.lse_view(), other_lse = b.lse_view();
  CHECK(refused(call(out, lse.slice(0, 0, 3), other, other_lse), "lse.extent(0)", 4, 3) == "");
  CHECK(refused(call(out, lse, other.slice(0, 0, 3), other_lse), "other_out.extent(0)", 4, 3) == "");
  CHECK(refused(call(out, lse, other.slice(1, 0, 7), other_lse), "other_out.extent(1)", 8, 7) == "");
  CHECK(refused(call(out, lse, other, other_lse.slice(0, 0, 2)), "other_lse.extent(0)", 4, 2) == "");
  const pqkv::view<float, 2> turned{transposed.out.data(), {4, 8}, {1, 8}};
  CHECK(refused(call(turned, lse, other, other_lse), "out.stride(1)", 1, 8) == "");
  CHECK(refused(call(out, lse, turned, other_lse), "other_out.stride(1)", 1, 8) == "");
  for (const float x : a.out) CHECK(x == -7.0f);
}
