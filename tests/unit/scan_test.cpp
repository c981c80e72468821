// SPDX-License-Identifier: Apache-2.0
// scan(): scores of every reduction against the plain canonical oracle to the bit, its scratch, its refusals.
#include <doctest/doctest.h>

#include "cases/float_modes.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::float_bits;
using pqkv::group_reduction;
using pqkv::exec::host;

template <class Policy>
std::vector<float> run_scan(const Policy& policy, const search_problem& problem, group_reduction reduction, std::size_t padding) {
  const search_shape& shape = problem.shape();
  const std::size_t lists = pqkv::score_lists(reduction, shape.h, shape.hq()), row = shape.n + padding;
  std::vector<float> scores(lists * row, -9.0f);
  pqkv::scan(policy, problem.table(), problem.codes(), pqkv::view<float, 2>{scores.data(), {lists, shape.n}, {row, 1}}, reduction, shape.d,
             shape.scale);
  return scores;
}

/// Equal bits, any NaN equal to any other.
bool same_bits(float a, float b) { return float_bits(a) == float_bits(b) || (std::isnan(a) && std::isnan(b)); }

/// Scores that differ from the plain ones, and padding that was written.
std::size_t wrong_scores(const search_problem& problem, group_reduction reduction, const std::vector<float>& scores, std::size_t padding) {
  const search_shape& shape = problem.shape();
  const std::size_t lists = pqkv::score_lists(reduction, shape.h, shape.hq()), row = shape.n + padding;
  std::size_t wrong = 0;
  for (std::size_t which = 0; which < lists; ++which) {
    plain_list list = problem.list(which, reduction);
    list.begin = 0, list.end = shape.n;
    plain_notes notes;
    const std::vector<float> wanted = plain_scores(list, notes);
    for (std::size_t t = 0; t < row; ++t) wrong += same_bits(scores[which * row + t], t < shape.n ? wanted[t] : -9.0f) ? 0 : 1;
  }
  return wrong;
}

search_problem small_problem(std::uint64_t seed, table_kind tables = table_kind::smooth) {
  random_source random(seed);
  return {
      {.h = 2, .g = 3, .m = 4, .bits = 5, .n = 203, .d = 64, .plane_padding = 11, .table_padding = 3}, tables, code_kind::uniform, random};
}
}  // namespace

TEST_CASE("scan: every reduction equals the plain oracle to the bit on every instruction set") {
  random_source random(0x5ca9);
  const std::size_t groups[] = {1, 2, 3, 4, 5, 8};
  std::size_t problems = 0;
  for (const std::size_t m : {1u, 2u, 4u, 8u, 16u})
    for (unsigned bits = 4; bits <= 8; ++bits)
      for (const table_kind tables : every_table) {
        const search_shape shape{.h = 1 + random.below(3),
                                 .g = groups[random.below(6)],
                                 .m = m,
                                 .bits = bits,
                                 .n = random.below(150),
                                 .d = 16 * (1 + random.below(16)),
                                 .plane_padding = random.below(20),
                                 .table_padding = random.below(4),
                                 .scale = random_scale(random)};
        const search_problem problem(shape, tables, every_code[random.below(4)], random);
        const std::size_t padding = random.below(5);
        for (const group_reduction reduction : every_reduction) {
          CAPTURE(m);
          CAPTURE(bits);
          CAPTURE(static_cast<int>(tables));
          CAPTURE(static_cast<int>(reduction));
          for_each_isa([&](auto isa) {
            REQUIRE(wrong_scores(problem, reduction, run_scan(host<decltype(isa)>{}, problem, reduction, padding), padding) == 0);
          });
          ++problems;
        }
      }
  CHECK(problems == 5 * 5 * 9 * 5);
}

