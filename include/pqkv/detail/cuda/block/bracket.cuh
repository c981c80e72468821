// SPDX-License-Identifier: Apache-2.0
// Selects the k largest keys of a row in one pass, by one CTA or a small cluster. A sample gives a bracket around the threshold. The pass
// marks keys above the bracket and keeps those inside; each member then finds the exact threshold among the few kept, for itself. A row
// goes to radix_select instead if the sample misleads, or if more keys are equal than can be kept. The pass compares floats: where neither
// is a NaN, they have the order of the keys.
// Source: the sample, bracket and single pass of FlashInfer's GVR top-k and of DeepSelect.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "bitmap.cuh"
#include "cluster.cuh"
#include "list_select.cuh"
#include "reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Smallest and largest key of a bracket.
struct bracket {
  std::uint32_t low, high;
};

inline constexpr unsigned bracket_sample = 4096;  // keys in a sample; rows with fewer keys have none

/// The place among n keys of the sample's number `which`: a different place in each stride.
PQKV_HD inline std::uint32_t sample_place(std::uint32_t which, std::uint32_t n) {
  const std::uint32_t stride = n / bracket_sample;
  return which * stride + (which * 0x9e3779b1u >> 16) % stride;
}

/// Which order statistics of a sample are a bracket's ends: four deviations below and above the one that is looked for, or less if what can
/// be kept limits it. With room for a sixteenth of the keys it is three deviations at least. With less, the bracket misses one time in ten
/// for k near half of random keys.
struct bracket_ranks {
  std::uint32_t low = 0, high = 0;  // from the largest key, 1 is the first; 0: the bracket is open at this end

  bracket_ranks() = default;
  /// @param n, k       the k-th largest of n keys is looked for
  /// @param most_kept  how many keys inside the bracket can be kept
  __device__ bracket_ranks(std::uint32_t n, std::uint32_t k, std::uint32_t most_kept) {
    const float share = static_cast<float>(bracket_sample), part = static_cast<float>(k) / static_cast<float>(n),
                widest = 0.4f * static_cast<float>(most_kept) * share / static_cast<float>(n),
                deviations = 4.0f * sqrtf(share * part * (1 - part)) + 2, half = deviations < widest ? deviations : widest;
    low = static_cast<std::uint32_t>(share * part + half) + 1;
    if (low > bracket_sample) low = 0;
    high = share * part > half ? static_cast<std::uint32_t>(share * part - half) : 0;
  }
};

/// The bracket of a sample. All threads call it after a barrier; it ends with one.
/// @param sample  [bracket_sample] keys, at sample_place() of n
/// @param lowest  the bracket's lower end if it is open there
template <unsigned Threads>
__device__ bracket bracket_of_sample(list_select<Threads>& select, const std::uint32_t* sample, const bracket_ranks& ranks,
                                     std::uint32_t lowest) {
  std::uint32_t own[bracket_sample / Threads];
#pragma unroll
  for (unsigned s = 0; s < bracket_sample / Threads; ++s) own[s] = sample[s * Threads + threadIdx.x];
  const uint2 keys = select.find_two(own, {ranks.low != 0 ? ranks.low : bracket_sample, ranks.high != 0 ? ranks.high : 1}, sample);
  return {ranks.low != 0 ? keys.x : lowest, ranks.high != 0 ? keys.y : 0xffffffffu};
}

template <unsigned Threads>
class bracket_select {
  static constexpr unsigned most_kept = 8192,  // most keys inside the bracket; these four numbers are first choices
      batch = 16, at_once = 32;                // keys that a thread loads together; keys between two writes of what is kept

 public:
  static constexpr unsigned granule = at_once * Threads;  // keys that the CTA takes in one turn
  /// How many keys of all members together each member of a team copies.
  static constexpr unsigned copied_keys = most_kept;

  /// A member's keys [begin, end) of a row, in order of the members; the last one may have none.
  struct part {
    std::uint32_t begin, end;
  };

