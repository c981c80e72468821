// SPDX-License-Identifier: Apache-2.0
// The k-th largest key of a row without radix passes over it: a sample gives a bracket, one pass over the row marks what lies above it
// and keeps what lies inside, and the exact threshold is found among those few. A row where the sample misleads, or where more is tied
// than is kept, is left to radix_select. For a cluster, whose members hold a slice of the row each.
// Source: the sample, bracket and single pass of FlashInfer's GVR top-k and of DeepSelect.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "bitmap.cuh"
#include "cluster.cuh"
#include "reduce.cuh"
#include "select.cuh"

namespace pqkv::detail::block {

template <unsigned Threads>
class bracket_select {
  static constexpr unsigned bins = 2048, own_bins = bins / Threads, warps = Threads / 32, largest_team = 8,
                            most_own = 4096, most_kept = 8192,  // keys inside the bracket, of a member and of the row
                            batch = 16,                         // keys of a thread in flight
                            samples = 8;                        // of the row, that a thread compares
  static_assert(own_bins * Threads == bins && samples * Threads <= 2 * bins && warps <= 32);

 public:
  /// Selects the k largest of the row and writes their indices in ascending order, equal keys lowest first; false, and nothing written,
  /// where the bracket does not hold. All members return the same.
  /// @param row     this member's slice, `items` long, which begins at item `first` of n
  /// @param team    of 2, 4 or 8
  /// @param share   slice of a member before the last, a multiple of 32
  /// @param chosen, equal  [share / 32] words each
  __device__ bool select(const cluster_team& team, const float* row, std::uint32_t first, std::uint32_t items, std::uint32_t share,
                         std::uint32_t n, std::uint32_t k, std::uint32_t* chosen, std::uint32_t* equal, std::int32_t* out) {
    float scores[batch];
    load(scores, row, 0, items);  // in flight while the bracket is found
    const bracket limits = find_bracket(team, row, items, share, n, k);
    keep(limits, scores, row, items, share, chosen, equal);
    count_above(chosen, share);
    team.sync();

    std::uint32_t starts[largest_team + 1] = {}, above = 0, above_before = 0;
    bool holds = true;
#pragma unroll
    for (unsigned rank = 0; rank < largest_team; ++rank) {
      const bool is_there = rank < team.size();
      const std::uint32_t kept = is_there ? *team.remote(&kept_, rank) : 0, over = is_there ? *team.remote(&above_, rank) : 0;
      holds &= kept <= most_own;
      starts[rank + 1] = starts[rank] + kept;
      above += over;
      above_before += rank < team.rank() ? over : 0;
    }
    const std::uint32_t kept = starts[largest_team];
    if (!holds || kept > most_kept || above >= k || k - above > kept) return false;
    std::uint32_t before_mine = 0, own_kept = 0;
#pragma unroll
    for (unsigned rank = 0; rank < largest_team; ++rank)
      if (rank == team.rank()) {
        before_mine = starts[rank];
        own_kept = starts[rank + 1] - starts[rank];
      }
#pragma unroll 4
    for (std::uint32_t i = threadIdx.x; i < kept; i += Threads) {
      unsigned rank = 0;
      std::uint32_t start = 0;
#pragma unroll
      for (unsigned r = 1; r < largest_team; ++r)
        if (i >= starts[r]) {
          rank = r;
          start = starts[r];
        }
      of_row_[i] = team.remote(own_key_, rank)[i - start];
    }
    team.arrive();
    const threshold limit = refine(limits, kept, k - above);
    for (std::uint32_t i = threadIdx.x; i < own_kept; i += Threads) {
      const std::uint32_t key = own_key_[i], place = own_place_[i];
      if (key >= limit.key) atomicOr(&(key > limit.key ? chosen : equal)[place / 32], 1u << place % 32);
    }
    std::uint64_t before = 0;
    for (std::uint32_t i = threadIdx.x; i < before_mine; i += Threads)
      before += of_row_[i] > limit.key ? token_count(true) : of_row_[i] == limit.key ? token_count(false) : 0;
    before = sums_.sum(before) + (std::uint64_t{above_before} << 32);
    bitmap_emission<Threads> emission(sums_);
    emission.count(chosen, equal, (items + 31) / 32);
    emission.emit(before, limit.of_equal, static_cast<std::int32_t>(first), out, k);
    team.wait();  // members may still read this one's keys
    return true;
  }

