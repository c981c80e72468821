// SPDX-License-Identifier: Apache-2.0
// k-means against the plain oracle to the bit: any ragged size, stride and storage type, every instruction set, serial and
// threaded; the rule for empty clusters, too few distinct rows, non-finite rows, samples, and the early stop that changes nothing.
#include <pqkv/quantize/kmeans.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/plain_quantize.hpp"
#include "cases/policies.hpp"
#include "cases/sanitized.hpp"

using pqkv::bfloat16;
using pqkv::half;
using pqkv::kmeans_outcome;
using pqkv::kmeans_params;
using pqkv::make_view;
using pqkv_cases::content;
using pqkv_cases::layout;
namespace exec = pqkv::exec;

namespace {

constexpr float untouched = 7.5f;

struct clusters {
  std::vector<float> centroids;       // [h, m, ds, c]
  std::vector<std::uint8_t> outcome;  // [h, m]
};

template <class Policy, class T>
clusters run(const Policy& policy, pqkv::view<T, 4> points, const std::vector<float>& offset, std::size_t c, const kmeans_params& params) {
  const std::size_t h = points.extent(0), m = points.extent(1), ds = points.extent(3);
  clusters found{std::vector<float>(h * m * ds * c, untouched), std::vector<std::uint8_t>(h * m, 99)};
  pqkv::kmeans(policy, points, make_view(offset.data(), h, m, ds), make_view(found.centroids.data(), h, m, ds, c),
               make_view(found.outcome.data(), h, m), params);
  return found;
}

/// What the oracle says, in the same form; `seen` gathers what the cases exercised.
struct exercised {
  std::size_t trained = 0, untrained = 0, filled = 0, settled = 0;
};
template <class T>
clusters plain(pqkv::view<T, 4> points, const std::vector<float>& offset, std::size_t c, const kmeans_params& params, exercised& seen) {
  const std::size_t h = points.extent(0), m = points.extent(1), ds = points.extent(3);
  clusters expected{std::vector<float>(h * m * ds * c, untouched), std::vector<std::uint8_t>(h * m)};
  for (std::size_t p = 0; p < h * m; ++p) {
    const auto one = pqkv_cases::plain_kmeans(points[p / m][p % m], &offset[p * ds], c, params, p);
    expected.outcome[p] = static_cast<std::uint8_t>(one.trained ? kmeans_outcome::trained : kmeans_outcome::too_few_rows);
    if (one.trained) std::copy(one.centroids.begin(), one.centroids.end(), &expected.centroids[p * ds * c]);
    ++(one.trained ? seen.trained : seen.untrained);
    seen.filled += one.filled;
    seen.settled += one.trained && one.moved.size() > 1 && one.moved.back() == 0;
  }
  return expected;
}

bool equal(const clusters& a, const clusters& b) {
  return a.outcome == b.outcome && pqkv_cases::same_bits(a.centroids.data(), b.centroids.data(), a.centroids.size());
}

std::vector<float> random_offset(std::size_t size, std::uint64_t seed) {
  pqkv_cases::random_source random(seed);
  std::vector<float> offset(size);
  for (float& x : offset) x = 3 * random.gaussian();
  return offset;
}

/// One random problem of the given storage type.
template <class T>
void check_random_problem(std::uint64_t seed, exercised& seen) {
  pqkv_cases::random_source random(seed);
  constexpr std::size_t every_ds[] = {1, 2, 4, 8, 13, 32, 64, 128};
  const std::size_t h = 1 + random.below(3), m = 1 + random.below(3), ds = every_ds[random.below(8)];
  const std::size_t c = std::size_t{16} << random.below(ds > 32 ? 3 : 5);
  const std::size_t n = random.below(8) == 0 ? c : c + random.below(2 * c);
  const std::size_t most = 300000 / (n * c * ds) + 1;
  const kmeans_params params{std::min<std::size_t>(most, 1 + random.below(12)), random.bits(), random.below(3) == 0 ? std::size_t{1} : 256};
  auto rows = pqkv_cases::make_rows<T>(pqkv_cases::every_content[random.below(4)], h, n, m * ds, random.bits(),
                                       pqkv_cases::every_layout[random.below(5)]);
  if (random.below(4) == 0) pqkv_cases::plant_nonfinite(rows.view(), 1 + random.below(n / 4), random);
  const auto offset = random.below(2) ? random_offset(h * m * ds, seed) : std::vector<float>(h * m * ds);
  const auto points = pqkv::split_subspaces(std::as_const(rows).view(), m);
  const clusters expected = plain(points, offset, c, params, seen);
  CAPTURE(seed);
  pqkv_cases::for_each_isa([&](auto isa) {
    CHECK(equal(run(exec::host<decltype(isa)>{}, points, offset, c, params), expected));
    CHECK(equal(run(exec::host<decltype(isa), pqkv_cases::threaded_runner>{}, points, offset, c, params), expected));
  });
}

}  // namespace

