// SPDX-License-Identifier: Apache-2.0
// retrieve(): equals top_k of scan(), ties across cells and tails, skipped query heads, its scratch, its refusals. The large random
// comparison with the oracles is property/retrieve_test.cpp.
#include <doctest/doctest.h>

#include <span>

#include "cases/float_modes.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/sanitized.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;
using pqkv::exec::host;
using list = std::vector<std::int32_t>;

search_problem problem_of(std::uint64_t seed, table_kind tables = table_kind::smooth, code_kind kind = code_kind::uniform) {
  random_source random(seed);
  search_problem problem({.h = 2, .g = 3, .m = 2, .bits = 4, .n = 500, .d = 64, .plane_padding = 5, .table_padding = 1}, tables, kind,
                         random);
  problem.set_range(0, 17, 411, 50);
  problem.set_range(1, 0, 500, 33);
  return problem;
}

pqkv::cell_index index_of(const search_problem& problem, std::size_t tail) {
  const search_shape& shape = problem.shape();
  pqkv::cell_index index({shape.h, shape.d, shape.m, shape.bits}, shape.n);
  fill_index(problem, index, tail);
  return index;
}

/// One head whose tokens' scores are given: m = 1, token t has code t of a table that holds them.
list select_scores(const std::vector<float>& scores, std::uint32_t k, search_path path) {
  random_source random(1);
  search_problem problem({.h = 1, .g = 1, .m = 1, .bits = 8, .n = scores.size(), .d = 64}, table_kind::equal, code_kind::same, random);
  for (std::size_t t = 0; t < scores.size(); ++t) {
    problem.mutable_table().entries(0, 0, t) = scores[t];
    const_cast<std::uint8_t&>(problem.codes()(0, 0, t)) = static_cast<std::uint8_t>(t);
  }
  problem.set_range(0, 0, scores.size(), k);
  const pqkv::cell_index index = index_of(problem, 3);
  return run_retrieve(host<>{}, problem, index.view(), group_reduction::logit_sum, path).lists[0];
}
}  // namespace

TEST_CASE("retrieve: the best k by hand, with ties and both zeros") {
  const std::vector<float> scores = {1, 5, -0.0f, 5, 0.0f, 7, 5, -3};
  for (const search_path path : {search_path::scan, search_path::joint}) {
    CHECK(select_scores(scores, 0, path).empty());
    CHECK(select_scores(scores, 1, path) == list{5});
    CHECK(select_scores(scores, 2, path) == list{1, 5});
    CHECK(select_scores(scores, 3, path) == list{1, 3, 5});
    CHECK(select_scores(scores, 5, path) == list{0, 1, 3, 5, 6});
    CHECK(select_scores(scores, 6, path) == list{0, 1, 2, 3, 5, 6});  // -0 at 2 before +0 at 4
    CHECK(select_scores(scores, 7, path) == list{0, 1, 2, 3, 4, 5, 6});
    CHECK(select_scores(scores, 8, path) == list{0, 1, 2, 3, 4, 5, 6, 7});
    CHECK(select_scores(scores, 4000000000u, path) == list{0, 1, 2, 3, 4, 5, 6, 7});
  }
}

TEST_CASE("retrieve: equals top_k of scan on either path") {
  for (const table_kind tables : {table_kind::smooth, table_kind::overshoot, table_kind::few_values, table_kind::equal})
    for (const group_reduction reduction : every_reduction) {
      search_problem problem = problem_of(2, tables, code_kind::skewed);
      problem.set_range(0, 0, 500, 60);  // scan() normalises over all of its tokens
      const std::size_t lists = pqkv::score_lists(reduction, 2, 6);
      std::vector<float> scores(lists * 500);
      pqkv::scan(host<>{}, problem.table(), problem.codes(), pqkv::make_view(scores.data(), lists, 500), reduction, 64);
      const pqkv::cell_index index = index_of(problem, 100);
      const retrieved joint = run_retrieve(host<>{}, problem, index.view(), reduction, search_path::joint);
      CHECK(joint.padded);
      CHECK(joint == run_retrieve(host<>{}, problem, {}, reduction, search_path::scan));
      for (std::size_t which = 0; which < lists; ++which) {
        const std::size_t k = problem.range_of(which, reduction).retrieve;
        std::vector<std::int32_t> wanted(k);
        pqkv::top_k(host<>{}, pqkv::as_const(pqkv::make_view(scores.data() + which * 500, 1, 500)), pqkv::make_view(wanted.data(), 1, k));
        CHECK(joint.lists[which] == wanted);
      }
    }
}

