// SPDX-License-Identifier: Apache-2.0
// k-means on the device. A cluster of CTAs takes one problem (a head and subspace) through all iterations, so one launch trains a codebook.
// Every iteration reads the rows from the caller's memory, assigns them by the canonical distance (after a shortlist by matrix products
// where dimension and layout allow it), and sums them in fixed point, where the order of additions does not matter. So the centroids have
// the same bits as the host's.
#pragma once

#include "../../quantize/kmeans.hpp"
#include "arena.cuh"
#include "block/cluster.cuh"
#include "block/initial_rows.cuh"
#include "block/kmeans.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// One CTA's part of the work on one problem; a team of CTAs shares the problem.
/// @tparam Groups  ds / 32 where quick_rows can take the rows, or 0
template <class T, class Space, unsigned Groups>
class kmeans_problem_part {
  static constexpr bool quick = Groups != 0;
  static constexpr unsigned tile_rows = tuning::kmeans_tile_tokens, threads = kmeans_tile::threads, stride = kmeans_tile::row_stride;
  static_assert(threads >= max_centroids && threads >= tile_rows);

 public:
  struct none {};
  struct scratch {
    std::conditional_t<quick, none, kmeans_tile> tile;
    typename quick_rows<T, Groups>::scratch rows;
    block::reduction<std::uint64_t, threads> wide;
    block::reduction<std::uint32_t, threads> narrow;
    float candidate[max_head_dim + 1];
    std::uint32_t count[quick ? 1 : max_centroids], members;
    union {
      block::initial_rows<threads, max_centroids> initial;
      typename quick_rows<T, Groups>::waiting_rows waiting;
    };
  };

  /// Bytes of dynamic shared memory: for a tile of rows or for the centroids as operands, and for the CTA's own sums if they fit.
  static constexpr std::size_t shared_bytes(std::size_t width, std::size_t c, bool sums_in_shared) {
    if constexpr (quick)
      return quick_rows<T, Groups>::shared_bytes(c, sums_in_shared);
    else
      return block::shared_memory::bytes<float>(width * stride) +
             (sums_in_shared ? block::shared_memory::bytes<std::int64_t>(c * width) : 0);
  }

  __device__ kmeans_problem_part(scratch& own, block::shared_memory shared, const block::cluster_team& team, view<const T, 2, Space> points,
                                 const float* offset, float* centroids, unsigned c, bool on_sphere, bool sums_in_shared,
                                 const kmeans_memory& memory)
      : scratch_(own),
        team_(team),
        points_(points),
        offset_(offset),
        centroids_(centroids),
        memory_(memory),
        c_(c),
        ds_(static_cast<unsigned>(points.extent(1))),
        width_(ds_ + (on_sphere ? 1 : 0)),
        on_sphere_(on_sphere),
        y_(quick ? nullptr : shared.take<float>(width_ * stride)),
        sums_(!quick && sums_in_shared ? shared.take<std::int64_t>(c_ * width_) : nullptr),
        rows_(make_rows(shared, sums_in_shared)) {}

  __device__ kmeans_outcome run(const kmeans_params& params, std::uint64_t stream, float* squared_radius) {
    gather_rows(training_rows(params, points_.extent(0), c_));
    if (on_sphere_ && team_.rank() == 0 && threadIdx.x == 0) *squared_radius = float_from_bits(memory_.state->radius);
    if (params.start == kmeans_start::drawn) draw_initial({params.seed, stream});
    if (params.start == kmeans_start::drawn ? memory_.state->trained == 0 : used_ < c_) return kmeans_outcome::too_few_rows;
    float largest = float_from_bits(memory_.state->largest);
    if (on_sphere_) largest = canonical::max(canonical::sqrt(float_from_bits(memory_.state->radius)), largest);
    scale_ = canonical::power_of_two(canonical::fixed_point_exponent(largest));
    if constexpr (quick) rows_.scale(largest);
    for (std::size_t iteration = 0; iteration < params.iterations; ++iteration) {
      if (!quick || iteration == 0) clear_sums();
      if constexpr (quick)
        assign_quickly(iteration, largest);
      else
        assign(static_cast<unsigned>(iteration % 2));
      // If no row moved, no cluster is empty and no centroid will change.
      if (iteration != 0 && memory_.state->changed[iteration % 2] == 0) break;
      if (team_.rank() == 0) fill_empty(static_cast<unsigned>((iteration + 1) % 2));
      team_.sync();
      update();
      team_.sync();
    }
    return kmeans_outcome::trained;
  }

