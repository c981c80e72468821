// SPDX-License-Identifier: Apache-2.0
// k-means from given centroids: a training continued is the longer training to the bit, centroids from anywhere against the plain oracle
// for every instruction set, serial and threaded, both metrics; empty clusters, too few rows, and a codebook trained further.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/plain_quantize.hpp"
#include "cases/policies.hpp"
#include "cases/sanitized.hpp"

using pqkv::key_metric;
using pqkv::kmeans_outcome;
using pqkv::kmeans_params;
using pqkv::kmeans_start;
using pqkv::make_view;
using pqkv_cases::content;
namespace exec = pqkv::exec;

namespace {

constexpr auto too_few = static_cast<std::uint8_t>(kmeans_outcome::too_few_rows);

/// Centroids of every problem and what became of it.
struct clusters {
  std::vector<float> centroids;  // [h, m, ds, c], or [h, m, ds + 1, c]
  std::vector<float> squared_radius;
  std::vector<std::uint8_t> outcome;

  bool operator==(const clusters& other) const {
    return outcome == other.outcome && squared_radius == other.squared_radius && centroids.size() == other.centroids.size() &&
           pqkv_cases::same_bits(centroids.data(), other.centroids.data(), centroids.size());
  }
};

template <class T>
struct problem {
  pqkv::view<const T, 4> points;
  std::vector<float> offset;
  std::size_t c;
  key_metric metric;

  std::size_t count() const { return points.extent(0) * points.extent(1); }
  std::size_t ds() const { return points.extent(3); }
  bool on_sphere() const { return metric == key_metric::inner_product; }
  std::size_t width() const { return ds() + (on_sphere() ? 1 : 0); }

