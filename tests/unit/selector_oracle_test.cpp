// SPDX-License-Identifier: Apache-2.0
// The oracle: exact scores against double for every reduction, layout and storage type; its selection is the exact top-k up to swaps of
// scores within 1e-5; bad keys hide no others.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::middle_range;
using pqkv::exec::host;

/// Scores of range [begin, end) in double; logits are inner products, not scaled.
std::vector<double> double_exact(const float* query, std::size_t g, pqkv::view<const float, 3> keys, std::size_t head, middle_range range,
                                 group_reduction reduction, float scale = 0) {
  const std::size_t d = keys.extent(2), n = range.size();
  const double nats = plain_scale(d, scale);
  const bool probability = reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
  const bool maximum = reduction == group_reduction::probability_max || reduction == group_reduction::logit_max;
  std::vector<double> scores(n, maximum ? -HUGE_VAL : 0.0);
  for (std::size_t q = 0; q < g; ++q) {
    std::vector<double> z(n);
    double top = -HUGE_VAL, total = 0;
    for (std::size_t t = 0; t < n; ++t) {
      for (std::size_t i = 0; i < d; ++i)
        z[t] += static_cast<double>(query[q * d + i]) * static_cast<double>(keys(head, range.begin + t, i));
      top = std::max(top, z[t]);
    }
    for (double& x : z) total += std::exp((x - top) * nats);
    for (std::size_t t = 0; t < n; ++t) {
      const double one = probability ? std::exp((z[t] - top) * nats) / total : z[t];
      scores[t] = maximum ? std::max(scores[t], one) : scores[t] + one;
    }
  }
  return scores;
}

/// Chosen positions (relative to a range) are the best k, up to `slack` around the threshold.
bool is_top(const std::vector<double>& scores, const std::vector<std::int32_t>& chosen, double slack) {
  std::vector<double> sorted = scores;
  std::sort(sorted.begin(), sorted.end(), std::greater<double>());
  const double threshold = sorted[chosen.size() - 1];
  std::vector<bool> in(scores.size(), false);
  for (const std::int32_t t : chosen) in[static_cast<std::size_t>(t)] = true;
  for (std::size_t t = 0; t < scores.size(); ++t)
    if (in[t] ? scores[t] < threshold - slack : scores[t] > threshold + slack) return false;
  return std::count(in.begin(), in.end(), true) == static_cast<std::ptrdiff_t>(chosen.size());
}
}  // namespace

TEST_CASE("selector oracle: exact scores equal double for every reduction and layout") {
  random_source random(0x04ac1e);
  const std::size_t groups[] = {1, 2, 5};
  for (const group_reduction reduction : every_reduction)
    for (const layout where : every_layout) {
      const std::size_t h = 1 + random.below(3), g = groups[random.below(3)], d = 8 * (1 + random.below(20)), n = 90;
      const float scale = random.below(2) == 0 ? 0.0f : 0.01f + 0.5f * random.uniform();
      const auto keys = make_rows<float>(content::gaussian, h, n, d, random.bits(), where);
      std::vector<float> query(h * g * d);
      for (float& x : query) x = 2 * random.gaussian();
      std::vector<middle_range> ranges;
      for (std::size_t head = 0; head < h; ++head)
        ranges.push_back({static_cast<std::uint32_t>(7 * head), static_cast<std::uint32_t>(n - 11 * head), 0});
      const std::size_t lists = pqkv::score_lists(reduction, h, h * g), per_list = h * g / lists;
      const bool probability = reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
      for_each_isa([&](auto isa) {
        std::vector<float> scores(lists * 100, -9.0f);
        pqkv::exact_scores(host<decltype(isa), threaded_runner>{}, pqkv::make_view(query.data(), h * g, d),
                           pqkv::strided_kv(keys.view(), keys.view()), pqkv::make_view(static_cast<const middle_range*>(ranges.data()), h),
                           reduction, pqkv::make_view(scores.data(), lists, 100), scale);
        for (std::size_t list = 0; list < lists; ++list) {
          const middle_range range = ranges[list * h / lists];
          const auto wanted =
              double_exact(query.data() + list * per_list * d, per_list, keys.view(), list * h / lists, range, reduction, scale);
          for (std::size_t t = 0; t < range.size(); ++t)
            REQUIRE(std::fabs(static_cast<double>(scores[list * 100 + t]) - wanted[t]) <
                    1e-5 * (std::fabs(wanted[t]) + (probability ? 1e-3 : 10)));
          for (std::size_t t = range.size(); t < 100; ++t) REQUIRE(scores[list * 100 + t] == -9.0f);
        }
      });
    }
}

