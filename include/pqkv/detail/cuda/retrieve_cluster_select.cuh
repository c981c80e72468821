// SPDX-License-Identifier: Apache-2.0
// The last steps of cluster_ranking: tokens are compared with the bracket, and what is inside gives the threshold and the list. All are
// inlined: a call would put the ranking, whose members are in registers, into memory.
#pragma once

#include "retrieve_cluster_steps.cuh"

namespace pqkv::inline PQKV_MODE::detail {

template <unsigned Threads, unsigned Pack, class Lists, class Ranks>
__device__ __forceinline__ bool cluster_ranking<Threads, Pack, Lists, Ranks>::write(std::uint32_t k, std::int32_t* out) {
  const block::bracket_counts of_lane = counts_of_lane(), before = of_lane.up_to(team_.rank()), all = of_lane.up_to(team_.size());
  if (!kept_all(of_lane) || all.inside > shape_.copied || !all.holds(k)) return false;
  const block::bracket_place place(all, k);
  block::threshold limit = place.limit();
  std::uint64_t marked = place.marked(before);  // in the CTAs before this one: how many above the threshold, and equal to it
  if (place.is_inside()) {
    bool all_equal = false;
    own_.select.clear(own_.finer);
    copy_inside(of_lane);
    __syncthreads();
    limit = threshold_inside(all.inside, place.rest, all_equal);
    marked += reached(limit, before.inside);
  }
  bool is_last = false;  // from here on this CTA reads nothing of the others
  if constexpr (Ranks::is_spread)
    is_last = threadIdx.x == 0 && team_.leave();
  else if (team_.size() > 1)
    team_.arrive();
  block::release_dependents();
  mark(limit, place);
  block::bitmap_emission<Threads> emission(own_.sums);
  emission.count(upper_, lower_, words());
  emission.emit(marked, limit.of_equal, first_token(), out, k);
  if constexpr (Ranks::is_spread) {
    if (is_last) team_.reset();
  } else if (team_.size() > 1) {
    team_.wait();
  }
  return true;
}

template <unsigned Threads, unsigned Pack, class Lists, class Ranks>
__device__ __forceinline__ void cluster_ranking<Threads, Pack, Lists, Ranks>::write_by_radix(std::uint32_t k, std::uint32_t* keys,
                                                                                             std::int32_t* out) {
  lookups_.copy(scorer_.entries());  // write() may have put keys there
  __syncthreads();
  const std::uint32_t first = begin_ < tokens_.lead ? 0 : begin_ - tokens_.lead, last = end_ < tokens_.lead ? 0 : end_ - tokens_.lead;
  lookups_.for_scores_slowly(tokens_, begin_, end_, call_.reduction, scorer_.factors(), storing{end_, tokens_.lead, tokens_.end, keys});
  team_.sync();  // the table's copies, in whose memory the selection is, are no longer read
  static_assert(sizeof(radix_type) <= tuning::cluster_copied * sizeof(std::uint32_t));
  radix_type& radix = *reinterpret_cast<radix_type*>(copied_);
  if constexpr (Ranks::is_spread) {  // one CTA alone: this is rare
    if (threadIdx.x == 0 && team_.leave()) team_.reset();
    if (team_.rank() != 0) return;
    const auto key_at = [&](std::uint32_t i) { return __ldcg(keys + i); };
    const block::cluster_team alone(1);
    const block::threshold limit = radix.find(alone, range_.size(), k, key_at, [](std::uint32_t) { return 1u; });
    radix.emit(alone, range_.size(), limit, key_at, static_cast<std::int32_t>(range_.begin), out, k);
  } else {
    const auto key_at = [&](std::uint32_t i) { return keys[first + i]; };
    const block::threshold limit = radix.find(team_, last - first, k, key_at, [](std::uint32_t) { return 1u; });
    radix.emit(team_, last - first, limit, key_at, static_cast<std::int32_t>(range_.begin + first), out, k);
  }
}

template <unsigned Threads, unsigned Pack, class Lists, class Ranks>
__device__ __forceinline__ void cluster_ranking<Threads, Pack, Lists, Ranks>::copy_inside(const block::bracket_counts& of_lane) {
  const std::uint32_t first = block::warp_prefix(of_lane.inside);
  for (unsigned rank = threadIdx.x / 32; rank < team_.size(); rank += Threads / 32) {
    const std::uint32_t count = __shfl_sync(block::all_lanes, of_lane.inside, static_cast<int>(rank));
    std::uint32_t* to = copied_ + __shfl_sync(block::all_lanes, first, static_cast<int>(rank));
    if constexpr (Ranks::is_spread) {
      const std::uint32_t* from = ranks_.keys() + first_position(rank);
#pragma unroll 8
      for (std::uint32_t i = threadIdx.x % 32; i < count; i += 32) to[i] = __ldcg(from + i);
    } else {
      const uint2* from = team_.remote(kept_, rank);
#pragma unroll 8
      for (std::uint32_t i = threadIdx.x % 32; i < count; i += 32) to[i] = from[i].x;
    }
  }
}

template <unsigned Threads, unsigned Pack, class Lists, class Ranks>
__device__ __forceinline__ void cluster_ranking<Threads, Pack, Lists, Ranks>::mark(const block::threshold& limit,
                                                                                   const block::bracket_place& place) {
  for (std::uint32_t w = threadIdx.x; w < words(); w += Threads) {
    const std::uint32_t upper = upper_[w], lower = lower_[w];
    upper_[w] = place.is_high ? upper & lower : upper;
    lower_[w] = place.is_high ? upper & ~lower : place.is_low ? lower & ~upper : 0;
  }
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; !place.is_high && i < own_.found.inside; i += Threads) {
    const uint2 token = kept_[i];
    const std::uint32_t at = token.y - begin_;
    if (token.x >= limit.key) atomicOr(&(token.x > limit.key ? upper_ : lower_)[at / 32], 1u << at % 32);
  }
  __syncthreads();
}

