// SPDX-License-Identifier: Apache-2.0
// PQCache's overlap rule, opt-in: as many k-means iterations as fit into the time that the model works on the next layer, so that
// clustering on the host adds nothing to the time of a prefill. Both times are modelled and fitted by least squares from a short
// calibration on the machine that runs. The codebook's bits then depend on that machine's speed; with a fixed L they do not.
// Source: PQCache, SIGMOD 2025, section 3.2.
#pragma once

#include <cmath>
#include <cstddef>

#include "../core/error.hpp"
#include "codebook.hpp"

namespace pqkv::inline PQKV_MODE {

/// Seconds of clustering one layer, a1 + b1 * rows * L, and of the model's work on one layer, a2 + b2 * n + c2 * n^2.
struct overlap_model {
  double a1 = 0, b1 = 0;
  double a2 = 0, b2 = 0, c2 = 0;

  static constexpr std::size_t least = 3, most = 25, most_in_paper = 300;

  /// L = clip((layer - a1) / (b1 * rows), 3, cap), rounded down.
  /// @param rows  training rows of a problem
  /// @param n     tokens of the prompt
  std::size_t iterations(std::size_t rows, std::size_t n, std::size_t cap = most) const {
    const double tokens = static_cast<double>(n), layer = a2 + b2 * tokens + c2 * tokens * tokens;
    const double fitting = (layer - a1) / (b1 * static_cast<double>(rows));
    if (!(fitting > static_cast<double>(least))) return least;  // a NaN too
    return fitting < static_cast<double>(cap) ? static_cast<std::size_t>(fitting) : cap;
  }
};

/// Collects timings and fits the model.
class overlap_calibration {
 public:
  /// The clustering of one layer: all its heads and subspaces, `rows` training rows each, L iterations without an early stop.
  void add_clustering(std::size_t rows, std::size_t iterations, double seconds) {
    const double x = static_cast<double>(rows) * static_cast<double>(iterations);
    clustering_.add(x, seconds);
  }
  /// One layer of the model over a prompt of n tokens.
  void add_layer(std::size_t n, double seconds) { layer_.add(static_cast<double>(n), seconds); }

  /// Whether more rows took longer. What else a busy machine does can make it look otherwise.
  bool has_slope() const {
    double line[2 + 1] = {};
    return clustering_.fit(2, line) && line[1] > 0;
  }

  /// @throws value_error with fewer than two different clusterings, fewer than three different lengths, or timings in which more rows take
  ///         no longer
  overlap_model fit() const {
    overlap_model model;
    double line[3] = {}, parabola[3] = {};
    require_ok(
        detail::checks("overlap_calibration::fit")
            .that(clustering_.fit(2, line), status::code::value, "add_clustering", relation::at_least, "different values of rows * L", 2,
                  clustering_.count())
            .that(layer_.fit(3, parabola), status::code::value, "add_layer", relation::at_least, "different lengths", 3, layer_.count()));
    model.a1 = line[0], model.b1 = line[1];
    model.a2 = parabola[0], model.b2 = parabola[1], model.c2 = parabola[2];
    require_ok(
        detail::checks("overlap_calibration::fit")
            .that(model.b1 > 0, status::code::value, "add_clustering", relation::above, "seconds per row and iteration", 0, model.b1));
    return model;
  }

 private:
  /// Sums of powers of x and y, enough for a polynomial of degree 2. x is divided by its first value, to keep all of them of similar size.
  class power_sums {
   public:
    void add(double x, double y) {
      if (count_ == 0) unit_ = x > 0 ? x : 1;
      double power = 1;
      for (std::size_t i = 0; i < 5; ++i, power *= x / unit_) {
        x_[i] += power;
        if (i < 3) xy_[i] += power * y;
      }
      ++count_;
      bool known = false;
      for (std::size_t i = 0; i < different_; ++i) known |= seen_[i] == x;
      if (!known && different_ < 3) seen_[different_++] = x;
    }
    std::size_t count() const { return count_; }

    /// Least-squares coefficients, lowest first, by elimination with pivots. False if the points do not determine them.
    bool fit(std::size_t terms, double* coefficient) const {
      if (different_ < terms) return false;
      double a[3][4] = {};
      for (std::size_t i = 0; i < terms; ++i) {
        for (std::size_t j = 0; j < terms; ++j) a[i][j] = x_[i + j];
        a[i][terms] = xy_[i];
      }
      for (std::size_t column = 0; column < terms; ++column) {
        std::size_t pivot = column;
        for (std::size_t row = column + 1; row < terms; ++row)
          if (std::fabs(a[row][column]) > std::fabs(a[pivot][column])) pivot = row;
        if (a[pivot][column] == 0) return false;
        for (std::size_t j = 0; j <= terms; ++j) {
          const double held = a[column][j];
          a[column][j] = a[pivot][j];
          a[pivot][j] = held;
        }
        for (std::size_t row = 0; row < terms; ++row) {
          if (row == column) continue;
          const double factor = a[row][column] / a[column][column];
          for (std::size_t j = column; j <= terms; ++j) a[row][j] -= factor * a[column][j];
        }
      }
      double unit = 1;
      for (std::size_t i = 0; i < terms; ++i, unit *= unit_) coefficient[i] = a[i][terms] / a[i][i] / unit;
      return true;
    }