TEST_CASE("retrieve: equal cells are filled by token, not by cell, and the tail takes part") {
  for (const std::size_t tail : {0u, 1u, 100u, 500u}) {
    const search_problem problem = problem_of(3, table_kind::equal);
    const retrieved found =
        run_retrieve(host<>{}, problem, index_of(problem, tail).view(), group_reduction::probability_sum, search_path::joint);
    list first, second;
    for (std::int32_t t = 0; t < 50; ++t) first.push_back(17 + t);
    for (std::int32_t t = 0; t < 33; ++t) second.push_back(t);
    CHECK(found.lists[0] == first);
    CHECK(found.lists[1] == second);
  }
}

TEST_CASE("retrieve: many tokens and cells, short and long lists, on every ISA") {
  for (const table_kind tables : {table_kind::smooth, table_kind::sharp, table_kind::few_values, table_kind::equal})
    for (const std::size_t k : {1u, 40u, 900u, 20000u}) {
      random_source random(k + 77);
      search_problem problem({.h = 2, .g = 5, .m = 2, .bits = 6, .n = 70001, .d = 64, .plane_padding = 3}, tables, code_kind::skewed,
                             random);
      problem.set_range(0, 11, 69000, k);
      problem.set_range(1, 0, 70001, k / 2 + 1);
      const pqkv::cell_index index = index_of(problem, 300);
      const retrieved wanted = run_retrieve(host<pqkv::isa::scalar>{}, problem, {}, group_reduction::probability_sum, search_path::scan);
      CAPTURE(k);
      CAPTURE(static_cast<int>(tables));
      for_each_isa([&](auto isa) {
        CHECK(run_retrieve(host<decltype(isa)>{}, problem, index.view(), group_reduction::probability_sum, search_path::joint) == wanted);
      });
    }
}

TEST_CASE("retrieve: where most cells are empty, only the others are scored, on every ISA") {
  random_source random(815);
  std::size_t sparse = 0, full = 0, turn = 0;
  for (const auto& code : {std::pair{2u, 8u}, {2u, 5u}, {1u, 8u}, {2u, 6u}, {4u, 4u}})
    for (const code_kind kind : {code_kind::uniform, code_kind::skewed, code_kind::same})
      for (const table_kind tables : {table_kind::smooth, table_kind::few_values, table_kind::equal, table_kind::sharp})
        for (const std::size_t n : {1u, 17u, 900u, 5000u}) {
          if (!looks_at(turn++)) continue;
          const auto m = code.first, bits = code.second;  // no structured binding: clang 14 cannot name those in a lambda
          search_problem problem({.h = 2, .g = 5, .m = m, .bits = bits, .n = n, .d = 64, .plane_padding = 3}, tables, kind, random);
          problem.set_range(0, n / 9, n, 1 + random.below(n));
          problem.set_range(1, 0, n - n / 7, n / 4);
          const pqkv::cell_index index = index_of(problem, random.below(n + 1));
          std::size_t occupied = 0;
          for (const std::uint32_t count : std::span(&index.view().counts(0, 0), index.view().cells())) occupied += count != 0 ? 1 : 0;
          ++(occupied <= index.view().cells() / 2 ? sparse : full);
          for (const group_reduction reduction : {group_reduction::probability_sum, group_reduction::logit_max, group_reduction::none}) {
            plain_notes notes;
            const retrieved wanted = plain_retrieve(problem, reduction, notes);
            CAPTURE(n);
            CAPTURE(m);
            CAPTURE(static_cast<int>(kind));
            for_each_isa([&](auto isa) {
              CHECK(run_retrieve(host<decltype(isa)>{}, problem, index.view(), reduction, search_path::joint) == wanted);
            });
          }
        }
  CHECK(sparse > problems(100));
  CHECK(full > problems(10));
}

