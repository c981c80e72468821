// SPDX-License-Identifier: Apache-2.0
// k-means on the host: one task a problem (head and subspace), rows in ascending order, assignment by the canonical distance and
// sums in fixed point. Rows are read from the caller's memory in every iteration; nothing of size n * ds is copied.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "../../core/buffer.hpp"
#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../quantize/kmeans.hpp"
#include "simd/rows.hpp"

namespace pqkv {
namespace detail {

/// Rows that are decided together; rows of a part of a tile are followed by repetitions.
template <std::size_t Rows>
class row_tile {
 public:
  float* row(std::size_t r) { return rows_[r]; }
  const float* const* pointers(std::size_t count) {
    for (std::size_t r = 0; r < Rows; ++r) pointers_[r] = rows_[r < count ? r : 0];
    return pointers_;
  }

 private:
  alignas(cache_line_bytes) float rows_[Rows][max_head_dim + 16];
  const float* pointers_[Rows];
};

/// Nearest centroids of many rows, for k-means and encoding. A register-tiled product |c|^2 / 2 - <y, c> shortlists; where a second
/// centroid lies within the error of both arithmetics, the canonical distance decides, so the result is the canonical one for every row.
template <class Leaf>
class nearest_search {
 public:
  static constexpr std::size_t tile_rows = Leaf::tile_rows;

  /// @param centroids  [ds, c], dense; must not change while this is in use
  /// @param rows       that will be looked for: for a few, norms of centroids do not pay
  nearest_search(const float* centroids, std::size_t c, std::size_t ds, std::size_t rows)
      : centroids_(centroids), c_(c), ds_(ds), shortlists_(rows >= tile_rows) {
    if constexpr (tile_rows > 1) {
      if (!shortlists_) return;
      for (std::size_t x = 0; x < c; ++x) half_norm_[x] = 0;
      for (std::size_t i = 0; i < ds; ++i)
        for (std::size_t x = 0; x < c; ++x) half_norm_[x] = canonical::fma(centroids[i * c + x], centroids[i * c + x], half_norm_[x]);
      float largest = 0;
      for (std::size_t x = 0; x < c; ++x) {
        largest = canonical::max(half_norm_[x], largest);
        half_norm_[x] *= 0.5f;
      }
      largest_norm_ = std::sqrt(largest);
    }
  }

  /// index[r] of rows y[r], r < count <= tile_rows; y holds tile_rows valid pointers.
  void find(const float* const* y, std::size_t count, std::uint32_t* index) const {
    if (tile_rows == 1 || !shortlists_) {
      for (std::size_t r = 0; r < count; ++r) index[r] = decide(y[r]);
    } else if constexpr (tile_rows > 1) {
      alignas(cache_line_bytes) float values[tile_rows * max_centroids];
      Leaf::half_distances(y, centroids_, half_norm_, c_, ds_, values);
      for (std::size_t r = 0; r < count; ++r) {
        const std::size_t found = Leaf::only_closest(values + r * c_, c_, slack(y[r]));
        index[r] = found < c_ ? static_cast<std::uint32_t>(found) : decide(y[r]);
      }
    }
  }

 private:
  std::uint32_t decide(const float* y) const { return Leaf::nearest(y, centroids_, c_, ds_).index; }

  /// By how much two values may be in the wrong order. With u = 2^-24, Y = |y|, C the largest |c|: the product's chain errs by at most
  /// u ds (C^2 + Y C), the canonical distance, halved, by u (ds + 2) (Y + C)^2 / 2; each value by both, rounded up.
  float slack(const float* y) const {
    float norm;
    Leaf::group_dots(y, 1, y, ds_, &norm, 1);
    const float length = std::sqrt(norm), both = length + largest_norm_;
    const float square = 1.01f * both * both;  // overflows before any canonical distance does, and then that one decides
    const float error = 0x1.2p-24f * static_cast<float>(ds_ + 4) * (largest_norm_ * both + 0.5f * square);
    return 2 * error + std::numeric_limits<float>::min();  // the minimum covers what underflows
  }

