// SPDX-License-Identifier: Apache-2.0
// The memory of one k-means problem, and a fast path for rows of half or bfloat16 in runs of 16 bytes. Warps look at these rows once, then
// assign and sum them in every iteration; they need no barrier until all rows are done.
#pragma once

#include "../../../core/canonical.hpp"
#include "../../../quantize/kmeans.hpp"
#include "../arena.cuh"
#include "../tuning.hpp"
#include "cluster.cuh"
#include "nearest.cuh"
#include "reduce.cuh"
#include "shortlist.cuh"

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
  float *distance, *taken;              // [sample], in quick_rows |x|; [c, width]
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

/// The rows of one problem, as one CTA of its team sees them.
/// @tparam Groups  ds / 32
template <class T, unsigned Groups>
class quick_rows {
  using list = block::shortlist<T, Groups>;
  static constexpr unsigned ds = list::ds, threads = kmeans_tile::threads, warps = threads / 32, tile_rows = list::tile_rows;

 public:
  struct scratch {
    typename list::bounds bounds;
    std::uint32_t count[max_centroids];  // changes in the sizes of the clusters
  };
  /// @param sums_in_shared  whether the CTA's own sums fit in shared memory
  static constexpr std::size_t shared_bytes(std::size_t c, bool sums_in_shared) {
    return list::shared_bytes(c) + (sums_in_shared ? block::shared_sums::shared_bytes(c * ds) : 0) +
           block::shared_memory::bytes<uint4>(warps * list::rows_of_warp);
  }
  /// Whether dense rows at `data`, and at multiples of the strides from it, can be read in runs of 16 bytes.
  template <class... Stride>
  static bool takes(const T* data, Stride... strides) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && ((strides % 8 == 0) && ...);
  }

  __device__ quick_rows(block::shared_memory& memory, scratch& own, const T* rows, std::size_t stride, const float* offset, unsigned c,
                        const kmeans_memory& problem, bool sums_in_shared)
      : list_(memory, own.bounds, c),
        sums_(memory, sums_in_shared ? c * ds : 0),
        next_rows_(memory.take<uint4>(warps * list::rows_of_warp) + warp() * list::rows_of_warp),
        scratch_(own),
        rows_(rows),
        stride_(stride),
        offset_(offset),
        memory_(problem),
        c_(c),
        sums_in_shared_(sums_in_shared) {
    double square = 0;
    for (unsigned e = lane(); e < ds; e += 32) square = ::fma(static_cast<double>(offset_[e]), static_cast<double>(offset_[e]), square);
    offset_norm_ = static_cast<float>(sqrt(block::warp_sum(square)) * 1.0001);
    for (unsigned at = threadIdx.x; sums_in_shared_ && at < c_ * ds; at += threads) sums_.clear(at);
    for (unsigned x = threadIdx.x; x < c_; x += threads) scratch_.count[x] = 0;
  }

  /// Looks at rows [begin, end) of the sample. Writes owner[i], whether row i is finite, and order[i], the bits of |x| rounded up.
  /// @return  the largest |y_e| of the finite rows that this thread saw, as bits
  __device__ std::uint32_t look(const stratified_sample& sample, std::uint32_t begin, std::uint32_t end) const {
    std::uint32_t largest = 0;
#pragma unroll 2
    for (std::uint32_t first = begin + warp() * tile_rows; first < end; first += warps * tile_rows) {
      const std::uint32_t i = first + list::own_row();
      const std::uint32_t own = static_cast<std::uint32_t>(sample(list::own_row() < tile_rows && i < end ? i : begin));
      typename list::rows x;
      x.load([&](unsigned r) { return row(__shfl_sync(block::all_lanes, own, static_cast<int>(list::owner_lane(r)))); });
      std::uint32_t own_most = 0;
      float own_square = 0;
#pragma unroll
      for (unsigned s = 0; s < list::slots; ++s) {
        std::uint32_t most = 0;
        float square = 0;
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) {
          const std::uint32_t words[4] = {x.word[s][g].x, x.word[s][g].y, x.word[s][g].z, x.word[s][g].w};
#pragma unroll
          for (unsigned w = 0; w < 4; ++w) {
            const block::float_pair pair = block::unpack_pair<T>(words[w]);
            const std::uint32_t first_bits = float_bits(canonical::sub(pair.first, offset_[list::element(g, 2 * w)])) & 0x7fffffffu,
                                second_bits = float_bits(canonical::sub(pair.second, offset_[list::element(g, 2 * w + 1)])) & 0x7fffffffu;
            most = first_bits > most ? first_bits : most;
            most = second_bits > most ? second_bits : most;
            square = fmaf(pair.first, pair.first, fmaf(pair.second, pair.second, square));
          }
        }
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
          const std::uint32_t other = __shfl_xor_sync(block::all_lanes, most, step);
          most = other > most ? other : most;
          square += __shfl_xor_sync(block::all_lanes, square, step);
        }
        const int holder = static_cast<int>(list::own_row() % 8 * 4);  // a lane that has, in one of the slots, a part of the own row
        const std::uint32_t most_there = __shfl_sync(block::all_lanes, most, holder);
        const float square_there = __shfl_sync(block::all_lanes, square, holder);
        if (list::own_row() / 8 == s) own_most = most_there, own_square = square_there;
      }
      if (list::own_row() >= tile_rows || i >= end) continue;
      const bool finite = own_most < 0x7f800000u;
      memory_.owner[i] = finite ? 1 : 0;
      memory_.order[i] = float_bits(sqrtf(own_square) * 1.001f);
      if (finite && own_most > largest) largest = own_most;
    }
    return largest;
  }

  /// Assigns every row to its nearest centroid and adds the changes to the problem's counts and sums. All threads of the team call it. None
  /// may have written centroids since the team's last barrier. The sums are complete after the caller's next barrier.
  /// @param largest  at least every |y_e| and every coordinate of a centroid
  /// @return  whether a row of this thread changed its cluster
  __device__ bool assign(const block::cluster_team& team, std::uint32_t used, const float* centroids, bool initial, float scale,
                         float largest) {
    list_.template stage<threads>(centroids, offset_, offset_norm_, largest);
    constexpr std::uint32_t turns_a_flush = block::shared_sums::most_terms / (tile_rows * warps);
    const std::uint32_t step = team.size() * warps * tile_rows, begin = (team.rank() * warps + warp()) * tile_rows,
                        turns = (used + step - 1) / step;
    const auto place = [&](std::uint32_t turn) {
      const std::uint32_t i = begin + turn * step + list::own_row();
      return list::own_row() < tile_rows && i < used ? i : used;
    };
    const auto token = [&](std::uint32_t turn) { return memory_.rows[place(turn) < used ? place(turn) : 0]; };
    const auto fetch = [&](std::uint32_t of) {
      const auto row_at = [&](unsigned r) { return row(__shfl_sync(block::all_lanes, of, static_cast<int>(list::owner_lane(r)))); };
      list::rows::copy(next_rows_, row_at);
    };
    bool any = false;
    std::uint32_t t = token(0), next = token(1);
    fetch(t);
    for (std::uint32_t turn = 0; turn < turns; ++turn) {
      if (turn != 0 && turn % turns_a_flush == 0) flush();
      const std::uint32_t after = token(turn + 2), i = place(turn);
      const unsigned before = i < used ? memory_.owner[i] : 0;
      const float norm = i < used ? memory_.distance[i] : 0.0f;
      typename list::rows x;
      x.take(next_rows_);
      // No copy in the last turn. Nobody would wait for it before the next call's copy, and two copies to one place have no order.
      const auto found = list_.find(x, norm, [&] {
        if (turn + 1 < turns) fetch(next);
      });
      unsigned owner = found.centroid;
      for (unsigned unsure = __ballot_sync(block::all_lanes, i < used && !found.sure); unsure != 0; unsure &= unsure - 1) {
        const int who = __ffs(static_cast<int>(unsure)) - 1;
        const unsigned decided = list::nearest(row(__shfl_sync(block::all_lanes, t, who)), offset_, centroids, c_);
        if (lane() == static_cast<unsigned>(who)) owner = decided;
      }
      const bool moved = i < used && (initial || before != owner);
      if (moved) {
        memory_.owner[i] = static_cast<std::uint8_t>(owner);
        atomicAdd(&scratch_.count[owner], 1u);
        if (!initial) atomicSub(&scratch_.count[before], 1u);
      }
      any |= moved;
      move(__ballot_sync(block::all_lanes, moved), t, owner, before, initial, scale);
      t = next;
      next = after;
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
  __device__ static unsigned lane() { return threadIdx.x % 32; }
  __device__ static unsigned warp() { return threadIdx.x / 32; }
  __device__ const T* row(std::uint32_t t) const { return rows_ + t * stride_; }

  /// A warp moves the rows of the lanes in `moved` from cluster `before` (unless initial) to `owner`. Lanes take coordinates.
  __device__ void move(unsigned moved, std::uint32_t t, unsigned owner, unsigned before, bool initial, float scale) {
    constexpr unsigned at_once = 4;  // rows whose loads are in flight together
    while (moved != 0) {
      unsigned who[at_once], count = 0;
      T value[at_once][Groups];
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        who[a] = moved != 0 ? static_cast<unsigned>(__ffs(static_cast<int>(moved)) - 1) : who[0];
        count += moved != 0 ? 1 : 0;
        moved &= moved - 1;
        const T* from = row(__shfl_sync(block::all_lanes, t, static_cast<int>(who[a])));
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) value[a][g] = from[g * 32 + lane()];
      }
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        const unsigned to = __shfl_sync(block::all_lanes, owner, static_cast<int>(who[a])),
                       from = __shfl_sync(block::all_lanes, before, static_cast<int>(who[a]));
        if (a >= count) break;
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) {
          const unsigned e = g * 32 + lane();
          const int term = block::fixed_point(canonical::sub(static_cast<float>(value[a][g]), offset_[e]), scale);
          if (sums_in_shared_) {
            sums_.add(to * ds + e, term, 1);
            if (!initial) sums_.add(from * ds + e, term, -1);
          } else {
            add_to_sum(&memory_.sum[to * ds + e], term);
            if (!initial) add_to_sum(&memory_.sum[from * ds + e], -term);
          }
        }
      }
    }
  }
  /// Adds what this CTA has gathered to the problem's sums and counts. Begins and ends with a barrier.
  __device__ void flush() {
    __syncthreads();
    for (unsigned at = threadIdx.x; sums_in_shared_ && at < c_ * ds; at += threads) {
      const std::int64_t sum = sums_.take(at);
      if (sum != 0) add_to_sum(&memory_.sum[at], sum);
    }
    for (unsigned x = threadIdx.x; x < c_; x += threads) {
      if (scratch_.count[x] != 0) atomicAdd(&memory_.count[x], scratch_.count[x]);
      scratch_.count[x] = 0;
    }
    __syncthreads();
  }

  list list_;
  block::shared_sums sums_;
  uint4* next_rows_;  // of this warp; the rows that are being copied
  scratch& scratch_;
  const T* rows_;
  std::size_t stride_;
  const float* offset_;
  kmeans_memory memory_;
  unsigned c_;
  bool sums_in_shared_;
  float offset_norm_ = 0;
};

/// Stands in for quick_rows where rows cannot be read that way.
template <class T>
class quick_rows<T, 0> {
 public:
  struct scratch {};
};

}  // namespace pqkv::detail
