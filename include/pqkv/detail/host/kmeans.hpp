// SPDX-License-Identifier: Apache-2.0
// k-means on the host. A task is one problem (a head and subspace). Rows are visited in ascending order, assigned by the canonical
// distance, and summed in fixed point. Rows are centred and rounded to 16 bits once, in the first iteration. Later iterations search these
// copies; they read from the caller's memory only the rows whose nearest centroid the copies cannot decide or whose cluster changes. Once
// most centroids stay where they are, a row whose own centroid has not moved is compared only with those that have.
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
#include "kmeans_rows.hpp"

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
template <class Kernels, class T>
class kmeans_problem {
 public:
  /// @param squared_radius  written; null: the plain squared L2 distance is used
  kmeans_problem(view<const T, 2> points, const float* offset, float* centroids, std::size_t c, float* squared_radius,
                 const kmeans_params& params)
      : row_(points, offset, squared_radius, training_rows(params, points.extent(0), c)),
        centroids_(centroids),
        params_(params),
        c_(c),
        width_(row_.width()),
        on_sphere_(squared_radius != nullptr),
        owner_((row_.size() + block_rows - 1) / block_rows * block_rows),
        count_(c),
        sum_(c * width_) {}

  /// @param known  nearest centroids of the points; saves time and changes no bit. Not used with a squared radius, which moves all points
  kmeans_outcome run(std::uint64_t stream, const known_nearest& known = {}) {
    const bool begun = params_.start == kmeans_start::given ? row_.size() >= c_ : row_.draw({params_.seed, stream}, centroids_, c_);
    if (!begun) return kmeans_outcome::too_few_rows;
    scale_ = canonical::power_of_two(canonical::fixed_point_exponent(row_.largest()));
    for (std::size_t iteration = 0; iteration < params_.iterations; ++iteration) {
      if (iteration == 0)
        assign_all(on_sphere_ ? known_nearest{} : known);
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
    if (!row_.all()) return false;
    assign();
    std::copy_n(owner_.data(), row_.size(), index);
    return true;
  }

 private:
  static constexpr std::size_t block_rows = nearest_search<Kernels>::block_rows;
  static constexpr int most_unknown = 4;  // rows without a known centroid; with more, a block is searched as a whole. Not tuned

  // A block of rows of 64 coordinates fills a page, and the hardware does not prefetch past the end of a page. With this prefetch training
  // is 1.14 times as fast at 131072 rows, and as fast as without at 16384.
  // measured: bench/kmeans, Zen 5, 2026-11
  void prefetch_block(std::size_t b) const {
    if ((b + 1) * block_size_ > block_.size()) return;
    for (std::size_t e = 0; e < block_size_; e += cache_line_bytes / sizeof(std::int32_t))
      __builtin_prefetch(block_.data() + b * block_size_ + e);
  }

  /// The first assignment. It also stores the rows, rounded, in blocks for later assignments, unless they cannot be scaled.
  void assign_all(const known_nearest& known) {
    if (has_shortlist_scale(row_.squared_norm())) {
      norm_ = norm_bound(row_.squared_norm());
      block_scale_ = shortlist_reach / norm_;
      block_size_ = (width_ + 1) / 2 * block_rows;
      block_ = buffer<std::int32_t>((row_.size() + block_rows - 1) / block_rows * block_size_);
    }
    nearest_search<Kernels> nearest(centroids_, c_, width_, row_.size());
    changed_search<Kernels> changed(nearest, known.changed, known.count);
    for (std::size_t i = 0; i < known.count; ++i) is_changed_[known.changed[i]] = true;
    row_tile<Kernels> y(width_);
    for (std::size_t first = 0; first < row_.size(); first += block_rows) {
      const std::size_t rows = std::min(block_rows, row_.size() - first);
      for (std::size_t r = 0; r < rows; ++r) {
        if (first + r + row_.prefetch_lead < row_.size()) row_.prefetch(first + r + row_.prefetch_lead);
        row_.load(first + r, y.row(r));
      }
      y.clear(rows, block_rows);
      std::uint8_t* const owner = owner_.data() + first;
      std::uint32_t open = first_bits(rows);
      if (block_.size() != 0) {
        std::int32_t* const block = block_.data() + first / block_rows * block_size_;
        Kernels::write_block(y.row(0), y.stride(), width_, block_scale_, block);
        std::uint8_t before[block_rows]{};
        const std::uint32_t unknown = changed.usable() ? look_up(known, first, rows, before) : ~std::uint32_t{0};
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
        Kernels::accumulate(y.row(r), scale_, width_, sum_.data() + owner[r] * width_);
        ++count_[owner[r]];
      }
    }
    std::fill_n(has_moved_, c_, true);
  }

  /// Copies the known centroids of a block's rows to `before`. Returns a bit for each row, set if its nearest centroid is not known: its
  /// centroid has changed, or its code is 0, which keys that are not finite have too.
  std::uint32_t look_up(const known_nearest& known, std::size_t first, std::size_t rows, std::uint8_t* before) const {
    std::uint32_t unknown = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      before[r] = known.index[row_.token(first + r)];
      unknown |= std::uint32_t{before[r] == 0 || is_changed_[before[r]]} << r;
    }
    return unknown;
  }