TEST_CASE("scan: long rows, beyond a tile and with ragged ends, equal the plain oracle to the bit") {
  random_source random(0x5caa);
  const group_reduction reductions[] = {group_reduction::probability_sum, group_reduction::probability_max, group_reduction::logit_sum};
  for (const std::size_t m : {1u, 2u, 3u, 4u, 16u, 17u})
    for (unsigned bits = 4; bits <= 8; ++bits)
      for (const std::size_t n : {128 + random.below(128), 2048 + random.below(200)}) {
        const search_shape shape{
            .h = 1, .g = 1 + random.below(6), .m = m, .bits = bits, .n = n, .d = 64, .plane_padding = random.below(20)};
        const search_problem problem(shape, every_table[random.below(5)], every_code[random.below(4)], random);
        const group_reduction reduction = reductions[random.below(3)];
        CAPTURE(m);
        CAPTURE(bits);
        CAPTURE(n);
        for_each_isa(
            [&](auto isa) { REQUIRE(wrong_scores(problem, reduction, run_scan(host<decltype(isa)>{}, problem, reduction, 3), 3) == 0); });
      }
}

TEST_CASE("scan: normalisers round every product alike, whatever its size, ties included") {
  random_source random(0x5cab);
  for (const bool large : {false, true})
    for (const std::size_t n : {0u, 15u, 64u, 79u, 1000u, 40000u}) {
      std::vector<float> p(n);
      for (float& x : p) {
        const float mantissa = random.below(2) ? 1.0f + random.uniform() : 1.0f + 0.125f * static_cast<float>(random.below(8));
        x = random.below(20) == 0 ? 0.0f : std::ldexp(mantissa, -static_cast<int>(random.below(60)));
      }
      if (large && n > 0) p[random.below(n)] = 1000.5f;
      std::uint64_t wanted = 0;
      for (const float x : p) wanted += static_cast<std::uint64_t>(std::nearbyint(std::ldexp(static_cast<double>(x), 40)));
      for_each_isa([&](auto isa) { CHECK(pqkv::detail::simd_kernels<decltype(isa)>::total(p.data(), nullptr, n) == wanted); });
    }
}

TEST_CASE("scan: probabilities of a query head sum to one, also where its table was recentred") {
  for (const table_kind tables : {table_kind::smooth, table_kind::sharp, table_kind::overshoot}) {
    const search_problem problem = small_problem(3, tables);
    const std::vector<float> scores = run_scan(host<>{}, problem, group_reduction::probability_sum, 0);
    for (std::size_t head = 0; head < 2; ++head) {
      double sum = 0;
      for (std::size_t t = 0; t < 203; ++t) sum += static_cast<double>(scores[head * 203 + t]);
      CHECK(sum == doctest::Approx(3).epsilon(1e-5));
    }
  }
  plain_notes notes;
  plain_scores(small_problem(3, table_kind::overshoot).list(0, group_reduction::probability_sum), notes);
  CHECK(notes.recentred == 3);
}

TEST_CASE("scan: threads and foreign float modes change no bit") {
  for (const table_kind tables : {table_kind::sharp, table_kind::overshoot, table_kind::wide}) {
    const search_problem problem = small_problem(4, tables);
    for (const group_reduction reduction : every_reduction) {
      CHECK(wrong_scores(problem, reduction, run_scan(host<pqkv::isa::best, threaded_runner>{}, problem, reduction, 1), 1) == 0);
      for_each_isa([&](auto isa) {
        std::vector<float> scores;
        bool intact = false;
        {
          const foreign_float_modes modes;
          scores = run_scan(host<decltype(isa)>{}, problem, reduction, 1);
          intact = modes.intact();
        }
        CHECK(intact);
        CHECK(wrong_scores(problem, reduction, scores, 1) == 0);
      });
    }
  }
}