TEST_CASE("retrieve: sums of logits, filtered by integers first, equal top_k of scan on every ISA") {
  random_source random(4711);
  std::size_t turn = 0;
  for (const table_kind tables : every_table)
    for (const code_kind kind : {code_kind::uniform, code_kind::skewed, code_kind::same})
      for (const std::size_t m : {1u, 2u, 4u, 16u}) {
        if (!looks_at(turn++)) continue;
        const unsigned bits = m == 1 ? 8 : m == 2 ? 6 : 4;
        const std::size_t n = 2047 + random.below(6000);
        const search_problem problem = [&] {
          search_problem made({.h = 2, .g = 3, .m = m, .bits = bits, .n = n, .d = 64, .plane_padding = 3, .table_padding = 1}, tables, kind,
                              random);
          made.set_range(0, 0, n, 1 + random.below(n / 2));
          made.set_range(1, 0, n, 1 + random.below(n - 2));
          return made;
        }();
        for (const group_reduction reduction : {group_reduction::logit_sum, group_reduction::none}) {
          const std::size_t lists = pqkv::score_lists(reduction, 2, 6);
          std::vector<float> scores(lists * n);
          pqkv::scan(host<>{}, problem.table(), problem.codes(), pqkv::make_view(scores.data(), lists, n), reduction, 64);
          const retrieved found = run_retrieve(host<>{}, problem, {}, reduction, search_path::scan);
          for (std::size_t which = 0; which < lists; ++which) {
            const std::size_t k = problem.range_of(which, reduction).retrieve;
            std::vector<std::int32_t> wanted(k);
            pqkv::top_k(host<>{}, pqkv::as_const(pqkv::make_view(scores.data() + which * n, 1, n)), pqkv::make_view(wanted.data(), 1, k));
            CAPTURE(n);
            CAPTURE(m);
            CAPTURE(k);
            CAPTURE(static_cast<int>(tables));
            CHECK(found.lists[which] == wanted);
          }
          plain_notes notes;
          CHECK(found == plain_retrieve(problem, reduction, notes));
          for_each_isa([&](auto isa) { CHECK(run_retrieve(host<decltype(isa)>{}, problem, {}, reduction, search_path::scan) == found); });
        }
      }
}

TEST_CASE("retrieve: sums of logits whose order only the last bits decide") {
  // Entries a few units in the last place apart, on a large common part: integer sums tie, canonical scores do not.
  random_source random(99);
  for (const float common : {1.0f, 1000.0f, -7.0f}) {
    search_problem problem({.h = 1, .g = 4, .m = 2, .bits = 6, .n = 5000, .d = 64}, table_kind::smooth, code_kind::uniform, random);
    for (std::size_t q = 0; q < 4; ++q)
      for (std::size_t j = 0; j < 2; ++j)
        for (std::size_t x = 0; x < 64; ++x)
          problem.mutable_table().entries(q, j, x) =
              common * (1.0f + static_cast<float>(random.below(9)) * 0x1p-23f) + (x == 5 ? common * 3 : 0);
    problem.set_range(0, 3, 4990, 700);
    CHECK(run_retrieve(host<>{}, problem, {}, group_reduction::logit_sum, search_path::scan) ==
          run_retrieve(host<>{}, problem, index_of(problem, 40).view(), group_reduction::logit_sum, search_path::joint));
  }
}

TEST_CASE("retrieve: skipped query heads are flagged and left out; all of them skipped takes the lowest positions") {
  search_problem problem = problem_of(4);
  const retrieved clean = run_retrieve(host<>{}, problem, {}, group_reduction::probability_sum, search_path::scan);
  CHECK(clean.skipped == std::vector<std::uint8_t>(6, 0));
  search_problem spoiled = problem_of(4);
  spoiled.mutable_table().entries(1, 0, 3) = std::numeric_limits<float>::infinity();
  for (const std::size_t q : {3u, 4u, 5u}) spoiled.mutable_table().entries(q, 1, q) = std::numeric_limits<float>::quiet_NaN();
  const pqkv::cell_index index = index_of(spoiled, 60);
  for (const group_reduction reduction : every_reduction)
    for (const search_path path : {search_path::scan, search_path::joint}) {
      const retrieved found = run_retrieve(host<>{}, spoiled, index.view(), reduction, path);
      CHECK(found.skipped == std::vector<std::uint8_t>{0, 1, 0, 1, 1, 1});
      list lowest;
      for (std::int32_t t = 0; t < 33; ++t) lowest.push_back(t);
      CHECK(found.lists.back() == lowest);
    }
  // Without the head the group is the other two.
  random_source random(1);
  search_problem two({.h = 1, .g = 2, .m = 2, .bits = 4, .n = 500, .d = 64}, table_kind::equal, code_kind::same, random);
  for (std::size_t q = 0; q < 2; ++q)
    for (std::size_t j = 0; j < 2; ++j)
      for (std::size_t x = 0; x < 16; ++x) two.mutable_table().entries(q, j, x) = spoiled.table().entries(2 * q, j, x);
  for (std::size_t j = 0; j < 2; ++j)
    for (std::size_t t = 0; t < 500; ++t) const_cast<std::uint8_t&>(two.codes()(0, j, t)) = spoiled.codes()(0, j, t);
  two.set_range(0, 17, 411, 50);
  CHECK(run_retrieve(host<>{}, two, {}, group_reduction::probability_sum, search_path::scan).lists[0] ==
        run_retrieve(host<>{}, spoiled, {}, group_reduction::probability_sum, search_path::scan).lists[0]);
}

