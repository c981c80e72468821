// SPDX-License-Identifier: Apache-2.0
// The memory of one k-means problem, and a fast path for rows that can be read in pieces of 16 bytes. Warps measure these rows once, then
// assign and sum them in every iteration, without a barrier until all rows are done. Matrix products shortlist the nearest centroids. A row
// with two candidates is put aside until its warp has many such rows; then the canonical distance decides them together.
#pragma once

#include "../../../core/canonical.hpp"
#include "../../../quantize/kmeans.hpp"
#include "../arena.cuh"
#include "../tuning.hpp"
#include "cluster.cuh"
#include "fixed_sums.cuh"
#include "half_shortlist.cuh"
#include "nearest.cuh"
#include "reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail {

using kmeans_tile = block::nearest_tile<tuning::kmeans_tile_tokens>;

/// Numbers of one problem, which the CTAs of its team share.
struct kmeans_state {
  std::uint32_t used, largest, radius;  // training rows; largest |y| and |y|^2 as bits
  std::uint32_t trained;
  std::uint32_t changed[2];  // whether a row changed its cluster; indexed by the parity of the iteration
};

/// Scratch of one problem.
struct kmeans_memory {
  std::uint32_t *rows, *order, *count;  // [sample], [sample], [c]
  float *distance, *taken;              // [sample] (in quick_rows: the bits of a row_measure); [c, width]
  std::int64_t* sum;                    // [c, width]
  std::uint8_t* owner;                  // [sample]
  kmeans_state* state;

  kmeans_memory(arena& memory, std::size_t problems, std::size_t sample, std::size_t c, std::size_t width)
      : rows(memory.take<std::uint32_t>(problems * sample)),
        order(memory.take<std::uint32_t>(problems * sample)),
        count(memory.take<std::uint32_t>(problems * c)),
        distance(memory.take<float>(problems * sample)),
        taken(memory.take<float>(problems * c * width)),
        sum(memory.take<std::int64_t>(problems * c * width)),
        owner(memory.take<std::uint8_t>(problems * sample)),
        state(memory.take<kmeans_state>(problems)) {}

  __device__ kmeans_memory of(std::size_t problem, std::size_t sample, std::size_t c, std::size_t width) const {
    kmeans_memory own = *this;
    own.rows += problem * sample, own.order += problem * sample, own.distance += problem * sample, own.owner += problem * sample;
    own.count += problem * c, own.taken += problem * c * width, own.sum += problem * c * width;
    own.state += problem;
    return own;
  }
};

