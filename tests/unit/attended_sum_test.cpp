// SPDX-License-Identifier: Apache-2.0
// Softmax sums of sinks and window: against the formula in double, with the same bits on every instruction set. And what retrieve() selects
// when probabilities are normalised over these tokens too: against scores in double, the same set on both paths and everywhere.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include <pqkv/pqkv.hpp>

#include "cases/float_modes.hpp"
#include "cases/inputs.hpp"
#include "cases/plain_attention.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::attended_sum;
using pqkv::group_reduction;
using pqkv::token_span;
const pqkv::exec::host<> cpu;

/// ln of the sum of exp(scale * logit) that an attended_sum stands for.
double log_of(const attended_sum& sum, std::size_t d, float scale) {
  return sum.weight == 0 ? -HUGE_VAL
                         : plain_scale(d, scale) * static_cast<double>(sum.top) + std::log(static_cast<double>(sum.weight) * 0x1p-40);
}

template <class T>
void compare_sums(std::size_t d, float scale, bool per_query_head) {
  constexpr std::size_t h = 2, g = 3, n = 300;
  random_source random(d + (per_query_head ? 1 : 0));
  const auto keys = make_rows<T>(content::gaussian, h, n, d, 5, layout::padded);
  const auto store = pqkv::strided_kv(keys.view(), keys.view());
  std::vector<float> query(h * g * d);
  for (float& x : query) x = random.gaussian();
  std::vector<token_span> spans;
  for (std::size_t i = 0; i < (per_query_head ? h * g : h); ++i) {
    const auto below = [&](std::size_t most) { return static_cast<std::uint32_t>(random.below(most)); };
    const std::uint32_t leading = below(9), begin = 100 + below(100);
    spans.push_back({leading, begin, begin + below(100)});
  }
  const auto asked = pqkv::make_view(static_cast<const float*>(query.data()), h * g, d);
  const auto of = pqkv::make_view(static_cast<const token_span*>(spans.data()), spans.size());
  std::vector<attended_sum> first;
  for_each_isa([&](auto isa) {
    std::vector<attended_sum> sums(h * g);
    pqkv::sum_attended(pqkv::exec::host<decltype(isa), threaded_runner>{}, asked, store, of, pqkv::make_view(sums.data(), h * g), scale);
    if (first.empty()) first = sums;
    for (std::size_t q = 0; q < h * g; ++q) {
      CHECK(sums[q].top == first[q].top);
      CHECK(sums[q].weight == first[q].weight);
    }
  });
  for (std::size_t q = 0; q < h * g; ++q) {
    const token_span span = spans[per_query_head ? q : q / g];
    double total = 0;
    for (std::size_t t = 0; t < n; ++t)
      if (t < span.leading || (t >= span.window_begin && t < span.window_end))
        total += std::exp(plain_logit(&query[q * d], store, q / g, t, scale));
    if (total == 0)
      CHECK(first[q].weight == 0);
    else
      CHECK(log_of(first[q], d, scale) == doctest::Approx(std::log(total)).epsilon(1e-5));
  }
}

/// The lists of a problem whose query heads attend to `attended` besides.
template <class P>
std::vector<std::vector<std::int32_t>> lists_of(const P& policy, const search_problem& problem, const pqkv::cell_index_view<>& index,
                                                pqkv::search_path path, group_reduction reduction,
                                                const std::vector<attended_sum>& attended) {
  const search_shape& shape = problem.shape();
  const std::size_t lists = pqkv::score_lists(reduction, shape.h, shape.hq()), k_max = problem.most_selected();
  std::vector<std::int32_t> indices(lists * k_max);
  std::vector<std::uint32_t> counts(lists);
  std::vector<std::uint8_t> skipped(shape.hq());
  pqkv::retrieve(policy, problem.table(), problem.codes(), index, problem.ranges(), pqkv::make_view(indices.data(), lists, k_max),
                 pqkv::make_view(counts.data(), lists), {.head_dim = shape.d, .reduction = reduction, .path = path, .scale = shape.scale},
                 pqkv::make_view(skipped.data(), shape.hq()), {}, pqkv::make_view(attended.data(), attended.size()));
  std::vector<std::vector<std::int32_t>> all;
  for (std::size_t list = 0; list < lists; ++list) {
    const auto from = indices.begin() + static_cast<std::ptrdiff_t>(list * k_max);
    all.emplace_back(from, from + counts[list]);
  }
  return all;
}

