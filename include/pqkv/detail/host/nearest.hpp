// SPDX-License-Identifier: Apache-2.0
// Nearest centroids of many rows, for k-means and encoding. A register-tiled product |c|^2 / 2 - <y, c> shortlists; where a second
// centroid lies within the error of both arithmetics, the canonical distance decides, so the result is the canonical one for every row.
#pragma once

#include <cmath>
#include <limits>

#include "../../core/canonical.hpp"
#include "../../quantize/shape.hpp"
#include "simd/rows.hpp"

namespace pqkv::detail {

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
    const float error = 0x1.2p-24f * static_cast<float>(ds_ + 4) * (largest_norm_ * both + 0.5f * both * both);
    return 2 * error + std::numeric_limits<float>::min();  // the minimum covers what underflows
  }

  const float* centroids_;
  std::size_t c_, ds_;
  bool shortlists_;
  float largest_norm_ = 0;
  alignas(cache_line_bytes) float half_norm_[max_centroids];
};

}  // namespace pqkv::detail