  const float* centroids_;
  std::size_t c_, ds_;
  bool shortlists_;
  float largest_norm_ = 0;
  alignas(cache_line_bytes) float half_norm_[max_centroids];
};

/// One problem: the rows of one head and subspace, their assignment, and the clusters' sums.
template <class Leaf, class T>
class kmeans_problem {
 public:
  /// @param squared_radius  written; null: the plain squared L2 distance
  kmeans_problem(view<const T, 2> points, const float* offset, float* centroids, std::size_t c, float* squared_radius)
      : points_(points),
        offset_(offset),
        centroids_(centroids),
        squared_radius_(squared_radius),
        c_(c),
        ds_(points.extent(1)),
        width_(ds_ + (squared_radius != nullptr ? 1 : 0)) {}

  kmeans_outcome run(const kmeans_params& params, std::uint64_t stream) {
    gather_rows(training_rows(params, points_.extent(0), c_));
    if (!draw_initial({params.seed, stream})) return kmeans_outcome::too_few_distinct_rows;
    scale_ = canonical::power_of_two(canonical::fixed_point_exponent(largest_));
    for (std::size_t iteration = 0; iteration < params.iterations; ++iteration) {
      if (!assign(iteration == 0)) break;  // no row moved, so no cluster is empty and no centroid will change
      fill_empty();
      update();
    }
    return kmeans_outcome::trained;
  }

 private:
  static constexpr std::size_t rows_ahead = 24;

  void prefetch(std::size_t i) const {
    if (i >= used_ || points_.stride(1) != 1) return;
    const T* row = points_.data + rows_[i] * points_.stride(0);
    for (std::size_t e = 0; e < ds_; e += cache_line_bytes / sizeof(T)) __builtin_prefetch(row + e);
  }

  /// y of the i-th training row, [width].
  const float* row(std::size_t i) { return load(i, y_); }
  const float* load(std::size_t i, float* y) {
    centre(rows_[i], y);
    if (squared_radius_ != nullptr) lift_to_sphere(y, ds_, *squared_radius_);
    return y;
  }
  void centre(std::size_t t, float* y) {
    Leaf::centre(load_row<Leaf>(kv_row<T>{points_.data + t * points_.stride(0), points_.stride(1)}, ds_, copy_), offset_, ds_, y);
  }

  void gather_rows(const stratified_sample& sample) {
    rows_ = buffer<std::uint32_t>(sample.count);
    float radius = 0;
    for (std::size_t i = 0; i < sample.count; ++i) {
      const std::size_t t = sample(i);
      centre(t, y_);
      const float* y = y_;
      if (!Leaf::all_finite(y, ds_)) continue;
      if (squared_radius_ != nullptr) {
        const float norm = canonical::dot(y, y, 1, ds_);
        if (!is_finite(norm)) continue;
        radius = canonical::max(norm, radius);
      }
      rows_[used_++] = static_cast<std::uint32_t>(t);
      for (std::size_t e = 0; e < ds_; ++e) largest_ = canonical::max(std::fabs(y[e]), largest_);
    }
    if (squared_radius_ != nullptr) {
      *squared_radius_ = radius;
      largest_ = canonical::max(canonical::sqrt(radius), largest_);
    }
    owner_ = buffer<std::uint8_t>(used_);
    count_ = buffer<std::uint32_t>(c_);
    sum_ = buffer<std::int64_t>(c_ * width_);
  }

  /// Walks a random permutation of the rows and takes each that differs from all taken so far. The caller's centroids are written
  /// only once there are c of them.
  bool draw_initial(random_stream draws) {
    if (used_ < c_) return false;
    buffer<std::uint32_t> order(used_);
    for (std::size_t i = 0; i < used_; ++i) order[i] = static_cast<std::uint32_t>(i);
    buffer<float> taken(c_ * width_);
    std::size_t found = 0;
    for (std::size_t i = 0; i < used_ && found < c_; ++i) {
      std::swap(order[i], order[i + draws.below(i, static_cast<std::uint32_t>(used_ - i))]);
      const float* y = row(order[i]);
      bool repeated = false;
      for (std::size_t x = 0; x < found && !repeated; ++x) {
        repeated = true;
        for (std::size_t e = 0; e < width_ && repeated; ++e) repeated = taken[x * width_ + e] == y[e];
      }
      if (repeated) continue;
      for (std::size_t e = 0; e < width_; ++e) taken[found * width_ + e] = y[e];
      ++found;
    }
    if (found < c_) return false;
    for (std::size_t x = 0; x < c_; ++x)
      for (std::size_t e = 0; e < width_; ++e) centroids_[e * c_ + x] = taken[x * width_ + e];
    return true;
  }