 private:
  __device__ auto make_rows(block::shared_memory& shared, bool sums_in_shared) const {
    if constexpr (quick)
      return quick_rows<T, Groups>(shared, scratch_.rows, scratch_.waiting, points_.data, points_.stride(0), offset_, c_, memory_,
                                   sums_in_shared);
    else
      return none{};
  }
  __device__ float element(std::size_t t, unsigned e) const { return canonical::sub(static_cast<float>(points_(t, e)), offset_[e]); }
  __device__ float radius() const { return float_from_bits(memory_.state->radius); }
  /// Loads the rows numbered row_at(0) to row_at(count - 1) into the tile, without the coordinate that lift() adds.
  template <class RowAt>
  __device__ void load(unsigned count, RowAt row_at) {
    __syncthreads();
    unsigned lanes = 1;  // threads side by side in a row: a power of two, so that no division is needed to find an element
    while (lanes < ds_ && lanes < threads) lanes *= 2;
    for (unsigned e = threadIdx.x & (lanes - 1); e < ds_; e += lanes) {
      const T* column = points_.data + e * points_.stride(1);
#pragma unroll 8
      for (unsigned r = threadIdx.x / lanes; r < tile_rows; r += threads / lanes) {  // all loads before the first use
        const float x = static_cast<float>(column[row_at(r < count ? r : 0) * points_.stride(0)]);
        y_[e * stride + r] = r < count ? canonical::sub(x, offset_[e]) : 0.0f;
      }
    }
    __syncthreads();
  }
  /// |y|^2 of row `r` of the tile.
  __device__ float norm(unsigned r) const {
    float acc = 0;
    for (unsigned e = 0; e < ds_; ++e) acc = canonical::fma(y_[e * stride + r], y_[e * stride + r], acc);
    return acc;
  }
  __device__ void lift() {
    if (on_sphere_ && threadIdx.x < tile_rows) y_[ds_ * stride + threadIdx.x] = canonical::sphere_coordinate(radius(), norm(threadIdx.x));
    __syncthreads();
  }

  /// Lists the sample's usable rows in ascending order, and finds the largest of their elements and norms. Each CTA of the team takes one
  /// run of the sample.
  __device__ void gather_rows(const stratified_sample& sample) {
    const std::uint32_t all = static_cast<std::uint32_t>(sample.count), share = (all / team_.size() + tile_rows) / tile_rows * tile_rows,
                        begin = share * team_.rank() < all ? share * team_.rank() : all, end = all - begin < share ? all : begin + share;
    if (team_.rank() == 0 && threadIdx.x == 0) *memory_.state = {};
    team_.sync();
    std::uint32_t mine = 0, largest = 0, radius = 0;
    if constexpr (quick) {
      largest = rows_.look(sample, begin, end);
      __syncthreads();
      for (std::uint32_t i = begin + threadIdx.x; i < end; i += threads) mine += memory_.owner[i];
    } else {
      for (std::uint32_t first = begin; first < end; first += tile_rows) {
        const unsigned here = end - first < tile_rows ? end - first : tile_rows;
        load(here, [&](unsigned r) { return sample(first + r); });
        if (threadIdx.x >= here) continue;
        const float square = on_sphere_ ? norm(threadIdx.x) : 0.0f;
        const std::uint32_t most = largest_magnitude(y_ + threadIdx.x, stride, ds_);
        const bool usable = most < 0x7f800000u && is_finite(square);
        memory_.owner[first + threadIdx.x] = usable ? 1 : 0;  // until the first assignment: whether the row is used
        if (!usable) continue;
        ++mine;
        largest = most > largest ? most : largest;
        radius = float_bits(square) > radius ? float_bits(square) : radius;
      }
    }
    largest = scratch_.narrow.max(largest);
    radius = scratch_.narrow.max(radius);
    mine = scratch_.narrow.sum(mine);
    if (threadIdx.x == 0) {
      scratch_.members = mine;
      atomicMax(&memory_.state->largest, largest);
      atomicMax(&memory_.state->radius, radius);
      atomicAdd(&memory_.state->used, mine);
    }
    team_.sync();
    std::uint32_t place = 0;
    for (unsigned rank = 0; rank < team_.rank(); ++rank) place += *team_.remote(&scratch_.members, rank);
    for (std::uint32_t first = begin; first < end; first += threads) {
      const std::uint32_t i = first + threadIdx.x;
      const bool usable = i < end && memory_.owner[i] != 0;
      std::uint32_t here = 0;
      const std::uint32_t below = scratch_.narrow.prefix(usable ? 1u : 0u, here);
      if (usable) {
        memory_.rows[place + below] = static_cast<std::uint32_t>(sample(i));
        if (quick) memory_.distance[place + below] = float_from_bits(memory_.order[i]);
      }
      place += here;
    }
    team_.sync();
    used_ = memory_.state->used;
    for (std::uint32_t i = team_.rank() * threads + threadIdx.x; i < used_; i += team_.size() * threads) memory_.order[i] = i;
    team_.sync();
  }

