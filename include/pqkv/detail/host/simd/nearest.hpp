// SPDX-License-Identifier: Apache-2.0
// Nearest centroids of many rows, for k-means and encoding. Exact products of 16-bit integers give a shortlist in half the time of fused
// multiply-adds. If a second centroid is within the error of both arithmetics, the canonical distance decides. So the result is the
// canonical one for every row.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../../../core/owner.hpp"
#include "rows.hpp"

namespace pqkv::inline PQKV_MODE::detail {

inline constexpr std::size_t max_searched = 256;  // centroids
inline constexpr std::size_t max_row_dim = 257;   // with the coordinate of the inner-product metric

/// The most that scaled norms may be: products, half norms and all differences of values are then below 2^31.
inline constexpr float shortlist_reach = 28000.0f;

/// Whether rows with this squared norm can be scaled: no square overflows, and what underflows does not matter.
inline bool has_shortlist_scale(float squared_norm) { return squared_norm >= 0x1p-80f && squared_norm <= 0x1p100f; }

/// An upper bound of the norm, from a sum of squares within 300 roundings.
inline float norm_bound(float squared_norm) { return 1.0001f * std::sqrt(squared_norm); }

/// Rows of floats that become one block; each row is followed by zeros.
template <class Kernels>
class row_tile {
 public:
  explicit row_tile(std::size_t width) : stride_((width + Kernels::row_step - 1) / Kernels::row_step * Kernels::row_step) {
    std::fill_n(rows_, Kernels::block_rows * stride_, 0.0f);
  }
  float* row(std::size_t r) { return rows_ + r * stride_; }
  void clear(std::size_t first, std::size_t last) { std::fill(row(first), rows_ + last * stride_, 0.0f); }
  std::size_t stride() const { return stride_; }

 private:
  std::size_t stride_;
  alignas(
      cache_line_bytes) float rows_[Kernels::block_rows * ((max_row_dim + Kernels::row_step - 1) / Kernels::row_step * Kernels::row_step)];
};

template <class Kernels>
class changed_search;

/// Searches among c centroids.
///
/// Let rows be scaled by s and centroids by t, K = shortlist_reach, u = 2^-24, and s|y|, s|c| and t|c| be at most K (1 + 2^-10). The value
/// x = s t (|c|^2 / 2 - <y, c>) has the order of the true distances. These are its errors. Rounding to integers moves each coordinate by at
/// most 1/2 + u K, so each vector by at most rho = sqrt(ds) / 2 + 0.1, and the product by at most rho (t|c| + s|y|) + rho^2. The half norm,
/// truncated to an integer, is wrong by 1 + (ds + 4) u K^2 / 2, and the replaced low byte by 255. The canonical distance, halved and
/// scaled, is wrong by (ds + 2) u (s|y| + s|c|) (t|y| + t|c|) / 2. Here t|y| has no bound: for a row much longer than every centroid this
/// is the largest term. If the values of two centroids differ by more than twice the sum of these errors, they have the order of the
/// canonical distances.
template <class Kernels>
class nearest_search {
 public:
  static constexpr std::size_t block_rows = Kernels::block_rows;
  static_assert(block_rows == 32, "a bit of the result for each");

  /// Fewest rows for a shortlist: preparing the centroids should cost no more than a few canonical decisions. A guess that was not swept.
  static constexpr std::size_t least_rows = 8;

  /// @param centroids  [ds, c], dense; must not change while this is in use
  /// @param rows       how many rows will be searched for
  nearest_search(const float* centroids, std::size_t c, std::size_t ds, std::size_t rows)
      : centroids_(centroids), c_(c), ds_(ds), pairs_((ds + 1) / 2), rho_(0.5f * std::sqrt(static_cast<float>(ds)) + 0.1f) {
    if (rows < least_rows) return;
    Kernels::squared_norms(centroids, c, ds, squared_norm_);
    float largest = 0;
    for (std::size_t x = 0; x < c; ++x) largest = squared_norm_[x] > largest ? squared_norm_[x] : largest;
    for (std::size_t x = 0; x < c; ++x)
      if (!is_finite(squared_norm_[x])) largest = squared_norm_[x];
    if (!has_shortlist_scale(largest)) return;
    norm_ = norm_bound(largest);
    scale_ = shortlist_reach / norm_;
    while (chunk_ > c || chunk_ * pairs_ > chunk_elements) chunk_ /= 2;
    if (chunk_ == c) Kernels::write_centroids(centroids, c, c, ds, -scale_, pair_);
  }