TEST_CASE("scan: a query head with a non-finite table contributes nothing") {
  search_problem problem = small_problem(5);
  const std::vector<float> before = run_scan(host<>{}, problem, group_reduction::probability_sum, 0);
  problem.mutable_table().entries(1, 2, 3) = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> after = run_scan(host<>{}, problem, group_reduction::probability_sum, 0);
  double sum = 0;
  for (std::size_t t = 0; t < 203; ++t) sum += static_cast<double>(after[t]);
  CHECK(sum == doctest::Approx(2).epsilon(1e-5));
  for (std::size_t t = 203; t < 406; ++t) CHECK(before[t] == after[t]);
}

TEST_CASE("scan: works inside the scratch it asks for, and says when there is less") {
  const search_problem problem = small_problem(6);
  const std::size_t bytes = pqkv::scratch_bytes<pqkv::op::scan>(host<>{}, {6, 4, 32});
  const pqkv::buffer<std::byte> block(bytes);
  host<> cpu;
  cpu.scratch = pqkv::arena(block);
  CHECK(wrong_scores(problem, group_reduction::probability_sum, run_scan(cpu, problem, group_reduction::probability_sum, 0), 0) == 0);
  cpu.scratch = pqkv::arena(block.data(), bytes - 64);
  std::vector<float> scores(2 * 203, -9.0f);
  CHECK(unless_refused<pqkv::capacity_error>(
            [&] {
              pqkv::scan(cpu, problem.table(), problem.codes(), pqkv::make_view(scores.data(), 2, 203), group_reduction::logit_sum, 64);
            },
            "scan: policy.scratch", static_cast<double>(bytes), static_cast<double>(bytes - 64)) == "");
  for (const float score : scores) CHECK(score == -9.0f);
}

TEST_CASE("scan: extents that disagree are refused and nothing is written") {
  const search_problem problem = small_problem(7);
  std::vector<float> memory(6 * 203, -9.0f);
  const auto scores = pqkv::make_view(memory.data(), 2, 203);
  const auto codes = problem.codes();
  const host<> cpu;
  using pqkv::shape_error;
  const auto call = [&](pqkv::codes_view<> c, pqkv::view<float, 2> s, group_reduction reduction, std::size_t d = 64) {
    return [=, &problem] { pqkv::scan(cpu, problem.table(), c, s, reduction, d); };
  };
  CHECK(unless_refused<shape_error>(call(codes.slice(1, 0, 3), scores, group_reduction::none), "scan: codes.extent(1)", 4, 3) == "");
  auto strided = codes;
  strided.strides[2] = 2;
  CHECK(unless_refused<shape_error>(call(strided, scores, group_reduction::logit_max), "scan: codes.stride(2)", 1, 2) == "");
  CHECK(unless_refused<shape_error>(call(codes, scores, group_reduction::none), "scan: scores.extent(0)", 6, 2) == "");
  CHECK(unless_refused<shape_error>(call(codes, scores.slice(0, 0, 1), group_reduction::logit_sum), "scan: scores.extent(0)", 2, 1) == "");
  CHECK(unless_refused<shape_error>(call(codes, scores.slice(1, 0, 202), group_reduction::logit_sum), "scan: scores.extent(1)", 203, 202) ==
        "");
  CHECK(unless_refused<pqkv::value_error>(call(codes, scores, group_reduction::logit_sum, 0), "scan: head_dim", 1, 0) == "");
  const pqkv::view<const std::uint8_t, 3> many{codes.data, {1, 4, std::size_t{1} << 23}, {codes.stride(0), codes.stride(1), 1}};
  const pqkv::view<float, 2> many_scores{memory.data(), {1, std::size_t{1} << 23}, {0, 1}};
  CHECK(unless_refused<pqkv::value_error>(call(many, many_scores, group_reduction::logit_sum), "scan: codes.extent(2)", (1 << 23) - 1,
                                          1 << 23) == "");
  const pqkv::codes_view<> odd{codes.data, {4, 4, 203}, {0, codes.stride(1), 1}};
  CHECK(unless_refused<shape_error>(call(odd, scores, group_reduction::logit_sum), "scan: table.entries.extent(0)", 4, 6) == "");
  for (const float score : memory) CHECK(score == -9.0f);
}