  /// One CTA loads y of training row i into candidate[width].
  __device__ void load_candidate(std::uint32_t i) {
    const std::size_t t = memory_.rows[i];
    for (unsigned e = threadIdx.x; e < ds_; e += threads) scratch_.candidate[e] = element(t, e);
    __syncthreads();
    if (on_sphere_ && threadIdx.x == 0)
      scratch_.candidate[ds_] = canonical::sphere_coordinate(radius(), canonical::dot(scratch_.candidate, scratch_.candidate, 1, ds_));
    __syncthreads();
  }

  /// Goes through the rows in random order and takes each row that differs from all taken so far, in batches of as many rows as are still
  /// missing. The team's first CTA does it alone. The caller's centroids are written only if there are at least c rows.
  __device__ void draw_initial(random_stream draws) {
    unsigned found = 0;
    for (std::uint32_t step = 0; team_.rank() == 0 && used_ >= c_ && step < used_ && found < c_;) {
      const unsigned batch = used_ - step < c_ - found ? used_ - step : c_ - found;
      scratch_.initial.draw(draws, step, batch, memory_.order, used_);
      for (unsigned at = threadIdx.x; at < batch * ds_; at += threads)
        memory_.taken[(found + at / ds_) * width_ + at % ds_] = element(memory_.rows[scratch_.initial.drawn(at / ds_)], at % ds_);
      __syncthreads();
      if (on_sphere_ && threadIdx.x < batch) {
        float* row = memory_.taken + (found + threadIdx.x) * width_;
        row[ds_] = canonical::sphere_coordinate(radius(), canonical::dot(row, row, 1, ds_));
      }
      found = scratch_.initial.keep_distinct(memory_.taken, width_, found, batch);
      step += batch;
    }
    if (team_.rank() == 0 && used_ >= c_) {  // fewer distinct rows than c are repeated in turn
      for (unsigned at = threadIdx.x; at < c_ * width_; at += threads)
        centroids_[at % width_ * c_ + at / width_] = memory_.taken[at / width_ % found * width_ + at % width_];
      if (threadIdx.x == 0) memory_.state->trained = 1;
    }
    team_.sync();
  }

  __device__ void clear_sums() {
    for (unsigned at = team_.rank() * threads + threadIdx.x; at < c_ * width_; at += team_.size() * threads) memory_.sum[at] = 0;
    for (unsigned x = team_.rank() * threads + threadIdx.x; x < c_; x += team_.size() * threads) memory_.count[x] = 0;
    for (unsigned at = threadIdx.x; sums_ != nullptr && at < c_ * width_; at += threads) sums_[at] = 0;
    for (unsigned x = threadIdx.x; !quick && x < c_; x += threads) scratch_.count[x] = 0;
    team_.sync();
  }

  __device__ void assign_quickly(std::size_t iteration, float largest) {
    // Centroids given by the caller may lie farther out than any row.
    const unsigned own = (c_ * ds_ - 1 - threadIdx.x) / threads + 1;  // at least 1: c * ds >= 512 where rows are quick
    const std::uint32_t most = iteration != 0 ? 0 : largest_magnitude(centroids_ + threadIdx.x, threads, own);
    if (iteration == 0) largest = canonical::max(float_from_bits(scratch_.narrow.max(most)), largest);
    const bool any = rows_.assign(team_, used_, centroids_, iteration == 0, scale_, largest);
    if (__syncthreads_or(any ? 1 : 0) != 0 && threadIdx.x == 0) atomicOr(&memory_.state->changed[iteration % 2], 1u);
    team_.sync();
  }