TEST_CASE("k-means equals the plain oracle to the bit on random problems") {
  exercised seen;
  for (std::uint64_t seed = 0; seed < pqkv_cases::problems(80); ++seed) {
    check_random_problem<float>(seed, seen);
    check_random_problem<half>(1000 + seed, seen);
    check_random_problem<bfloat16>(2000 + seed, seen);
  }
  // The comparison says something only if the problems were of every kind.
  CHECK(seen.trained > pqkv_cases::problems(400));
  CHECK(seen.untrained >= pqkv_cases::problems(40));
  CHECK(seen.settled > pqkv_cases::problems(40));
}

TEST_CASE("stopping early changes no bit, however long it would have gone on") {
  exercised seen;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const auto rows = pqkv_cases::make_rows(seed % 2 ? content::gaussian : content::clustered, 2, 40 + 7 * seed, 4, seed);
    const auto points = pqkv::split_subspaces(rows.view(), 2);
    const std::vector<float> offset(2 * 4);
    for (const std::size_t iterations : {1u, 2u, 3u, 10u, 60u}) {
      const kmeans_params params{iterations, seed, 256};
      CHECK(equal(run(exec::host<>{}, points, offset, 16, params), plain(points, offset, 16, params, seen)));
    }
  }
  CHECK(seen.settled > 40);  // at 60 iterations nearly all have stopped moving
}

TEST_CASE("a longer training is another result, until it settles") {
  const auto rows = pqkv_cases::make_rows(content::gaussian, 1, 2000, 8, 3);
  const auto points = pqkv::split_subspaces(rows.view(), 1);
  const std::vector<float> offset(8);
  const auto one = run(exec::host<>{}, points, offset, 32, {1, 0, 0}), ten = run(exec::host<>{}, points, offset, 32, {10, 0, 0});
  CHECK_FALSE(equal(one, ten));
  CHECK_FALSE(equal(ten, run(exec::host<>{}, points, offset, 32, {10, 1, 0})));  // another seed
  const auto error = [&](const clusters& found) {
    double sum = 0;
    for (std::size_t t = 0; t < 2000; ++t)
      sum += static_cast<double>(pqkv_cases::plain_nearest(&points(0, 0, t, 0), found.centroids.data(), 32, 8).second);
    return sum / 2000;
  };
  CHECK(error(ten) < 0.95 * error(one));
  CHECK(error(ten) < 5.0);  // 8 dimensions of variance 1: no centroids at all would leave 8
}

TEST_CASE("an empty cluster takes the farthest row of the fullest one, ties to the lower index") {
  // Three rows closer than the square root of the smallest float: all distances between them are 0, so that all three join the
  // lowest of their centroids and two clusters are empty. In ascending order these take rows 0 and 1; row 2 stays.
  std::vector<float> x(16);
  for (std::size_t t = 0; t < 16; ++t) x[t] = static_cast<float>(t < 3 ? t + 1 : (t - 2) << 16) * 0x1p-90f;
  const auto points = make_view(static_cast<const float*>(x.data()), 1, 1, 16, 1);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    pqkv_cases::for_each_isa([&](auto isa) {
      const clusters found = run(exec::host<decltype(isa)>{}, points, {0.0f}, 16, {1, seed, 256});
      std::vector<float> close, far;
      for (const float y : found.centroids) (y < 0x1p-80f ? close : far).push_back(y);
      CHECK(close == std::vector<float>{3 * 0x1p-90f, 1 * 0x1p-90f, 2 * 0x1p-90f});
      std::sort(far.begin(), far.end());
      CHECK(far == std::vector<float>(x.begin() + 3, x.end()));
    });
  }
}

