// SPDX-License-Identifier: Apache-2.0
// quantize_table() and quantized_scan(): the stated bound against the canonical logits of scan(), no overflow, every instruction set
// against plain sums, refusals.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cases/float_modes.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::exec::host;

template <class Entry>
struct quantized {
  std::vector<Entry> entries;
  std::vector<pqkv::table_quantization> scaling;
  std::vector<std::uint16_t> sums;  // [hq, n + padding]

  bool operator==(const quantized& other) const {
    for (std::size_t q = 0; q < scaling.size(); ++q)
      if (scaling[q].step != other.scaling[q].step || scaling[q].offset != other.scaling[q].offset ||
          scaling[q].bound != other.scaling[q].bound)
        return false;
    return entries == other.entries && sums == other.sums;
  }
};

template <class Entry, class Policy>
quantized<Entry> run(const Policy& policy, const search_problem& problem, std::size_t padding) {
  const search_shape& shape = problem.shape();
  const std::size_t row = shape.n + padding;
  quantized<Entry> out{std::vector<Entry>(shape.hq() * shape.m * shape.c(), Entry{7}), std::vector<pqkv::table_quantization>(shape.hq()),
                       std::vector<std::uint16_t>(shape.hq() * row, std::uint16_t{0xbeef})};
  const auto entries = pqkv::make_view(out.entries.data(), shape.hq(), shape.m, shape.c());
  const auto scaling = pqkv::make_view(out.scaling.data(), shape.hq());
  pqkv::quantize_table(policy, problem.table(), pqkv::mutable_quantized_table_view<Entry>{entries, scaling});
  pqkv::quantized_scan(policy, pqkv::quantized_table_view<Entry>{pqkv::as_const(entries), pqkv::as_const(scaling)}, problem.codes(),
                       pqkv::view<std::uint16_t, 2>{out.sums.data(), {shape.hq(), shape.n}, {row, 1}});
  return out;
}

/// Sums that are not the plain ones of the quantized entries, sums that would not fit, and padding that was written.
template <class Entry>
std::size_t wrong_sums(const search_problem& problem, const quantized<Entry>& out, std::size_t padding) {
  const search_shape& shape = problem.shape();
  std::size_t wrong = 0;
  for (std::size_t q = 0; q < shape.hq(); ++q)
    for (std::size_t t = 0; t < shape.n + padding; ++t) {
      std::uint64_t sum = t < shape.n ? 0 : 0xbeef;
      for (std::size_t j = 0; t < shape.n && j < shape.m; ++j)
        sum += out.entries[(q * shape.m + j) * shape.c() + problem.codes()(q / shape.g, j, t)];
      wrong += sum == out.sums[q * (shape.n + padding) + t] ? 0 : 1;
    }
  return wrong;
}

/// The largest sum that any codes could have.
template <class Entry>
std::uint64_t largest_sum(const search_shape& shape, const quantized<Entry>& out, std::size_t q) {
  std::uint64_t sum = 0;
  for (std::size_t j = 0; j < shape.m; ++j) {
    const auto first = out.entries.begin() + static_cast<std::ptrdiff_t>((q * shape.m + j) * shape.c());
    sum += *std::max_element(first, first + static_cast<std::ptrdiff_t>(shape.c()));
  }
  return sum;
}

/// Logits outside of the stated bound; `worst` becomes the largest share of a bound that was used.
template <class Entry>
std::size_t outside_bound(const search_problem& problem, const quantized<Entry>& out, std::size_t padding, double& worst) {
  const search_shape& shape = problem.shape();
  std::vector<float> logits(shape.hq() * shape.n);
  pqkv::scan(host<pqkv::isa::scalar>{}, problem.table(), problem.codes(), pqkv::make_view(logits.data(), shape.hq(), shape.n),
             pqkv::group_reduction::none, shape.d);
  std::size_t outside = 0;
  for (std::size_t q = 0; q < shape.hq(); ++q)
    for (std::size_t t = 0; t < shape.n; ++t) {
      const pqkv::table_quantization& s = out.scaling[q];
      const double error = std::fabs(s.value(out.sums[q * (shape.n + padding) + t]) - static_cast<double>(logits[q * shape.n + t]));
      outside += error <= s.bound ? 0 : 1;
      if (s.bound > 0) worst = std::max(worst, error / s.bound);
    }
  return outside;
}

/// The widest range of a subspace, and the sum of all ranges.
std::pair<double, double> ranges(const search_problem& problem, std::size_t q) {
  double widest = 0, total = 0;
  for (std::size_t j = 0; j < problem.shape().m; ++j) {
    double low = HUGE_VAL, high = -HUGE_VAL;
    for (std::size_t x = 0; x < problem.shape().c(); ++x) {
      low = std::min(low, static_cast<double>(problem.table().entries(q, j, x)));
      high = std::max(high, static_cast<double>(problem.table().entries(q, j, x)));
    }
    widest = std::max(widest, high - low);
    total += high - low;
  }
  return {widest, total};
}