TEST_CASE("retrieve: a bias that is not finite matters to logit_max alone") {
  search_problem problem = problem_of(5);
  problem.mutable_table().bias(1) = std::numeric_limits<float>::quiet_NaN();
  for (const group_reduction reduction : every_reduction) {
    const retrieved found = run_retrieve(host<>{}, problem, {}, reduction, search_path::scan);
    CHECK(found.skipped[1] == (reduction == group_reduction::logit_max ? 1 : 0));
  }
}

TEST_CASE("retrieve: a slice of heads is retrieved as if alone") {
  const search_problem problem = problem_of(6);
  const pqkv::cell_index index = index_of(problem, 50);
  const retrieved whole = run_retrieve(host<>{}, problem, index.view(), group_reduction::probability_max, search_path::joint);
  std::vector<std::int32_t> indices(33, -7);
  std::uint32_t count = 0;
  auto table = problem.table();
  table.entries = table.entries.slice(0, 3, 3);
  table.bias = table.bias.slice(0, 3, 3);
  pqkv::retrieve(host<>{}, table, problem.codes().slice(0, 1, 1), index.view().heads(1, 1), problem.ranges().slice(0, 1, 1),
                 pqkv::make_view(indices.data(), 1, 33), pqkv::make_view(&count, 1),
                 {.head_dim = 64, .reduction = group_reduction::probability_max, .path = search_path::joint});
  CHECK(count == 33);
  CHECK(indices == whole.lists[1]);
}

TEST_CASE("retrieve: foreign float modes change nothing and are given back") {
  for (const table_kind tables : {table_kind::sharp, table_kind::overshoot, table_kind::hopeless}) {
    const search_problem problem = problem_of(7, tables);
    const pqkv::cell_index index = index_of(problem, 50);
    for (const search_path path : {search_path::scan, search_path::joint})
      for_each_isa([&](auto isa) {
        const host<decltype(isa)> cpu;
        const retrieved wanted = run_retrieve(cpu, problem, index.view(), group_reduction::probability_sum, path);
        retrieved found;
        bool intact = false;
        {
          const foreign_float_modes modes;
          found = run_retrieve(cpu, problem, index.view(), group_reduction::probability_sum, path);
          intact = modes.intact();
        }
        CHECK(intact);
        CHECK(found == wanted);
      });
  }
}

TEST_CASE("retrieve: works inside the scratch it asks for, and says when there is less") {
  const search_problem problem = problem_of(8);
  const pqkv::cell_index index = index_of(problem, 50);
  const std::size_t bytes = pqkv::scratch_bytes<pqkv::op::retrieve>(host<>{}, {2, 6, 2, 16, 500, 256, group_reduction::logit_sum});
  const pqkv::buffer<std::byte> block(bytes);
  host<> cpu;
  cpu.scratch = pqkv::arena(block);
  for (const search_path path : {search_path::scan, search_path::joint})
    CHECK(run_retrieve(cpu, problem, index.view(), group_reduction::logit_sum, path) ==
          run_retrieve(host<>{}, problem, index.view(), group_reduction::logit_sum, path));
  cpu.scratch = pqkv::arena(block.data(), bytes - 64);
  CHECK(unless_refused<pqkv::capacity_error>(
            [&] { run_retrieve(cpu, problem, index.view(), group_reduction::logit_sum, search_path::joint); }, "retrieve: policy.scratch",
            static_cast<double>(bytes), static_cast<double>(bytes - 64)) == "");
}

TEST_CASE("retrieve: automatic takes the joint path from a token a cell on") {
  CHECK(pqkv::resolve_path(search_path::automatic, 256, 256) == search_path::joint);
  CHECK(pqkv::resolve_path(search_path::automatic, 256, 255) == search_path::scan);
  CHECK(pqkv::resolve_path(search_path::automatic, 0, 1000000) == search_path::scan);
  CHECK(pqkv::resolve_path(search_path::joint, 256, 1) == search_path::joint);
  CHECK(pqkv::resolve_path(search_path::scan, 256, 1000000) == search_path::scan);
}