  /// Assigns the rows of this CTA's tiles and adds them to the sums.
  __device__ void assign(unsigned parity) {
    bool moved = false;
    for (std::uint32_t first = team_.rank() * tile_rows; first < used_; first += team_.size() * tile_rows) {
      const unsigned here = used_ - first < tile_rows ? used_ - first : tile_rows;
      load(here, [&](unsigned r) { return memory_.rows[first + r]; });
      lift();
      scratch_.tile.find(y_, width_, centroids_, c_);
      if (threadIdx.x < here) {
        const std::uint64_t nearest = scratch_.tile.best[threadIdx.x];
        const std::uint8_t owner = static_cast<std::uint8_t>(nearest & 0xffu);
        moved |= memory_.owner[first + threadIdx.x] != owner;
        memory_.owner[first + threadIdx.x] = owner;
        memory_.distance[first + threadIdx.x] = float_from_bits(static_cast<std::uint32_t>(nearest >> 32));
        atomicAdd(&scratch_.count[owner], 1u);
      }
      add_tile(here);
    }
    const bool any = __syncthreads_or(moved ? 1 : 0) != 0;
    if (any && threadIdx.x == 0) atomicOr(&memory_.state->changed[parity], 1u);
    for (unsigned at = threadIdx.x; sums_ != nullptr && at < c_ * width_; at += threads)
      if (sums_[at] != 0) add_to_sum(&memory_.sum[at], sums_[at]);
    for (unsigned x = threadIdx.x; x < c_; x += threads)
      if (scratch_.count[x] != 0) atomicAdd(&memory_.count[x], scratch_.count[x]);
    team_.sync();
  }

  /// Each pair of a coordinate and a centroid belongs to one thread, so no two threads add to the same sum.
  __device__ void add_tile(unsigned here) {
    unsigned lanes = 1;
    while (lanes < width_ && lanes < threads) lanes *= 2;
    const unsigned classes = threads / lanes, own = threadIdx.x / lanes;
    for (unsigned e = threadIdx.x & (lanes - 1); e < width_; e += lanes)
      for (unsigned r = 0; r < here; ++r) {
        const unsigned x = static_cast<unsigned>(scratch_.tile.best[r] & 0xffu);
        if ((x & (classes - 1)) != own) continue;
        const std::int64_t term = canonical::fixed_point(y_[e * stride + r], scale_);
        if (sums_ != nullptr)
          sums_[x * width_ + e] += term;
        else
          add_to_sum(&memory_.sum[x * width_ + e], term);
      }
  }

  __device__ float distance_to([[maybe_unused]] std::uint32_t i, [[maybe_unused]] unsigned own_centroid) const {
    if constexpr (quick)
      return rows_.distance(i, centroids_, own_centroid);
    else
      return memory_.distance[i];
  }

  /// In ascending order, every empty cluster takes the farthest row of the fullest cluster; ties go to the lower index. By one CTA.
  __device__ void fill_empty(unsigned next_parity) {
    if (threadIdx.x == 0) memory_.state->changed[next_parity] = 0;
    if (__syncthreads_or(threadIdx.x < c_ && memory_.count[threadIdx.x] == 0 ? 1 : 0) == 0) return;
    for (unsigned empty = 0; empty < c_; ++empty) {
      if (memory_.count[empty] != 0) continue;
      const std::uint64_t size = threadIdx.x < c_ ? std::uint64_t{memory_.count[threadIdx.x]} << 32 | (max_centroids - 1 - threadIdx.x) : 0;
      const unsigned fullest = max_centroids - 1 - static_cast<unsigned>(scratch_.wide.max(size) & 0xffffffffu);
      std::uint64_t distant = 0;
      for (std::uint32_t i = threadIdx.x; i < used_; i += threads)
        if (memory_.owner[i] == fullest) {
          const std::uint64_t key = std::uint64_t{float_bits(distance_to(i, fullest))} << 32 | (0xffffffffu - i);
          distant = key > distant ? key : distant;
        }
      const std::uint32_t farthest = 0xffffffffu - static_cast<std::uint32_t>(scratch_.wide.max(distant));
      load_candidate(farthest);
      for (unsigned e = threadIdx.x; e < width_; e += threads) {
        const std::int64_t term = canonical::fixed_point(scratch_.candidate[e], scale_);
        memory_.sum[fullest * width_ + e] -= term;
        memory_.sum[empty * width_ + e] += term;
      }
      if (threadIdx.x == 0) {
        --memory_.count[fullest];
        ++memory_.count[empty];
        memory_.owner[farthest] = static_cast<std::uint8_t>(empty);
      }
      __syncthreads();
    }
  }

  __device__ void update() {
    for (unsigned at = team_.rank() * threads + threadIdx.x; at < c_ * width_; at += team_.size() * threads) {
      const unsigned x = at / width_, e = at % width_;
      centroids_[e * c_ + x] = canonical::fixed_point_mean(memory_.sum[at], memory_.count[x], scale_);
    }
  }