template <unsigned Threads, unsigned Pack, class Lists, class Ranks>
template <class Rounded>
__device__ __forceinline__ void cluster_ranking<Threads, Pack, Lists, Ranks>::compare(const block::bracket& limits, Rounded rounded) {
  if (threadIdx.x == 0) own_.limits = limits;
  block::bracket_counts counts{};
  if (!has_rounded() || !compare_rounded(limits, rounded(), counts)) counts = compare_scores(limits);
  __syncthreads();
  counts.above = __reduce_add_sync(block::all_lanes, counts.above);
  counts.at_high = __reduce_add_sync(block::all_lanes, counts.at_high);
  counts.at_low = __reduce_add_sync(block::all_lanes, counts.at_low);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&own_.found.above, counts.above);
    atomicAdd(&own_.found.at_high, counts.at_high);
    atomicAdd(&own_.found.at_low, counts.at_low);
  }
  __syncthreads();
  if constexpr (Ranks::is_spread) {
    const block::bracket_counts& found = own_.found;
    if (threadIdx.x == 0) ranks_.counts()[team_.rank()] = {found.above, found.at_high, found.inside, found.at_low};
    std::uint32_t* const to = ranks_.keys() + begin_;
    for (std::uint32_t i = threadIdx.x; i < found.inside && i < shape_.kept; i += Threads) to[i] = kept_[i].x;
  } else {
    if (threadIdx.x < team_.size()) *team_.remote(&own_.of_members[team_.rank()], threadIdx.x) = own_.found;
  }
  team_.sync();
  if constexpr (Ranks::is_spread) {
    if (threadIdx.x < team_.size()) {
      const uint4 of = __ldcg(ranks_.counts() + threadIdx.x);
      own_.of_members[threadIdx.x] = {of.x, of.y, of.z, of.w};
    }
    __syncthreads();
  }
  forget_attended();
}

template <unsigned Threads, unsigned Pack, class Lists, class Ranks>
__device__ __forceinline__ bool cluster_ranking<Threads, Pack, Lists, Ranks>::compare_rounded(const block::bracket& limits,
                                                                                              const block::rounded_tokens& rounded,
                                                                                              block::bracket_counts& counts) {
  if (limits.low == 0 && limits.high == 0xffffffffu) return false;  // all are inside
  float factors = 0;
#pragma unroll 1
  for (unsigned q = 0; q < call_.g; ++q) factors += scorer_.factors()[q];
  if (!(factors <= block::rounded_products::most)) return false;
  const typename screen::result all = screen::run({.rounded = rounded,
                                                   .tokens = tokens_,
                                                   .table = lookups_.table(),
                                                   .limits = limits,
                                                   .safe = {limits.low, limits.high, factors},
                                                   .begin = begin_,
                                                   .end = end_,
                                                   .reduction = call_.reduction,
                                                   .factors = block::shared_address(scorer_.factors()),
                                                   .uppers = block::shared_address(upper_),
                                                   .lowers = block::shared_address(lower_),
                                                   .kept = block::shared_address(kept_),
                                                   .room = shape_.kept,
                                                   .doubtful = block::shared_address(&own_.doubtful),
                                                   .inside = block::shared_address(&own_.found.inside)});
  counts = all.counts;
  return all.fits;
}

template <unsigned Threads, unsigned Pack, class Lists, class Ranks>
__device__ __forceinline__ block::bracket_counts cluster_ranking<Threads, Pack, Lists, Ranks>::compare_scores(
    const block::bracket& limits) {
  const comparison filter{limits,
                          limits.low < limits.high ? limits.low : 0xffffffffu,
                          begin_,
                          end_,
                          tokens_.lead,
                          tokens_.end,
                          block::shared_address(upper_),
                          block::shared_address(lower_),
                          block::shared_address(kept_),
                          shape_.kept,
                          block::shared_address(&own_.found.inside)};
  return lookups_.for_scores(tokens_, begin_, end_, call_.reduction, scorer_.factors(), filter).counts;
}

}  // namespace pqkv::detail
