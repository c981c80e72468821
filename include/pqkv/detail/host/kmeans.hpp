// SPDX-License-Identifier: Apache-2.0
// k-means on the host. A task is one problem (a head and subspace). Rows are visited in ascending order, assigned by the canonical
// distance, and summed in fixed point. Rows are centred and rounded to 16 bits once, in the first iteration. Later iterations search these
// copies; they read from the caller's memory only the rows whose nearest centroid the copies cannot decide or whose cluster changes.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "../../core/owner.hpp"
#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../quantize/kmeans.hpp"
#include "simd/nearest.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

static_assert(max_searched == max_centroids && max_row_dim == max_head_dim + 1);

/// The points' nearest centroids, as they were before some of the centroids changed.
struct known_nearest {
  const std::uint8_t* index = nullptr;    // [n] for each point its nearest centroid; 0 can also mean: not known. Null: none is known
  const std::uint8_t* changed = nullptr;  // [count] the centroids that changed, ascending
  std::size_t count = 0;
};

/// One problem: the rows of one head and subspace, their assignment, and the clusters' sums.
template <class Leaf, class T>
class kmeans_problem {
 public:
  /// @param squared_radius  written; null: the plain squared L2 distance is used
  kmeans_problem(view<const T, 2> points, const float* offset, float* centroids, std::size_t c, float* squared_radius)
      : points_(points),
        offset_(offset),
        centroids_(centroids),
        squared_radius_(squared_radius),
        c_(c),
        ds_(points.extent(1)),
        width_(ds_ + (squared_radius != nullptr ? 1 : 0)) {}

  /// @param known  nearest centroids of the points; saves time and changes no bit. Not used with a squared radius, which moves all points
  kmeans_outcome run(const kmeans_params& params, std::uint64_t stream, const known_nearest& known = {}) {
    gather_rows(training_rows(params, points_.extent(0), c_));
    const bool begun = params.start == kmeans_start::given ? used_ >= c_ : draw_initial({params.seed, stream});
    if (!begun) return kmeans_outcome::too_few_rows;
    scale_ = canonical::power_of_two(canonical::fixed_point_exponent(largest_));
    for (std::size_t iteration = 0; iteration < params.iterations; ++iteration) {
      if (iteration == 0)
        assign_all(squared_radius_ == nullptr ? known : known_nearest{});
      else if (!assign())
        break;  // no row moved, so no cluster is empty and no centroid will change
      fill_empty();
      update();
    }
    return kmeans_outcome::trained;
  }

  /// After run(), writes every point's nearest centroid. These are the codes that encode() finds, but faster, from the rounded rows that
  /// run() has stored.
  ///
  /// @param index  [n]
  /// @return false, and nothing is written, if run() did not train on every point
  bool write_nearest(std::uint8_t* index) {
    if (used_ != points_.extent(0)) return false;
    nearest_search<Leaf> nearest(centroids_, c_, width_, used_);
    std::uint8_t found[block_rows];
    for (std::size_t first = 0; first < used_; first += block_rows) {
      const std::size_t rows = std::min(block_rows, used_ - first);
      std::uint32_t open = all_of(rows);
      prefetch_block(first / block_rows + 2);
      if (block_.size() != 0) open &= nearest.find(block_.data() + first / block_rows * block_size_, block_scale_, norm_, found);
      for (; open != 0; open &= open - 1) {
        const auto r = static_cast<std::size_t>(__builtin_ctz(open));
        found[r] = static_cast<std::uint8_t>(nearest.decide(row(first + r)));
      }
      std::copy_n(found, rows, index + first);
    }
    return true;
  }

 private:
  static constexpr std::size_t block_rows = nearest_search<Leaf>::block_rows;
  static constexpr int most_unknown = 4;          // rows without a known centroid; with more, a block is searched as a whole. Not tuned
  static constexpr std::size_t gather_lead = 16;  // 16 rows of 64 floats fill a page, past whose end the hardware does not prefetch

  void prefetch(std::size_t i) const { prefetch_token(rows_[i]); }
  void prefetch_token(std::size_t t) const {
    if (points_.stride(1) != 1) return;
    const T* row = points_.data + t * points_.stride(0);
    for (std::size_t e = 0; e < ds_; e += cache_line_bytes / sizeof(T)) __builtin_prefetch(row + e);
  }