TEST_CASE("empty clusters among heavy-tailed rows are filled as the oracle fills them, several at once too") {
  exercised seen;
  for (std::uint64_t seed = 0; seed < pqkv_cases::problems(80); ++seed) {
    pqkv_cases::random_source random(seed);
    std::vector<float> x(128);
    for (float& one : x) {
      const float g = random.gaussian();
      one = g * g * g * g * g;  // many rows near 0, few far away: clusters lose their only row as their neighbours move
    }
    const auto points = make_view(static_cast<const float*>(x.data()), 1, 1, 128, 1);
    const kmeans_params params{10, seed, 256};
    const clusters expected = plain(points, {0.0f}, 64, params, seen);
    pqkv_cases::for_each_isa([&](auto isa) { CHECK(equal(run(exec::host<decltype(isa)>{}, points, {0.0f}, 64, params), expected)); });
  }
  CHECK(seen.filled > pqkv_cases::problems(40));
}

TEST_CASE("n = c distinct rows become the centroids themselves") {
  for (const std::size_t c : {16u, 32u, 64u, 128u, 256u}) {
    std::vector<float> x(2 * c);
    for (std::size_t t = 0; t < c; ++t) {
      x[2 * t] = static_cast<float>(t % 16);
      x[2 * t + 1] = static_cast<float>(t / 16);
    }
    const clusters found = run(exec::host<>{}, make_view(static_cast<const float*>(x.data()), 1, 1, c, 2), {0.0f, 0.0f}, c, {});
    CHECK(found.outcome[0] == static_cast<std::uint8_t>(kmeans_outcome::trained));
    std::set<std::pair<float, float>> rows, centroids;
    for (std::size_t t = 0; t < c; ++t) {
      rows.emplace(x[2 * t], x[2 * t + 1]);
      centroids.emplace(found.centroids[t], found.centroids[c + t]);
    }
    CHECK(centroids == rows);
  }
}

TEST_CASE("fewer than c finite rows: centroids untouched, outcome says so") {
  const std::vector<float> offset(4);
  const auto check = [&](const pqkv_cases::rows<float>& rows) {
    pqkv_cases::for_each_isa([&](auto isa) {
      const clusters found = run(exec::host<decltype(isa)>{}, pqkv::split_subspaces(rows.view(), 1), offset, 16, {});
      CHECK(found.outcome[0] == static_cast<std::uint8_t>(kmeans_outcome::too_few_rows));
      CHECK(std::count(found.centroids.begin(), found.centroids.end(), untouched) == 4 * 16);
    });
  };
  check(pqkv_cases::make_rows(content::gaussian, 1, 0, 4, 1));
  check(pqkv_cases::make_rows(content::gaussian, 1, 15, 4, 1));
  auto broken = pqkv_cases::make_rows(content::gaussian, 1, 20, 4, 1);
  for (std::size_t t = 0; t < 5; ++t) broken(0, 4 * t, t % 4) = pqkv_cases::nonfinite(t);
  check(broken);
}