  scratch& scratch_;
  const block::cluster_team& team_;
  view<const T, 2, Space> points_;  // [n, ds]
  const float* offset_;
  float* centroids_;  // [width, c]
  kmeans_memory memory_;
  unsigned c_, ds_, width_;  // width: ds, or ds + 1 with the coordinate of lift()
  bool on_sphere_;
  std::uint32_t used_ = 0;
  float scale_ = 1;
  float* y_;            // [width, stride] in shared memory
  std::int64_t* sums_;  // [c, width] in shared memory; null: rows are added to the problem's sums directly
  std::conditional_t<quick, quick_rows<T, Groups>, none> rows_;
};

/// grid.x: CTAs of a cluster; grid.y: problems.
template <class T, class Space, unsigned Groups>
PQKV_HIDDEN __global__ void __launch_bounds__(kmeans_tile::threads, 2)
    kmeans_kernel(view<T, 4, Space> points, view<const float, 3, space::device> offset, view<float, 4, space::device> centroids,
                  view<std::uint8_t, 2, space::device> outcome, kmeans_params params, view<float, 2, space::device> squared_radius,
                  kmeans_memory memory, unsigned sums_in_shared) {
  using part = kmeans_problem_part<std::remove_cv_t<T>, Space, Groups>;
  __shared__ typename part::scratch scratch;
  const std::size_t problem = blockIdx.y, m = points.extent(1), head = problem / m, j = problem % m, c = centroids.extent(3);
  const bool on_sphere = squared_radius.data != nullptr;
  const block::cluster_team team(gridDim.x);
  const kmeans_memory own = memory.of(problem, training_rows(params, points.extent(2), c).count, c, centroids.extent(2));
  part lloyd(scratch, block::shared_memory(), team, points[head][j], &offset(head, j, 0), &centroids(head, j, 0, 0),
             static_cast<unsigned>(c), on_sphere, sums_in_shared != 0, own);
  const kmeans_outcome result = lloyd.run(params, problem + 1, on_sphere ? &squared_radius(head, j) : nullptr);
  if (team.rank() == 0 && threadIdx.x == 0) outcome(head, j) = static_cast<std::uint8_t>(result);
}

}  // namespace detail

template <>
struct kernel<op::kmeans, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::kmeans::sizes& sizes) { return detail::kmeans_device_scratch_bytes(sizes); }

  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 4, Space> points, view<const float, 3, space::device> offset,
                  view<float, 4, space::device> centroids, view<std::uint8_t, 2, space::device> outcome, const kmeans_params& params,
                  view<float, 2, space::device> squared_radius) {
    const detail::launcher launch(policy, "kmeans");
    const std::size_t problems = points.extent(0) * points.extent(1), n = points.extent(2), ds = points.extent(3),
                      width = centroids.extent(2), c = centroids.extent(3);
    arena memory = detail::device_scratch(policy.scratch, scratch_bytes({problems, n, width, c, params}), "kmeans");
    const detail::kmeans_memory own(memory, problems, training_rows(params, n, c).count, c, width);
    const auto go = [&]<unsigned Groups>(std::integral_constant<unsigned, Groups>) {
      using part = detail::kmeans_problem_part<std::remove_cv_t<T>, Space, Groups>;
      const auto kernel = detail::kmeans_kernel<T, Space, Groups>;
      unsigned cluster = launch.largest_cluster(kernel);
      while (cluster > 1 && cluster * problems > 2 * detail::tuning::multiprocessors) cluster /= 2;
      const std::size_t room = launch.shared_limit() - sizeof(typename part::scratch) - 1024;
      const bool sums_in_shared = part::shared_bytes(width, c, true) <= room;
      launch("kmeans_kernel", kernel,
             {dim3(cluster, static_cast<unsigned>(problems)), detail::kmeans_tile::threads, part::shared_bytes(width, c, sums_in_shared),
              cluster},
             points, offset, centroids, outcome, params, squared_radius, own, sums_in_shared ? 1 : 0);
    };
    using rows = detail::quick_rows<std::remove_cv_t<T>, 1>;
    if (width == ds && points.stride(3) == 1 && rows::takes(points.data, points.stride(0), points.stride(1), points.stride(2))) {
      if (ds == 32) return go(std::integral_constant<unsigned, 1>{});
      if (ds == 64) return go(std::integral_constant<unsigned, 2>{});
      if (ds == 128) return go(std::integral_constant<unsigned, 4>{});
    }
    go(std::integral_constant<unsigned, 0>{});
  }
};

}  // namespace pqkv
