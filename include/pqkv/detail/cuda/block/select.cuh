// SPDX-License-Identifier: Apache-2.0
// Exact selection by radix on order-preserving keys, by one CTA or by a cluster whose members each hold a slice of the items. Three
// histogram passes find the k-th largest key, whatever the values. Items may have weights, so cells that stand for many tokens are selected
// the same way. Selected items are written in ascending order; of equal ones, the lowest up to the quota.
// Source: Alabi et al., "Fast k-selection algorithms for graphics processing units", 2012; histograms merged over a cluster as in
// FlashInfer's cluster top-k.
#pragma once

#include <cstdint>

#include "cluster.cuh"
#include "reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Selects everything above `key`, and `of_equal` of what equals it.
struct threshold {
  std::uint32_t key = 0;
  std::uint32_t of_equal = 0;
};

template <unsigned Threads>
class radix_select {
  static constexpr unsigned bins = 2048, own_bins = bins / Threads, warps = Threads / 32,
                            copies = 2;   // of a histogram: scores crowd in few bins, and lanes that add to one bin wait for each other
  static constexpr unsigned at_once = 8;  // members whose histograms are read together
  static_assert(own_bins * Threads == bins);

 public:
  /// @param items   of this CTA's slice
  /// @param k       at least 1, at most the sum of all members' weights
  /// @param key_at, weight_at  of item i of the slice
  template <class KeyAt, class WeightAt>
  __device__ threshold find(const cluster_team& team, std::uint32_t items, std::uint32_t k, KeyAt key_at, WeightAt weight_at) {
    std::uint32_t prefix = 0, fixed_bits = 0;
    for (unsigned pass = 0; pass < 3; ++pass) {
      const unsigned shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, mask = pass == 2 ? 1023 : 2047;
      std::uint32_t* histogram = histogram_[pass % 2];  // two, since other members may still read the last one
#pragma unroll
      for (unsigned bin = 0; bin < copies * bins; bin += Threads) counts_[bin + threadIdx.x] = 0;
      if (threadIdx.x == 0) digit_ = rest_ = 0;
      __syncthreads();
      std::uint32_t* counts = counts_ + threadIdx.x % copies * bins;
#pragma unroll 4
      for (std::uint32_t i = threadIdx.x; i < items; i += Threads) {
        const std::uint32_t key = key_at(i), weight = weight_at(i);
        if (weight != 0 && (key & fixed_bits) == prefix) atomicAdd(&counts[(key >> shift) & mask], weight);
      }
      __syncthreads();
      std::uint32_t own[own_bins], sum = 0;
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) {  // from the highest bin to the lowest
        const unsigned bin = bins - 1 - (threadIdx.x * own_bins + b);
        own[b] = 0;
        for (unsigned copy = 0; copy < copies; ++copy) own[b] += counts_[copy * bins + bin];
        if (team.size() > 1) histogram[bin] = own[b];
      }
      if (team.size() > 1) {
        team.sync();
        for (unsigned base = 0; base < team.size(); base += at_once)
#pragma unroll
          for (unsigned b = 0; b < own_bins; ++b)
#pragma unroll
            for (unsigned rank = base; rank < base + at_once; ++rank)
              if (rank < team.size() && rank != team.rank())
                own[b] += team.remote(histogram, rank)[bins - 1 - (threadIdx.x * own_bins + b)];
      }
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) sum += own[b];
      std::uint32_t total = 0, above = reduction_.prefix(sum, total);
      for (unsigned b = 0; b < own_bins; ++b) {
        if (above < k && k - above <= own[b]) {
          digit_ = bins - 1 - (threadIdx.x * own_bins + b);
          rest_ = k - above;
        }
        above += own[b];
      }
      __syncthreads();
      prefix |= digit_ << shift;
      fixed_bits |= mask << shift;
      k = rest_;
      __syncthreads();
    }
    return {prefix, k};
  }

  /// Writes first + i for every selected item i of the slice to its place in `out`, never at or beyond `room`.
  template <class KeyAt>
  __device__ void emit(const cluster_team& team, std::uint32_t items, threshold limit, KeyAt key_at, std::int32_t first, std::int32_t* out,
                       std::uint32_t room) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, below_me = (1u << lane) - 1;
    const std::uint32_t share = (items + Threads - 1) / Threads * 32;  // consecutive items of a warp
    const std::uint32_t begin = warp * share < items ? warp * share : items, end = items - begin < share ? items : begin + share;
    std::uint64_t counted = 0;  // items above in the upper half, equal ones in the lower
#pragma unroll 4
    for (std::uint32_t i = begin + lane; i < end; i += 32) {
      const std::uint32_t key = key_at(i);
      counted += (key > limit.key ? std::uint64_t{1} << 32 : 0) + (key == limit.key ? 1 : 0);
    }
    counted = warp_sum(counted);
    if (lane == 0) warp_counts_[warp] = counted;
    __syncthreads();
    std::uint64_t before = 0;
    for (unsigned w = 0; w < warp; ++w) before += warp_counts_[w];
    if (threadIdx.x == Threads - 1) slice_count_ = before + counted;
    team.sync();
    for (unsigned rank = 0; rank < team.rank(); ++rank) before += *team.remote(&slice_count_, rank);
    std::uint32_t above = static_cast<std::uint32_t>(before >> 32), equal = static_cast<std::uint32_t>(before);
#pragma unroll 4
    for (std::uint32_t i0 = begin; i0 < end; i0 += 32) {
      const std::uint32_t i = i0 + lane, key = i < end ? key_at(i) : 0;
      const bool is_above = i < end && key > limit.key, is_equal = i < end && key == limit.key;
      const unsigned aboves = __ballot_sync(all_lanes, is_above), equals = __ballot_sync(all_lanes, is_equal);
      const std::uint32_t rank = equal + static_cast<std::uint32_t>(__popc(equals & below_me));
      if (is_above || (is_equal && rank < limit.of_equal)) {
        const std::uint32_t place =
            above + static_cast<std::uint32_t>(__popc(aboves & below_me)) + (rank < limit.of_equal ? rank : limit.of_equal);
        if (place < room) out[place] = first + static_cast<std::int32_t>(i);
      }
      above += static_cast<std::uint32_t>(__popc(aboves));
      equal += static_cast<std::uint32_t>(__popc(equals));
    }
    team.sync();  // other members may still read slice_count_
  }

 private:
  std::uint32_t histogram_[2][bins], counts_[copies * bins];
  std::uint32_t digit_, rest_;
  std::uint64_t slice_count_, warp_counts_[warps];
  reduction<std::uint32_t, Threads> reduction_;
};

/// This member's share of `items`; its length is a multiple of 32 except at the end.
struct slice {
  std::uint32_t begin, count;

  __device__ slice(const cluster_team& team, std::uint32_t items) {
    const std::uint32_t share = longest(team, items);
    begin = share * team.rank() < items ? share * team.rank() : items;
    count = items - begin < share ? items - begin : share;
  }
  __device__ static std::uint32_t longest(const cluster_team& team, std::uint32_t items) { return (items / team.size() + 32) / 32 * 32; }
};

}  // namespace pqkv::detail::block