 private:
  /// Smallest and largest key inside.
  struct bracket {
    std::uint32_t low, high;
  };

  __device__ static void load(float (&scores)[batch], const float* row, std::uint32_t first, std::uint32_t items) {
#pragma unroll
    for (unsigned j = 0; j < batch; ++j) {
      const std::uint32_t i = first + j * Threads + threadIdx.x;
      scores[j] = i < items ? row[i] : 0.0f;
    }
  }

  /// From the order statistics of a sample four deviations around the one that is looked for. Bits of both are found from
  /// the highest down, and no more of them than it takes to come near the rank.
  __device__ bracket find_bracket(const cluster_team& team, const float* row, std::uint32_t items, std::uint32_t share, std::uint32_t n,
                                  std::uint32_t k) {
    const unsigned own = samples / team.size();  // of a thread, from this member
    const std::uint32_t stride = (share + own * Threads - 1) / (own * Threads);
    for (unsigned s = 0; s < own; ++s) {  // not the same place of each stride
      const std::uint32_t which = s * Threads + threadIdx.x, at = which * stride + (which * 0x9e3779b1u >> 16) % stride;
      counts_[which] = at < items ? canonical::order_key(row[at]) : 0;
    }
    if (threadIdx.x == 0) above_ = kept_ = 0;
    team.sync();
    std::uint32_t keys[samples];
#pragma unroll
    for (unsigned s = 0; s < samples; ++s) keys[s] = team.remote(counts_, s / own)[s % own * Threads + threadIdx.x];

    const float sampled = static_cast<float>(n / stride), part = static_cast<float>(k) / static_cast<float>(n),
                widest = 0.4f * most_kept * sampled / static_cast<float>(n), deviations = 4.0f * sqrtf(sampled * part * (1 - part)) + 2,
                half = deviations < widest ? deviations : widest;
    const std::uint32_t low_rank = static_cast<std::uint32_t>(sampled * part + half) + 1,
                        high_rank = sampled * part > half ? static_cast<std::uint32_t>(sampled * part - half) : 0,
                        near = static_cast<std::uint32_t>(half / 8);
    std::uint32_t low = 0, high = 0;
    bool low_near = false, high_near = high_rank == 0;
    for (unsigned round = 0; round < 32 && !(low_near && high_near); ++round) {
      const std::uint32_t bit = 0x80000000u >> round;
      std::uint32_t votes = 0;  // for `low` in the lower half
#pragma unroll
      for (unsigned s = 0; s < samples; ++s) votes += keys[s] >= (low | bit) ? 1u : 0u;
      if (low == high) {
        votes *= 0x10001u;
      } else {
#pragma unroll
        for (unsigned s = 0; s < samples; ++s) votes += keys[s] >= (high | bit) ? 0x10000u : 0u;
      }
      votes = __reduce_add_sync(all_lanes, votes);
      std::uint32_t* of_warps = votes_[round % 2];  // two, so that threads may still read the last round's
      if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = votes;
      __syncthreads();
      votes = __reduce_add_sync(all_lanes, threadIdx.x % 32 < warps ? of_warps[threadIdx.x % 32] : 0);
      const std::uint32_t low_votes = votes & 0xffffu, high_votes = votes >> 16;
      if (!low_near && low_votes >= low_rank) {
        low |= bit;
        low_near = low_votes <= low_rank + near;
      }
      if (!high_near && high_votes >= high_rank) {
        high |= bit;
        high_near = high_votes <= high_rank + near;
      }
    }
    return {low, high_rank == 0 ? 0xffffffffu : high_near ? high - 1 : high};  // not near: many are equal to it
  }