template <class Entry>
void check_everywhere(random_source& random, double& worst) {
  for (const std::size_t m : {1u, 2u, 3u, 4u, 8u, 16u})
    for (unsigned bits = 4; bits <= 8; ++bits)
      for (const table_kind tables : every_table) {
        const search_shape shape{.h = 1 + random.below(2),
                                 .g = 1 + random.below(9),
                                 .m = m,
                                 .bits = bits,
                                 .n = random.below(4) == 0 ? 128 * random.below(6) : random.below(700),
                                 .d = 64,
                                 .plane_padding = random.below(20),
                                 .table_padding = random.below(4)};
        const search_problem problem(shape, tables, every_code[random.below(4)], random);
        const std::size_t padding = random.below(5);
        CAPTURE(sizeof(Entry));
        CAPTURE(m);
        CAPTURE(bits);
        CAPTURE(shape.n);
        CAPTURE(static_cast<int>(tables));
        const quantized<Entry> plain = run<Entry>(host<pqkv::isa::scalar>{}, problem, padding);
        REQUIRE(wrong_sums(problem, plain, padding) == 0);
        REQUIRE(outside_bound(problem, plain, padding, worst) == 0);
        for (std::size_t q = 0; q < shape.hq(); ++q) REQUIRE(largest_sum(shape, plain, q) <= 65535);
        for_each_isa([&](auto isa) { REQUIRE(run<Entry>(host<decltype(isa)>{}, problem, padding) == plain); });
      }
}
}  // namespace

TEST_CASE("quantized_scan: sums of every instruction set are the plain ones, and within the bound of scan()'s logits") {
  random_source random(0x516);
  double worst_words = 0, worst_bytes = 0;
  check_everywhere<std::uint16_t>(random, worst_words);
  check_everywhere<std::uint8_t>(random, worst_bytes);
  CHECK(worst_words > 0.5);  // the bound says something
  CHECK(worst_bytes > 0.5);
}

TEST_CASE("quantized_scan: a run of tokens longer than a task, on threads and under foreign float modes") {
  random_source random(0x517);
  for (const unsigned bits : {6u, 8u}) {
    const search_problem problem({.h = 2, .g = 5, .m = 2, .bits = bits, .n = 70001, .d = 64, .plane_padding = 3}, table_kind::smooth,
                                 code_kind::uniform, random);
    const quantized<std::uint16_t> plain = run<std::uint16_t>(host<pqkv::isa::scalar>{}, problem, 1);
    CHECK(wrong_sums(problem, plain, 1) == 0);
    CHECK(run<std::uint16_t>(host<pqkv::isa::best, threaded_runner>{}, problem, 1) == plain);
    quantized<std::uint16_t> foreign;
    bool intact = false;
    {
      const foreign_float_modes modes;
      foreign = run<std::uint16_t>(host<>{}, problem, 1);
      intact = modes.intact();
    }
    CHECK(intact);
    CHECK(foreign == plain);
  }
}

TEST_CASE("quantize_table: the step uses the sixteen bits, or the eight, and the bound is half a step a subspace") {
  random_source random(0x518);
  const search_shape shape{.h = 1, .g = 3, .m = 4, .bits = 6, .n = 10, .d = 64};
  const search_problem problem(shape, table_kind::smooth, code_kind::uniform, random);
  const auto words = run<std::uint16_t>(host<>{}, problem, 0);
  const auto bytes = run<std::uint8_t>(host<>{}, problem, 0);
  for (std::size_t q = 0; q < 3; ++q) {
    const auto [widest, total] = ranges(problem, q);
    CHECK(words.scaling[q].step == doctest::Approx(total / 65531).epsilon(1e-12));
    CHECK(words.scaling[q].bound == doctest::Approx(2 * words.scaling[q].step).epsilon(0.1));  // and the rounding of floats
    CHECK(words.scaling[q].bound >= 2 * words.scaling[q].step);
    CHECK(largest_sum(shape, words, q) >= 65520);
    CHECK(bytes.scaling[q].step == doctest::Approx(widest / 255).epsilon(1e-12));
    CHECK(bytes.scaling[q].bound == doctest::Approx(2 * bytes.scaling[q].step).epsilon(1e-3));
  }
}