  // A block of rows of 64 coordinates fills a page, and the hardware does not prefetch past the end of a page. With this prefetch training
  // is 1.14 times as fast at 131072 rows, and as fast as without at 16384.
  // measured: bench/kmeans, Zen 5, 2026-11
  void prefetch_block(std::size_t b) const {
    if ((b + 1) * block_size_ > block_.size()) return;
    for (std::size_t e = 0; e < block_size_; e += cache_line_bytes / sizeof(std::int32_t))
      __builtin_prefetch(block_.data() + b * block_size_ + e);
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
    std::size_t ahead[gather_lead];
    for (std::size_t i = 0; i < std::min(gather_lead, sample.count); ++i) ahead[i] = sample(i);
    for (std::size_t i = 0; i < sample.count; ++i) {
      const std::size_t t = ahead[i % gather_lead];
      if (i + gather_lead < sample.count) prefetch_token(ahead[i % gather_lead] = sample(i + gather_lead));
      centre(t, y_);
      const float* y = y_;
      const row_extent extent = Leaf::measure(y, ds_);
      if (!is_finite(extent.largest)) continue;
      if (squared_radius_ != nullptr) {
        const float norm = canonical::dot(y, y, 1, ds_);
        if (!is_finite(norm)) continue;
        radius = canonical::max(norm, radius);
      }
      rows_[used_++] = static_cast<std::uint32_t>(t);
      largest_ = canonical::max(extent.largest, largest_);
      squared_norm_ = extent.squared_norm > squared_norm_ ? extent.squared_norm : squared_norm_;
    }
    if (squared_radius_ != nullptr) {
      *squared_radius_ = radius;
      largest_ = canonical::max(canonical::sqrt(radius), largest_);
      squared_norm_ = 1.0001f * radius;  // allows for the rounding of the added coordinate
    }
    owner_ = buffer<std::uint8_t>((used_ + block_rows - 1) / block_rows * block_rows);
    count_ = buffer<std::uint32_t>(c_);
    sum_ = buffer<std::int64_t>(c_ * width_);
  }