TEST_CASE("fewer than c distinct rows are all centroids, repeated: every row is coded as itself") {
  const std::vector<float> offset(4);
  const auto check = [&](const pqkv_cases::rows<float>& rows, std::size_t distinct) {
    const auto plain = pqkv_cases::plain_kmeans(pqkv::split_subspaces(rows.view(), 1)[0][0], offset.data(), 16, {}, 0);
    REQUIRE(plain.trained);
    pqkv_cases::for_each_isa([&](auto isa) {
      const clusters found = run(exec::host<decltype(isa)>{}, pqkv::split_subspaces(rows.view(), 1), offset, 16, {});
      CHECK(found.outcome[0] == static_cast<std::uint8_t>(kmeans_outcome::trained));
      CHECK(found.centroids == plain.centroids);
    });
    std::set<std::size_t> nearest;
    for (std::size_t t = 0; t < rows.view().extent(1); ++t) {
      const auto [x, distance] = pqkv_cases::plain_nearest(&rows.view()(0, t, 0), plain.centroids.data(), 16, 4);
      CHECK(distance < 1e-12f);  // sums are in fixed point
      nearest.insert(x);
    }
    CHECK(nearest.size() == distinct);
  };
  auto repeated = pqkv_cases::make_rows(content::gaussian, 1, 300, 4, 1);
  for (std::size_t t = 15; t < 300; ++t)
    for (std::size_t i = 0; i < 4; ++i) repeated(0, t, i) = repeated(0, t % 15, i);
  check(repeated, 15);
  auto zeros = pqkv_cases::make_rows(content::gaussian, 1, 16, 4, 1);
  for (std::size_t t = 14; t < 16; ++t)
    for (std::size_t i = 0; i < 4; ++i) zeros(0, t, i) = t == 14 ? 0.0f : -0.0f;  // -0 is not another value
  check(zeros, 15);
  auto dead = pqkv_cases::make_rows(content::gaussian, 1, 40, 4, 1);
  for (std::size_t t = 0; t < 40; ++t)
    for (std::size_t i = 0; i < 4; ++i) dead(0, t, i) = 0;
  check(dead, 1);
}

TEST_CASE("problems fail one by one: the others are trained") {
  auto rows = pqkv_cases::make_rows(content::gaussian, 2, 50, 8, 4);
  for (std::size_t t = 10; t < 50; ++t) rows(0, t, 4 + t % 4) = pqkv_cases::nonfinite(t);
  const clusters found = run(exec::host<>{}, pqkv::split_subspaces(std::as_const(rows).view(), 2), std::vector<float>(16), 16, {});
  CHECK(found.outcome == std::vector<std::uint8_t>{0, 1, 0, 0});
  CHECK(std::count(found.centroids.begin(), found.centroids.end(), untouched) == 4 * 16);
}

TEST_CASE("rows with a non-finite element are as if they were not there") {
  pqkv_cases::random_source random(5);
  auto rows = pqkv_cases::make_rows(content::gaussian, 1, 120, 8, 5);
  const auto planted = pqkv_cases::plant_nonfinite(rows.view(), 30, random);
  std::set<std::size_t> bad;
  for (const auto& [head, token] : planted) bad.insert(token);
  pqkv_cases::rows<float> good(1, 120 - bad.size(), 8);
  std::size_t kept = 0;
  for (std::size_t t = 0; t < 120; ++t) {
    if (bad.contains(t)) continue;
    for (std::size_t i = 0; i < 8; ++i) good(0, kept, i) = rows(0, t, i);
    ++kept;
  }
  const std::vector<float> offset(8);
  CHECK(equal(run(exec::host<>{}, pqkv::split_subspaces(rows.view(), 1), offset, 16, {}),
              run(exec::host<>{}, pqkv::split_subspaces(good.view(), 1), offset, 16, {})));
  // Finite, but not once the offset is subtracted.
  rows = good;
  const float most = std::numeric_limits<float>::max();
  std::vector<float> far(8);
  far[3] = most;
  rows(0, 7, 3) = -most;
  exercised seen;
  const auto points = pqkv::split_subspaces(std::as_const(rows).view(), 1);
  CHECK(equal(run(exec::host<>{}, points, far, 16, {}), plain(points, far, 16, {}, seen)));
}

