// SPDX-License-Identifier: Apache-2.0
// The joint-code index under random sequences of counting and merging: counts of all tokens at once, lists of the merged ones in
// order, the tail in between; refused calls leave it as it was.
#include <doctest/doctest.h>

#include <map>

#include <pqkv/detail/host/cell_index.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::exec::host;

std::size_t plain_cell(pqkv::codes_view<> codes, std::size_t head, std::size_t t, unsigned bits) {
  std::size_t cell = 0;
  for (std::size_t j = 0; j < codes.extent(1); ++j) cell = cell * (std::size_t{1} << bits) + codes(head, j, t);
  return cell;
}

/// Everything a view of an index can say, to compare before and after.
struct contents {
  std::vector<std::uint32_t> counts, offsets, ranges;
  std::vector<std::int32_t> ids;
  bool operator==(const contents&) const = default;
};
contents contents_of(pqkv::cell_index_view<> index) {
  contents all;
  for (std::size_t head = 0; head < index.counts.extent(0); ++head) {
    for (std::size_t cell = 0; cell < index.cells(); ++cell) all.counts.push_back(index.counts(head, cell));
    for (std::size_t cell = 0; cell <= index.cells(); ++cell) all.offsets.push_back(index.offsets(head, cell));
    for (std::size_t i = 0; i < index.ids.extent(1); ++i) all.ids.push_back(index.ids(head, i));
    all.ranges.insert(all.ranges.end(), {index.first(head), index.merged(head), index.last(head)});
  }
  return all;
}

/// The index holds [first, last), merged up to `merged`.
void check_index(pqkv::cell_index_view<> index, pqkv::codes_view<> codes, unsigned bits, std::size_t first, std::size_t merged,
                 std::size_t last) {
  for (std::size_t head = 0; head < codes.extent(0); ++head) {
    REQUIRE(index.first(head) == first);
    REQUIRE(index.merged(head) == merged);
    REQUIRE(index.last(head) == last);
    std::map<std::size_t, std::vector<std::int32_t>> lists;
    std::map<std::size_t, std::uint32_t> counts;
    for (std::size_t t = first; t < last; ++t) {
      const std::size_t cell = plain_cell(codes, head, t, bits);
      ++counts[cell];
      if (t < merged) lists[cell].push_back(static_cast<std::int32_t>(t));
    }
    std::size_t wrong = 0, listed = 0;
    for (std::size_t cell = 0; cell < index.cells(); ++cell) {
      wrong += index.counts(head, cell) != (counts.count(cell) != 0 ? counts[cell] : 0) ? 1 : 0;
      if (merged == first) continue;
      const std::uint32_t begin = index.offsets(head, cell), end = index.offsets(head, cell + 1);
      REQUIRE(begin <= end);
      REQUIRE(end <= merged - first);
      std::vector<std::int32_t> list;
      for (std::uint32_t i = begin; i < end; ++i) list.push_back(index.ids(head, i));
      wrong += list != (lists.count(cell) != 0 ? lists[cell] : std::vector<std::int32_t>()) ? 1 : 0;
      listed += list.size();
    }
    REQUIRE(wrong == 0);
    if (merged != first) REQUIRE(listed == merged - first);
  }
}
}  // namespace

TEST_CASE("cell_index: random sequences of counts and merges") {
  random_source random(0xce11);
  for (const std::size_t m : {1u, 2u, 4u})
    for (unsigned bits = 4; bits <= 8; ++bits) {
      if (m * bits > 16 || (m * bits == 16 && m != 2)) continue;
      CAPTURE(m);
      CAPTURE(bits);
      const std::size_t n = 400;
      const pqkv::pq_shape shape{1 + random.below(3), 64, m, bits};
      pqkv::codes codes = make_codes(shape, n, random.bits());
      if (bits % 2 == 0)  // few cells, long lists
        for (std::size_t head = 0; head < shape.kv_heads; ++head)
          for (std::size_t j = 0; j < m; ++j)
            for (std::size_t t = 0; t < n; ++t) codes.mutable_view()(head, j, t) &= 3;
      pqkv::cell_index index(shape, n);
      const std::size_t first = random.below(50);
      std::size_t last = first, merged = first;
      const host<pqkv::isa::best, threaded_runner> threads;
      for (int step = 0; step < 12; ++step) {
        if (random.below(3) != 0) {
          const std::size_t next = std::min(n, last + (random.below(4) == 0 ? 0 : random.below(60)));
          pqkv::count_cells(threads, codes.view(), last, next, index.mutable_view());
          last = next;
        } else {
          pqkv::merge_tails(threads, codes.view(), index.mutable_view());
          merged = last;
        }
        if (last != first) check_index(index.view(), codes.view(), bits, first, merged, last);
      }
    }
}

TEST_CASE("cell_index: codes of a cell are its digits, subspace 0 the slowest") {
  const pqkv::cell_index index({1, 64, 2, 5}, 10);
  const auto codes = index.view().cell_codes;
  REQUIRE(codes.extent(0) == 2);
  REQUIRE(codes.extent(1) == 1024);
  for (std::size_t cell = 0; cell < 1024; ++cell) {
    REQUIRE(codes(0, cell) == cell / 32);
    REQUIRE(codes(1, cell) == cell % 32);
  }
}