  /// Goes through the rows in random order and takes each row that differs from all taken so far, until there are c. If there are fewer
  /// distinct rows, they are repeated in turn. The caller's centroids are written only if there are at least c rows.
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
    for (std::size_t x = 0; x < c_; ++x)
      for (std::size_t e = 0; e < width_; ++e) centroids_[e * c_ + x] = taken[x % found * width_ + e];
    return true;
  }

  /// The first assignment. It also stores the rows, rounded, in blocks for later assignments, unless they cannot be scaled.
  void assign_all(const known_nearest& known) {
    if (has_shortlist_scale(squared_norm_)) {
      norm_ = norm_bound(squared_norm_);
      block_scale_ = shortlist_reach / norm_;
      block_size_ = (width_ + 1) / 2 * block_rows;
      block_ = buffer<std::int32_t>((used_ + block_rows - 1) / block_rows * block_size_);
    }
    nearest_search<Leaf> nearest(centroids_, c_, width_, used_);
    changed_search<Leaf> changed(nearest, known.changed, known.count);
    bool is_changed[max_centroids]{};
    for (std::size_t i = 0; i < known.count; ++i) is_changed[known.changed[i]] = true;
    row_tile<Leaf> y(width_);
    for (std::size_t first = 0; first < used_; first += block_rows) {
      const std::size_t rows = std::min(block_rows, used_ - first);
      for (std::size_t r = 0; r < rows; ++r) {
        if (first + r + gather_lead < used_) prefetch(first + r + gather_lead);
        load(first + r, y.row(r));
      }
      y.clear(rows, block_rows);
      std::uint8_t* const owner = owner_.data() + first;
      std::uint32_t open = all_of(rows);
      if (block_.size() != 0) {
        std::int32_t* const block = block_.data() + first / block_rows * block_size_;
        Leaf::write_block(y.row(0), y.stride(), width_, block_scale_, block);
        std::uint8_t before[block_rows]{};
        const std::uint32_t unknown = changed.usable() ? look_up(known, is_changed, first, rows, before) : ~std::uint32_t{0};
        if (std::popcount(unknown) > most_unknown)
          open &= nearest.find(block, block_scale_, norm_, owner);
        else
          open &= changed.find(block, block_scale_, norm_, before, owner) | unknown;
      }
      for (; open != 0; open &= open - 1) {
        const auto r = static_cast<std::size_t>(__builtin_ctz(open));
        owner[r] = static_cast<std::uint8_t>(nearest.decide(y.row(r)));
      }
      for (std::size_t r = 0; r < rows; ++r) {
        Leaf::accumulate(y.row(r), scale_, width_, sum_.data() + owner[r] * width_);
        ++count_[owner[r]];
      }
    }
  }

  /// Copies the known centroids of a block's rows to `before`. Returns a bit for each row, set if its nearest centroid is not known: its
  /// centroid has changed, or its code is 0, which keys that are not finite have too.
  std::uint32_t look_up(const known_nearest& known, const bool* is_changed, std::size_t first, std::size_t rows,
                        std::uint8_t* before) const {
    std::uint32_t unknown = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      before[r] = known.index[rows_[first + r]];
      unknown |= std::uint32_t{before[r] == 0 || is_changed[before[r]]} << r;
    }
    return unknown;
  }

  /// The rows of one block that must be read from the caller's memory again, as bits.
  struct reread {
    std::size_t first = 0;
    std::uint32_t open = 0, moved = 0;  // rows not yet decided; rows whose cluster has changed
    std::uint8_t index[block_rows];
  };

  /// Assigns every row. Returns whether a row changed its cluster.
  bool assign() {
    nearest_search<Leaf> nearest(centroids_, c_, width_, used_);
    reread found[2];
    changed_ = false;
    for (std::size_t first = 0, turn = 0; first < used_; first += block_rows, turn ^= 1) {
      reread& now = found[turn];
      now.first = first;
      now.open = all_of(std::min(block_rows, used_ - first));
      now.moved = 0;
      prefetch_block(first / block_rows + 2);
      if (block_.size() != 0) {
        const std::uint32_t close = nearest.find(block_.data() + first / block_rows * block_size_, block_scale_, norm_, now.index);
        // If all are close, the block may not have been searched, and now.index may hold nothing.
        if (close != ~std::uint32_t{0}) now.moved = now.open & ~close & differing(now.index, owner_.data() + first);
        now.open &= close;
      }
      for (std::uint32_t left = now.open | now.moved; left != 0; left &= left - 1)
        prefetch(first + static_cast<std::size_t>(__builtin_ctz(left)));
      settle(nearest, found[turn ^ 1]);  // the block before this one: its prefetched rows have arrived in a cache by now
    }
    settle(nearest, found[0]);
    settle(nearest, found[1]);
    return changed_;
  }

  static std::uint32_t all_of(std::size_t rows) { return ~std::uint32_t{0} >> (block_rows - rows); }

  static std::uint32_t differing(const std::uint8_t* a, const std::uint8_t* b) {
    std::uint32_t bits = 0;
    for (std::size_t r = 0; r < block_rows; r += 8) {
      if (std::memcmp(a + r, b + r, 8) == 0) continue;
      for (std::size_t k = r; k < r + 8; ++k) bits |= static_cast<std::uint32_t>(a[k] != b[k]) << k;
    }
    return bits;
  }

  /// Decides the rows still open and moves the rows whose cluster changed. Sums are exact, so moving a row from one sum to another gives
  /// the same as adding up all rows again.
  void settle(const nearest_search<Leaf>& nearest, reread& rows) {
    for (std::uint32_t left = rows.open | rows.moved; left != 0; left &= left - 1) {
      const auto r = static_cast<std::size_t>(__builtin_ctz(left));
      const float* const y = row(rows.first + r);
      if ((rows.open >> r & 1u) != 0) rows.index[r] = static_cast<std::uint8_t>(nearest.decide(y));
      std::uint8_t& owner = owner_[rows.first + r];
      const std::size_t from = owner, to = rows.index[r];
      if (from == to) continue;
      Leaf::transfer(y, scale_, width_, sum_.data() + from * width_, sum_.data() + to * width_);
      --count_[from];
      ++count_[to];
      owner = rows.index[r];
      changed_ = true;
    }
    rows.open = rows.moved = 0;
  }

  /// In ascending order, every empty cluster takes the farthest row of the fullest cluster; ties go to the lower index.
  void fill_empty() {
    for (std::size_t empty = 0; empty < c_; ++empty) {
      if (count_[empty] != 0) continue;
      std::size_t fullest = 0;
      for (std::size_t x = 1; x < c_; ++x)
        if (count_[x] > count_[fullest]) fullest = x;
      std::size_t farthest = used_;
      float largest = 0;
      for (std::size_t i = 0; i < used_; ++i) {
        if (owner_[i] != fullest) continue;  // a cluster that has just taken its only row is never the fullest
        const float distance = canonical::squared_distance(row(i), centroids_ + fullest, c_, width_);
        if (farthest == used_ || distance > largest) farthest = i, largest = distance;
      }
      Leaf::transfer(row(farthest), scale_, width_, sum_.data() + fullest * width_, sum_.data() + empty * width_);
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
  float largest_ = 0, squared_norm_ = 0;   // the largest |y_i| and |y|^2
  float scale_ = 1;                        // scale of the fixed-point sums
  float norm_ = 0, block_scale_ = 0;       // an upper bound of every |y|; the scale of the rounded rows in block_
  std::size_t block_size_ = 0;
  bool changed_ = false;
  buffer<std::int32_t> block_;  // [rows / block_rows][block_size]
  buffer<std::uint32_t> rows_, count_;
  buffer<std::uint8_t> owner_;
  buffer<std::int64_t> sum_;  // [c, width]
  alignas(cache_line_bytes) float y_[max_head_dim + 1];
  alignas(cache_line_bytes) float copy_[max_head_dim];
};

}  // namespace detail