  template <class Policy>
  clusters run(const Policy& policy, const std::vector<float>& from, const kmeans_params& params) const {
    const std::size_t h = points.extent(0), m = points.extent(1);
    clusters found{from, std::vector<float>(on_sphere() ? h * m : 0), std::vector<std::uint8_t>(h * m, 99)};
    pqkv::kmeans(policy, points, make_view(offset.data(), h, m, ds()), make_view(found.centroids.data(), h, m, width(), c),
                 make_view(found.outcome.data(), h, m), params,
                 on_sphere() ? make_view(found.squared_radius.data(), h, m) : pqkv::view<float, 2>{});
    return found;
  }
  clusters plain(const std::vector<float>& from, const kmeans_params& params, std::size_t& filled) const {
    clusters expected{from, {}, {}};
    for (std::size_t p = 0; p < count(); ++p) {
      const std::size_t first = p * width() * c;
      const auto one = pqkv_cases::plain_kmeans(points[p / points.extent(1)][p % points.extent(1)], &offset[p * ds()], c, params, p, metric,
                                                &from[first]);
      expected.outcome.push_back(one.trained ? 0 : too_few);
      if (on_sphere()) expected.squared_radius.push_back(one.squared_radius);
      if (one.trained) std::copy(one.centroids.begin(), one.centroids.end(), &expected.centroids[first]);
      filled += one.filled;
    }
    return expected;
  }
};

template <class T>
problem<T> random_problem(const pqkv_cases::rows<T>& keys, std::size_t m, std::size_t c, key_metric metric,
                          pqkv_cases::random_source& random) {
  problem<T> made{pqkv::split_subspaces(keys.view(), m), {}, c, metric};
  for (std::size_t i = 0; i < made.count() * made.ds(); ++i) made.offset.push_back(3 * random.gaussian());
  return made;
}

template <class T>
void check_continued(std::uint64_t seed, std::size_t& going_on) {
  pqkv_cases::random_source random(seed);
  const std::size_t m = 1 + random.below(2), ds = std::size_t{1} << random.below(7), c = std::size_t{16} << random.below(3);
  auto keys = pqkv_cases::make_rows<T>(pqkv_cases::every_content[random.below(4)], 2, c + random.below(12 * c), m * ds, random.bits(),
                                       pqkv_cases::every_layout[random.below(5)]);
  if (random.below(3) == 0) pqkv_cases::plant_nonfinite(keys.view(), 3, random);
  const auto one =
      random_problem<T>(std::as_const(keys), m, c, random.below(2) ? key_metric::inner_product : key_metric::squared_l2, random);
  const std::size_t first = 1 + random.below(4), then = 1 + random.below(6);
  const kmeans_params begin{first, seed, random.below(2)}, whole{first + then, seed, begin.rows_per_centroid};
  const kmeans_params more{then, begin.rows_per_centroid == 0 ? seed + 1 : seed, begin.rows_per_centroid, kmeans_start::given};
  const std::vector<float> nothing(one.count() * one.width() * c, 7.5f);
  const clusters half_way = one.run(exec::host<>{}, nothing, begin), expected = one.run(exec::host<>{}, nothing, whole);
  CAPTURE(seed);
  // Too few distinct rows to draw from may still be enough to go on from something: not a continuation.
  if (std::count(half_way.outcome.begin(), half_way.outcome.end(), too_few) != 0) return;
  going_on += !(half_way == expected);
  pqkv_cases::for_each_isa([&](auto isa) {
    CHECK(one.run(exec::host<decltype(isa)>{}, half_way.centroids, more) == expected);
    CHECK(one.run(exec::host<decltype(isa), pqkv_cases::threaded_runner>{}, half_way.centroids, more) == expected);
  });
}

template <class T>
void check_from_anywhere(std::uint64_t seed, std::size_t& filled, std::size_t& refused) {
  pqkv_cases::random_source random(seed);
  const std::size_t m = 1 + random.below(2), ds = 1 + random.below(40), c = std::size_t{16} << random.below(3);
  auto keys = pqkv_cases::make_rows<T>(pqkv_cases::every_content[random.below(4)], 2, random.below(4) == 0 ? c : c + random.below(3 * c),
                                       m * ds, random.bits(), pqkv_cases::every_layout[random.below(5)]);
  if (random.below(3) == 0) pqkv_cases::plant_nonfinite(keys.view(), 3, random);
  const auto one =
      random_problem<T>(std::as_const(keys), m, c, random.below(2) ? key_metric::inner_product : key_metric::squared_l2, random);
  // From all in one place to so far away that every distance overflows; some beside the rows, the rest far.
  const float sizes[] = {0, 1, 30, 0x1p30f, 0x1p63f, 0x1p120f}, size = sizes[random.below(6)], other = sizes[random.below(6)];
  std::vector<float> from(one.count() * one.width() * c);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = (i % c < c / 2 ? size : other) * random.gaussian();
  const kmeans_params params{1 + random.below(5), random.bits(), random.below(3) == 0 ? std::size_t{1} : 256, kmeans_start::given};
  const clusters expected = one.plain(from, params, filled);
  refused += static_cast<std::size_t>(std::count(expected.outcome.begin(), expected.outcome.end(), too_few));
  CAPTURE(seed);
  pqkv_cases::for_each_isa([&](auto isa) {
    CHECK(one.run(exec::host<decltype(isa)>{}, from, params) == expected);
    CHECK(one.run(exec::host<decltype(isa), pqkv_cases::threaded_runner>{}, from, params) == expected);
  });
}

}  // namespace

TEST_CASE("k-means: L iterations, then L2 more from their result, give the bits of L + L2 iterations") {
  std::size_t going_on = 0;
  for (std::uint64_t seed = 0; seed < pqkv_cases::problems(40); ++seed) {
    check_continued<float>(seed, going_on);
    check_continued<pqkv::half>(1000 + seed, going_on);
    check_continued<pqkv::bfloat16>(2000 + seed, going_on);
  }
  CHECK(going_on > pqkv_cases::problems(20));  // in the others nothing was left to train
}

TEST_CASE("from given centroids anywhere k-means equals the plain oracle to the bit") {
  std::size_t filled = 0, refused = 0;
  for (std::uint64_t seed = 0; seed < pqkv_cases::problems(60); ++seed) {
    check_from_anywhere<float>(seed, filled, refused);
    check_from_anywhere<pqkv::half>(1000 + seed, filled, refused);
    check_from_anywhere<pqkv::bfloat16>(2000 + seed, filled, refused);
  }
  CHECK(filled > pqkv_cases::problems(1000));
  CHECK(refused > pqkv_cases::problems(10));
}

