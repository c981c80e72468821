// SPDX-License-Identifier: Apache-2.0
// The overlap rule: the fit recovers the coefficients it was fed, the clip keeps its bounds, too few timings are refused.
#include <doctest/doctest.h>

#include <pqkv/quantize/overlap.hpp>
#include <string>

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
  CHECK_THROWS_WITH_AS(one.fit(), doctest::Contains("add_clustering: expected 2"), pqkv::value_error);

  overlap_calibration two;
  two.add_clustering(1000, 5, 1);
  two.add_clustering(2000, 5, 2);
  two.add_layer(100, 1);
  two.add_layer(200, 1);
  CHECK_THROWS_WITH_AS(two.fit(), doctest::Contains("add_layer: expected 3"), pqkv::value_error);

  overlap_calibration falling;
  falling.add_clustering(1000, 5, 2);
  falling.add_clustering(2000, 5, 1);
  for (const std::size_t n : {1u, 2u, 3u}) falling.add_layer(n, 1);
  CHECK_THROWS_WITH_AS(falling.fit(), doctest::Contains("seconds per row"), pqkv::value_error);
}