TEST_CASE("above rows_per_centroid * c rows a stratified sample is trained on") {
  exercised seen;
  const auto rows = pqkv_cases::make_rows(content::gaussian, 2, 256 * 16 + 777, 4, 6);
  const auto points = pqkv::split_subspaces(rows.view(), 2);
  const std::vector<float> offset(8);
  const clusters sampled = run(exec::host<>{}, points, offset, 16, {3, 9, 256});
  CHECK(equal(sampled, plain(points, offset, 16, {3, 9, 256}, seen)));
  const clusters all = run(exec::host<>{}, points, offset, 16, {3, 9, 0});
  CHECK(equal(all, plain(points, offset, 16, {3, 9, 0}, seen)));
  CHECK_FALSE(equal(sampled, all));
  const auto fits = pqkv::split_subspaces(rows.view().slice(1, 0, 256 * 16), 2);
  CHECK(equal(run(exec::host<>{}, fits, offset, 16, {3, 9, 256}), run(exec::host<>{}, fits, offset, 16, {3, 9, 0})));
  static_assert(kmeans_params{}.rows_per_centroid == 256 && kmeans_params{}.iterations == 10 && kmeans_params{}.seed == 0);
}

TEST_CASE("numbers near the ends of float's range do not overflow the sums") {
  exercised seen;
  for (const float size : {0x1p122f, 0x1p-40f, 0x1p-70f}) {
    auto rows = pqkv_cases::make_rows(content::gaussian, 1, 100, 4, 7);
    for (std::size_t t = 0; t < 100; ++t)
      for (std::size_t i = 0; i < 4; ++i) rows(0, t, i) *= size;
    const auto points = pqkv::split_subspaces(std::as_const(rows).view(), 1);
    const std::vector<float> offset(4);
    const clusters expected = plain(points, offset, 16, {}, seen);
    pqkv_cases::for_each_isa([&](auto isa) { CHECK(equal(run(exec::host<decltype(isa)>{}, points, offset, 16, {}), expected)); });
    CHECK(std::all_of(expected.centroids.begin(), expected.centroids.end(), [](float x) { return std::isfinite(x); }));
  }
}

TEST_CASE("offset and centroids may have strides between heads and subspaces; nothing between them is written") {
  const auto rows = pqkv_cases::make_rows(content::gaussian, 2, 60, 8, 8);
  const auto points = pqkv::split_subspaces(rows.view(), 2);
  const std::vector<float> packed = random_offset(16, 1);
  std::vector<float> spread(2 * 20), centroids(2 * 300, untouched);
  std::vector<std::uint8_t> outcome(2 * 5, 99);
  for (std::size_t i = 0; i < 16; ++i) spread[i / 8 * 20 + i / 4 % 2 * 6 + i % 4] = packed[i];
  pqkv::kmeans(exec::host<>{}, points, pqkv::view<const float, 3>{spread.data(), {2, 2, 4}, {20, 6, 1}},
               pqkv::view<float, 4>{centroids.data(), {2, 2, 4, 16}, {300, 100, 16, 1}},
               pqkv::view<std::uint8_t, 2>{outcome.data(), {2, 2}, {5, 2}});
  const clusters expected = run(exec::host<>{}, points, packed, 16, {});
  for (std::size_t p = 0; p < 4; ++p) CHECK(pqkv_cases::same_bits(&centroids[p / 2 * 300 + p % 2 * 100], &expected.centroids[p * 64], 64));
  CHECK(std::count(centroids.begin(), centroids.end(), untouched) == 600 - 4 * 64);
  CHECK(std::count(outcome.begin(), outcome.end(), std::uint8_t{99}) == 10 - 4);
}