  /// Whether a row changed its cluster.
  bool assign(bool initial) {
    bool changed = initial;
    for (std::uint32_t& count : count_) count = 0;
    for (std::int64_t& sum : sum_) sum = 0;
    using search = nearest_search<Leaf>;
    const search nearest(centroids_, c_, width_, used_);
    row_tile<search::tile_rows> y;
    std::uint32_t index[search::tile_rows];
    for (std::size_t first = 0; first < used_; first += search::tile_rows) {
      const std::size_t rows = std::min(search::tile_rows, used_ - first);
      for (std::size_t r = 0; r < rows; ++r) {
        prefetch(first + r + rows_ahead);
        load(first + r, y.row(r));
      }
      nearest.find(y.pointers(rows), rows, index);
      for (std::size_t r = 0; r < rows; ++r) {
        changed |= owner_[first + r] != index[r];
        owner_[first + r] = static_cast<std::uint8_t>(index[r]);
        ++count_[index[r]];
        Leaf::accumulate(y.row(r), scale_, width_, sum_.data() + index[r] * width_);
      }
    }
    return changed;
  }

  /// Every empty cluster, ascending, takes the farthest row of the fullest cluster; ties to the lower index.
  void fill_empty() {
    for (std::size_t empty = 0; empty < c_; ++empty) {
      if (count_[empty] != 0) continue;
      std::size_t fullest = 0;
      for (std::size_t x = 1; x < c_; ++x)
        if (count_[x] > count_[fullest]) fullest = x;
      std::size_t farthest = used_;
      float largest = 0;
      for (std::size_t i = 0; i < used_; ++i) {
        if (owner_[i] != fullest) continue;  // a cluster that just took its row is never the fullest: it has one
        const float distance = canonical::squared_distance(row(i), centroids_ + fullest, c_, width_);
        if (farthest == used_ || distance > largest) farthest = i, largest = distance;
      }
      const float* y = row(farthest);
      for (std::size_t e = 0; e < width_; ++e) {
        const std::int64_t term = canonical::fixed_point(y[e], scale_);
        sum_[fullest * width_ + e] -= term;
        sum_[empty * width_ + e] += term;
      }
      --count_[fullest];
      ++count_[empty];
      owner_[farthest] = static_cast<std::uint8_t>(empty);
    }
  }

  void update() {
    for (std::size_t x = 0; x < c_; ++x)
      for (std::size_t e = 0; e < width_; ++e)
        centroids_[e * c_ + x] = canonical::fixed_point_mean(sum_[x * width_ + e], count_[x], scale_);
  }

  view<const T, 2> points_;
  const float* offset_;
  float* centroids_;                       // [width, c]
  float* squared_radius_;                  // null: squared L2
  std::size_t c_, ds_, width_, used_ = 0;  // width: ds, or ds + 1 on the sphere
  float largest_ = 0, scale_ = 1;
  buffer<std::uint32_t> rows_, count_;
  buffer<std::uint8_t> owner_;
  buffer<std::int64_t> sum_;  // [c, width]
  alignas(cache_line_bytes) float y_[max_head_dim + 1];
  alignas(cache_line_bytes) float copy_[max_head_dim];
};

}  // namespace detail

template <>
struct kernel<op::kmeans, backend::host> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 4, Space> points, view<const float, 3> offset, view<float, 4> centroids,
                  view<std::uint8_t, 2> outcome, const kmeans_params& params, view<float, 2> squared_radius) {
    const std::size_t m = points.extent(1);
    isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
      using leaf = detail::leaf<decltype(isa)>;
      policy.runner.run(points.extent(0) * m, [&](std::size_t problem) {
        const detail::float_environment rounding;
        const std::size_t head = problem / m, j = problem % m;
        const view<const std::remove_cv_t<T>, 2> rows = points[head][j];
        float* radius = squared_radius.data == nullptr ? nullptr : &squared_radius(head, j);
        detail::kmeans_problem<leaf, std::remove_cv_t<T>> lloyd(rows, &offset(head, j, 0), &centroids(head, j, 0, 0), centroids.extent(3),
                                                                radius);
        outcome(head, j) = static_cast<std::uint8_t>(lloyd.run(params, problem + 1));
      });
    });
  }
};

}  // namespace pqkv