/// Scores of a KV head's tokens [begin, end) in double.
std::vector<double> scores_of(const search_problem& problem, std::size_t head, group_reduction reduction,
                              const std::vector<attended_sum>& attended) {
  const search_shape& shape = problem.shape();
  const pqkv::middle_range range = problem.ranges()(head);
  const double scale = plain_scale(shape.d, shape.scale);
  std::vector<double> scores(range.size());
  for (std::size_t q = head * shape.g; q < (head + 1) * shape.g; ++q) {
    std::vector<double> z;
    for (std::uint32_t t = range.begin; t < range.end; ++t) {
      double sum = static_cast<double>(problem.table().bias(q));
      for (std::size_t j = 0; j < shape.m; ++j) sum += static_cast<double>(problem.table().entries(q, j, problem.codes()(head, j, t)));
      z.push_back(scale * sum);
    }
    const double beside = log_of(attended[q], shape.d, shape.scale), top = std::max(beside, *std::max_element(z.begin(), z.end()));
    double total = std::exp(beside - top);
    for (const double one : z) total += std::exp(one - top);
    for (std::size_t i = 0; i < z.size(); ++i) {
      const double p = std::exp(z[i] - top) / total;
      scores[i] = reduction == group_reduction::probability_max ? std::max(scores[i], p) : scores[i] + p;
    }
  }
  return scores;
}
}  // namespace

TEST_CASE("attended sum: the sum of exponentials, on every instruction set") {
  for (const float scale : {0.0f, 0.3f})
    for (const bool per_query_head : {false, true}) {
      compare_sums<float>(64, scale, per_query_head);
      compare_sums<pqkv::half>(40, scale, per_query_head);
      compare_sums<pqkv::bfloat16>(128, scale, per_query_head);
    }
}

TEST_CASE("attended sum: no token, numbers that are not finite, far apart logits, and foreign modes") {
  constexpr std::size_t d = 8;
  rows<float> keys(1, 200, d);
  for (std::size_t t = 0; t < 200; ++t)
    for (std::size_t i = 0; i < d; ++i) keys(0, t, i) = i == 0 ? static_cast<float>(t) : 0.0f;
  keys(0, 3, 1) = NAN, keys(0, 199, 0) = 1e30f, keys(0, 198, 0) = INFINITY;
  const std::vector<float> query = {1, 0, 0, 0, 0, 0, 0, 0};
  const auto sum_of = [&](const token_span& span) {
    attended_sum sum{1, 1};
    pqkv::sum_attended(cpu, pqkv::make_view(query.data(), 1, d), pqkv::strided_kv(std::as_const(keys).view(), std::as_const(keys).view()),
                       pqkv::make_view(&span, 1), pqkv::make_view(&sum, 1));
    return sum;
  };
  CHECK(sum_of({0, 5, 5}).weight == 0);
  CHECK(sum_of({0, 198, 199}).weight == 0);  // infinity
  CHECK(sum_of({0, 3, 4}).weight == 0);      // not a number
  CHECK(sum_of({3, 3, 4}).top == 2);
  CHECK(sum_of({0, 0, 1}).weight == std::uint64_t{1} << 40);
  CHECK(sum_of({1, 199, 200}).top == 1e30f);  // beside it the other is nothing
  CHECK(sum_of({1, 199, 200}).weight == std::uint64_t{1} << 40);
  CHECK(modes_that_change([&](byte_list& out) {
          const attended_sum sum = sum_of({3, 50, 190});
          out.add(&sum.top, 1), out.add(&sum.weight, 1);
        }) == "");
  const auto scale = pqkv::canonical::softmax_scale::of(d);
  const attended_sum one{5, std::uint64_t{1} << 40};
  CHECK(one.relative_to(5, scale) == std::uint64_t{1} << 40);
  CHECK(one.relative_to(1e30f, scale) == 0);
  CHECK(one.relative_to(-1e30f, scale) == std::uint64_t{1} << 62);
}

TEST_CASE("attended sum: heads that rank nothing are left out") {
  constexpr std::size_t h = 3, g = 2, d = 16;
  const auto keys = make_rows<float>(content::gaussian, h, 100, d, 5);
  const auto store = pqkv::strided_kv(keys.view(), keys.view());
  random_source random(3);
  std::vector<float> query(h * g * d);
  for (float& x : query) x = random.gaussian();
  const std::vector<token_span> spans(h, {4, 60, 100});
  const std::vector<pqkv::middle_range> ranges = {{4, 60, 9}, {60, 60, 9}, {4, 60, 0}};
  std::vector<attended_sum> all(h * g), some(h * g, {7, 7});
  const auto asked = pqkv::make_view(static_cast<const float*>(query.data()), h * g, d);
  pqkv::sum_attended(cpu, asked, store, pqkv::make_view(spans.data(), h), pqkv::make_view(all.data(), h * g));
  pqkv::sum_attended(cpu, asked, store, pqkv::make_view(spans.data(), h), pqkv::make_view(some.data(), h * g), 0,
                     pqkv::make_view(ranges.data(), h));
  for (std::size_t q = 0; q < h * g; ++q) {
    CHECK(all[q].weight != 0);
    CHECK(some[q].weight == (q / g == 1 ? 0 : all[q].weight));
    if (q / g != 1) CHECK(some[q].top == all[q].top);
  }
}