/// The bits of the largest |y[e * stride]|. If an element is not finite, they are those of infinity or larger.
__device__ inline std::uint32_t largest_magnitude(const float* y, unsigned stride, unsigned count) {
  std::uint32_t most = 0;
  for (unsigned e = 0; e < count; ++e) {
    const std::uint32_t magnitude = float_bits(y[e * stride]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

__device__ inline void add_to_sum(std::int64_t* to, std::int64_t term) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(term));
}

/// The rows of one problem, and the work that one CTA of the problem's team does on them.
/// @tparam Groups  ds / 32
template <class T, unsigned Groups>
class quick_rows {
  using list = block::half_shortlist<T, Groups>;
  using sums = block::shared_sums<list::ds>;
  static constexpr unsigned ds = list::ds, threads = kmeans_tile::threads, warps = threads / 32, tile_rows = list::tile_rows,
                            decided_together = 16;  // rows with two candidates that a warp decides at once, with two lanes for each

 public:
  struct scratch {
    typename list::bounds bounds;
    std::uint32_t count[max_centroids];  // by how much the clusters' sizes have changed
  };
  /// Rows with two candidates that are put aside until a warp has many of them.
  struct waiting_rows {
    struct entry {
      std::uint32_t row;
      std::uint8_t first, second;
    };
    entry of_warp[warps][decided_together - 1 + tile_rows];
  };
  /// @param sums_in_shared  whether the CTA's own sums fit in shared memory
  static constexpr std::size_t shared_bytes(std::size_t c, bool sums_in_shared) {
    return list::shared_bytes(c) + (sums_in_shared ? sums::shared_bytes(c) : 0) +
           block::shared_memory::bytes<uint4>(warps * list::rows_of_warp);
  }
  /// Whether dense rows at `data`, and at multiples of the strides from it, can be read in pieces of 16 bytes.
  template <class... Stride>
  static bool takes(const T* data, Stride... strides) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && ((strides % list::of_piece == 0) && ...);
  }

  __device__ quick_rows(block::shared_memory& memory, scratch& own, waiting_rows& waiting, const T* rows, std::size_t stride,
                        const float* offset, unsigned c, const kmeans_memory& problem, bool sums_in_shared)
      : list_(memory, own.bounds, c),
        sums_(memory, sums_in_shared ? c : 0),
        tile_(memory.take<uint4>(warps * list::rows_of_warp) + warp() * list::rows_of_warp),
        scratch_(own),
        waiting_(waiting.of_warp[warp()]),
        rows_(rows),
        stride_(stride),
        offset_(offset),
        memory_(problem),
        c_(c),
        sums_in_shared_(sums_in_shared) {
    for (unsigned at = threadIdx.x; sums_in_shared_ && at < c_ * ds; at += threads) sums::clear(sums_.at(at / ds, at % ds));
    for (unsigned x = threadIdx.x; x < c_; x += threads) scratch_.count[x] = 0;
  }

  /// Measures rows [begin, end) of the sample. Writes whether row i is finite to owner[i], and its row_measure to order[i].
  /// @return  the largest |y_e| of the finite rows that this thread saw, as bits
  __device__ std::uint32_t look(const stratified_sample& sample, std::uint32_t begin, std::uint32_t end) const {
    std::uint32_t largest = 0;
#pragma unroll 2
    for (std::uint32_t first = begin + warp() * tile_rows; first < end; first += warps * tile_rows) {
      const std::uint32_t i = first + list::own_row();
      const std::uint32_t own = static_cast<std::uint32_t>(sample(list::own_row() < tile_rows && i < end ? i : begin));
      uint4 piece[list::slots][list::pieces];
#pragma unroll
      for (unsigned s = 0; s < list::slots; ++s) {
        const T* from = row(__shfl_sync(block::all_lanes, own, list::owner_lane(s)));
#pragma unroll
        for (unsigned p = 0; p < list::pieces; ++p) piece[s][p] = *reinterpret_cast<const uint4*>(from + list::element(p));
      }
      block::row_summary own_row{};
#pragma unroll
      for (unsigned s = 0; s < list::slots; ++s) {
        block::row_summary here{};
#pragma unroll
        for (unsigned p = 0; p < list::pieces; ++p) list::add(here, piece[s][p], offset_ + list::element(p));
        here.add_neighbours();
        if (threadIdx.x % 4 == s) own_row = here;
      }
      if (list::own_row() >= tile_rows || i >= end) continue;
      const bool finite = own_row.most < 0x7f800000u;
      memory_.owner[i] = finite ? 1 : 0;
      memory_.order[i] = own_row.measure().bits;
      if (finite && own_row.most > largest) largest = own_row.most;
    }
    return largest;
  }

  /// Sets the scale of the rows. Call it before the first assign().
  /// @param largest  at least every |y_e|
  __device__ void scale(float largest) {
    list_.template scale_rows<threads>(offset_, float_from_bits(largest_magnitude(offset_, 1, ds)), largest);
  }

  /// Assigns every row to its nearest centroid and adds the changes to the problem's counts and sums. All threads of the team call it. A
  /// barrier of the team must stand between the last write to the centroids and this call, and another between this call and the first use
  /// of the sums.
  /// @param largest  at least every |y_e| and every coordinate of a centroid
  /// @return  whether a row of this thread changed its cluster
  __device__ bool assign(const block::cluster_team& team, std::uint32_t used, const float* centroids, bool initial, float scale,
                         float largest) {
    list_.template stage<threads>(centroids, largest);
    constexpr std::uint32_t turns_a_flush = sums::most_terms / (tile_rows * warps) - 1;  // one less, for the rows that were put aside
    const std::uint32_t step = team.size() * warps * tile_rows, begin = (team.rank() * warps + warp()) * tile_rows,
                        turns = (used + step - 1) / step;
    const auto place = [&](std::uint32_t turn) {
      const std::uint32_t i = begin + turn * step + list::own_row();
      return list::own_row() < tile_rows && i < used ? i : used;
    };
    const auto fetch = [&](std::uint32_t of) {
      list::copy(tile_, [&](unsigned slot) { return row(__shfl_sync(block::all_lanes, of, list::owner_lane(slot))); });
    };
    bool any = false;
    unsigned waiting = 0;
    upcoming next = look_up(place(0), used);
    fetch(next.token);
    for (std::uint32_t turn = 0; turn < turns; ++turn) {
      if (turn != 0 && turn % turns_a_flush == 0) flush();
      const std::uint32_t i = place(turn);
      const bool is_there = i < used;
      member own{i, next.token, 0, is_there ? memory_.owner[i] : 0u};
      const block::row_measure measure = next.measure;
      next = look_up(place(turn + 1), used);
      typename list::rows x;
      list_.take(tile_, x);
      const auto found = list_.find(x, measure);
      own.owner = found.first;
      for (unsigned unsure = __ballot_sync(block::all_lanes, is_there && found.count > 2); unsure != 0; unsure &= unsure - 1) {
        const int who = __ffs(static_cast<int>(unsure)) - 1;
        const T* from = row(__shfl_sync(block::all_lanes, own.token, who));
        const unsigned decided = block::nearest_by_warp<Groups>(from, offset_, centroids, c_);
        if (lane() == static_cast<unsigned>(who)) own.owner = decided;
      }
      const bool waits = is_there && found.count == 2;
      const unsigned which = __ballot_sync(block::all_lanes, waits);
      if (waits)
        waiting_[waiting + static_cast<unsigned>(__popc(which & ((1u << lane()) - 1)))] = {i, static_cast<std::uint8_t>(found.first),
                                                                                           static_cast<std::uint8_t>(found.second)};
      waiting += static_cast<unsigned>(__popc(which));
      bool moved = is_there && !waits && (initial || own.before != own.owner);
      const unsigned may_wait = turn + 1 < turns ? decided_together - 1 : 0;
      for (bool in_tile = true;; in_tile = false) {
        any |= moved;
        __syncwarp();  // lanes read pieces of the tile that other lanes copied
        move(own, moved, in_tile, initial, scale);
        __syncwarp();
        // The last turn starts no copy. Nothing would wait for it before the next call copies to the same place, and two such copies may
        // end in any order.
        if (in_tile && turn + 1 < turns) fetch(next.token);
        if (waiting <= may_wait) break;
        const unsigned count = waiting < decided_together ? waiting : decided_together;
        waiting -= count;
        own = decide(waiting, count, centroids);
        moved = lane() % 2 == 0 && lane() / 2 < count && (initial || own.before != own.owner);
      }
    }
    flush();
    return any;
  }

  /// The canonical squared distance of training row i to a centroid.
  __device__ float distance(std::uint32_t i, const float* centroids, unsigned centroid) const {
    const T* from = row(memory_.rows[i]);
    float acc = 0;
    for (unsigned e = 0; e < ds; ++e) {
      const float difference = canonical::sub(canonical::sub(static_cast<float>(from[e]), offset_[e]), centroids[e * c_ + centroid]);
      acc = canonical::fma(difference, difference, acc);
    }
    return acc;
  }

 private:
  /// The row of a lane: its number among the training rows (i) and among the points (token), its new cluster and the one before.
  struct member {
    std::uint32_t i, token;
    unsigned owner, before;
  };

  /// The number and measure of the row that a lane gets in the next turn.
  struct upcoming {
    std::uint32_t token;
    block::row_measure measure;
  };

  __device__ static unsigned lane() { return threadIdx.x % 32; }
  __device__ static unsigned warp() { return threadIdx.x / 32; }
  __device__ const T* row(std::uint32_t t) const { return rows_ + t * stride_; }
  __device__ upcoming look_up(std::uint32_t i, std::uint32_t used) const {
    return {memory_.rows[i < used ? i : 0], {i < used ? float_bits(memory_.distance[i]) : 0}};
  }

  /// A warp decides rows [first, first + count) of those put aside, count <= decided_together; lane 2 r returns the r-th of them.
  __device__ member decide(unsigned first, unsigned count, const float* centroids) const {
    __syncwarp();
    const typename waiting_rows::entry entry = waiting_[first + (lane() / 2 < count ? lane() / 2 : 0)];
    __syncwarp();
    member own{entry.row, memory_.rows[entry.row], 0, memory_.owner[entry.row]};
    const unsigned candidate = lane() % 2 == 0 ? entry.first : entry.second;
    const T* from = row(own.token);
    const float* of = centroids + candidate;
    float distance = 0;
#pragma unroll 4
    for (unsigned p = 0; p < ds / list::of_piece; ++p) {
      float x[list::of_piece];
      list::unpack(reinterpret_cast<const uint4*>(from)[p], x);
#pragma unroll
      for (unsigned e = 0; e < list::of_piece; ++e) {
        const unsigned at = p * list::of_piece + e;
        const float difference = canonical::sub(canonical::sub(x[e], offset_[at]), of[at * c_]);
        distance = canonical::fma(difference, difference, distance);
      }
    }
    const std::uint64_t key = block::nearest_key(distance, candidate), other = __shfl_xor_sync(block::all_lanes, key, 1);
    own.owner = static_cast<unsigned>((other < key ? other : key) & 0xffu);
    return own;
  }

  /// For the lanes whose row has `moved`, a warp records the new cluster and moves the row from one sum to the other; each lane adds some
  /// of the coordinates.
  /// @param in_tile  whether to read the rows from the tile; otherwise from device memory, by their `token`
  __device__ void move(const member& own, bool moved, bool in_tile, bool initial, float scale) {
    if (moved) {
      memory_.owner[own.i] = static_cast<std::uint8_t>(own.owner);
      atomicAdd(&scratch_.count[own.owner], 1u);
      if (!initial) atomicSub(&scratch_.count[own.before], 1u);
    }
    constexpr unsigned at_once = 4;  // rows that are loaded at the same time
    unsigned which = __ballot_sync(block::all_lanes, moved);
    if (which == 0) return;
    float mean[Groups];
#pragma unroll
    for (unsigned g = 0; g < Groups; ++g) mean[g] = offset_[g * 32 + lane()];
    while (which != 0) {
      unsigned who[at_once], count = 0;
      T value[at_once][Groups];
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        who[a] = which != 0 ? static_cast<unsigned>(__ffs(static_cast<int>(which)) - 1) : who[0];
        count += which != 0 ? 1 : 0;
        which &= which - 1;
      }
      if (in_tile) {
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a)
#pragma unroll
          for (unsigned g = 0; g < Groups; ++g) value[a][g] = list::tile_element(tile_, who[a], lane())[g * list::tile_step];
      } else {
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) {
          const T* from = row(__shfl_sync(block::all_lanes, own.token, static_cast<int>(who[a])));
#pragma unroll
          for (unsigned g = 0; g < Groups; ++g) value[a][g] = from[g * 32 + lane()];
        }
      }
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        const unsigned to = __shfl_sync(block::all_lanes, own.owner, static_cast<int>(who[a])),
                       from = __shfl_sync(block::all_lanes, own.before, static_cast<int>(who[a]));
        if (a >= count) break;
        int term[Groups];
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) term[g] = block::fixed_point(canonical::sub(static_cast<float>(value[a][g]), mean[g]), scale);
        add(to, term);
        if (initial) continue;
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) term[g] = -term[g];
        add(from, term);
      }
    }
  }
  /// A warp adds a row to the sum of a cluster.
  __device__ void add(unsigned cluster, const int (&term)[Groups]) {
    if (sums_in_shared_) {
      int* at = sums_.at(cluster, lane());
#pragma unroll
      for (unsigned g = 0; g < Groups; ++g) sums::add(at + g * 32, term[g]);
    } else {
      std::int64_t* at = memory_.sum + cluster * ds + lane();
#pragma unroll
      for (unsigned g = 0; g < Groups; ++g) add_to_sum(at + g * 32, term[g]);
    }
  }
  /// Adds this CTA's sums and counts to those of the problem. Begins and ends with a barrier.
  __device__ void flush() {
    __syncthreads();
    for (unsigned at = threadIdx.x; sums_in_shared_ && at < c_ * ds; at += threads) {
      const std::int64_t sum = sums::take(sums_.at(at / ds, at % ds));
      if (sum != 0) add_to_sum(&memory_.sum[at], sum);
    }
    for (unsigned x = threadIdx.x; x < c_; x += threads) {
      if (scratch_.count[x] != 0) atomicAdd(&memory_.count[x], scratch_.count[x]);
      scratch_.count[x] = 0;
    }
    __syncthreads();
  }

  list list_;
  sums sums_;
  uint4* tile_;  // of this warp
  scratch& scratch_;
  typename waiting_rows::entry* waiting_;  // of this warp
  const T* rows_;
  std::size_t stride_;
  const float* offset_;
  kmeans_memory memory_;
  unsigned c_;
  bool sums_in_shared_;
};

/// Stands in for quick_rows where rows cannot be read that way.
template <class T>
class quick_rows<T, 0> {
 public:
  struct scratch {};
  struct waiting_rows {};
};

}  // namespace pqkv::detail