  /// Selects the k largest of the row. Writes the indices of those among its own keys, ascending; of equal keys the lowest indices are
  /// selected. If the bracket does not hold, writes nothing and returns false; members may then still read each other's memory.
  /// @param n  more than bracket_sample
  /// @param chosen, equal  bitmaps of the own keys, up to whole granules
  /// @param copies         [copied_keys]; null for a single CTA
  __device__ bool select(const cluster_team& team, const float* row, std::uint32_t n, std::uint32_t k, part own, std::uint32_t* chosen,
                         std::uint32_t* equal, std::uint32_t* copies, std::int32_t* out) {
    float scores[batch];
    load(scores, row, own.begin, own.end);  // these loads run while the bracket is found
    const bracket limits = find_bracket(row, n, k);
    keep(limits, scores, row, own, chosen, equal);
    __syncthreads();
    std::uint32_t above = 0;
    const std::uint32_t words = (own.end - own.begin + 31) / 32;
    for (std::uint32_t w = threadIdx.x; w < words; w += Threads) above += static_cast<std::uint32_t>(__popc(chosen[w]));
    above = counts_.sum(above);
    if (threadIdx.x == 0) above_ = above;
    team.sync();
    bool holds = true;
    std::uint32_t kept = 0, above_before = 0, kept_before = 0;
    above = 0;
    for (unsigned rank = 0; rank < team.size(); ++rank) {
      if (rank == team.rank()) above_before = above, kept_before = kept;
      const std::uint32_t theirs = *team.remote(&kept_, rank);
      above += *team.remote(&above_, rank);
      holds = holds && theirs <= most_kept - kept;
      kept += theirs;
      if (!holds) return false;
    }
    if (above >= k || k - above > kept) return false;
    const std::uint32_t* keys = key_;
    if (team.size() > 1) {
      for (unsigned rank = 0, first = 0; rank < team.size(); ++rank) {
        const std::uint32_t *theirs = team.remote(key_, rank), count = *team.remote(&kept_, rank);
        for (std::uint32_t i = threadIdx.x; i < count; i += Threads) copies[first + i] = theirs[i];
        first += count;
      }
      keys = copies;
      __syncthreads();
      team.arrive();  // from here on this member reads nothing of the others
    }
    const threshold limit = select_.find(
        kept, k - above, limits.high, select_.shift_of(limits.low, limits.high), [&](std::uint32_t i) { return keys[i]; },
        [](std::uint32_t) { return 1u; });
    const bool all_equal = select_.takes_all_equal();
    std::uint64_t before = 0;  // how many keys the members before this one mark
    for (std::uint32_t i = threadIdx.x; i < kept_before; i += Threads)
      if (keys[i] >= limit.key) before += token_count(all_equal || keys[i] > limit.key);
    if (kept_before != 0) before = sums_.sum(before);
    before += std::uint64_t{above_before} << 32;
    std::uint32_t* of_equal = all_equal ? chosen : equal;
    for (std::uint32_t i = threadIdx.x; i < kept_; i += Threads) {
      const std::uint32_t key = key_[i], place = place_[i] - own.begin;
      if (key >= limit.key) atomicOr(&(key > limit.key ? chosen : of_equal)[place / 32], 1u << place % 32);
    }
    __syncthreads();
    bitmap_emission<Threads> emission(sums_);
    emission.count(chosen, equal, words);
    emission.emit(before, limit.of_equal, static_cast<std::int32_t>(own.begin), out, k);
    if (team.size() > 1) team.wait();  // other members may still read this one's keys
    return true;
  }

 private:
  /// Loads keys first + j * Threads + threadIdx.x. From `end` on they are NaNs, which no comparison selects.
  __device__ static void load(float (&scores)[batch], const float* row, std::uint32_t first, std::uint32_t end) {
    const float* from = row + first + threadIdx.x;
    if (first + batch * Threads <= end) {
#pragma unroll
      for (unsigned j = 0; j < batch; ++j) scores[j] = from[j * Threads];
      return;
    }
#pragma unroll
    for (unsigned j = 0; j < batch; ++j)
      scores[j] = first + j * Threads + threadIdx.x < end ? from[j * Threads] : float_from_bits(0x7fc00000u);
  }