TEST_CASE("attended sum: retrieve normalises over these tokens too") {
  for (const table_kind tables : {table_kind::smooth, table_kind::sharp, table_kind::overshoot})
    for (const group_reduction reduction : {group_reduction::probability_sum, group_reduction::probability_max}) {
      random_source random(static_cast<std::uint64_t>(tables) + 31);
      search_problem problem({.h = 2, .g = 3, .m = 2, .bits = 4, .n = 700, .d = 64}, tables, code_kind::uniform, random);
      problem.set_range(0, 10, 650, 40);
      problem.set_range(1, 10, 700, 25);
      pqkv::cell_index index({2, 64, 2, 4}, 700);
      fill_index(problem, index, 50);
      std::vector<attended_sum> attended;  // from nothing to nearly everything
      for (std::size_t q = 0; q < 6; ++q)
        attended.push_back({problem.table().bias(q) + 8 * random.gaussian(), q == 1 ? 0 : std::uint64_t{random.below(1u << 30)} << 14});
      const auto lists = lists_of(cpu, problem, index.view(), pqkv::search_path::scan, reduction, attended);
      for_each_isa([&](auto isa) {
        const pqkv::exec::host<decltype(isa), threaded_runner> policy;
        for (const auto path : {pqkv::search_path::scan, pqkv::search_path::joint})
          CHECK(lists_of(policy, problem, index.view(), path, reduction, attended) == lists);
      });
      for (std::size_t head = 0; head < 2; ++head) {
        const std::vector<double> scores = scores_of(problem, head, reduction, attended);
        const std::uint32_t begin = problem.ranges()(head).begin, k = problem.ranges()(head).retrieve;
        std::vector<double> sorted = scores;
        std::sort(sorted.rbegin(), sorted.rend());
        REQUIRE(lists[head].size() == k);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < scores.size(); ++i) {
          const bool selected = std::binary_search(lists[head].begin(), lists[head].end(), static_cast<std::int32_t>(begin + i));
          wrong += selected ? scores[i] < sorted[k - 1] * (1 - 0x1p-15) : scores[i] > sorted[k - 1] * (1 + 0x1p-15);
        }
        CHECK(wrong == 0);
      }
    }
}

TEST_CASE("attended sum: a query head that looks elsewhere says less") {
  random_source random(1);
  search_problem problem({.h = 1, .g = 2, .m = 1, .bits = 4, .n = 16, .d = 64}, table_kind::equal, code_kind::same, random);
  for (std::size_t t = 0; t < 16; ++t) {
    const_cast<std::uint8_t&>(problem.codes()(0, 0, t)) = static_cast<std::uint8_t>(t);
    problem.mutable_table().entries(0, 0, t) = t == 3 ? 40.0f : 0.0f;  // one head wants token 3, the other, less, token 9
    problem.mutable_table().entries(1, 0, t) = t == 9 ? 20.0f : 0.0f;
  }
  problem.mutable_table().bias(0) = problem.mutable_table().bias(1) = 0;
  problem.set_range(0, 0, 16, 1);
  const auto best = [&](const std::vector<attended_sum>& attended) {
    return lists_of(cpu, problem, {}, pqkv::search_path::scan, group_reduction::probability_sum, attended)[0][0];
  };
  CHECK(best({{}, {}}) == 3);
  CHECK(best({{80, std::uint64_t{1} << 40}, {}}) == 9);  // the first head looks at a sink
  problem.mutable_table().bias(0) = 40;
  CHECK(best({{80, std::uint64_t{1} << 40}, {}}) == 3);  // whose logit is now no higher than that of token 3
}

TEST_CASE("attended sum: refusals") {
  const rows<float> keys(2, 10, 16);
  const auto store = pqkv::strided_kv(keys.view(), keys.view());
  std::vector<float> query(6 * 16);
  std::vector<token_span> spans(6);
  std::vector<attended_sum> sums(6);
  const auto said = [&](std::size_t hq, std::size_t d, std::size_t lists, std::size_t out, std::size_t ranges = 0) {
    const auto status = pqkv::can_sum_attended(pqkv::make_view(query.data(), hq, d), store, pqkv::make_view(spans.data(), lists),
                                               pqkv::make_view(sums.data(), out), ranges);
    return status.ok() ? std::string() : std::string(status.parameter);
  };
  CHECK(said(6, 16, 2, 6).empty());
  CHECK(said(6, 16, 6, 6).empty());
  CHECK(said(5, 16, 2, 5) == "query.extent(0)");
  CHECK(said(6, 8, 2, 6) == "query.extent(1)");
  CHECK(said(6, 16, 3, 6) == "spans.extent(0)");
  CHECK(said(6, 16, 4, 6) == "spans.extent(0)");
  CHECK(said(6, 16, 2, 4) == "sums.extent(0)");
  CHECK(said(6, 16, 6, 6, 2).empty());
  CHECK(said(6, 16, 6, 6, 6) == "ranges.extent(0)");
}