TEST_CASE("selector oracle: in a cache, selects the exact best of the middle at every step") {
  for (const group_reduction reduction : every_reduction) {
    using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>;
    auto p = cache_params<cache_type>(2, 2, 6, 32, 300, 5, 20, 17);
    p.selector.reduction = reduction;
    cache_type cache(p);
    prompt first(2, 200, 32, 1), second(2, 41, 32, 2);
    const host<> cpu;
    prefill(cpu, cache, 0, first);
    prefill(cpu, cache, 1, second);
    for (std::uint64_t step = 0; step < 20; ++step) {
      append_random(cpu, cache, step);
      const std::vector<float> query = random_query(cache, step);
      const reply r = ask(cpu, cache, query);
      const std::size_t lists = cache.lists(), per_list = 6 / lists;
      for (std::size_t row = 0; row < 2 * lists; ++row) {
        const std::size_t slot = row / lists, head = row % lists * 2 / lists;
        const middle_range range = cache.middle(slot);
        REQUIRE(range.begin == 5);
        const auto scores = double_exact(query.data() + (slot * 6 + row % lists * per_list) * 32, per_list, cache.store().keys,
                                         slot * 2 + head, range, reduction);
        std::vector<std::int32_t> chosen = r.list(row);
        REQUIRE(chosen.size() == std::min<std::size_t>(17, range.size()));
        REQUIRE(std::is_sorted(chosen.begin(), chosen.end()));
        for (std::int32_t& t : chosen) t -= 5;
        const double largest =
            *std::max_element(scores.begin(), scores.end(), [](double a, double b) { return std::fabs(a) < std::fabs(b); });
        REQUIRE(is_top(scores, chosen, 1e-5 * std::fabs(largest)));
      }
    }
    CHECK(cache.statistics(0).selector_bytes > 20 * 175 * 2 * 32 * 4);  // it reads every key that it ranks
  }
}

TEST_CASE("selector oracle: a key that is not finite hides no other, a query head that is not finite contributes nothing") {
  for (const group_reduction reduction : every_reduction)
    for (std::size_t turn = 0; turn < 3; ++turn) {
      using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>;
      auto p = cache_params<cache_type>(1, 1, 2, 16, 200, 4, 4, 6);
      p.selector.reduction = reduction;
      cache_type cache(p);
      prompt given(1, 150, 16, 1);
      for (std::size_t i = 0; i < 16; ++i) given.keys(0, 99, i) = 9.0f;
      given.keys(0, 50, 3) = nonfinite(turn);
      const host<> cpu;
      prefill(cpu, cache, 0, given);
      CHECK(cache.statistics(0).nonfinite_keys == 1);
      std::vector<float> query(32, 0.5f);
      const auto holds = [](const std::vector<std::int32_t>& list, std::int32_t t) {
        return std::find(list.begin(), list.end(), t) != list.end();
      };
      CHECK(holds(ask(cpu, cache, query).list(0), 99));
      CHECK_FALSE(holds(ask(cpu, cache, query).list(0), 50));
      query[16] = nonfinite(turn);
      CHECK(holds(ask(cpu, cache, query).list(0), 99));
      CHECK(cache.statistics(0).nonfinite_queries == 2);
    }
}

TEST_CASE("selector oracle: extents that disagree are refused") {
  const auto keys = make_rows<float>(content::gaussian, 2, 20, 16, 1);
  const std::vector<float> query(4 * 16, 1.0f);
  std::vector<float> scores(2 * 20);
  std::vector<middle_range> ranges = {{0, 20, 0}, {0, 20, 0}};
  const auto q = pqkv::make_view(query.data(), 4, 16);
  const auto s = pqkv::make_view(scores.data(), 2, 20);
  const auto call = [&](pqkv::view<const float, 2> one, std::size_t count, pqkv::view<float, 2> three) {
    return [&, one, count, three] {
      pqkv::exact_scores(host<>{}, one, pqkv::strided_kv(keys.view(), keys.view()),
                         pqkv::make_view(static_cast<const middle_range*>(ranges.data()), count), group_reduction::logit_sum, three);
    };
  };
  using pqkv::shape_error;
  CHECK(unless_refused<shape_error>(call(q.slice(0, 0, 3), 2, s), "exact_scores: query.extent(0)", 2, 3) == "");
  CHECK(unless_refused<shape_error>(call(q.slice(1, 0, 8), 2, s), "exact_scores: query.extent(1)", 16, 8) == "");
  CHECK(unless_refused<shape_error>(call(q, 1, s), "exact_scores: ranges.extent(0)", 2, 1) == "");
  CHECK(unless_refused<shape_error>(call(q, 2, s.slice(0, 0, 1)), "exact_scores: scores.extent(0)", 2, 1) == "");
  ranges[1].end = 21;
  CHECK(unless_refused<pqkv::value_error>(call(q, 2, s), "exact_scores: ranges.end", 20, 21) == "");
  ranges[1].end = 20;
  CHECK(unless_refused<pqkv::value_error>(call(q, 2, s.slice(1, 0, 19)), "exact_scores: ranges.size", 19, 20) == "");
}
