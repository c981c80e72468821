// SPDX-License-Identifier: Apache-2.0
// Tokens in parts: sums of the parts' normalisers, and the best of the parts' best by score and position, are what retrieve() selects from
// all of them.
#include <doctest/doctest.h>

#include <algorithm>
#include <tuple>

#include "cases/policies.hpp"
#include "cases/sanitized.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;

/// What `parts` places select together; each has the tokens between two cuts of every head's range.
template <class Policy>
std::vector<std::vector<std::int32_t>> in_parts(const Policy& cpu, const search_problem& problem, pqkv::cell_index_view<> index,
                                                const pqkv::retrieve_params& how, std::size_t parts, std::size_t& centred) {
  const search_shape& shape = problem.shape();
  const std::size_t lists = pqkv::score_lists(how.reduction, shape.h, shape.hq()), k_max = shape.n + 1;
  std::vector<std::vector<pqkv::middle_range>> ranges(parts);
  for (std::size_t part = 0; part < parts; ++part)
    for (std::size_t head = 0; head < shape.h; ++head) {
      const pqkv::middle_range all = problem.ranges()(head);
      const auto cut = [&](std::size_t i) { return all.begin + static_cast<std::uint32_t>(i * i * all.size() / (parts * parts)); };
      ranges[part].push_back({cut(part), cut(part + 1), all.selected()});
    }
  std::vector<pqkv::normaliser> all(shape.hq()), own(shape.hq());
  const auto add_up = [&] {
    std::vector<std::uint64_t> sums(shape.hq(), 0);
    for (const auto& range : ranges) {
      for (std::size_t q = 0; q < own.size(); ++q) own[q] = all[q];
      pqkv::sum_part(cpu, problem.table(), problem.codes(), index, pqkv::make_view(range), pqkv::make_view(own), how);
      for (std::size_t q = 0; q < own.size(); ++q) sums[q] += own[q].sum;
    }
    for (std::size_t q = 0; q < own.size(); ++q) all[q].sum = sums[q];
  };
  if (pqkv::needs_normalisers(how.reduction)) {
    add_up();
    std::vector<float> largest(shape.hq(), -INFINITY);
    for (const auto& range : ranges) {
      pqkv::largest_part(cpu, problem.table(), problem.codes(), index, pqkv::make_view(range), pqkv::make_view(own), how);
      for (std::size_t q = 0; q < own.size(); ++q) largest[q] = std::max(largest[q], own[q].largest);
    }
    for (std::size_t q = 0; q < all.size(); ++q) {
      all[q].largest = largest[q];
      if (!pqkv::needs_centre(all[q], problem.ranges()(q / shape.g).size())) continue;
      all[q] = pqkv::centred(all[q], how);
      ++centred;
    }
    add_up();
  }
  std::vector<std::vector<std::tuple<std::uint32_t, std::int32_t>>> found(lists);  // the inverted order of scores, position
  for (const auto& range : ranges) {
    std::vector<std::int32_t> indices(lists * k_max);
    std::vector<std::uint32_t> counts(lists);
    std::vector<float> scores(lists * k_max);
    pqkv::retrieve_part(cpu, problem.table(), problem.codes(), index, pqkv::make_view(range),
                        {pqkv::make_view(indices.data(), lists, k_max), pqkv::make_view(counts)}, how, pqkv::make_view(std::as_const(all)),
                        pqkv::make_view(scores.data(), lists, k_max));
    for (std::size_t list = 0; list < lists; ++list)
      for (std::size_t i = 0; i < counts[list]; ++i)
        found[list].emplace_back(~pqkv::canonical::order_key(scores[list * k_max + i]), indices[list * k_max + i]);
  }
  std::vector<std::vector<std::int32_t>> result(lists);
  for (std::size_t list = 0; list < lists; ++list) {
    const std::size_t k = problem.range_of(list, how.reduction).selected();
    std::sort(found[list].begin(), found[list].end());
    for (std::size_t i = 0; i < k && i < found[list].size(); ++i) result[list].push_back(std::get<1>(found[list][i]));
    std::sort(result[list].begin(), result[list].end());
  }
  return result;
}
}  // namespace

TEST_CASE("partial_ranking: parts select together what one place selects") {
  std::size_t centred = 0, i = 0;
  for_each_isa([&](auto isa) {
    const pqkv::exec::host<decltype(isa)> cpu;
    random_source random(77);
    for (const table_kind tables : every_table)
      for (const pqkv::group_reduction reduction : every_reduction)
        for (const unsigned bits : {4u, 8u}) {
          if (!looks_at(i++)) continue;
          const float scale = random_scale(random);
          const std::size_t h = 1 + random.below(2), g = 1 + random.below(4);
          search_problem problem({.h = h, .g = g, .m = 2, .bits = bits, .n = 1 + random.below(700), .d = 64, .scale = scale}, tables,
                                 every_code[random.below(4)], random);
          problem.random_ranges(random);
          CAPTURE(static_cast<int>(tables));
          CAPTURE(static_cast<int>(reduction));
          CAPTURE(bits);
          const pqkv::retrieve_params how{.head_dim = 64, .reduction = reduction, .path = pqkv::search_path::scan, .scale = scale};
          const auto expected = run_retrieve(cpu, problem, {}, reduction, pqkv::search_path::scan).lists;
          REQUIRE(in_parts(cpu, problem, {}, how, 1 + random.below(5), centred) == expected);
        }
  });
  CHECK(centred > 20);
}

TEST_CASE("partial_ranking: one part by its cells") {
  std::size_t centred = 0;
  random_source random(78);
  const pqkv::exec::host<> cpu;
  for (const table_kind tables : {table_kind::smooth, table_kind::overshoot, table_kind::nonfinite}) {
    search_problem problem({.h = 2, .g = 3, .m = 2, .bits = 4, .n = 900, .d = 64}, tables, code_kind::skewed, random);
    pqkv::cell_index index({2, 64, 2, 4}, 900);
    fill_index(problem, index, 100);
    const pqkv::retrieve_params how{.head_dim = 64, .path = pqkv::search_path::joint};
    REQUIRE(in_parts(cpu, problem, index.view(), how, 1, centred) ==
            run_retrieve(cpu, problem, {}, pqkv::group_reduction::probability_sum, pqkv::search_path::scan).lists);
  }
}

TEST_CASE("partial_ranking: what does not fit is refused") {
  random_source random(79);
  search_problem problem({.h = 1, .g = 2, .m = 2, .bits = 4, .n = 50, .d = 64}, table_kind::smooth, code_kind::uniform, random);
  std::vector<pqkv::normaliser> sums(1);
  const pqkv::exec::host<> cpu;
  CHECK_THROWS_WITH_AS(pqkv::sum_part(cpu, problem.table(), problem.codes(), {}, problem.ranges(), pqkv::make_view(sums), {.head_dim = 64}),
                       "pqkv::sum_part: normalisers.extent(0) must be 2 (hq, from table), got 1", pqkv::shape_error);
  sums.resize(2);
  CHECK_THROWS_AS(pqkv::largest_part(cpu, problem.table(), problem.codes(), {}, problem.ranges(), pqkv::make_view(sums),
                                     {.head_dim = 64, .reduction = pqkv::group_reduction::logit_sum}),
                  pqkv::value_error);
}