  /// At least every |c|; 0: no block can be searched.
  float largest_norm() const { return norm_; }

  /// Searches the rows of a block. A set bit in the result is a row that decide() must be asked about; the other rows have their index.
  ///
  /// @param block  from write_block()
  /// @param scale  of the block
  /// @param norm   at least that of every row
  /// @param index  [block_rows], written
  std::uint32_t find(const std::int32_t* block, float scale, float norm, std::uint8_t* index) {
    if (!begin_at(scale, norm)) return ~std::uint32_t{0};
    alignas(cache_line_bytes) std::int32_t least[block_rows], second[block_rows];
    std::fill_n(least, block_rows, std::numeric_limits<std::int32_t>::max());
    std::fill_n(second, block_rows, std::numeric_limits<std::int32_t>::max());
    for (std::size_t first = 0; first < c_; first += chunk_) {
      if (chunk_ != c_) Kernels::write_centroids(centroids_ + first, c_, chunk_, ds_, -scale_, pair_);
      Kernels::two_least(block, pair_, start_ + first, chunk_, pairs_, first, least, second);
    }
    return Kernels::close_calls(least, second, twice_error_, index);
  }

  /// The nearest centroids of `count` rows, canonical. The rows are modified.
  ///
  /// @param squared_norm  [count], as measure() finds it; not a finite number if the row is not finite
  /// @param index         [block_rows], written up to `count`
  void find_rows(row_tile<Kernels>& y, const float* squared_norm, std::size_t count, std::uint8_t* index) {
    std::uint32_t open = ~std::uint32_t{0} >> (block_rows - count), found = 0;
    if (norm_ > 0) {
      float largest = 0;
      for (std::size_t r = 0; r < count; ++r) {
        if (squared_norm[r] <= 0x1p100f) {
          largest = squared_norm[r] > largest ? squared_norm[r] : largest;
          continue;
        }
        index[r] = static_cast<std::uint8_t>(decide(y.row(r)));
        y.clear(r, r + 1);
        found |= std::uint32_t{1} << r;
      }
      y.clear(count, block_rows);
      const float norm = norm_bound(largest), scale = shortlist_reach / std::max(norm, norm_);
      alignas(cache_line_bytes) std::int32_t block[(max_row_dim + 1) / 2 * block_rows];
      Kernels::write_block(y.row(0), y.stride(), ds_, scale, block);
      std::uint8_t shortlisted[block_rows];
      open &= ~found;
      const std::uint32_t close = find(block, scale, norm, shortlisted);
      for (std::size_t r = 0; r < count; ++r) index[r] = (found >> r & 1u) != 0 ? index[r] : shortlisted[r];
      open &= close;
    }
    for (; open != 0; open &= open - 1) {
      const auto r = static_cast<std::size_t>(__builtin_ctz(open));
      index[r] = static_cast<std::uint8_t>(decide(y.row(r)));
    }
  }

  std::uint32_t decide(const float* y) const { return Kernels::nearest(y, centroids_, c_, ds_).index; }

 private:
  friend class changed_search<Kernels>;
  static constexpr std::size_t chunk_elements = 8192;  // 32 KiB of centroids: fits in a near cache, and on any thread's stack

  /// Whether a block of this scale and norm can be searched; if so, start_ and twice_error_ are those of the block.
  bool begin_at(float scale, float norm) {
    constexpr float reach = 1.0009f * shortlist_reach;
    if (!(norm_ > 0 && scale * norm_ <= reach && scale * norm <= reach)) return false;
    const float twice_error = slack(scale, norm);
    if (!(twice_error <= 0x1p30f)) return false;
    twice_error_ = static_cast<std::int32_t>(twice_error);
    if (scale == start_scale_) return true;
    const float factor = 0.5f * scale * scale_;
    for (std::size_t x = 0; x < c_; ++x) start_[x] = static_cast<std::int32_t>(squared_norm_[x] * factor);
    start_scale_ = scale;
    return true;
  }

