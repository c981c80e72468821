// SPDX-License-Identifier: Apache-2.0
// What retrieve() refuses, with which text, and that nothing is written then.
#include <doctest/doctest.h>

#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;
using pqkv::shape_error;
using pqkv::value_error;

/// The arguments of one call, each of which a case may spoil.
struct call {
  random_source random{9};
  search_problem problem{{.h = 2, .g = 3, .m = 2, .bits = 4, .n = 100, .d = 64}, table_kind::smooth, code_kind::uniform, random};
  pqkv::cell_index built{{2, 64, 2, 4}, 100};
  std::vector<std::int32_t> index_memory = std::vector<std::int32_t>(6 * 30, -7);
  std::vector<std::uint32_t> count_memory = std::vector<std::uint32_t>(6, 77);
  std::vector<std::uint8_t> skipped_memory = std::vector<std::uint8_t>(6, 77);
  pqkv::distance_table_view<> table = problem.table();
  pqkv::codes_view<> codes = problem.codes();
  pqkv::cell_index_view<> index;
  pqkv::view<const pqkv::middle_range, 1> ranges = problem.ranges();
  pqkv::view<std::int32_t, 2> indices = pqkv::make_view(index_memory.data(), 2, 30);
  pqkv::view<std::uint32_t, 1> counts = pqkv::make_view(count_memory.data(), 2);
  pqkv::view<std::uint8_t, 1> skipped = pqkv::make_view(skipped_memory.data(), 6);
  pqkv::retrieve_params params{.head_dim = 64, .reduction = group_reduction::probability_sum, .path = search_path::joint};

  call() {
    problem.set_range(0, 5, 100, 20);
    problem.set_range(1, 5, 100, 30);
    fill_index(problem, built, 10);
    index = built.view();
  }
  void operator()() { pqkv::retrieve(pqkv::exec::host<>{}, table, codes, index, ranges, indices, counts, params, skipped); }
  bool untouched() const {
    for (const std::int32_t i : index_memory)
      if (i != -7) return false;
    for (const std::uint32_t i : count_memory)
      if (i != 77) return false;
    return true;
  }
};

/// Spoils a good call and reports what is not as it should be.
template <class Error, class Spoil>
std::string refusal(Spoil spoil, const std::string& where, double expected, double got) {
  call one;
  spoil(one);
  const std::string text = unless_refused<Error>(one, "retrieve: " + where, expected, got);
  return text == "" && !one.untouched() ? "refused, but wrote" : text;
}
}  // namespace

TEST_CASE("retrieve: the call that the cases below spoil is a good one") {
  call one;
  one();
  CHECK(one.count_memory[0] == 20);
  CHECK(one.count_memory[1] == 30);
  CHECK(one.index_memory[19] >= 5);
  CHECK(one.index_memory[20] == -1);
}

TEST_CASE("retrieve: extents that disagree are refused") {
  CHECK(refusal<shape_error>([](call& c) { c.codes = c.codes.slice(1, 0, 1); }, "codes.extent(1)", 2, 1) == "");
  CHECK(refusal<shape_error>([](call& c) { c.codes.strides[2] = 3; }, "codes.stride(2)", 1, 3) == "");
  CHECK(refusal<shape_error>([](call& c) { c.codes.extents[0] = 4; }, "table.entries.extent(0)", 4, 6) == "");
  CHECK(refusal<shape_error>([](call& c) { c.ranges = c.ranges.slice(0, 0, 1); }, "ranges.extent(0)", 2, 1) == "");
  CHECK(refusal<shape_error>([](call& c) { c.indices = c.indices.slice(0, 0, 1); }, "indices.extent(0)", 2, 1) == "");
  CHECK(refusal<shape_error>([](call& c) { c.params.reduction = group_reduction::none; }, "indices.extent(0)", 6, 2) == "");
  CHECK(refusal<shape_error>([](call& c) { c.indices.strides[1] = 2; }, "indices.stride(1)", 1, 2) == "");
  CHECK(refusal<shape_error>([](call& c) { c.counts = c.counts.slice(0, 0, 1); }, "counts.extent(0)", 2, 1) == "");
  CHECK(refusal<shape_error>([](call& c) { c.index = c.index.heads(0, 1); }, "index.counts.extent(0)", 2, 1) == "");
  CHECK(refusal<shape_error>([](call& c) { c.index.ids.strides[1] = 2; }, "index.ids.stride(1)", 1, 2) == "");
}

