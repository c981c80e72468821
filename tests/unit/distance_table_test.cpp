// SPDX-License-Identifier: Apache-2.0
// Tables against plain chains of fused multiply-adds, to the bit: every m, b and several d, padded queries and tables, slices of
// heads, both instruction sets, threads, and a calling thread with foreign float modes.
#include <doctest/doctest.h>

#include <pqkv/detail/host/distance_table.hpp>

#include "cases/float_modes.hpp"
#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::float_bits;
using pqkv::exec::host;

struct table_case {
  pqkv::pq_shape shape;
  std::size_t g, query_padding, row_padding;
};

/// A query and a table in padded memory, and the plain statement of both tables.
class fixture {
 public:
  explicit fixture(const table_case& one, std::uint64_t seed)
      : one_(one),
        hq_(one.shape.kv_heads * one.g),
        row_(one.shape.centroids() + one.row_padding),
        query_row_(one.shape.head_dim + one.query_padding),
        query_(hq_ * query_row_, std::numeric_limits<float>::quiet_NaN()),
        entries_(hq_ * one.shape.subspaces * row_, -5.0f),
        bias_(hq_, -5.0f),
        book_(make_book(one.shape, seed)) {
    random_source random(seed + 1);
    for (std::size_t q = 0; q < hq_; ++q)
      for (std::size_t i = 0; i < one.shape.head_dim; ++i) query_[q * query_row_ + i] = random.gaussian();
  }
  pqkv::view<const float, 2> query() const { return {query_.data(), {hq_, one_.shape.head_dim}, {query_row_, 1}}; }
  pqkv::codebook_view<> book() const { return book_.view(); }
  pqkv::mutable_distance_table_view<> table() {
    const std::size_t m = one_.shape.subspaces;
    return {{entries_.data(), {hq_, m, one_.shape.centroids()}, {m * row_, row_, 1}}, pqkv::make_view(bias_.data(), hq_)};
  }
  std::vector<float>& query_memory() { return query_; }

  float plain_product(std::size_t q, std::size_t j, std::size_t x) const {
    float sum = 0;
    const std::size_t ds = one_.shape.sub_dim();
    for (std::size_t i = 0; i < ds; ++i) sum = std::fma(query()(q, j * ds + i), book().centroids(q / one_.g, j, i, x), sum);
    return sum;
  }
  float plain_bias(std::size_t q) const {
    float sum = 0;
    for (std::size_t i = 0; i < one_.shape.head_dim; ++i) sum = std::fma(query()(q, i), book().mean(q / one_.g, i), sum);
    return sum;
  }
  float plain_distance(std::size_t q, std::size_t j, std::size_t x) const {
    float sum = 0;
    const std::size_t ds = one_.shape.sub_dim();
    for (std::size_t i = 0; i < ds; ++i) {
      const float y = query()(q, j * ds + i) - book().mean(q / one_.g, j * ds + i);
      const float e = y - book().centroids(q / one_.g, j, i, x);
      sum = std::fma(e, e, sum);
    }
    return -sum;
  }
  /// Entries that differ from the plain statement, and padding that was written.
  template <class Plain>
  std::size_t wrong_entries(Plain plain) {
    std::size_t wrong = 0;
    for (std::size_t q = 0; q < hq_; ++q)
      for (std::size_t j = 0; j < one_.shape.subspaces; ++j)
        for (std::size_t x = 0; x < row_; ++x) {
          const float wanted = x < one_.shape.centroids() ? plain(q, j, x) : -5.0f;
          wrong += float_bits(entries_[(q * one_.shape.subspaces + j) * row_ + x]) != float_bits(wanted) ? 1 : 0;
        }
    return wrong;
  }
  std::size_t hq() const { return hq_; }

 private:
  table_case one_;
  std::size_t hq_, row_, query_row_;
  std::vector<float> query_, entries_, bias_;
  pqkv::codebook book_;
};

template <class Policy>
void check_both(const Policy& policy, fixture& f) {
  pqkv::inner_product_table(policy, f.query(), f.book(), f.table());
  CHECK(f.wrong_entries([&](std::size_t q, std::size_t j, std::size_t x) { return f.plain_product(q, j, x); }) == 0);
  for (std::size_t q = 0; q < f.hq(); ++q) CHECK(float_bits(f.table().bias(q)) == float_bits(f.plain_bias(q)));
  pqkv::squared_l2_table(policy, f.query(), f.book(), f.table());
  CHECK(f.wrong_entries([&](std::size_t q, std::size_t j, std::size_t x) { return f.plain_distance(q, j, x); }) == 0);
  for (std::size_t q = 0; q < f.hq(); ++q) CHECK(f.table().bias(q) == 0);
}
}  // namespace

TEST_CASE("distance_table: both tables equal plain chains to the bit") {
  std::uint64_t seed = 0;
  for (const std::size_t m : {1u, 2u, 4u, 8u, 16u})
    for (unsigned bits = 4; bits <= 8; ++bits)
      for (const std::size_t d : {16u, 80u, 256u}) {
        if (!looks_at(seed++)) continue;
        fixture f({{1 + seed % 3, d, m, bits}, 1 + seed % 4, seed % 2 * 5, seed % 3 * 3}, seed);
        for_each_isa([&](auto isa) { check_both(host<decltype(isa)>{}, f); });
      }
}

