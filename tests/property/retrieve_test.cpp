// SPDX-License-Identifier: Apache-2.0
// The joint-code path, the token scan, the plain canonical oracle and the double oracle over thousands of random and adversarial
// problems: the first three agree to the token whatever the instruction set or thread count, the last by the method's tolerance.
#include <doctest/doctest.h>

#include "cases/sanitized.hpp"
#include "cases/policies.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

struct tally {
  std::size_t problems = 0, lists = 0, joint = 0, against_double = 0;
  plain_notes notes;
};

/// Everything that must hold for one problem.
void compare(const search_problem& problem, group_reduction reduction, random_source& random, tally& counted) {
  const search_shape& shape = problem.shape();
  plain_notes notes;
  const retrieved wanted = plain_retrieve(problem, reduction, notes);
  CAPTURE(shape.h);
  CAPTURE(shape.g);
  CAPTURE(shape.m);
  CAPTURE(shape.bits);
  CAPTURE(shape.n);
  CAPTURE(shape.d);
  CAPTURE(static_cast<int>(reduction));

  pqkv::cell_index index;
  if (shape.joint()) {
    index = pqkv::cell_index({shape.h, 128, shape.m, shape.bits}, shape.n);
    fill_index(problem, index, random.below(3) == 0 ? 0 : random.below(2) == 0 ? shape.n : random.below(shape.n / 4 + 1));
  }
  for_each_isa([&](auto isa) {
    const pqkv::exec::host<decltype(isa)> cpu;
    REQUIRE(run_retrieve(cpu, problem, {}, reduction, search_path::scan) == wanted);
    if (!shape.joint()) return;
    REQUIRE(run_retrieve(cpu, problem, index.view(), reduction, search_path::joint) == wanted);
    ++counted.joint;
  });
  if (shape.joint()) REQUIRE(run_retrieve(pqkv::exec::host<>{}, problem, index.view(), reduction, search_path::automatic, 0) == wanted);
  if (counted.problems % 16 == 0) {
    const pqkv::exec::host<pqkv::isa::best, threaded_runner> threads;
    REQUIRE(run_retrieve(threads, problem, {}, reduction, search_path::scan) == wanted);
    if (shape.joint()) REQUIRE(run_retrieve(threads, problem, index.view(), reduction, search_path::joint) == wanted);
  }

  for (std::size_t which = 0; which < wanted.lists.size(); ++which) {
    plain_notes own;
    const plain_list list = problem.list(which, reduction);
    plain_scores(list, own);
    bool known = false;
    const std::vector<score_range> scores = double_scores(list, own, known);
    if (!known) continue;
    ++counted.against_double;
    REQUIRE(against_double(list, scores, wanted.lists[which]) == "");
  }
  ++counted.problems;
  counted.lists += wanted.lists.size();
  counted.notes.recentred += notes.recentred;
  counted.notes.clamped += notes.clamped;
  counted.notes.empty += notes.empty;
  counted.notes.skipped += notes.skipped;
}

search_shape random_shape(std::size_t m, unsigned bits, random_source& random) {
  const std::size_t groups[] = {1, 2, 3, 4, 8}, dims[] = {16, 64, 128, 256}, lengths[] = {0, 1, 9, 63, 64, 65, 200, 700};
  search_shape shape;
  shape.h = 1 + random.below(3);
  shape.g = groups[random.below(5)];
  shape.m = m;
  shape.bits = bits;
  shape.n = lengths[random.below(8)];
  shape.d = dims[random.below(4)];
  shape.plane_padding = random.below(3) * 13;
  shape.table_padding = random.below(2) * 3;
  shape.scale = random_scale(random);
  return shape;
}
}  // namespace

TEST_CASE("retrieve: paths, instruction sets, threads and oracles agree over random problems") {
  random_source random(0x9a1e);
  tally counted;
  for (const std::size_t m : {1u, 2u, 4u, 8u, 16u})
    for (unsigned bits = 4; bits <= 8; ++bits) {
      const std::size_t rounds = m * bits > 12 && m * bits <= 16 ? 2 : 6;  // 2^16 cells: fewer, they take longest
      for (std::size_t round = 0; round < rounds; round += looked_at_step)
        for (const table_kind tables : every_table) {
          const search_shape shape = random_shape(m, bits, random);
          search_problem problem(shape, tables, every_code[random.below(4)], random);
          problem.random_ranges(random);
          for (const group_reduction reduction : every_reduction) compare(problem, reduction, random, counted);
        }
    }
  MESSAGE("problems ", counted.problems, ", lists ", counted.lists, ", joint ", counted.joint, ", against double ", counted.against_double,
          ", recentred ", counted.notes.recentred, ", clamped ", counted.notes.clamped, ", empty ", counted.notes.empty, ", skipped ",
          counted.notes.skipped);
  CHECK(counted.problems > 4000 / looked_at_step);
  CHECK(counted.joint > 3000 / looked_at_step);
  CHECK(counted.against_double > 4000 / looked_at_step);
  CHECK(counted.notes.recentred > 500 / looked_at_step);
  CHECK(counted.notes.clamped > 100 / looked_at_step);
  CHECK(counted.notes.empty > 100 / looked_at_step);
  CHECK(counted.notes.skipped > 1000 / looked_at_step);
}