  __device__ bracket find_bracket(const float* row, std::uint32_t n, std::uint32_t k) {
#pragma unroll
    for (unsigned s = 0; s < bracket_sample / Threads; ++s) {
      const std::uint32_t which = s * Threads + threadIdx.x;
      key_[which] = canonical::order_key(row[sample_place(which, n)]);
    }
    if (threadIdx.x == 0) kept_ = 0;
    __syncthreads();
    const std::uint32_t lowest = canonical::order_key(float_from_bits(0xff800000u));  // below it are only NaNs
    return bracket_of_sample(select_, key_, {n, k, most_kept}, lowest);
  }

  // Inline PTX: under --use_fast_math the operators would treat subnormal numbers as 0.
  /// Which of a warp's lanes have an x above the bracket.
  __device__ static unsigned ballot_above(float x, float high) {
    unsigned lanes;
    asm volatile("{\n .reg .pred p;\n setp.gt.f32 p, %1, %2;\n vote.sync.ballot.b32 %0, p, 0xffffffff;\n}"
                 : "=r"(lanes)
                 : "f"(x), "f"(high));
    return lanes;
  }
  /// Sets the bit if x is inside the bracket.
  __device__ static void add_inside(unsigned& insides, unsigned bit, float x, float low, float high) {
    asm("{\n .reg .pred p, q;\n setp.gt.f32 p, %2, %4;\n setp.ge.and.f32 q, %2, %3, !p;\n @q or.b32 %0, %0, %1;\n}"
        : "+r"(insides)
        : "r"(bit), "f"(x), "f"(low), "f"(high));
  }

  /// Marks the keys above the bracket, and keeps keys and places of those inside.
  __device__ void keep(const bracket& limits, float (&scores)[batch], const float* row, part own, std::uint32_t* chosen,
                       std::uint32_t* equal) {
    const float low = canonical::from_order_key(limits.low), high = canonical::from_order_key(limits.high);
    const bool is_first_lane = threadIdx.x % 32 == 0;
    for (std::uint32_t base = own.begin; base < own.end; base += granule) {
      unsigned insides = 0;
#pragma unroll
      for (unsigned turn = 0; turn < at_once / batch; ++turn) {
        const std::uint32_t first = base + turn * batch * Threads;
        if (first != own.begin) load(scores, row, first, own.end);
        std::uint32_t* words = chosen + (first - own.begin) / 32 + threadIdx.x / 32;
#pragma unroll
        for (unsigned j = 0; j < batch; ++j) {
          const unsigned aboves = ballot_above(scores[j], high);
          if (is_first_lane) words[j * Threads / 32] = aboves;
          add_inside(insides, 1u << (turn * batch + j), scores[j], low, high);
        }
      }
      for (unsigned w = threadIdx.x; w < granule / 32; w += Threads) equal[(base - own.begin) / 32 + w] = 0;
      const std::uint32_t count = static_cast<std::uint32_t>(__popc(insides)), before = warp_prefix(count);
      std::uint32_t next = 0;
      if (threadIdx.x % 32 == 31) next = atomicAdd(&kept_, before + count);
      next = __shfl_sync(all_lanes, next, 31) + before;
      for (; insides != 0; insides &= insides - 1, ++next) {
        const std::uint32_t place = base + static_cast<std::uint32_t>(__ffs(static_cast<int>(insides)) - 1) * Threads + threadIdx.x;
        if (next >= most_kept) break;
        key_[next] = canonical::order_key(row[place]);
        place_[next] = place;
      }
    }
  }

  std::uint32_t key_[most_kept], place_[most_kept];  // key_ holds the sample at first
  std::uint32_t kept_, above_;
  list_select<Threads> select_;
  reduction<std::uint32_t, Threads> counts_;
  reduction<std::uint64_t, Threads> sums_;
};

}  // namespace pqkv::detail::block