TEST_CASE("distance_table: under the inner-product metric a query's added coordinate is 0; distances are refused") {
  fixture f({{2, 32, 2, 5, pqkv::key_metric::inner_product}, 3, 1, 2}, 9);
  for_each_isa([&](auto isa) {
    pqkv::inner_product_table(host<decltype(isa)>{}, f.query(), f.book(), f.table());
    CHECK(f.wrong_entries([&](std::size_t q, std::size_t j, std::size_t x) { return f.plain_product(q, j, x); }) == 0);
  });
  CHECK_THROWS_WITH_AS(pqkv::squared_l2_table(host<>{}, f.query(), f.book(), f.table()),
                       "pqkv::squared_l2_table: codebook.squared_radius must be empty: the table is of key_metric::squared_l2",
                       pqkv::value_error);
}

TEST_CASE("distance_table: threads and foreign float modes change no bit") {
  fixture f({{3, 64, 4, 6}, 4, 3, 1}, 77);
  f.query_memory()[0] = 1e-39f;  // subnormal products
  check_both(host<pqkv::isa::best, threaded_runner>{}, f);
  for_each_isa([&](auto isa) {
    const host<decltype(isa)> cpu;
    bool intact = false;
    {
      const foreign_float_modes modes;
      pqkv::inner_product_table(cpu, f.query(), f.book(), f.table());
      intact = modes.intact();
    }
    CHECK(intact);
    CHECK(f.wrong_entries([&](std::size_t q, std::size_t j, std::size_t x) { return f.plain_product(q, j, x); }) == 0);
  });
}

TEST_CASE("distance_table: a slice of heads uses its own codebook") {
  fixture f({{3, 32, 2, 5}, 2, 0, 0}, 5);
  const auto whole = f.table();
  const pqkv::codebook_view<> book{f.book().centroids.slice(0, 1, 2), f.book().mean.slice(0, 1, 2)};
  const pqkv::mutable_distance_table_view<> part{whole.entries.slice(0, 2, 4), whole.bias.slice(0, 2, 4)};
  pqkv::inner_product_table(host<>{}, f.query().slice(0, 2, 4), book, part);
  for (std::size_t q = 2; q < 6; ++q)
    for (std::size_t x = 0; x < 32; ++x) REQUIRE(whole.entries(q, 1, x) == f.plain_product(q, 1, x));
  CHECK(whole.entries(1, 1, 31) == -5.0f);  // not of the slice
}

TEST_CASE("distance_table: a non-finite query makes a non-finite table of its head alone") {
  fixture f({{2, 32, 2, 4}, 2, 0, 0}, 6);
  f.query_memory()[32 + 7] = std::numeric_limits<float>::quiet_NaN();
  f.query_memory()[2 * 32 + 20] = std::numeric_limits<float>::infinity();
  pqkv::inner_product_table(host<>{}, f.query(), f.book(), f.table());
  const auto finite = [&](std::size_t q, std::size_t j) {
    bool all = true;
    for (std::size_t x = 0; x < 16; ++x) all = all && pqkv::is_finite(f.table().entries(q, j, x));
    return all;
  };
  CHECK(finite(0, 0));
  CHECK(finite(0, 1));
  CHECK_FALSE(finite(1, 0));
  CHECK_FALSE(finite(2, 1));
  CHECK(finite(3, 1));
}

TEST_CASE("distance_table: the owner holds the bytes it says") {
  const pqkv::pq_shape shape{2, 64, 4, 5};
  const pqkv::distance_table table(6, shape);
  CHECK(table.size_bytes() == pqkv::distance_table::required_bytes(6, shape));
  CHECK(table.size_bytes() == 6 * (4 * 32 + 1) * 4);
}

TEST_CASE("distance_table: extents that disagree are refused") {
  fixture f({{2, 32, 2, 4}, 2, 0, 0}, 6);
  const host<> cpu;
  const auto query = f.query();
  const auto build = [&](auto q, auto table) { return [=, &f] { pqkv::inner_product_table(cpu, q, f.book(), table); }; };
  using pqkv::shape_error;
  CHECK(unless_refused<shape_error>(build(query.slice(1, 0, 24), f.table()), "inner_product_table: query.extent(1)", 32, 24) == "");
  CHECK(unless_refused<shape_error>(build(query.slice(0, 0, 3), f.table()), "inner_product_table: query.extent(0)", 2, 3) == "");
  CHECK(unless_refused<shape_error>(build(query.slice(0, 0, 2), f.table()), "inner_product_table: table.entries.extent(0)", 2, 4) == "");
  auto fewer = f.table();
  fewer.entries = fewer.entries.slice(1, 0, 1);
  CHECK(unless_refused<shape_error>(build(query, fewer), "inner_product_table: table.entries.extent(1)", 2, 1) == "");
  fewer = f.table();
  fewer.entries = fewer.entries.slice(2, 0, 8);
  CHECK(unless_refused<shape_error>(build(query, fewer), "inner_product_table: table.entries.extent(2)", 16, 8) == "");
  fewer = f.table();
  fewer.bias = fewer.bias.slice(0, 0, 1);
  CHECK(unless_refused<shape_error>(build(query, fewer), "inner_product_table: table.bias.extent(0)", 4, 1) == "");
  auto strided = query;
  strided.strides[1] = 2;
  CHECK(unless_refused<shape_error>(build(strided, f.table()), "inner_product_table: query.stride(1)", 1, 2) == "");
  CHECK(unless_refused<shape_error>([&] { pqkv::squared_l2_table(cpu, query.slice(1, 0, 24), f.book(), f.table()); },
                                    "squared_l2_table: query.extent(1)", 32, 24) == "");
}