TEST_CASE("given centroids that no row joins become empty clusters, which take the farthest rows one by one") {
  std::vector<float> x(16);
  for (std::size_t t = 0; t < 16; ++t) x[t] = static_cast<float>(t + 1);
  const problem<float> line{make_view(static_cast<const float*>(x.data()), 1, 1, 16, 1), {0.0f}, 16, key_metric::squared_l2};
  std::vector<float> from(16, 1e6f);
  from[3] = 0;  // the one that all rows join: the others take rows from the far end, clusters ascending
  std::vector<float> expected{16, 15, 14, 1, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2};
  pqkv_cases::for_each_isa([&](auto isa) {
    const clusters found = line.run(exec::host<decltype(isa)>{}, from, {1, 0, 256, kmeans_start::given});
    CHECK(found.outcome == std::vector<std::uint8_t>{0});
    CHECK(found.centroids == expected);
    CHECK(line.run(exec::host<decltype(isa)>{}, std::vector<float>(16), {1, 0, 256, kmeans_start::given}).outcome[0] == 0);
  });
}

TEST_CASE("fewer than c usable rows leave given centroids as they were; repeated rows are enough") {
  auto keys = pqkv_cases::make_rows(content::gaussian, 1, 20, 4, 1);
  std::vector<float> from(4 * 16);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i % 7);
  const kmeans_params params{5, 0, 256, kmeans_start::given};
  const auto of = [&](std::size_t n) {
    return problem<float>{pqkv::split_subspaces(std::as_const(keys).view().slice(1, 0, n), 1), std::vector<float>(4), 16,
                          key_metric::squared_l2};
  };
  for (const std::size_t n : {0u, 1u, 15u}) CHECK(of(n).run(exec::host<>{}, from, params) == clusters{from, {}, {too_few}});
  CHECK(of(16).run(exec::host<>{}, from, params).outcome[0] == 0);
  for (std::size_t t = 0; t < 5; ++t) keys(0, 4 * t, t % 4) = pqkv_cases::nonfinite(t);
  CHECK(of(20).run(exec::host<>{}, from, params) == clusters{from, {}, {too_few}});
  for (std::size_t t = 0; t < 20; ++t)
    for (std::size_t i = 0; i < 4; ++i) keys(0, t, i) = static_cast<float>(t % 3);
  std::size_t filled = 0;
  const clusters found = of(20).run(exec::host<>{}, from, params);
  CHECK(found == of(20).plain(from, params, filled));
  CHECK(found.outcome[0] == 0);
}

TEST_CASE("a codebook trained further is the codebook trained for longer, and says where it began") {
  for (const key_metric metric : {key_metric::squared_l2, key_metric::inner_product}) {
    const auto keys = pqkv_cases::make_rows<pqkv::half>(content::offset, 2, 700, 24, 5);
    pqkv::codebook book({2, 24, 2, 5, metric}), longer({2, 24, 2, 5, metric});
    CHECK(pqkv::train(exec::host<>{}, keys.view(), longer, {7, 3, 0}) == kmeans_outcome::trained);
    CHECK(pqkv::train(exec::host<>{}, keys.view(), book, {2, 3, 0}) == kmeans_outcome::trained);
    const auto same = [&] {
      const auto a = book.view(), b = longer.view();
      return pqkv_cases::same_bits(a.centroids.data, b.centroids.data, a.centroids.size()) &&
             pqkv_cases::same_bits(a.mean.data, b.mean.data, a.mean.size());
    };
    CHECK_FALSE(same());
    CHECK(pqkv::train(exec::host<>{}, keys.view(), book, {5, 3, 0, kmeans_start::given}) == kmeans_outcome::trained);
    CHECK(same());
    CHECK(book.trained_with.start == kmeans_start::given);
  }
}
