// SPDX-License-Identifier: Apache-2.0
// The rows that k-means looks at on the host: which of the caller's points they are, their coordinates as training needs them, and the
// centroids that it begins from.
#pragma once

#include <cstdint>

#include "../../core/canonical.hpp"
#include "../../core/owner.hpp"
#include "../../core/random.hpp"
#include "../../quantize/kmeans.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// Rows of one head and subspace: a sample of the points, without those that are not finite.
template <class Kernels, class T>
class kmeans_rows {
 public:
  static constexpr std::size_t prefetch_lead = 16;  // 16 rows of 64 floats fill a page, past whose end the hardware does not prefetch

  /// Chooses the rows and measures them.
  ///
  /// @param points          [n, ds], must live as long as this
  /// @param offset          [ds], subtracted from every row
  /// @param squared_radius  written: of the smallest sphere around all rows, to which they are lifted by one more coordinate. Null: they
  ///                        stay as they are
  kmeans_rows(view<const T, 2> points, const float* offset, float* squared_radius, const stratified_sample& sample)
      : points_(points),
        offset_(offset),
        squared_radius_(squared_radius),
        ds_(points.extent(1)),
        width_(ds_ + (squared_radius != nullptr ? 1 : 0)),
        tokens_(sample.count) {
    float radius = 0;
    std::size_t ahead[prefetch_lead];
    for (std::size_t i = 0; i < std::min(prefetch_lead, sample.count); ++i) ahead[i] = sample(i);
    for (std::size_t i = 0; i < sample.count; ++i) {
      const std::size_t t = ahead[i % prefetch_lead];
      if (i + prefetch_lead < sample.count) prefetch_token(ahead[i % prefetch_lead] = sample(i + prefetch_lead));
      centre(t, row_);
      const row_extent extent = Kernels::measure(row_, ds_);
      if (!is_finite(extent.largest)) continue;
      if (squared_radius_ != nullptr) {
        const float norm = canonical::dot(row_, row_, 1, ds_);
        if (!is_finite(norm)) continue;
        radius = canonical::max(norm, radius);
      }
      tokens_[size_++] = static_cast<std::uint32_t>(t);
      largest_ = canonical::max(extent.largest, largest_);
      squared_norm_ = extent.squared_norm > squared_norm_ ? extent.squared_norm : squared_norm_;
    }
    if (squared_radius_ == nullptr) return;
    *squared_radius_ = radius;
    largest_ = canonical::max(canonical::sqrt(radius), largest_);
    squared_norm_ = 1.0001f * radius;  // allows for the rounding of the added coordinate
  }

  std::size_t size() const { return size_; }
  /// Whether no point was left out.
  bool all() const { return size_ == points_.extent(0); }
  /// Coordinates of a row: ds, or ds + 1 on the sphere.
  std::size_t width() const { return width_; }
  /// The point that is row i.
  std::size_t token(std::size_t i) const { return tokens_[i]; }
  /// The largest coordinate, without its sign, and the largest squared norm.
  float largest() const { return largest_; }
  float squared_norm() const { return squared_norm_; }

  /// Row i, [width], until the next call.
  const float* operator[](std::size_t i) {
    load(i, row_);
    return row_;
  }
  void load(std::size_t i, float* row) {
    centre(tokens_[i], row);
    if (squared_radius_ != nullptr) lift_to_sphere(row, ds_, *squared_radius_);
  }
  void prefetch(std::size_t i) const { prefetch_token(tokens_[i]); }

  /// Goes through the rows in random order and takes each row that differs from all taken so far, until there are c. If there are fewer
  /// distinct rows, they are repeated in turn.
  ///
  /// @param centroids  [width, c], written if there are at least c rows. @returns whether there are
  bool draw(random_stream draws, float* centroids, std::size_t c) {
    if (size_ < c) return false;
    buffer<std::uint32_t> order(size_);
    for (std::size_t i = 0; i < size_; ++i) order[i] = static_cast<std::uint32_t>(i);
    std::size_t found = 0;
    for (std::size_t i = 0; i < size_ && found < c; ++i) {
      std::swap(order[i], order[i + draws.below(i, static_cast<std::uint32_t>(size_ - i))]);
      const float* row = (*this)[order[i]];
      if (is_taken(row, centroids, c, found)) continue;
      for (std::size_t e = 0; e < width_; ++e) centroids[e * c + found] = row[e];
      ++found;
    }
    for (std::size_t x = found; x < c; ++x)
      for (std::size_t e = 0; e < width_; ++e) centroids[e * c + x] = centroids[e * c + x % found];
    return true;
  }

 private:
  /// Whether one of the first `found` centroids is this row. Few have the same first coordinate, so the others are seldom compared.
  bool is_taken(const float* row, const float* centroids, std::size_t c, std::size_t found) const {
    for (std::size_t first = 0; first < found; first += together) {
      const std::size_t last = std::min(first + together, found);
      unsigned equal = 0;
      for (std::size_t x = first; x < last; ++x) equal |= static_cast<unsigned>(centroids[x] == row[0]);
      for (std::size_t x = first; equal != 0 && x < last; ++x) {
        std::size_t e = 0;
        while (e < width_ && centroids[e * c + x] == row[e]) ++e;
        if (e == width_) return true;
      }
    }
    return false;
  }

  void prefetch_token(std::size_t t) const {
    if (points_.stride(1) != 1) return;
    const T* row = points_.data + t * points_.stride(0);
    for (std::size_t e = 0; e < ds_; e += cache_line_bytes / sizeof(T)) __builtin_prefetch(row + e);
  }
  void centre(std::size_t t, float* row) {
    Kernels::centre(load_row<Kernels>(kv_row<T>{points_.data + t * points_.stride(0), points_.stride(1)}, ds_, copy_), offset_, ds_, row);
  }

  static constexpr std::size_t together = 32;

  view<const T, 2> points_;
  const float* offset_;
  float* squared_radius_;
  std::size_t ds_, width_, size_ = 0;
  float largest_ = 0, squared_norm_ = 0;
  buffer<std::uint32_t> tokens_;
  alignas(cache_line_bytes) float row_[max_head_dim + 1];
  alignas(cache_line_bytes) float copy_[max_head_dim];
};

}  // namespace pqkv::detail