   private:
    std::size_t count_ = 0, different_ = 0;
    double seen_[3] = {};  // the first different values of x
    double unit_ = 1;
    double x_[5] = {};   // sums of x^i
    double xy_[3] = {};  // sums of x^i * y
  };

  power_sums clustering_, layer_;
};

/// The checks of calibrate_overlap().
constexpr status can_calibrate_overlap(const pq_shape& shape, view<const std::size_t, 1> lengths) noexcept {
  if (const status s = can_quantize(shape, "calibrate_overlap"); !s.ok()) return s;
  std::size_t shortest = lengths.extent(0) == 0 ? 0 : lengths(0);
  for (std::size_t i = 0; i < lengths.extent(0); ++i) shortest = lengths(i) < shortest ? lengths(i) : shortest;
  return detail::checks("calibrate_overlap")
      .at_least("lengths.extent(0)", lengths.extent(0), 3, "different lengths")
      .at_least("lengths", shortest, 4 * static_cast<double>(shape.centroids()), "tokens, 4 * c");
}

/// The least time of three runs of the same work: whatever else the machine does makes single runs longer, none shorter.
///
/// @param seconds  seconds(): the time of a clock that never goes backwards
template <class Clock, class Work>
double least_seconds(Clock&& seconds, Work&& work) {
  double least = 0;
  for (int run = 0; run < 3; ++run) {
    const double start = seconds();
    work();
    const double took = seconds() - start;
    if (run == 0 || took < least) least = took;
  }
  return least;
}

/// One clustering of a calibration.
struct clustering_size {
  std::size_t rows, iterations;
};

/// Times clusterings, three times each, and adds the least time of each to the timings. While more rows seem to take no longer, all are
/// timed again, up to eight times: on a busy machine even the least of three runs may be late. fit() says whether that was enough.
///
/// @param timings  gets one for each size
/// @param sizes    of the clusterings
/// @param seconds  as for least_seconds()
/// @param cluster  cluster(size) makes one, complete when it returns
/// @cost   3 to 24 runs of each; allocates a number for each
template <class Clock, class Cluster>
void add_clusterings(overlap_calibration& timings, view<const clustering_size, 1> sizes, Clock&& seconds, Cluster&& cluster) {
  constexpr int most_rounds = 8;
  buffer<double> least(sizes.extent(0));
  for (int round = 0;; ++round) {
    overlap_calibration with = timings;
    for (std::size_t i = 0; i < sizes.extent(0); ++i) {
      const double now = least_seconds(seconds, [&] { cluster(sizes(i)); });
      least[i] = round == 0 || now < least[i] ? now : least[i];
      with.add_clustering(sizes(i).rows, sizes(i).iterations, least[i]);
    }
    if (!with.has_slope() && round + 1 < most_rounds) continue;
    timings = with;
    return;
  }
}

/// Calibrates on the machine that runs. At each length it clusters random keys and has the engine run one layer of its model.
///
/// @param policy     the policy that will train
/// @param shape      of one layer's quantizer; h * m problems are clustered as train() does
/// @param lengths    [>= 3] tokens, all different, at least 4 * c; the longest should be near the length of later prompts
/// @param run_layer  run_layer(n): one layer of the model's prefill over n tokens, complete when it returns
/// @param seconds    seconds(): the time of a clock that never goes backwards
/// @throws value_error; what fit() throws, when the timings say nothing
/// @cost   24 iterations of clustering and a layer per length, on a busy machine up to 192; allocates h * longest * d floats
template <exec::policy P, class Layer, class Clock>
overlap_model calibrate_overlap(const P& policy, const pq_shape& shape, view<const std::size_t, 1> lengths, Layer&& run_layer,
                                Clock&& seconds) {
  require_ok(can_calibrate_overlap(shape, lengths));
  std::size_t longest = 0;
  for (std::size_t i = 0; i < lengths.extent(0); ++i) longest = lengths(i) > longest ? lengths(i) : longest;
  buffer<float> keys(shape.kv_heads * longest * shape.head_dim);
  const random_stream draws{0, 0};
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>(draws.below(i, 1u << 24)) * 0x1p-24f;
  codebook book(shape);
  overlap_calibration timings;
  buffer<clustering_size> sizes(2 * lengths.extent(0));
  for (std::size_t i = 0; i < lengths.extent(0); ++i) {
    sizes[2 * i] = {lengths(i), 2}, sizes[2 * i + 1] = {lengths(i), 6};  // few: random keys keep moving, none should stop early
    const double start = seconds();
    run_layer(lengths(i));
    timings.add_layer(lengths(i), seconds() - start);
  }
  add_clusterings(timings, as_const(make_view(sizes.data(), sizes.size())), seconds, [&](const clustering_size& one) {
    const auto rows = as_const(make_view(keys.data(), shape.kv_heads, one.rows, shape.head_dim));
    train(policy, rows, book, {.iterations = one.iterations, .rows_per_centroid = 0});
  });
  return timings.fit();
}

}  // namespace pqkv
