// SPDX-License-Identifier: Apache-2.0
// Selects the k largest keys of a row in one pass, by one CTA or a small cluster. A sample gives a bracket around the threshold. The pass
// marks keys above the bracket and keeps those inside; each member then finds the exact threshold among the few kept, for itself. A row
// goes to radix_select instead if the sample misleads, or if more keys are equal than can be kept. The pass compares floats: unless one is
// a NaN, they have the same order as their keys.
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

/// Which of n keys is the sample's key number `which`: one of every n / bracket_sample consecutive keys, at a varying place among these.
PQKV_HD inline std::uint32_t sample_place(std::uint32_t which, std::uint32_t n) {
  const std::uint32_t stride = n / bracket_sample;
  return which * stride + (which * 0x9e3779b1u >> 16) % stride;
}

/// The same with pairs of neighbouring keys, which take half of the reads. Neighbours are often alike, and then pairs are worth less: a
/// sample of pairs of equal keys is as good as one of half its size.
PQKV_HD inline std::uint32_t sample_pair_place(std::uint32_t which, std::uint32_t n) {
  const std::uint32_t stride = n / (bracket_sample / 2), pair = which / 2;
  return pair * stride + (pair * 0x9e3779b1u >> 16) % (stride - 1) + which % 2;
}

/// Which order statistics of a sample are a bracket's ends: four deviations below and above the one that is looked for, or less if there is
/// too little room for the keys inside. With room for a sixteenth of the keys it is at least three deviations. With less room, the bracket
/// misses one time in ten if the keys are random and k is near half of them.
struct bracket_ranks {
  std::uint32_t low = 0, high = 0;  // from the largest key, 1 is the first; 0: the bracket is open at this end
  std::uint32_t slack = 0;          // sampled keys that the bracket may have too many at either end, which makes finding it faster

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
    // At most as many as stand for 2048 of the n keys, since what is inside must be looked through.
    // measured: bench/cuda/top_k.cu, 8 rows, n 131072, k 2048, H200, 2026-12: slack of 24 keys 11.8 us, of 8 keys 12.7
    const float least = 2048 * share / static_cast<float>(n), wide = half / 4 > least ? half / 4 : least;
    slack = wide < 24 ? static_cast<std::uint32_t>(wide) : 24;
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
  const uint2 keys =
      select.find_two(own, {ranks.low != 0 ? ranks.low : bracket_sample, ranks.high != 0 ? ranks.high : 1}, sample, ranks.slack);
  return {ranks.low != 0 ? keys.x : lowest, ranks.high != 0 ? keys.y : 0xffffffffu};
}

/// The threads first mark keys above and inside the bracket in bitmaps. Each member then lists its keys inside and writes them to the
/// memory of every member. From then on a member reads only its own memory, where it has the keys that all members kept.
template <unsigned Threads>
class bracket_select {
 public:
  static constexpr unsigned granule = 16384;  // keys that the CTA takes in one turn

 private:
  static constexpr unsigned most_kept = 8192,  // most keys of a member inside the bracket; a first choice
      batch = granule / Threads,               // keys of a thread in a turn
      most_members = 8;

 public:
  /// Words of shared memory that a team of several members needs, and a CTA alone.
  static constexpr unsigned room_of_team = 32768, room_of_one = most_kept;

  /// A member's keys [begin, end) of a row, in order of the members; the last one may have none.
  struct part {
    std::uint32_t begin, end;
  };