  /// Marks what is above the bracket, keeps keys and places of what is inside.
  __device__ void keep(const bracket& limits, float (&scores)[batch], const float* row, std::uint32_t items, std::uint32_t share,
                       std::uint32_t* chosen, std::uint32_t* equal) {
    static_assert(batch <= 32);  // a bit each in `insides`
    const unsigned lane = threadIdx.x % 32;
    for (std::uint32_t first = 0; first < share; first += batch * Threads) {
      if (first != 0) load(scores, row, first, items);
      unsigned insides = 0;
#pragma unroll
      for (unsigned j = 0; j < batch; ++j) {
        const std::uint32_t i = first + j * Threads + threadIdx.x, key = canonical::order_key(scores[j]);
        const bool is_item = i < items;
        const unsigned aboves = __ballot_sync(all_lanes, is_item && key > limits.high);
        if (is_item && key >= limits.low && key <= limits.high) insides |= 1u << j;
        if (lane == 0 && i < share) {
          chosen[i / 32] = aboves;
          equal[i / 32] = 0;
        }
      }
      const std::uint32_t own = static_cast<std::uint32_t>(__popc(insides)), before = warp_prefix(own);
      std::uint32_t next = 0;
      if (lane == 31) next = atomicAdd(&kept_, before + own);
      next = __shfl_sync(all_lanes, next, 31) + before;
#pragma unroll
      for (unsigned j = 0; j < batch; ++j)
        if ((insides >> j & 1u) != 0) {
          if (next < most_own) {
            own_key_[next] = canonical::order_key(scores[j]);
            own_place_[next] = first + j * Threads + threadIdx.x;
          }
          ++next;
        }
    }
  }

  /// Counts what keep() has marked, with fewer bit counts than a sum on the way needs: they are slow.
  __device__ void count_above(const std::uint32_t* chosen, std::uint32_t share) {
    __syncthreads();
    std::uint32_t above = 0;
    for (std::uint32_t w = threadIdx.x; w < share / 32; w += Threads) above += static_cast<std::uint32_t>(__popc(chosen[w]));
    above = __reduce_add_sync(all_lanes, above);
    if (threadIdx.x % 32 == 0 && above != 0) atomicAdd(&above_, above);
  }

  /// The threshold of the `rest` largest of of_row_[0 .. kept), all inside the bracket. By every member for itself.
  __device__ threshold refine(const bracket& limits, std::uint32_t kept, std::uint32_t rest) {
    std::uint32_t base = limits.low;
    unsigned open = 32 - static_cast<unsigned>(__clz(static_cast<int>(limits.high - limits.low)));  // bits of key - base
    do {
      const unsigned shift = open > 11 ? open - 11 : 0;
      const std::uint32_t most = open == 32 ? 0xffffffffu : (1u << open) - 1;
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) counts_[b * Threads + threadIdx.x] = 0;
      __syncthreads();
#pragma unroll 4
      for (std::uint32_t i = threadIdx.x; i < kept; i += Threads) {
        const std::uint32_t key = of_row_[i];
        if (key >= base && key - base <= most) atomicAdd(&counts_[(key - base) >> shift], 1u);
      }
      __syncthreads();
      std::uint32_t own[own_bins], sum = 0;
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) sum += own[b] = counts_[bins - 1 - (threadIdx.x * own_bins + b)];
      std::uint32_t total = 0, over = prefix_.prefix(sum, total);
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) {
        if (over < rest && rest - over <= own[b]) {
          digit_ = bins - 1 - (threadIdx.x * own_bins + b);
          rest_ = rest - over;
        }
        over += own[b];
      }
      __syncthreads();
      base += digit_ << shift;
      rest = rest_;
      open = shift;
      __syncthreads();
    } while (open != 0);
    return {base, rest};
  }

  std::uint32_t votes_[2][warps], counts_[bins];  // counts_: at first this member's samples
  std::uint32_t own_key_[most_own], own_place_[most_own], of_row_[most_kept];
  std::uint32_t above_, kept_, digit_, rest_;
  reduction<std::uint32_t, Threads> prefix_;
  reduction<std::uint64_t, Threads> sums_;
};

}  // namespace pqkv::detail::block