  /// Up to a block of rows that were searched for, and those that must be read from the caller's memory again, as bits.
  struct found_rows {
    std::uint32_t open = 0, moved = 0;  // rows not yet decided; rows whose cluster has changed
    std::uint32_t row[block_rows];
    std::uint8_t index[block_rows];
  };

  /// Assigns every row by the present centroids. Returns whether a row changed its cluster.
  bool assign() {
    nearest_search<Kernels> nearest(centroids_, c_, width_, row_.size());
    std::uint8_t changed[max_centroids];
    std::size_t changes = 0, rows = 0;
    for (std::size_t x = 0; x < c_; ++x) {
      if (!is_changed_[x]) continue;
      changed[changes++] = static_cast<std::uint8_t>(x);
      rows += count_[x];
    }
    if (changes == 0) return false;
    any_moved_ = false;
    changed_search<Kernels> among_changed(nearest, changed, changes);
    // Rows whose centroid has changed are compared with all centroids, the others with the changed ones. Each of the others also needs the
    // value of its own centroid, which costs as much as comparing about 40: counted from the instructions of AVX2, not measured.
    const std::size_t size = row_.size(), others = size - rows;
    if (block_.size() != 0 && among_changed.usable() && others * (changes + 40) + rows * c_ < size * c_)
      assign_pruned(nearest, among_changed);
    else
      assign_blocks(nearest);
    std::fill_n(is_changed_, c_, false);
    return any_moved_;
  }

  void assign_blocks(nearest_search<Kernels>& nearest) {
    found_rows found[2];
    for (std::size_t first = 0, turn = 0; first < row_.size(); first += block_rows, turn ^= 1) {
      prefetch_block(first / block_rows + 2);
      found[turn].open = first_bits(std::min(block_rows, row_.size() - first));
      for (std::size_t r = 0; r < block_rows; ++r) found[turn].row[r] = static_cast<std::uint32_t>(first + r);
      if (block_.size() != 0)
        note(found[turn], owner_.data() + first,
             nearest.find(block_.data() + first / block_rows * block_size_, block_scale_, norm_, found[turn].index));
      prefetch(found[turn]);
      decide(nearest, found[turn ^ 1]);  // the block before this one: its prefetched rows have arrived in a cache by now
    }
    decide(nearest, found[0]);
    decide(nearest, found[1]);
  }

  /// A row whose centroid has not changed is nearest to that one or to one of the changed ones. The other rows are gathered into blocks.
  void assign_pruned(nearest_search<Kernels>& nearest, changed_search<Kernels>& among_changed) {
    found_rows found[2], gathered;
    std::size_t waiting = 0;
    std::uint8_t owner[block_rows]{};
    buffer<std::int32_t> block(block_size_);
    const auto search_gathered = [&] {
      gathered.open = first_bits(waiting);
      waiting = 0;
      note(gathered, owner, nearest.find(block.data(), block_scale_, norm_, gathered.index));
      prefetch(gathered);
      decide(nearest, gathered);
    };
    for (std::size_t first = 0, turn = 0; first < row_.size(); first += block_rows, turn ^= 1) {
      prefetch_block(first / block_rows + 2);
      const std::int32_t* const from = block_.data() + first / block_rows * block_size_;
      found_rows& now = found[turn];
      now.open = first_bits(std::min(block_rows, row_.size() - first));
      for (std::uint32_t left = now.open; left != 0; left &= left - 1) {
        const auto r = static_cast<std::size_t>(__builtin_ctz(left));
        now.row[r] = static_cast<std::uint32_t>(first + r);
        if (!is_changed_[owner_[first + r]]) continue;
        now.open ^= std::uint32_t{1} << r;
        for (std::size_t pair = 0; pair < block_size_; pair += block_rows) block[pair + waiting] = from[pair + r];
        gathered.row[waiting] = now.row[r];
        owner[waiting] = owner_[first + r];
        if (++waiting == block_rows) search_gathered();
      }
      if (now.open != 0) note(now, owner_.data() + first, among_changed.find(from, block_scale_, norm_, owner_.data() + first, now.index));
      prefetch(now);
      decide(nearest, found[turn ^ 1]);
    }
    if (waiting != 0) search_gathered();
    decide(nearest, found[0]);
    decide(nearest, found[1]);
  }

  static std::uint32_t first_bits(std::size_t rows) { return ~std::uint32_t{0} >> (block_rows - rows); }

  /// @param owner  [block_rows] the present clusters of the rows
  /// @param close  what the search returned: a bit for each row that must be decided by the canonical distance
  static void note(found_rows& rows, const std::uint8_t* owner, std::uint32_t close) {
    // If all are close, the block may not have been searched, and the index may hold nothing.
    rows.moved = close == ~std::uint32_t{0} ? 0 : rows.open & ~close & differing(rows.index, owner);
    rows.open &= close;
  }