  /// Selects the k largest of the row. Writes the indices of those among its own keys, ascending; of equal keys the lowest indices are
  /// selected. If the bracket does not hold, writes nothing and returns false.
  /// @param n      more than bracket_sample
  /// @param first  added to every index
  /// @param chosen, equal  bitmaps of the own keys, up to whole granules
  /// @param room           [room_words], aligned to 16 bytes
  __device__ bool select(const cluster_team& team, const float* row, std::uint32_t n, std::uint32_t k, part own, std::uint32_t first,
                         std::uint32_t* chosen, std::uint32_t* equal, std::uint32_t* room, unsigned room_words, std::int32_t* out) {
    if (team.size() > 1) team.arrive();  // share_sample() waits: no member writes to another that has not begun
    float scores[batch];
    share_sample(team, row, n);
    team.sync();
    load(scores, row, own.begin, own.end);  // these loads run while the bracket is found
    const bracket limits = find_bracket(n, k);
    sort_out(limits, scores, row, own, chosen, equal);
    __syncthreads();
    const std::uint32_t words = (own.end - own.begin + granule - 1) / granule * (granule / 32);
    const counts here = list_insides(chosen, equal, words);
    const unsigned most = room_words / team.size() < most_kept ? room_words / team.size() : most_kept;  // keys of a member
    share_kept(team, here, most, row, own, room);
    team.sync();
    const members all(of_member_, team);
    if (all.longest > most || all.above >= k || k - all.above > all.kept) return false;
    const kept_keys keys{room, of_member_, most, 32 - static_cast<unsigned>(__clz(static_cast<int>((all.longest - 1) | 1u)))};
    const threshold limit = select_.find(
        keys.places(team.size()), k - all.above, limits.high, select_.shift_of(limits.low, limits.high),
        [&](std::uint32_t i) { return keys.at(i); }, [&](std::uint32_t i) { return keys.is_key(i) ? 1u : 0u; });
    const bool all_equal = select_.takes_all_equal();
    count_before(keys, team.rank(), limit, all_equal);
    mark(room + team.rank() * most, here.kept, limit, chosen, all_equal ? chosen : equal);
    __syncthreads();
    write(chosen, equal, words, {all.above_before + before_[0], before_[1]}, limit.of_equal, room, room_words,
          static_cast<std::int32_t>(first + own.begin), out, k);
    return true;
  }

 private:
  struct counts {
    std::uint32_t kept, above;  // keys inside the bracket, and above it
  };

  /// Loads keys first + j * Threads + threadIdx.x. From `end` on they are NaNs, which no comparison selects.
  __device__ static void load(float (&scores)[batch], const float* row, std::uint32_t first, std::uint32_t end) {
    const float* from = row + first + threadIdx.x;
    if (first + granule <= end) {
#pragma unroll
      for (unsigned j = 0; j < batch; ++j) scores[j] = from[j * Threads];
      return;
    }
#pragma unroll
    for (unsigned j = 0; j < batch; ++j)
      scores[j] = first + j * Threads + threadIdx.x < end ? from[j * Threads] : float_from_bits(0x7fc00000u);
  }

  /// Writes this member's share of the row's sample to the memory of every member: place_ holds it after the team's next barrier.
  __device__ void share_sample(const cluster_team& team, const float* row, std::uint32_t n) {
    if (threadIdx.x == 0) here_ = {0, 0}, before_[0] = before_[1] = 0;
    const unsigned share = bracket_sample / team.size();
    float sample[bracket_sample / Threads];
#pragma unroll
    for (unsigned s = 0; s < bracket_sample / Threads; ++s)
      if (const unsigned i = s * Threads + threadIdx.x; i < share) sample[s] = row[sample_pair_place(team.rank() * share + i, n)];
    if (team.size() > 1) team.wait();
#pragma unroll
    for (unsigned s = 0; s < bracket_sample / Threads; ++s)
      if (const unsigned i = s * Threads + threadIdx.x; i < share) {
        const std::uint32_t key = canonical::order_key(sample[s]);
        for (unsigned rank = 0; rank < team.size(); ++rank) *team.remote(&place_[team.rank() * share + i], rank) = key;
      }
  }

