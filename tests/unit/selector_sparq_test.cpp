// SPDX-License-Identifier: Apache-2.0
// sparq against the paper's words in double: scores for every reduction, layout and instruction set, what a cache lists over rows of
// floats, halves and 8-bit integers, all coordinates against the oracle, values that are not finite, refusals.
#include <doctest/doctest.h>

#include <numeric>

#include "cases/cache_driver.hpp"
#include "cases/plain_attention.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::middle_range;
using pqkv::exec::host;
using sparq = pqkv::selector::sparq;
using numbers = std::vector<double>;

/// Positions of the `count` largest, the first of equals first, in ascending order.
std::vector<std::size_t> largest(const numbers& x, std::size_t count) {
  std::vector<std::size_t> order(x.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

/// The paper's first step for one list: i1 = top r of the group's |Q|; s = softmax(Q[i1] K[i1]^T / sqrt(d |Q[i1]|_1 / |Q|_1)); the sum over
/// the group, or what another reduction makes of it. Logits are those inner products over sqrt(|Q[i1]|_1 / |Q|_1).
template <class Store>
numbers plain_sparq(const float* query, std::size_t g, const Store& store, std::size_t head, middle_range range, std::size_t r,
                    group_reduction reduction, float scale = 0) {
  const std::size_t d = store.head_dim(), n = range.size();
  const bool probability = reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
  const bool maximum = reduction == group_reduction::probability_max || reduction == group_reduction::logit_max;
  numbers magnitudes(d), scores(n, maximum ? -HUGE_VAL : 0.0);
  for (std::size_t q = 0; q < g; ++q)
    for (std::size_t i = 0; i < d; ++i) magnitudes[i] += std::fabs(static_cast<double>(query[q * d + i]));
  const auto i1 = largest(magnitudes, r);
  for (std::size_t q = 0; q < g; ++q) {
    double all = 0, kept = 0, total = 0;
    for (std::size_t i = 0; i < d; ++i) all += std::fabs(static_cast<double>(query[q * d + i]));
    for (const std::size_t i : i1) kept += std::fabs(static_cast<double>(query[q * d + i]));
    const double temperature = std::sqrt(kept / all) / plain_scale(d, scale);
    numbers z(n);
    for (std::size_t t = 0; t < n; ++t)
      for (const std::size_t i : i1)
        z[t] += static_cast<double>(query[q * d + i]) * static_cast<double>(store.key(head, range.begin + t)[i]);
    const double top = n == 0 ? 0 : *std::max_element(z.begin(), z.end());
    for (const double x : z) total += std::exp((x - top) / temperature);
    for (std::size_t t = 0; t < n; ++t) {
      const double one = probability ? std::exp((z[t] - top) / temperature) / total : z[t] / std::sqrt(kept / all);
      scores[t] = maximum ? std::max(scores[t], one) : scores[t] + one;
    }
  }
  return scores;
}

/// Whether a list (positions of a range) is the best k. Scores are float sums: tokens within `slack` of the threshold may stand for each
/// other. The share of such near ties is counted.
struct near_ties {
  std::size_t lists = 0, swapped = 0;
  bool is_best(const numbers& scores, const std::vector<std::int32_t>& chosen, double slack) {
    std::vector<std::size_t> listed(chosen.begin(), chosen.end());
    const auto best = largest(scores, chosen.size());
    ++lists, swapped += listed != best;
    double threshold = HUGE_VAL;
    for (const std::size_t t : best) threshold = std::min(threshold, scores[t]);
    for (std::size_t i = 0; i < listed.size(); ++i)
      if (listed[i] >= scores.size() || (i > 0 && listed[i] <= listed[i - 1]) || scores[listed[i]] < threshold - slack) return false;
    for (const std::size_t t : best)
      if (!std::binary_search(listed.begin(), listed.end(), t) && scores[t] > threshold + slack) return false;
    return true;
  }
};

/// Every list of a random cache's steps against plain_sparq() of the rows as they are stored.
template <class Rows>
void check_cache(group_reduction reduction, std::size_t r, near_ties& ties) {
  using cache_type = pqkv::pqcache<Rows, sparq>;
  auto p = cache_params<cache_type>(2, 2, 6, 32, 300, 5, 20, 17);
  p.selector.reduction = reduction;
  p.selector.coordinates = r;
  cache_type cache(p);
  const host<> cpu;
  prefill(cpu, cache, 0, prompt(2, 200, 32, 1));
  prefill(cpu, cache, 1, prompt(2, 41, 32, 2));
  for (std::uint64_t step = 0; step < 6; ++step) {
    append_random(cpu, cache, step);
    const std::vector<float> query = random_query(cache, step);
    const reply answer = ask(cpu, cache, query);
    const std::size_t lists = cache.lists(), per_list = 6 / lists;
    for (std::size_t row = 0; row < 2 * lists; ++row) {
      const std::size_t slot = row / lists, head = row % lists * 2 / lists;
      const middle_range range = cache.middle(slot);
      const auto scores = plain_sparq(query.data() + (slot * 6 + row % lists * per_list) * 32, per_list, cache.store(), slot * 2 + head,
                                      range, r, reduction);
      std::vector<std::int32_t> chosen = answer.list(row);
      REQUIRE(chosen.size() == std::min<std::size_t>(17, range.size()));
      for (std::int32_t& t : chosen) t -= 5;
      double most = 0;
      for (const double x : scores) most = std::max(most, std::fabs(x));
      REQUIRE(ties.is_best(scores, chosen, 1e-5 * most));
    }
  }
}
}  // namespace

TEST_CASE("selector sparq: scores equal double for every reduction, layout and number of coordinates") {
  random_source random(0x59a29);
  const std::size_t groups[] = {1, 2, 5};
  for (const group_reduction reduction : every_reduction)
    for (const layout where : every_layout) {
      const std::size_t h = 1 + random.below(3), g = groups[random.below(3)], d = 8 * (1 + random.below(16)), n = 60;
      const std::size_t sizes[] = {1, 1 + random.below(d), d / 4, d}, r = sizes[random.below(4)];
      const float scale = random_scale(random);
      const auto keys = make_rows<float>(content::gaussian, h, n, d, random.bits(), where);
      std::vector<float> query(h * g * d);
      for (float& x : query) x = 2 * random.gaussian();
      std::vector<middle_range> ranges;
      for (std::size_t head = 0; head < h; ++head)
        ranges.push_back({static_cast<std::uint32_t>(7 * head), static_cast<std::uint32_t>(n - 23 * head), 0});
      const std::size_t lists = pqkv::score_lists(reduction, h, h * g), per_list = h * g / lists;
      const bool probability = reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
      const pqkv::strided_store<float> store = pqkv::strided_kv(keys.view(), keys.view());
      for_each_isa([&](auto isa) {
        std::vector<float> scores(lists * 70, -9.0f);
        pqkv::sparse_query_scores(host<decltype(isa), threaded_runner>{}, pqkv::make_view(query.data(), h * g, d), store,
                                  pqkv::make_view(static_cast<const middle_range*>(ranges.data()), h), r, reduction,
                                  pqkv::make_view(scores.data(), lists, 70), scale);
        for (std::size_t list = 0; list < lists; ++list) {
          const middle_range range = ranges[list * h / lists];
          const auto wanted =
              plain_sparq(query.data() + list * per_list * d, per_list, store, list * h / lists, range, r, reduction, scale);
          for (std::size_t t = 0; t < range.size(); ++t)
            REQUIRE(std::fabs(static_cast<double>(scores[list * 70 + t]) - wanted[t]) <
                    1e-5 * (std::fabs(wanted[t]) + (probability ? 1e-3 : 10)));
          for (std::size_t t = range.size(); t < 70; ++t) REQUIRE(scores[list * 70 + t] == -9.0f);
        }
      });
    }
}

TEST_CASE("selector sparq: the group's largest coordinates decide, the lower of equal ones") {
  // Two query heads of one KV head. Sums of magnitudes: 3, 4, 4, 4; with r = 2 coordinates 1 and 2 are read.
  const std::vector<float> query{3, -1, 2, 0, 0, 3, 2, -4};
  rows<float> keys(1, 3, 4);
  const float given[3][4] = {{100, 1, 2, 100}, {0, 3, 1, 0}, {-100, 0, 5, -100}};
  for (std::size_t t = 0; t < 3; ++t)
    for (std::size_t i = 0; i < 4; ++i) keys(0, t, i) = given[t][i];
  const middle_range range{0, 3, 0};
  float scores[3];
  pqkv::sparse_query_scores(host<>{}, pqkv::make_view(query.data(), 2, 4), pqkv::strided_kv(keys.view(), keys.view()),
                            pqkv::make_view(&range, 1), 2, group_reduction::logit_sum, pqkv::make_view(&scores[0], 1, 3));
  // Head 0: -1 a + 2 b, times sqrt(6 / 3); head 1: 3 a + 2 b, times sqrt(9 / 5).
  const double first = std::sqrt(2.0), second = std::sqrt(1.8);
  CHECK(scores[0] == doctest::Approx(3 * first + 7 * second));
  CHECK(scores[1] == doctest::Approx(-1 * first + 11 * second));
  CHECK(scores[2] == doctest::Approx(10 * first + 10 * second));

  // A third head whose NaN is where nobody looks, and which is zero where they do: it contributes nothing.
  std::vector<float> three = query;
  three.insert(three.end(), {nonfinite(2), 0, 0, 0});
  pqkv::sparse_query_scores(host<>{}, pqkv::make_view(three.data(), 3, 4), pqkv::strided_kv(keys.view(), keys.view()),
                            pqkv::make_view(&range, 1), 2, group_reduction::probability_sum, pqkv::make_view(&scores[0], 1, 3));
  CHECK(scores[0] + scores[1] + scores[2] == doctest::Approx(2));
}

TEST_CASE("selector sparq: in a cache, lists what the paper's words do, for every reduction and kind of rows") {
  near_ties ties;
  for (const group_reduction reduction : every_reduction)
    for (const std::size_t r : {std::size_t{1}, std::size_t{8}}) check_cache<pqkv::dense_rows<float>>(reduction, r, ties);
  check_cache<pqkv::dense_rows<pqkv::half>>(group_reduction::probability_sum, 8, ties);
  check_cache<pqkv::quantized_rows<>>(group_reduction::probability_sum, 8, ties);
  check_cache<pqkv::quantized_rows<>>(group_reduction::none, 31, ties);
  CHECK(ties.swapped * 50 <= ties.lists);  // the slack is not what makes lists right
}

TEST_CASE("selector sparq: with all coordinates it lists what the oracle lists") {
  const auto replies = []<class Selector>(group_reduction reduction, std::size_t retrieve, const auto& change, Selector*) {
    using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, Selector>;
    auto p = cache_params<cache_type>(1, 2, 6, 24, 200, 5, 20, retrieve);
    p.selector.reduction = reduction;
    change(p.selector);
    cache_type cache(p);
    const host<> cpu;
    prefill(cpu, cache, 0, prompt(2, 150, 24, 1, content::duplicates));
    std::vector<reply> all;
    for (std::uint64_t step = 0; step < 3; ++step) {
      append_random(cpu, cache, step);
      all.push_back(ask(cpu, cache, random_query(cache, step)));
    }
    return all;
  };
  for (const group_reduction reduction : every_reduction)
    for (const std::size_t retrieve : {std::size_t{0}, std::size_t{1}, std::size_t{17}, std::size_t{124}, std::size_t{180}}) {
      const auto wanted = replies(
          reduction, retrieve, [](auto&) {}, static_cast<pqkv::selector::oracle*>(nullptr));
      CHECK(replies(
                reduction, retrieve, [](auto& s) { s.coordinates = 24; }, static_cast<sparq*>(nullptr)) == wanted);
      CHECK(replies(
                reduction, retrieve, [](auto& s) { s.share = 1; }, static_cast<sparq*>(nullptr)) == wanted);
      if (retrieve == 17)
        CHECK(replies(
                  reduction, retrieve, [](auto&) {}, static_cast<sparq*>(nullptr)) != wanted);
    }
}

TEST_CASE("selector sparq: the share of coordinates, and the bytes that are counted") {
  CHECK(sparq::params{}.coordinates_of(64) == 16);
  CHECK(sparq::params{.share = 0.01}.coordinates_of(8) == 1);
  CHECK(sparq::params{.share = 0.3}.coordinates_of(64) == 19);
  CHECK(sparq::params{.share = 1}.coordinates_of(17) == 17);
  CHECK(sparq::params{.coordinates = 5}.coordinates_of(64) == 5);
  pqkv::cache_shape shape{.batch = 1, .kv_heads = 3, .query_heads = 6, .head_dim = 64, .capacity = 500};
  const middle_range middle{4, 104, 10};
  const auto bytes = [&](const sparq::params& settings, std::size_t element_bytes) {
    return sparq(host<>{}, shape, settings).traffic_of(element_bytes)(middle).selector_bytes;
  };
  CHECK(bytes({}, 2) == 100 * 3 * 16 * 2);
  CHECK(bytes({}, 1) == 100 * 3 * (16 + 4));  // rows of 8-bit integers have a scale
  CHECK(bytes({.reduction = group_reduction::none}, 2) == 100 * 3 * 32 * 2);
  CHECK(bytes({.coordinates = 40, .reduction = group_reduction::none}, 4) == 100 * 3 * 64 * 4);
}

TEST_CASE("selector sparq: a key that is not finite hides no other, a query head that is not finite contributes nothing") {
  for (const group_reduction reduction : every_reduction)
    for (std::size_t turn = 0; turn < 3; ++turn) {
      using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, sparq>;
      auto p = cache_params<cache_type>(1, 1, 2, 16, 200, 4, 4, 6);
      p.selector.reduction = reduction;
      p.selector.coordinates = 4;
      cache_type cache(p);
      prompt given(1, 150, 16, 1);
      for (std::size_t i = 0; i < 16; ++i) given.keys(0, 99, i) = 9.0f;
      given.keys(0, 50, 3) = nonfinite(turn);
      const host<> cpu;
      prefill(cpu, cache, 0, given);
      std::vector<float> query(32, 0.5f);
      const auto holds = [](const std::vector<std::int32_t>& list, std::int32_t t) {
        return std::find(list.begin(), list.end(), t) != list.end();
      };
      CHECK(holds(ask(cpu, cache, query).list(0), 99));  // coordinates 0 to 3 of equal ones
      CHECK_FALSE(holds(ask(cpu, cache, query).list(0), 50));
      const reply before = ask(cpu, cache, query);
      query[16 + 9] = nonfinite(turn);  // outside the chosen coordinates, which stay: the other head's are all equal
      const reply after = ask(cpu, cache, query);
      CHECK(after.list(0) == before.list(0));
      if (reduction == group_reduction::none) CHECK(after.list(1) == std::vector<std::int32_t>{4, 5, 6, 7, 8, 9});
      query.assign(32, 0.0f);  // every token is as good
      CHECK(ask(cpu, cache, query).list(0) == std::vector<std::int32_t>{4, 5, 6, 7, 8, 9});
    }
}

TEST_CASE("selector sparq: bad parameters are refused by name") {
  const auto keys = make_rows<float>(content::gaussian, 2, 20, 16, 1);
  const std::vector<float> query(4 * 16, 1.0f);
  std::vector<float> scores(2 * 20);
  std::vector<middle_range> ranges = {{0, 20, 0}, {0, 20, 0}};
  const auto q = pqkv::make_view(query.data(), 4, 16);
  const auto s = pqkv::make_view(scores.data(), 2, 20);
  const auto call = [&](pqkv::view<const float, 2> one, std::size_t count, std::size_t r, pqkv::view<float, 2> three) {
    return [&, one, count, r, three] {
      pqkv::sparse_query_scores(host<>{}, one, pqkv::strided_kv(keys.view(), keys.view()),
                                pqkv::make_view(static_cast<const middle_range*>(ranges.data()), count), r, group_reduction::logit_sum,
                                three);
    };
  };
  using pqkv::shape_error;
  using pqkv::value_error;
  CHECK(unless_refused<shape_error>(call(q.slice(0, 0, 3), 2, 4, s), "sparse_query_scores: query.extent(0)", 2, 3) == "");
  CHECK(unless_refused<shape_error>(call(q.slice(1, 0, 8), 2, 4, s), "sparse_query_scores: query.extent(1)", 16, 8) == "");
  CHECK(unless_refused<shape_error>(call(q, 1, 4, s), "sparse_query_scores: ranges.extent(0)", 2, 1) == "");
  CHECK(unless_refused<shape_error>(call(q, 2, 4, s.slice(0, 0, 1)), "sparse_query_scores: scores.extent(0)", 2, 1) == "");
  CHECK(unless_refused<value_error>(call(q, 2, 0, s), "sparse_query_scores: coordinates", 1, 0) == "");
  CHECK(unless_refused<value_error>(call(q, 2, 17, s), "sparse_query_scores: coordinates", 16, 17) == "");
  CHECK(unless_refused<value_error>(call(q, 2, 4, s.slice(1, 0, 19)), "sparse_query_scores: ranges.size", 19, 20) == "");
  ranges[1].end = 21;
  CHECK(unless_refused<value_error>(call(q, 2, 4, s), "sparse_query_scores: ranges.end", 20, 21) == "");

  using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, sparq>;
  const auto made = [](const sparq::params& settings) {
    return [settings] {
      auto p = cache_params<cache_type>(1, 1, 2, 16, 200, 4, 4, 6);
      p.selector = settings;
      cache_type cache(p);
    };
  };
  for (const double share : {0.0, -0.5, 1.01})
    CHECK(unless_refused<value_error>(made({.share = share}), "pqcache: selector.share", 0.25, share) == "");
  CHECK(unless_refused<value_error>(made({.coordinates = 0}), "pqcache: selector.coordinates", 1, 0) == "");
  CHECK(unless_refused<value_error>(made({.coordinates = 17}), "pqcache: selector.coordinates", 16, 17) == "");
  CHECK(cache_type::can_construct([] {
          auto p = cache_params<cache_type>(1, 1, 2, 16, 200, 4, 4, 6);
          p.selector.share = std::numeric_limits<double>::quiet_NaN();
          return p;
        }())
            .message() == "pqkv::pqcache: selector.share must be above 0 and at most 1, got nan");
}
