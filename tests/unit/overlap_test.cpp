// SPDX-License-Identifier: Apache-2.0
// The overlap rule: the fit recovers the coefficients it was fed, the clip keeps its bounds, too few timings are refused.
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>
#include <string>
#include <vector>

using pqkv::overlap_calibration;
using pqkv::overlap_model;

namespace {
overlap_calibration calibrated(const overlap_model& truth) {
  overlap_calibration calibration;
  for (const std::size_t rows : {1000u, 4000u, 16000u})
    for (const std::size_t iterations : {2u, 5u})
      calibration.add_clustering(rows, iterations, truth.a1 + truth.b1 * static_cast<double>(rows * iterations));
  for (const std::size_t n : {512u, 1024u, 4096u, 16384u}) {
    const double tokens = static_cast<double>(n);
    calibration.add_layer(n, truth.a2 + truth.b2 * tokens + truth.c2 * tokens * tokens);
  }
  return calibration;
}
}  // namespace

TEST_CASE("a fit recovers exact timings") {
  const overlap_model truth{.a1 = 2e-4, .b1 = 3e-8, .a2 = 1e-3, .b2 = 2e-6, .c2 = 5e-10};
  const overlap_model found = calibrated(truth).fit();
  CHECK(found.a1 == doctest::Approx(truth.a1).epsilon(1e-6));
  CHECK(found.b1 == doctest::Approx(truth.b1).epsilon(1e-6));
  CHECK(found.a2 == doctest::Approx(truth.a2).epsilon(1e-6));
  CHECK(found.b2 == doctest::Approx(truth.b2).epsilon(1e-6));
  CHECK(found.c2 == doctest::Approx(truth.c2).epsilon(1e-6));
}

TEST_CASE("iterations fill the layer's time and keep their bounds") {
  const overlap_model model{.a1 = 0.5, .b1 = 1e-3, .a2 = 1, .b2 = 0.01, .c2 = 0};
  // n = 950: layer 10.5 s, clustering 0.5 + 1e-3 * rows * L
  CHECK(model.iterations(1000, 950) == 10);
  CHECK(model.iterations(600, 950) == 16);
  CHECK(model.iterations(100, 950) == 25);                                 // 100, clipped
  CHECK(model.iterations(100, 950, overlap_model::most_in_paper) == 100);  // the paper's cap is higher
  CHECK(model.iterations(10, 950, overlap_model::most_in_paper) == 300);
  CHECK(model.iterations(1000000, 950) == 3);
  CHECK(overlap_model{.a1 = 100, .b1 = 1}.iterations(1000, 10) == 3);  // no time at all
  CHECK(overlap_model{.b1 = 0, .a2 = 1}.iterations(0, 10) == overlap_model::most);
}

TEST_CASE("timings that determine nothing are refused by name") {
  overlap_calibration one;
  one.add_clustering(1000, 5, 1);
  one.add_clustering(1000, 5, 1.1);  // the same point again
  for (const std::size_t n : {1u, 2u, 3u}) one.add_layer(n, 1);
  CHECK_THROWS_WITH_AS(one.fit(), doctest::Contains("add_clustering must be at least 2"), pqkv::value_error);

  overlap_calibration two;
  two.add_clustering(1000, 5, 1);
  two.add_clustering(2000, 5, 2);
  two.add_layer(100, 1);
  two.add_layer(200, 1);
  CHECK_THROWS_WITH_AS(two.fit(), doctest::Contains("add_layer must be at least 3"), pqkv::value_error);

  overlap_calibration falling;
  falling.add_clustering(1000, 5, 2);
  falling.add_clustering(2000, 5, 1);
  for (const std::size_t n : {1u, 2u, 3u}) falling.add_layer(n, 1);
  CHECK_THROWS_WITH_AS(falling.fit(), doctest::Contains("seconds per row"), pqkv::value_error);
}

TEST_CASE("two lengths determine no parabola, however far apart, and three do") {
  for (const auto& [first, second] : {std::pair{1000u, 70000u}, {1024u, 65536u}, {3000u, 100000u}}) {
    overlap_calibration two, three;
    for (overlap_calibration* one : {&two, &three}) {
      one->add_clustering(1000, 2, 2e-3);
      one->add_clustering(1000, 6, 6e-3);
      for (const std::size_t n : {first, second, second + (one == &three ? 1000u : 0u)})
        one->add_layer(n, 1e-3 + 1e-6 * static_cast<double>(n) + 1e-11 * static_cast<double>(n) * static_cast<double>(n));
    }
    CHECK_THROWS_WITH_AS(two.fit(), doctest::Contains("add_layer must be at least 3"), pqkv::value_error);
    CHECK(three.fit().b2 == doctest::Approx(1e-6).epsilon(1e-3));
  }
}