  /// Twice the error. If values say nothing, it is infinite or larger than every difference.
  float slack(float scale, float norm) const {
    const float reach = scale * norm, u = 0x1p-24f * static_cast<float>(ds_ + 4);
    const float canonical_error = 0.51f * u * (reach + scale * norm_) * (scale_ * norm + shortlist_reach);
    const float rounding = 0.6f * u * shortlist_reach * shortlist_reach;
    return 2.02f * (rho_ * (1.01f * (shortlist_reach + reach) + rho_) + 256.0f + rounding + canonical_error) + 1.0f;
  }

  const float* centroids_;
  std::size_t c_, ds_, pairs_, chunk_ = max_searched;
  float rho_, norm_ = 0, scale_ = 0, start_scale_ = 0;
  std::int32_t twice_error_ = 0;
  alignas(cache_line_bytes) float squared_norm_[max_searched];
  alignas(cache_line_bytes) std::int32_t start_[max_searched];
  alignas(cache_line_bytes) std::int32_t pair_[chunk_elements];
};

/// Searches among centroids of which a few have changed since every row's nearest one was found. If a row's nearest has not changed, only
/// the changed ones can be nearer, so it is compared with those alone.
template <class Kernels>
class changed_search {
 public:
  static constexpr std::size_t block_rows = nearest_search<Kernels>::block_rows;
  static constexpr std::size_t most = 128;  // changed centroids. More would not pay, and numbers from here to 255 mean something else

  /// @param all      of all centroids; must live as long as this
  /// @param changed  [count] numbers of the changed centroids, ascending
  changed_search(nearest_search<Kernels>& all, const std::uint8_t* changed, std::size_t count) : all_(all) {
    const std::size_t padded = (count + 15) / 16 * 16;
    if (padded > most || padded > all.c_ / 2 || all.chunk_ != all.c_ || !(all.norm_ > 0)) return;
    count_ = count;
    padded_ = padded;
    std::copy_n(changed, count, changed_);
    for (std::size_t p = 0; p < all.pairs_; ++p)
      for (std::size_t i = 0; i < padded; ++i) pair_[p * padded + i] = i < count ? all.pair_[p * all.c_ + changed[i]] : 0;
    std::fill(start_ + count, start_ + padded, std::numeric_limits<std::int32_t>::max());  // no row is near these
  }

  /// Whether find() saves anything.
  bool usable() const { return count_ != 0; }

  /// As nearest_search::find().
  ///
  /// @param known  [block_rows] the nearest of all centroids before some changed. A row whose nearest changed gets a wrong index
  std::uint32_t find(const std::int32_t* block, float scale, float norm, const std::uint8_t* known, std::uint8_t* index) {
    if (!all_.begin_at(scale, norm)) return ~std::uint32_t{0};
    if (scale != start_scale_)
      for (std::size_t i = 0; i < count_; ++i) start_[i] = all_.start_[changed_[i]];
    start_scale_ = scale;
    alignas(cache_line_bytes) std::int32_t least[block_rows], second[block_rows];
    Kernels::values_of(block, all_.pair_, all_.start_, all_.c_, all_.pairs_, known, kept, least);
    std::fill_n(second, block_rows, std::numeric_limits<std::int32_t>::max());
    Kernels::two_least(block, pair_, start_, padded_, all_.pairs_, 0, least, second);
    std::uint8_t place[block_rows];
    const std::uint32_t close = Kernels::close_calls(least, second, all_.twice_error_, place);
    for (std::size_t r = 0; r < block_rows; ++r) index[r] = place[r] == kept ? known[r] : changed_[place[r]];
    return close;
  }

 private:
  static constexpr std::uint8_t kept = 255;  // in the place of a changed centroid's number: the known one is still the nearest

  nearest_search<Kernels>& all_;
  std::size_t count_ = 0, padded_ = 0;
  float start_scale_ = 0;
  std::uint8_t changed_[most];
  alignas(cache_line_bytes) std::int32_t start_[most];
  alignas(cache_line_bytes) std::int32_t pair_[nearest_search<Kernels>::chunk_elements / 2];
};

}  // namespace pqkv::detail
