// SPDX-License-Identifier: Apache-2.0
// Which tokens attention reads: how many a span takes whole, and that what retrieve() wrote goes on to attention() as it is.
#include <doctest/doctest.h>

#include <numeric>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/plain_attention.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::token_span;
}  // namespace

TEST_CASE("token set: a span takes its two ranges, and none of a window that is empty or turned round") {
  static_assert(attended_tokens_of(token_span{}) == 0);
  static_assert(attended_tokens_of(token_span{5, 0, 0}) == 5);
  static_assert(attended_tokens_of(token_span{0, 3, 10}) == 7);
  static_assert(attended_tokens_of(token_span{4, 10, 16}) == 10);
  static_assert(attended_tokens_of(token_span{4, 10, 10}) == 4);
  static_assert(attended_tokens_of(token_span{4, 10, 9}) == 4);
  CHECK(attended_tokens_of(token_span{0, 0, 4294967295u}) == 4294967295u);
}

TEST_CASE("token set: lists of retrieve() and a span for each are what attention reads") {
  random_source random(0x70c);
  const std::size_t h = 2, g = 3, d = 64, n = 500, k_max = 40;
  search_problem problem({.h = h, .g = g, .m = 2, .bits = 4, .n = n, .d = d}, table_kind::smooth, code_kind::uniform, random);
  problem.set_range(0, 4, 480, 40);
  problem.set_range(1, 4, 490, 25);
  std::vector<std::int32_t> indices(h * k_max);
  std::vector<std::uint32_t> counts(h);
  const pqkv::token_lists<> lists{pqkv::make_view(indices.data(), h, k_max), pqkv::make_view(counts.data(), h)};
  const pqkv::exec::host<> cpu;
  pqkv::retrieve(cpu, problem.table(), problem.codes(), {}, problem.ranges(), lists, {.head_dim = d});
  const std::vector<token_span> spans = {{4, 480, 500}, {4, 490, 500}};
  const auto tokens = pqkv::token_set<>::of(pqkv::make_view(spans.data(), h), lists);
  CHECK(tokens.spans.data == spans.data());
  CHECK(tokens.indices.data == indices.data());
  CHECK(tokens.indices.extent(1) == k_max);
  CHECK(tokens.counts.data == counts.data());

  const auto keys = make_rows<float>(content::gaussian, h, n, d, 1), values = make_rows<float>(content::gaussian, h, n, d, 2);
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  std::vector<float> query(h * g * d), out(query.size());
  for (float& x : query) x = random.gaussian();
  pqkv::attention(cpu, pqkv::make_view(query.data(), h * g, d), store, tokens, pqkv::make_view(out.data(), h * g, d));
  for (std::size_t q = 0; q < h * g; ++q) {
    const std::size_t head = q / g;
    std::vector<std::size_t> attended(4);
    std::iota(attended.begin(), attended.end(), std::size_t{0});
    CHECK(counts[head] == (head == 0 ? 40 : 25));
    for (std::size_t i = 0; i < counts[head]; ++i) attended.push_back(static_cast<std::size_t>(indices[head * k_max + i]));
    for (std::size_t t = spans[head].window_begin; t < n; ++t) attended.push_back(t);
    CHECK(attended.size() == attended_tokens_of(spans[head]) + counts[head]);
    CHECK(relative_error(out.data() + q * d, plain_attention(query.data() + q * d, store, head, attended).out) < 1e-5);
  }
}