TEST_CASE("bad arguments: each named with its number, nothing written") {
  const std::vector<float> x(2 * 2 * 40 * 300), offset(2 * 3 * 300);
  std::vector<float> centroids(2 * 3 * 300 * 20, untouched);
  std::vector<std::uint8_t> outcome(2 * 3, 99);
  struct arguments {
    pqkv::view<const float, 4> points;
    pqkv::view<const float, 3> offset;
    pqkv::view<float, 4> centroids;
    pqkv::view<std::uint8_t, 2> outcome;
    kmeans_params params;
  };
  const arguments good{make_view(x.data(), 2, 2, 40, 4),
                       make_view(offset.data(), 2, 2, 4),
                       make_view(centroids.data(), 2, 2, 4, 16),
                       make_view(outcome.data(), 2, 2),
                       {}};
  CHECK(pqkv::can_kmeans(good.points, good.offset, good.centroids, good.outcome, good.params).ok());
  const auto refused = [&](auto&& change, auto kind, const char* text) {
    arguments a = good;
    change(a);
    const pqkv::status checked = pqkv::can_kmeans(a.points, a.offset, a.centroids, a.outcome, a.params);
    CHECK(checked.message() == text);
    CHECK_THROWS_WITH_AS(pqkv::kmeans(exec::host<>{}, a.points, a.offset, a.centroids, a.outcome, a.params), text, decltype(kind));
  };
  const pqkv::shape_error shape("");
  const pqkv::value_error value("");
  refused([](arguments& a) { a.offset.extents[0] = 1; }, shape, "pqkv::kmeans: offset.extent(0) must be 2 (h, from points), got 1");
  refused([](arguments& a) { a.offset.extents[1] = 3; }, shape, "pqkv::kmeans: offset.extent(1) must be 2 (m, from points), got 3");
  refused([](arguments& a) { a.offset.extents[2] = 5; }, shape, "pqkv::kmeans: offset.extent(2) must be 4 (ds, from points), got 5");
  refused([](arguments& a) { a.offset.strides[2] = 2; }, shape, "pqkv::kmeans: offset.stride(2) must be 1 (last axis contiguous), got 2");
  refused([](arguments& a) { a.centroids.extents[0] = 3; }, shape, "pqkv::kmeans: centroids.extent(0) must be 2 (h, from points), got 3");
  refused([](arguments& a) { a.centroids.extents[1] = 1; }, shape, "pqkv::kmeans: centroids.extent(1) must be 2 (m, from points), got 1");
  refused([](arguments& a) { a.centroids.extents[2] = 8; }, shape,
          "pqkv::kmeans: centroids.extent(2) must be 4 (ds, from points), got 8");
  refused([](arguments& a) { a.centroids.extents[3] = 20; }, value,
          "pqkv::kmeans: centroids.extent(3) must be 16, 32, 64, 128 or 256, got 20");
  refused([](arguments& a) { a.centroids.extents[3] = 8; }, value,
          "pqkv::kmeans: centroids.extent(3) must be 16, 32, 64, 128 or 256, got 8");
  refused([](arguments& a) { a.centroids.extents[3] = 512; }, value,
          "pqkv::kmeans: centroids.extent(3) must be 16, 32, 64, 128 or 256, got 512");
  refused([](arguments& a) { a.centroids.strides[3] = 2; }, shape,
          "pqkv::kmeans: centroids.stride(3) must be 1 (last axis contiguous), got 2");
  refused([](arguments& a) { a.centroids.strides[2] = 17; }, shape,
          "pqkv::kmeans: centroids.stride(2) must be 16 (ds and c dense), got 17");
  refused([](arguments& a) { a.outcome.extents[0] = 1; }, shape, "pqkv::kmeans: outcome.extent(0) must be 2 (h, from points), got 1");
  refused([](arguments& a) { a.outcome.extents[1] = 3; }, shape, "pqkv::kmeans: outcome.extent(1) must be 2 (m, from points), got 3");
  refused([](arguments& a) { a.params.iterations = 0; }, value, "pqkv::kmeans: params.iterations must be at least 1 (L), got 0");
  refused([](arguments& a) { a.points.extents[3] = a.offset.extents[2] = a.centroids.extents[2] = 0; }, value,
          "pqkv::kmeans: points.extent(3) must be at least 1 (ds), got 0");
  refused([](arguments& a) { a.points.extents[3] = a.offset.extents[2] = a.centroids.extents[2] = 257; }, value,
          "pqkv::kmeans: points.extent(3) must be at most 256 (ds), got 257");
  refused([](arguments& a) { a.points.extents[2] = std::size_t{1} << 32; }, value,
          "pqkv::kmeans: points.extent(2) must be at most 4294967295 (n), got 4294967296");
  CHECK(std::count(centroids.begin(), centroids.end(), untouched) == static_cast<std::ptrdiff_t>(centroids.size()));
  CHECK(std::count(outcome.begin(), outcome.end(), std::uint8_t{99}) == 6);
}