TEST_CASE("cell_index: a part of the heads is an index of its own") {
  const pqkv::pq_shape shape{3, 64, 2, 4};
  const pqkv::codes codes = make_codes(shape, 100, 3);
  pqkv::cell_index index(shape, 100);
  const host<> cpu;
  const auto part = index.mutable_view().heads(1, 1);
  pqkv::count_cells(cpu, codes.view().slice(0, 1, 1), 7, 90, part);
  pqkv::merge_tails(cpu, codes.view().slice(0, 1, 1), part);
  check_index(pqkv::cell_index_view<>(part), codes.view().slice(0, 1, 1), 4, 7, 90, 90);
  for (const std::size_t head : {0u, 2u})
    for (std::size_t cell = 0; cell < 256; ++cell) REQUIRE(index.view().counts(head, cell) == 0);
}

TEST_CASE("cell_index: an index without tokens starts anywhere, one with tokens only where it ends") {
  const pqkv::pq_shape shape{2, 64, 2, 4};
  const pqkv::codes codes = make_codes(shape, 100, 4);
  pqkv::cell_index index(shape, 100);
  const host<> cpu;
  pqkv::merge_tails(cpu, codes.view(), index.mutable_view());  // nothing to do
  pqkv::count_cells(cpu, codes.view(), 30, 30, index.mutable_view());
  pqkv::count_cells(cpu, codes.view(), 10, 60, index.mutable_view());
  const contents before = contents_of(index.view());
  const auto count = [&](std::size_t first, std::size_t last) {
    return [&, first, last] { pqkv::count_cells(cpu, codes.view(), first, last, index.mutable_view()); };
  };
  using pqkv::value_error;
  CHECK(unless_refused<value_error>(count(59, 70), "count_cells: first", 60, 59) == "");
  CHECK(unless_refused<value_error>(count(61, 70), "count_cells: first", 60, 61) == "");
  CHECK(unless_refused<value_error>(count(60, 101), "count_cells: last", 100, 101) == "");
  CHECK(unless_refused<value_error>(count(61, 60), "count_cells: first", 60, 61) == "");
  CHECK((contents_of(index.view()) == before));

  // Heads that disagree: none is changed.
  pqkv::count_cells(cpu, codes.view().slice(0, 0, 1), 60, 65, index.mutable_view().heads(0, 1));
  const contents uneven = contents_of(index.view());
  CHECK(unless_refused<value_error>(count(65, 70), "count_cells: first", 60, 65) == "");
  CHECK((contents_of(index.view()) == uneven));
}

TEST_CASE("cell_index: tokens beyond its capacity are refused before anything is counted") {
  const pqkv::pq_shape shape{1, 64, 1, 4};
  const pqkv::codes codes = make_codes(shape, 1000, 5);
  pqkv::cell_index index(shape, 100);
  const host<> cpu;
  const contents empty = contents_of(index.view());
  CHECK_THROWS_AS(pqkv::count_cells(cpu, codes.view(), 0, 101, index.mutable_view()), pqkv::capacity_error);
  CHECK((contents_of(index.view()) == empty));
  pqkv::count_cells(cpu, codes.view(), 500, 600, index.mutable_view());  // positions do not matter, tokens do
  const contents full = contents_of(index.view());
  CHECK_THROWS_AS(pqkv::count_cells(cpu, codes.view(), 600, 601, index.mutable_view()), pqkv::capacity_error);
  CHECK((contents_of(index.view()) == full));
  pqkv::merge_tails(cpu, codes.view(), index.mutable_view());
  check_index(index.view(), codes.view(), 4, 500, 600, 600);
}

TEST_CASE("cell_index: extents that disagree are refused") {
  const pqkv::pq_shape shape{2, 64, 2, 4};
  const pqkv::codes codes = make_codes(shape, 100, 4);
  pqkv::cell_index index(shape, 100);
  const host<> cpu;
  using pqkv::shape_error;
  CHECK(unless_refused<shape_error>([&] { pqkv::count_cells(cpu, codes.view().slice(0, 0, 1), 0, 1, index.mutable_view()); },
                                    "count_cells: index.counts.extent(0)", 1, 2) == "");
  CHECK(unless_refused<shape_error>([&] { pqkv::count_cells(cpu, codes.view().slice(1, 0, 1), 0, 1, index.mutable_view()); },
                                    "count_cells: index.cell_codes.extent(0)", 1, 2) == "");
  CHECK(unless_refused<shape_error>([&] { pqkv::merge_tails(cpu, codes.view().slice(0, 0, 1), index.mutable_view()); },
                                    "merge_tails: index.counts.extent(0)", 1, 2) == "");
}

TEST_CASE("cell_index: exists up to 2^16 cells and holds the bytes it says") {
  CHECK(pqkv::has_cell_index({1, 64, 2, 8}));
  CHECK(pqkv::has_cell_index({1, 64, 4, 4}));
  CHECK_FALSE(pqkv::has_cell_index({1, 64, 4, 5}));
  CHECK(unless_refused<pqkv::value_error>([] { pqkv::cell_index({1, 64, 4, 5}, 10); }, "cell_index: shape.joint_bits", 16, 20) == "");
  CHECK(unless_refused<pqkv::value_error>([] { pqkv::cell_index({1, 64, 3, 5}, 10); }, "cell_index: subspaces", 2, 3) == "");
  const pqkv::pq_shape shape{3, 64, 2, 5};
  CHECK(pqkv::cell_index(shape, 77).size_bytes() == pqkv::cell_index::required_bytes(shape, 77));
  CHECK(pqkv::cell_index().view().empty());
}