TEST_CASE("quantize_table: equal entries, a table that is not finite, and one whose logits overflow") {
  random_source random(0x519);
  const search_shape shape{.h = 1, .g = 2, .m = 2, .bits = 5, .n = 50, .d = 64};
  const search_problem equal(shape, table_kind::equal, code_kind::uniform, random);
  const auto same = run<std::uint16_t>(host<>{}, equal, 0);
  CHECK(same.scaling[0].step == 0);
  CHECK(same.scaling[0].value(same.sums[3]) == 6.5);

  search_problem spoilt(shape, table_kind::smooth, code_kind::uniform, random);
  spoilt.mutable_table().entries(1, 1, 31) = -std::numeric_limits<float>::infinity();
  const auto out = run<std::uint16_t>(host<>{}, spoilt, 0);
  CHECK(out.scaling[0].step > 0);
  CHECK(out.scaling[1].value(65535) == 0);
  CHECK(out.scaling[1].bound == 0);
  for (std::size_t t = 0; t < 50; ++t) CHECK(out.sums[50 + t] == 0);

  search_problem large(shape, table_kind::smooth, code_kind::uniform, random);
  for (std::size_t j = 0; j < 2; ++j) large.mutable_table().entries(0, j, 9) = 3e38f;
  const auto huge = run<std::uint16_t>(host<>{}, large, 0);
  CHECK(std::isinf(huge.scaling[0].bound));
  CHECK(std::isfinite(huge.scaling[1].bound));
}

TEST_CASE("quantized_scan: extents that disagree are refused and nothing is written") {
  random_source random(0x51a);
  const search_problem problem({.h = 2, .g = 3, .m = 4, .bits = 5, .n = 40, .d = 64}, table_kind::smooth, code_kind::uniform, random);
  pqkv::quantized_table<std::uint16_t> table(6, {2, 64, 4, 5});
  CHECK(table.size_bytes() == 6 * (4 * 32 * 2 + sizeof(pqkv::table_quantization)));
  std::vector<std::uint16_t> memory(6 * 40, 77);
  const auto sums = pqkv::make_view(memory.data(), 6, 40);
  const host<> cpu;
  using pqkv::shape_error;
  const auto quantize = [&](pqkv::distance_table_view<> from, pqkv::mutable_quantized_table_view<std::uint16_t> to) {
    return [=, &cpu] { pqkv::quantize_table(cpu, from, to); };
  };
  auto narrow = table.mutable_view();
  narrow.entries = narrow.entries.slice(2, 0, 16);
  CHECK(unless_refused<shape_error>(quantize(problem.table(), narrow), "quantize_table: out.entries.extent(2)", 32, 16) == "");
  auto fewer = table.mutable_view();
  fewer.scaling = fewer.scaling.slice(0, 0, 5);
  CHECK(unless_refused<shape_error>(quantize(problem.table(), fewer), "quantize_table: out.scaling.extent(0)", 6, 5) == "");
  auto loose = table.mutable_view();
  loose.entries.strides[0] = 200;
  CHECK(unless_refused<shape_error>(quantize(problem.table(), loose), "quantize_table: out.entries.stride(0)", 128, 200) == "");
  auto many = problem.table();
  many.entries.extents[1] = 17;
  CHECK(unless_refused<pqkv::value_error>(quantize(many, table.mutable_view()), "quantize_table: table.entries.extent(1)", 16, 17) == "");
  auto odd = problem.table();
  odd.entries.extents[2] = 24;
  CHECK(unless_refused<pqkv::value_error>(quantize(odd, table.mutable_view()), "quantize_table: table.entries.extent(2)", 64, 24) == "");

  const auto scan = [&](pqkv::quantized_table_view<std::uint16_t> from, pqkv::codes_view<> codes, pqkv::view<std::uint16_t, 2> to) {
    return [=, &cpu] { pqkv::quantized_scan(cpu, from, codes, to); };
  };
  const auto codes = problem.codes();
  CHECK(unless_refused<shape_error>(scan(table.view(), codes.slice(1, 0, 2), sums), "quantized_scan: codes.extent(1)", 4, 2) == "");
  CHECK(unless_refused<shape_error>(scan(table.view(), codes, sums.slice(0, 0, 2)), "quantized_scan: sums.extent(0)", 6, 2) == "");
  CHECK(unless_refused<shape_error>(scan(table.view(), codes, sums.slice(1, 0, 39)), "quantized_scan: sums.extent(1)", 40, 39) == "");
  auto strided = sums;
  strided.strides[1] = 2;
  CHECK(unless_refused<shape_error>(scan(table.view(), codes, strided), "quantized_scan: sums.stride(1)", 1, 2) == "");
  const pqkv::codes_view<> heads{codes.data, {4, 4, 40}, {0, codes.stride(1), 1}};
  CHECK(unless_refused<shape_error>(scan(table.view(), heads, sums), "quantized_scan: table.entries.extent(0)", 4, 6) == "");
  for (const std::uint16_t sum : memory) CHECK(sum == 77);
}