  static std::uint32_t differing(const std::uint8_t* a, const std::uint8_t* b) {
    std::uint32_t bits = 0;
    for (std::size_t r = 0; r < block_rows; r += 8) {
      if (std::memcmp(a + r, b + r, 8) == 0) continue;
      for (std::size_t k = r; k < r + 8; ++k) bits |= static_cast<std::uint32_t>(a[k] != b[k]) << k;
    }
    return bits;
  }

  void prefetch(const found_rows& rows) const {
    for (std::uint32_t left = rows.open | rows.moved; left != 0; left &= left - 1)
      row_.prefetch(rows.row[static_cast<std::size_t>(__builtin_ctz(left))]);
  }

  /// Decides the rows still open and moves the rows whose cluster changed.
  void decide(const nearest_search<Kernels>& nearest, found_rows& rows) {
    for (std::uint32_t left = rows.open | rows.moved; left != 0; left &= left - 1) {
      const auto r = static_cast<std::size_t>(__builtin_ctz(left));
      const float* const y = row_[rows.row[r]];
      if ((rows.open >> r & 1u) != 0) rows.index[r] = static_cast<std::uint8_t>(nearest.decide(y));
      if (rows.index[r] == owner_[rows.row[r]]) continue;
      move(rows.row[r], y, rows.index[r]);
      any_moved_ = true;
    }
    rows.open = rows.moved = 0;
  }

  /// Sums are exact, so moving a row from one sum to another gives the same as adding up all rows again.
  void move(std::size_t i, const float* y, std::uint8_t to) {
    const std::uint8_t from = owner_[i];
    Kernels::transfer(y, scale_, width_, sum_.data() + from * width_, sum_.data() + to * width_);
    --count_[from];
    ++count_[to];
    has_moved_[from] = has_moved_[to] = true;
    owner_[i] = to;
  }

  /// In ascending order, every empty cluster takes the farthest row of the fullest cluster; ties go to the lower index.
  void fill_empty() {
    for (std::size_t empty = 0; empty < c_; ++empty) {
      is_filled_[empty] = count_[empty] == 0;
      if (!is_filled_[empty]) continue;
      std::size_t fullest = 0;
      for (std::size_t x = 1; x < c_; ++x)
        if (count_[x] > count_[fullest]) fullest = x;
      std::size_t farthest = row_.size();
      float largest = 0;
      for (std::size_t i = 0; i < row_.size(); ++i) {
        if (owner_[i] != fullest) continue;  // a cluster that has just taken its only row is never the fullest
        const float distance = canonical::squared_distance(row_[i], centroids_ + fullest, c_, width_);
        if (farthest == row_.size() || distance > largest) farthest = i, largest = distance;
      }
      move(farthest, row_[farthest], static_cast<std::uint8_t>(empty));
    }
  }

  /// Moves the centroids to the means of their clusters.
  void update() {
    for (std::size_t x = 0; x < c_; ++x) {
      is_changed_[x] = is_filled_[x];  // the row that filled it may be nearer to another centroid, even if this one is as it was
      if (!std::exchange(has_moved_[x], false)) continue;
      for (std::size_t e = 0; e < width_; ++e) {
        const float before = std::exchange(centroids_[e * c_ + x], canonical::fixed_point_mean(sum_[x * width_ + e], count_[x], scale_));
        is_changed_[x] |= !(before == centroids_[e * c_ + x]);
      }
    }
  }

  kmeans_rows<Kernels, T> row_;
  float* centroids_;  // [width, c]
  kmeans_params params_;
  std::size_t c_, width_;  // width: ds, or ds + 1 on the sphere
  bool on_sphere_;
  float scale_ = 1;                   // scale of the fixed-point sums
  float norm_ = 0, block_scale_ = 0;  // an upper bound of every row's norm; the scale of the rounded rows in block_
  std::size_t block_size_ = 0;
  bool any_moved_ = false;
  bool has_moved_[max_centroids]{};   // clusters that have taken or given a row since the last update()
  bool is_filled_[max_centroids]{};   // clusters that were empty before it
  bool is_changed_[max_centroids]{};  // centroids that it changed, and those of clusters that were empty before it
  buffer<std::int32_t> block_;        // [rows / block_rows][block_size]
  buffer<std::uint8_t> owner_;
  buffer<std::uint32_t> count_;
  buffer<std::int64_t> sum_;  // [c, width]
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
    using kernels = detail::simd_kernels<decltype(isa)>;
    detail::run_tasks(policy, points.extent(0) * m, [&](std::size_t problem) {
      const std::size_t head = problem / m, j = problem % m;
      const view<const std::remove_cv_t<T>, 2> rows = points[head][j];
      float* radius = squared_radius.data == nullptr ? nullptr : &squared_radius(head, j);
      detail::kmeans_problem<kernels, std::remove_cv_t<T>> lloyd(rows, &offset(head, j, 0), &centroids(head, j, 0, 0), centroids.extent(3),
                                                                 radius, params);
      outcome(head, j) = static_cast<std::uint8_t>(lloyd.run(problem + 1));
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