template <>
struct kernel<op::kmeans, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::kmeans::sizes&) { return 0; }  // training takes heap memory

  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 4, Space> points, view<const float, 3> offset, view<float, 4> centroids,
                  view<std::uint8_t, 2> outcome, const kmeans_params& params, view<float, 2> squared_radius);
};

template <class P, class T, class Space>
void kernel<op::kmeans, backend::host>::run(const P& policy, view<T, 4, Space> points, view<const float, 3> offset,
                                            view<float, 4> centroids, view<std::uint8_t, 2> outcome, const kmeans_params& params,
                                            view<float, 2> squared_radius) {
  const std::size_t m = points.extent(1);
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    using leaf = detail::leaf<decltype(isa)>;
    detail::run_tasks(policy, points.extent(0) * m, [&](std::size_t problem) {
      const std::size_t head = problem / m, j = problem % m;
      const view<const std::remove_cv_t<T>, 2> rows = points[head][j];
      float* radius = squared_radius.data == nullptr ? nullptr : &squared_radius(head, j);
      detail::kmeans_problem<leaf, std::remove_cv_t<T>> lloyd(rows, &offset(head, j, 0), &centroids(head, j, 0, 0), centroids.extent(3),
                                                              radius);
      outcome(head, j) = static_cast<std::uint8_t>(lloyd.run(params, problem + 1));
    });
  });
}

PQKV_HOST_OPERATION(op::kmeans, view<const float, 4>, view<const float, 3>, view<float, 4>, view<std::uint8_t, 2>, const kmeans_params&,
                    view<float, 2>)
PQKV_HOST_OPERATION(op::kmeans, view<float, 4>, view<const float, 3>, view<float, 4>, view<std::uint8_t, 2>, const kmeans_params&,
                    view<float, 2>)
PQKV_HOST_OPERATION(op::kmeans, view<const half, 4>, view<const float, 3>, view<float, 4>, view<std::uint8_t, 2>, const kmeans_params&,
                    view<float, 2>)
PQKV_HOST_OPERATION(op::kmeans, view<half, 4>, view<const float, 3>, view<float, 4>, view<std::uint8_t, 2>, const kmeans_params&,
                    view<float, 2>)
PQKV_HOST_OPERATION(op::kmeans, view<const bfloat16, 4>, view<const float, 3>, view<float, 4>, view<std::uint8_t, 2>, const kmeans_params&,
                    view<float, 2>)
PQKV_HOST_OPERATION(op::kmeans, view<bfloat16, 4>, view<const float, 3>, view<float, 4>, view<std::uint8_t, 2>, const kmeans_params&,
                    view<float, 2>)

}  // namespace pqkv