TEST_CASE("calibration times clustering and the engine's layer at every length, with the caller's clock") {
  // A clock that moves by what the layer costs, 1e-6 s * n * n, and by 1, 2, 3, ... ms at each look.
  struct machine {
    double now = 0;
    std::vector<std::size_t> layers{};
  } m;
  const pqkv::pq_shape shape{2, 16, 2, 4};
  const std::vector<std::size_t> lengths{100, 200, 400};
  std::size_t looks = 0;
  const auto seconds = [&] { return m.now += 1e-3 * static_cast<double>(++looks); };
  const auto layer = [&](std::size_t n) {
    m.layers.push_back(n);
    m.now += 1e-6 * static_cast<double>(n * n);
  };
  const overlap_model model = pqkv::calibrate_overlap(pqkv::exec::host<>{}, shape, pqkv::make_view(lengths.data(), 3), layer, seconds);
  CHECK(m.layers == lengths);
  CHECK(looks == 2 * 7 * lengths.size());
  CHECK(model.b1 > 0);
  // Two looks a length: 2, 4 and 6 ms count with the layer, and three points determine a parabola.
  CHECK(model.c2 * 400 * 400 + model.b2 * 400 + model.a2 == doctest::Approx(0.16 + 0.006).epsilon(1e-6));
}

TEST_CASE("a clustering that something else held up does not count") {
  // A clock that moves by 1 ms at each look, but by 10 s at the end of the first and the fifth clustering.
  const pqkv::pq_shape shape{1, 16, 2, 4};
  const std::vector<std::size_t> lengths{100, 200, 400};
  std::size_t looks = 0;
  double now = 0;
  const auto seconds = [&] { return now += ++looks == 2 || looks == 10 ? 10 : 1e-3; };
  CHECK(pqkv::least_seconds(seconds, [] {}) == doctest::Approx(1e-3));
  looks = 0;
  std::size_t work = 0;
  const auto growing = [&] { return now += ++looks == 2 || looks == 10 ? 10 : 1e-3 * static_cast<double>(++work); };
  const pqkv::overlap_model model =
      pqkv::calibrate_overlap(pqkv::exec::host<>{}, shape, pqkv::make_view(lengths.data(), 3), [](std::size_t) {}, growing);
  CHECK(model.b1 > 0);
  CHECK(model.b1 < 1e-3);
}

TEST_CASE("clusterings are timed again while more rows seem to take no longer, and not for ever") {
  // A clustering takes 1 us a row and iteration, small ones 10 s more while the machine is busy.
  const std::vector<pqkv::clustering_size> sizes{{100, 2}, {100, 6}, {400, 2}, {400, 6}};
  for (const int busy : {0, 12, 3 * 4 * 7, 1000}) {
    double now = 0;
    int runs = 0;
    overlap_calibration timings;
    for (const std::size_t n : {1u, 2u, 3u}) timings.add_layer(n, 1);
    pqkv::add_clusterings(
        timings, pqkv::make_view(sizes.data(), sizes.size()), [&] { return now; },
        [&](const pqkv::clustering_size& one) {
          now += 1e-6 * static_cast<double>(one.rows * one.iterations) + (runs++ < busy && one.rows == 100 ? 10 : 0);
        });
    CAPTURE(busy);
    CHECK(runs == (busy == 0 ? 12 : busy == 12 ? 24 : 12 * 8));
    CHECK(timings.has_slope() == (busy != 1000));
    if (busy == 1000)
      CHECK_THROWS_WITH_AS(timings.fit(), doctest::Contains("seconds per row"), pqkv::value_error);
    else
      CHECK(timings.fit().b1 == doctest::Approx(1e-6).epsilon(1e-3));
  }
}

TEST_CASE("calibration refuses lengths that say nothing, and clocks that stand still") {
  const pqkv::pq_shape shape{1, 16, 2, 4};
  const auto calibrate = [&](const pqkv::pq_shape& of, const std::vector<std::size_t>& lengths) {
    return pqkv::calibrate_overlap(
        pqkv::exec::host<>{}, of, pqkv::make_view(lengths.data(), lengths.size()), [](std::size_t) {}, [] { return 0.0; });
  };
  CHECK_THROWS_WITH_AS(calibrate(shape, {100, 200}),
                       "pqkv::calibrate_overlap: lengths.extent(0) must be at least 3 (different lengths), got 2", pqkv::value_error);
  CHECK_THROWS_WITH_AS(calibrate(shape, {100, 63, 200}), "pqkv::calibrate_overlap: lengths must be at least 64 (tokens, 4 * c), got 63",
                       pqkv::value_error);
  CHECK_THROWS_WITH_AS(calibrate({1, 20, 2, 4}, {100, 200, 300}), doctest::Contains("calibrate_overlap: head_dim"), pqkv::value_error);
  CHECK_THROWS_WITH_AS(calibrate(shape, {100, 200, 300}),
                       doctest::Contains("add_clustering must be above 0 (seconds per row and iteration)"), pqkv::value_error);
}