  __device__ bracket find_bracket(std::uint32_t n, std::uint32_t k) {
    const std::uint32_t lowest = canonical::order_key(float_from_bits(0xff800000u));  // below it are only NaNs
    const bracket found = bracket_of_sample(select_, place_, {n, k, most_kept}, lowest);
    return {found.low > lowest ? found.low : lowest, found.high > lowest ? found.high : lowest};
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
  /// Which of a warp's lanes have an x inside the bracket.
  __device__ static unsigned ballot_inside(float x, float low, float high) {
    unsigned lanes;
    asm volatile(
        "{\n .reg .pred p, q;\n setp.gt.f32 p, %1, %3;\n setp.ge.and.f32 q, %1, %2, !p;\n"
        " vote.sync.ballot.b32 %0, q, 0xffffffff;\n}"
        : "=r"(lanes)
        : "f"(x), "f"(low), "f"(high));
    return lanes;
  }

  /// Marks the keys above and inside the bracket.
  /// @param scores  the keys of the first turn
  __device__ static void sort_out(const bracket& limits, float (&scores)[batch], const float* row, part own, std::uint32_t* chosen,
                                  std::uint32_t* inside) {
    const float low = canonical::from_order_key(limits.low), high = canonical::from_order_key(limits.high);
    const unsigned lane = threadIdx.x % 32;
    std::uint32_t* words = (lane == 0 ? chosen : inside) + threadIdx.x / 32;  // two lanes write a word each
    for (std::uint32_t first = own.begin; first < own.end; first += granule) {
      if (first != own.begin) load(scores, row, first, own.end);
#pragma unroll
      for (unsigned j = 0; j < batch; ++j) {
        const unsigned aboves = ballot_above(scores[j], high), insides = ballot_inside(scores[j], low, high);
        if (lane < 2) words[(first - own.begin + j * Threads) / 32] = lane == 0 ? aboves : insides;
      }
    }
  }

  /// Lists in place_, in any order, which of the own keys are inside the bracket, and clears that bitmap. Ends with a barrier.
  __device__ counts list_insides(const std::uint32_t* chosen, std::uint32_t* inside, std::uint32_t words) {
    for (std::uint32_t first = threadIdx.x / 32 * 32; first < words; first += Threads) {
      const std::uint32_t w = first + threadIdx.x % 32;  // words are whole warps'
      std::uint32_t bits = inside[w];
      const std::uint32_t above = __reduce_add_sync(all_lanes, static_cast<std::uint32_t>(__popc(chosen[w]))),
                          count = static_cast<std::uint32_t>(__popc(bits)), before = warp_prefix(count);
      std::uint32_t next = 0;
      if (threadIdx.x % 32 == 31) next = atomicAdd(&here_.kept, before + count), atomicAdd(&here_.above, above);
      next = __shfl_sync(all_lanes, next, 31) + before;
      for (; bits != 0 && next < most_kept; bits &= bits - 1, ++next)
        place_[next] = w * 32 + static_cast<std::uint32_t>(__ffs(static_cast<int>(bits))) - 1;
      inside[w] = 0;
    }
    __syncthreads();
    return here_;
  }

  /// Writes this member's kept keys, and how many there are, to the memory of every member.
  __device__ void share_kept(const cluster_team& team, const counts& here, unsigned most, const float* row, part own, std::uint32_t* room) {
    if (threadIdx.x < team.size()) *team.remote(&of_member_[team.rank()], threadIdx.x) = here;
    if (here.kept > most) return;
    std::uint32_t* keys = room + team.rank() * most;
    for (std::uint32_t i = threadIdx.x; i < here.kept; i += Threads) {
      const std::uint32_t key = canonical::order_key(row[own.begin + place_[i]]);
      for (unsigned rank = 0; rank < team.size(); ++rank) *team.remote(keys + i, rank) = key;
    }
  }

  /// The counts of all members together, and of those before this one.
  struct members {
    std::uint32_t kept, above, above_before, longest;

    __device__ members(const counts* of_member, const cluster_team& team) {
      const unsigned lane = threadIdx.x % 32;
      const counts of = lane < team.size() ? of_member[lane] : counts{0, 0};
      kept = __reduce_add_sync(all_lanes, of.kept);
      above = __reduce_add_sync(all_lanes, of.above);
      above_before = __reduce_add_sync(all_lanes, lane < team.rank() ? of.above : 0);
      longest = __reduce_max_sync(all_lanes, of.kept);
    }
  };

  /// The keys that all members kept. Each member has the same number of places, a power of two, and uses the first of them.
  struct kept_keys {
    const std::uint32_t* room;
    const counts* of_member;
    unsigned most, log_places;

    __device__ std::uint32_t places(unsigned size) const { return ((size - 1) << log_places) + of_member[size - 1].kept; }
    __device__ std::uint32_t in_member(std::uint32_t i) const { return i & ((1u << log_places) - 1); }
    __device__ bool is_key(std::uint32_t i) const { return in_member(i) < of_member[i >> log_places].kept; }
    __device__ std::uint32_t at(std::uint32_t i) const { return room[(i >> log_places) * most + in_member(i)]; }
  };

  /// Adds up in before_ which of the keys that the members before this one kept are above the threshold, and which equal it.
  __device__ void count_before(const kept_keys& keys, unsigned rank, const threshold& limit, bool all_equal) {
    if (rank == 0) return;
    std::uint32_t above = 0, equal = 0;
    for (std::uint32_t i = threadIdx.x; i < rank << keys.log_places; i += Threads) {
      const std::uint32_t key = keys.is_key(i) ? keys.at(i) : 0;
      above += key > limit.key || (all_equal && key == limit.key) ? 1 : 0;
      equal += !all_equal && key == limit.key ? 1 : 0;
    }
    above = __reduce_add_sync(all_lanes, above);
    equal = __reduce_add_sync(all_lanes, equal);
    if (threadIdx.x % 32 == 0 && above != 0) atomicAdd(&before_[0], above);
    if (threadIdx.x % 32 == 0 && equal != 0) atomicAdd(&before_[1], equal);
  }

  /// Marks the own kept keys that are above the threshold, and those that equal it.
  __device__ void mark(const std::uint32_t* keys, std::uint32_t kept, const threshold& limit, std::uint32_t* chosen, std::uint32_t* equal) {
    for (std::uint32_t i = threadIdx.x; i < kept; i += Threads) {
      const std::uint32_t key = keys[i], place = place_[i];
      if (key >= limit.key) atomicOr(&(key > limit.key ? chosen : equal)[place / 32], 1u << place % 32);
    }
  }

  /// Writes the indices of the marked keys. If there are as many as words or more, and `room` can hold them, they go through shared memory:
  /// otherwise the lanes of a warp would write far from each other.
  __device__ void write(const std::uint32_t* chosen, const std::uint32_t* equal, std::uint32_t words, uint2 before, std::uint32_t of_equal,
                        std::uint32_t* room, unsigned room_words, std::int32_t first, std::int32_t* out, std::uint32_t k) {
    bitmap_emission<Threads> emission(sums_);
    const std::uint64_t here = emission.count(chosen, equal, words), above = (std::uint64_t{before.x} << 32) + before.y;
    const auto selected = [&](std::uint32_t equals) { return equals < of_equal ? equals : of_equal; };
    const std::uint32_t begin = before.x + selected(before.y), count = static_cast<std::uint32_t>(here >> 32) +
                                                                       selected(before.y + static_cast<std::uint32_t>(here)) -
                                                                       selected(before.y);
    if (count < words || count > room_words) return emission.emit(above, of_equal, first, out, k);
    auto* list = reinterpret_cast<std::int32_t*>(room);
    emission.emit(above, of_equal, first, list - begin, k);
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; i < count; i += Threads) out[begin + i] = list[i];
  }

  std::uint32_t place_[most_kept];  // holds the sample at first
  counts here_, of_member_[most_members];
  std::uint32_t before_[2];  // of the members before this one: kept keys above the threshold, and equal to it
  list_select<Threads> select_;
  reduction<std::uint64_t, Threads> sums_;
};

}  // namespace pqkv::detail::block