TEST_CASE("retrieve: an index of another shape, a short flag list and a table without biases are refused") {
  const auto refused = [](auto spoil) {
    call one;
    spoil(one);
    CHECK_THROWS_AS(one(), shape_error);
    CHECK(one.untouched());
  };
  const pqkv::cell_index finer({2, 64, 2, 5}, 100), longer({2, 64, 4, 4}, 100);
  refused([&](call& c) { c.index = finer.view(); });
  refused([&](call& c) { c.index = longer.view(); });
  refused([](call& c) { c.skipped = c.skipped.slice(0, 0, 2); });
  refused([](call& c) { c.table.entries.strides[2] = 2; });
  refused([](call& c) { c.table.bias = c.table.bias.slice(0, 0, 1); });
}

TEST_CASE("retrieve: values out of range are refused") {
  CHECK(refusal<value_error>([](call& c) { c.index = {}; }, "params.path", 1, 0) == "");
  CHECK(refusal<value_error>([](call& c) { c.params.head_dim = 0; }, "params.head_dim", 1, 0) == "");
  CHECK(refusal<value_error>([](call& c) { c.problem.set_range(1, 5, 101, 3); }, "ranges.end", 100, 101) == "");
  CHECK(refusal<value_error>([](call& c) { c.problem.set_range(1, 6, 5, 3); }, "ranges.begin", 5, 6) == "");
  CHECK(refusal<value_error>([](call& c) { c.problem.set_range(1, 5, 100, 31); }, "ranges.retrieve", 30, 31) == "");
}

TEST_CASE("retrieve: the joint path refuses a range that its index does not hold; the scan path has no need of it") {
  call begins, ends, earlier;
  begins.problem.set_range(1, 6, 100, 3);
  CHECK_THROWS_AS(begins(), std::invalid_argument);
  CHECK(begins.untouched());
  const pqkv::cell_index shorter = [&] {
    search_problem part = ends.problem;
    part.set_range(1, 5, 98, 3);
    pqkv::cell_index made({2, 64, 2, 4}, 100);
    fill_index(part, made, 10);
    return made;
  }();
  ends.index = shorter.view();
  ends.problem.set_range(1, 5, 99, 3);
  CHECK(unless_refused<value_error>(ends, "retrieve: ranges.end", 98, 99) == "");
  CHECK(ends.untouched());
  ends.params.path = search_path::scan;
  CHECK_NOTHROW(ends());
  CHECK(ends.count_memory[1] == 3);
  // One that ends before the index does is answered: the tokens behind it take no part (retrieve_lengths_test.cpp).
  earlier.problem.set_range(1, 5, 99, 3);
  CHECK_NOTHROW(earlier());
  CHECK(earlier.count_memory[1] == 3);
}

TEST_CASE("retrieve: can_retrieve says the same without throwing") {
  call one;
  const auto asked = [&] {
    return pqkv::can_retrieve(one.table, one.codes, one.index, one.ranges, one.indices, one.counts, one.params, one.skipped);
  };
  static_assert(
      noexcept(pqkv::can_retrieve(one.table, one.codes, one.index, one.ranges, one.indices, one.counts, one.params, one.skipped)));
  CHECK(asked().ok());
  one.params.head_dim = 0;
  CHECK_FALSE(asked().ok());
  CHECK(asked().what == pqkv::status::code::value);
}
