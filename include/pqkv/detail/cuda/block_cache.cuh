// SPDX-License-Identifier: Apache-2.0
// Block caches on the device. The host knows the shapes of all launches; everything else is read on the device. So a captured step can be
// replayed while caches and sequences change.
//
// Admission, in order: one CTA takes one cache. It chooses the blocks to offer among those that were looked up, and the slots to empty;
// both choices are a search for the lowest of many numbers. A barrier of the CTA separates the steps.
#pragma once

#include <algorithm>

#include "../../cache/block_cache.hpp"
#include "block/reduce.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "sequence_steps_append.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

inline constexpr unsigned admit_threads = 512;

/// Which bits many numbers have in common, and how many numbers there are. In shared memory.
struct common_digits {
  std::uint32_t all[2], any[2], count;

  /// By all threads of the CTA, each with what its own numbers have in common; ends with a barrier.
  __device__ common_digits& add(const std::uint32_t (&own_all)[2], const std::uint32_t (&own_any)[2], std::uint32_t own_count) {
    if (threadIdx.x == 0) all[0] = all[1] = 0xffffffffu, any[0] = any[1] = count = 0;
    __syncthreads();
    std::uint32_t of_all[2], of_any[2];
    for (unsigned w = 0; w < 2; ++w) {
      of_all[w] = __reduce_and_sync(block::all_lanes, own_all[w]);
      of_any[w] = __reduce_or_sync(block::all_lanes, own_any[w]);
    }
    const std::uint32_t of_warp = __reduce_add_sync(block::all_lanes, own_count);
    if (threadIdx.x % 32 == 0 && of_warp != 0) {
      for (unsigned w = 0; w < 2; ++w) atomicAnd(&all[w], of_all[w]), atomicOr(&any[w], of_any[w]);
      atomicAdd(&count, of_warp);
    }
    __syncthreads();
    return *this;
  }
  /// The digits of eight bits that are the same in all numbers, as ones.
  __device__ std::uint64_t same() const {
    std::uint64_t digits = 0;
    for (unsigned shift = 0; shift < 64; shift += 8)
      if (((all[shift / 32] ^ any[shift / 32]) >> shift % 32 & 255) == 0) digits |= std::uint64_t{255} << shift;
    return digits;
  }
  __device__ std::uint64_t shared() const { return std::uint64_t{all[1]} << 32 | all[0]; }
};

/// The shared memory of block_lowest().
struct lowest_scratch {
  common_digits* common;
  std::uint64_t* orders;    // [wanted]
  std::uint32_t* numbers;   // [wanted]
  std::uint32_t* in_digit;  // [256] how many numbers have each digit
  std::uint32_t* found;     // [3] the digit, how many numbers have a lower one, how many have it; at the end, how many were found
};

/// Finds the digit of the `remaining`-th lowest number; 256 if there are fewer numbers. Called by the first warp.
__device__ inline void find_digit(const lowest_scratch& scratch, unsigned remaining) {
  constexpr unsigned each = 8;
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t own = 0;
  for (unsigned i = 0; i < each; ++i) own += scratch.in_digit[lane * each + i];
  std::uint32_t below = block::warp_prefix(own);
  if (lane == 31 && below + own < remaining) scratch.found[0] = 256;
  if (below >= remaining || below + own < remaining) return;
  unsigned digit = lane * each;
  for (; below + scratch.in_digit[digit] < remaining; ++digit) below += scratch.in_digit[digit];
  scratch.found[0] = digit;
  scratch.found[1] = below;
  scratch.found[2] = scratch.in_digit[digit];
}

/// Finds the `wanted` lowest of order(0) ... order(n - 1). All numbers differ, except for `never`, which may occur often and is not found.
/// Called by all threads of the CTA.
///
/// @param sorted  [wanted] in shared memory, written: the indices i of the lowest numbers, lowest number first
/// @return how many it found
/// @source radix selection: Alabi, Blanchard, Gordon, Steinbach, ACM Journal of Experimental Algorithmics, 2012
template <class Order>
__device__ unsigned block_lowest(unsigned n, unsigned wanted, Order order, const lowest_scratch& scratch, std::uint32_t* sorted) {
  constexpr std::uint64_t never = ~std::uint64_t{0};
  constexpr unsigned kept = 4;  // numbers a thread keeps: up to nine passes use each, and reading one takes a chain of loads
  if (n == 0 || wanted == 0) return 0;
  std::uint64_t own[kept];
#pragma unroll
  for (unsigned k = 0; k < kept; ++k) {
    const unsigned i = k * blockDim.x + threadIdx.x;
    own[k] = i < n ? order(i) : never;
  }
  const auto for_numbers = [&](auto take) {  // calls take(i, order) for all numbers but `never`
#pragma unroll
    for (unsigned k = 0; k < kept; ++k)
      if (own[k] != never) take(k * blockDim.x + threadIdx.x, own[k]);
    for (unsigned i = kept * blockDim.x + threadIdx.x; i < n; i += blockDim.x)
      if (const std::uint64_t x = order(i); x != never) take(i, x);
  };
  std::uint32_t all[2] = {0xffffffffu, 0xffffffffu}, any[2] = {0, 0}, count_of_thread = 0;  // bits of all numbers, of any number
  for_numbers([&](unsigned, std::uint64_t x) {
    const std::uint32_t half[2] = {static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(x >> 32)};
    for (unsigned w = 0; w < 2; ++w) all[w] &= half[w], any[w] |= half[w];
    ++count_of_thread;
  });
  common_digits& common = scratch.common->add(all, any, count_of_thread);
  const std::uint64_t same = common.same();  // digits that all numbers share need no pass
  std::uint64_t prefix = common.shared() & same, fixed = same, bound = never - 1;
  for (unsigned remaining = wanted, shift = 64; shift != 0 && common.count > wanted;) {
    shift -= 8;
    if ((same >> shift & 255) == 255) continue;
    if (threadIdx.x < 256) scratch.in_digit[threadIdx.x] = 0;
    __syncthreads();
    for_numbers([&](unsigned, std::uint64_t x) {
      if ((x & fixed) != prefix) return;
      const auto digit = static_cast<unsigned>(x >> shift & 255);
      const unsigned peers = __match_any_sync(__activemask(), digit);  // many numbers have the same upper digits
      if ((peers & ((1u << threadIdx.x % 32) - 1)) == 0) atomicAdd(&scratch.in_digit[digit], static_cast<std::uint32_t>(__popc(peers)));
    });
    __syncthreads();
    if (threadIdx.x < 32) find_digit(scratch, remaining);
    __syncthreads();
    const unsigned digit = scratch.found[0], of_digit = scratch.found[2];
    if (digit == 256) break;  // fewer numbers than are wanted: take all
    remaining -= scratch.found[1];
    prefix |= std::uint64_t{digit} << shift;
    fixed |= std::uint64_t{255} << shift;
    bound = prefix | ((std::uint64_t{1} << shift) - 1);
    if (of_digit == remaining) break;
    __syncthreads();  // all threads have read found[]
  }
  __syncthreads();
  if (threadIdx.x == 0) scratch.found[0] = 0;
  __syncthreads();
  for_numbers([&](unsigned i, std::uint64_t x) {
    if (x > bound) return;
    const unsigned at = atomicAdd(&scratch.found[0], 1u);
    scratch.orders[at] = x;
    scratch.numbers[at] = i;
  });
  __syncthreads();
  const unsigned count = scratch.found[0];
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
    unsigned rank = 0;
    for (unsigned other = 0; other < count; ++other) rank += scratch.orders[other] < scratch.orders[i] ? 1 : 0;
    sorted[rank] = scratch.numbers[i];
  }
  __syncthreads();
  return count;
}

/// Looks up the tokens of one list that are the share of CTA `run` of `runs`. Lanes of a warp whose tokens are in the same block count them
/// with one atomic addition.
/// @param place  place(i, row) is called with the row of the i-th token in fast memory, or -1
/// @param miss   miss(token) is called for every token that is not there
template <class E, class Token, class Place, class Miss>
__device__ void lookup_list(const one_block_cache<E>& one, std::uint32_t count, unsigned run, unsigned runs, Token token_at, Place place,
                            Miss miss) {
  unsigned looked = 0, hits = 0;
  for (std::uint32_t i = run * blockDim.x + threadIdx.x; i - threadIdx.x % 32 < count; i += runs * blockDim.x) {
    const unsigned lanes = __ballot_sync(block::all_lanes, i < count);
    if (i >= count) continue;
    const auto token = static_cast<std::uint32_t>(token_at(i)), block = token / one.block_tokens;
    const std::int32_t slot = one.found(block);
    place(i, slot < 0 ? -1 : static_cast<std::int32_t>(slot * one.block_tokens + (token - block * one.block_tokens)));
    if (slot < 0) miss(token);
    ++looked;
    hits += slot >= 0 ? 1 : 0;
    const unsigned same = __match_any_sync(lanes, block);
    if (static_cast<unsigned>(__ffs(static_cast<int>(same))) - 1 != threadIdx.x % 32) continue;
    if (atomicAdd(&one.counts[block], static_cast<std::uint32_t>(__popc(same))) == 0)
      one.touched[atomicAdd(&one.progress->touched, 1u)] = block;
  }
  looked = block::warp_sum(looked);
  hits = block::warp_sum(hits);
  if (threadIdx.x % 32 != 0) return;
  add_to(one.statistics->hits, hits);
  add_to(one.statistics->misses, looked - hits);
}

/// How many CTAs share a list of so many tokens.
inline unsigned lookup_runs(std::size_t tokens) { return std::clamp(ceil_div(tokens, 256), 1u, 64u); }

/// grid.x: lists; grid.y: CTAs that share a list.
template <class E>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    lookup_blocks_kernel(block_cache_view<E, space::device> cache, block_lookup<space::device> tokens,
                         view<std::int32_t, 2, space::device> places) {
  const std::size_t list = blockIdx.x;
  const std::uint32_t count = tokens.counts(list);
  if (count == 0) return;
  lookup_list(
      cache.one(tokens.cache_of(list, cache.caches())), count, blockIdx.y, gridDim.y,
      [&](std::uint32_t i) { return tokens.indices(list, i); },
      [&](std::uint32_t i, std::int32_t row) {
        if (places.data != nullptr) places(list, i) = row;
      },
      [](std::uint32_t) {});
}

/// The shared memory of admit_blocks_kernel: arrays of `admit` elements.
struct admit_memory {
  std::uint32_t *offers, *waiting, *slots, *newcomer, *leaving, *taken;

  __device__ explicit admit_memory(block::shared_memory& memory, unsigned admit)
      : offers(memory.take<std::uint32_t>(admit)),
        waiting(memory.take<std::uint32_t>(admit)),
        slots(memory.take<std::uint32_t>(admit)),
        newcomer(memory.take<std::uint32_t>(admit)),
        leaving(memory.take<std::uint32_t>(admit)),
        taken(memory.take<std::uint32_t>(admit)) {}
  static std::size_t bytes(std::size_t admit) {
    return 7 * block::shared_memory::bytes<std::uint32_t>(admit) + block::shared_memory::bytes<std::uint64_t>(admit) +
           block::shared_memory::bytes<std::uint32_t>(256 + 4);
  }
};

/// A CTA decides which blocks enter one cache, whose look-ups have ended. Attention may read rows meanwhile: it only asks whether a row is
/// in fast memory, and newly admitted rows are copied later.
template <class E>
__device__ void admit_by_cta(const one_block_cache<E>& one, std::uint32_t final_tokens) {
  __shared__ typename one_block_cache<E>::step_totals step;
  __shared__ bool is_age_over;
  const std::uint32_t touched = one.progress->touched;
  const std::uint64_t first = one.first_stamp();
  block::shared_memory memory;
  __shared__ common_digits common;
  lowest_scratch scratch;
  scratch.common = &common;
  scratch.orders = memory.take<std::uint64_t>(one.admit);
  scratch.numbers = memory.take<std::uint32_t>(one.admit);
  scratch.in_digit = memory.take<std::uint32_t>(256 + 4);
  scratch.found = scratch.in_digit + 256;
  const admit_memory own(memory, one.admit);

  // The offers, best first.
  const unsigned offered = block_lowest(
      touched, one.admit, [&](unsigned i) { return one.offer_order(one.touched[i]); }, scratch, own.offers);
  for (unsigned rank = threadIdx.x; rank < offered; rank += blockDim.x) own.offers[rank] = one.touched[own.offers[rank]];
  for (unsigned i = threadIdx.x; i < touched; i += blockDim.x) one.counts[one.touched[i]] = 0;
  for (unsigned rank = threadIdx.x; rank < offered; rank += blockDim.x) one.offer(own.offers[rank], first + (offered - 1 - rank));
  __syncthreads();
  for (unsigned rank = threadIdx.x; rank < offered; rank += blockDim.x)
    own.newcomer[rank] = one.slots[own.offers[rank]] == 0 && one.is_final(own.offers[rank], final_tokens) ? 1 : 0;
  __syncthreads();
  if (threadIdx.x < 32) {  // newcomers stay in order
    unsigned waited = 0;
    for (unsigned first = 0; first < offered; first += 32) {
      const unsigned rank = first + threadIdx.x, lanes = __ballot_sync(block::all_lanes, rank < offered && own.newcomer[rank] != 0);
      if ((lanes >> threadIdx.x & 1u) != 0) own.waiting[waited + __popc(lanes & ((1u << threadIdx.x) - 1))] = rank;
      waited += static_cast<unsigned>(__popc(lanes));
    }
    if (threadIdx.x == 0) step = {offered, waited, 0, 0};
  }
  __syncthreads();

  // The slots that may be emptied, the first to leave first, and which newcomer takes which slot.
  const unsigned waited = step.waited;
  const unsigned slots = block_lowest(
      one.capacity, waited, [&](unsigned slot) { return one.leave_order(slot, first); }, scratch, own.slots);
  for (unsigned i = threadIdx.x; i < waited; i += blockDim.x) own.newcomer[i] = one.newcomer_frequency(own.offers[own.waiting[i]]);
  for (unsigned i = threadIdx.x; i < slots; i += blockDim.x) own.leaving[i] = one.leaving_frequency(own.slots[i]);
  __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < waited && step.admitted < slots; ++i)
      if (one.may_enter(own.newcomer[i], own.leaving[step.admitted])) own.taken[step.admitted++] = own.waiting[i];
  __syncthreads();
  for (unsigned i = threadIdx.x; i < step.admitted; i += blockDim.x) {
    const unsigned rank = own.taken[i];
    if (one.enter(i, own.offers[rank], own.slots[i], first + (offered - 1 - rank))) atomicAdd(&step.evicted, 1u);
  }
  __syncthreads();
  if (threadIdx.x == 0) is_age_over = one.end_step(step);
  __syncthreads();
  for (unsigned slot = threadIdx.x; is_age_over && slot < one.capacity; slot += blockDim.x)
    one.order[slot] = eviction_order::halved(one.order[slot]);
}

/// One CTA for each cache.
template <class E>
PQKV_HIDDEN __global__ void __launch_bounds__(admit_threads)
    admit_blocks_kernel(block_cache_view<E, space::device> cache, view<const std::uint32_t, 1, space::device> lengths) {
  admit_by_cta(cache.one(blockIdx.x), lengths(blockIdx.x));
}

/// One CTA for each cache.
template <class E>
PQKV_HIDDEN __global__ void __launch_bounds__(256) fill_blocks_kernel(block_cache_view<E, space::device> cache) {
  const one_block_cache<E> one = cache.one(blockIdx.x);
  for (unsigned i = threadIdx.x; i < one.progress->admitted; i += blockDim.x) one.fill(i);
}

/// One CTA for each cache.
template <class E>
PQKV_HIDDEN __global__ void __launch_bounds__(256) abandon_blocks_kernel(block_cache_view<E, space::device> cache) {
  const one_block_cache<E> one = cache.one(blockIdx.x);
  const std::uint32_t touched = one.progress->touched;
  for (unsigned i = threadIdx.x; i < touched; i += blockDim.x) one.counts[one.touched[i]] = 0;
  for (unsigned slot = threadIdx.x; slot < one.capacity; slot += blockDim.x)
    if (one.states[slot] == block_state::filling) one.release(slot);
  __syncthreads();  // all threads have read how many blocks were touched
  if (threadIdx.x == 0) one.progress->touched = one.progress->admitted = 0;
}

/// A CTA drops the blocks of one cache that have a token at position `length` or later.
template <class E>
__device__ void truncate_one(const one_block_cache<E>& one, std::uint32_t length) {
  for (unsigned slot = threadIdx.x; slot < one.capacity; slot += blockDim.x)
    if (one.held[slot] != 0 && !one.is_final(one.held[slot] - 1, length)) one.release(slot);
  if constexpr (E::remembers)
    for (std::uint32_t i = length / one.block_tokens + threadIdx.x; i < one.blocks; i += blockDim.x) one.remembered[i] = {};
}

/// One CTA for each cache.
template <class E>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    truncate_blocks_kernel(block_cache_view<E, space::device> cache, view<const std::uint32_t, 1, space::device> lengths) {
  truncate_one(cache.one(blockIdx.x), lengths(blockIdx.x));
}

}  // namespace detail

template <>
struct kernel<op::lookup_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache, const block_lookup<space::device>& tokens,
                  view<std::int32_t, 2, space::device> places) {
    const dim3 grid(static_cast<unsigned>(tokens.lists()), detail::lookup_runs(tokens.indices.extent(1)));
    detail::launcher(policy, "lookup_blocks")("lookup_blocks_kernel", detail::lookup_blocks_kernel<E>, {grid, 256}, cache, tokens, places);
  }
};

template <>
struct kernel<op::admit_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache, view<const std::uint32_t, 1, space::device> lengths) {
    detail::launcher(policy, "admit_blocks")("admit_blocks_kernel", detail::admit_blocks_kernel<E>,
                                             {.grid = dim3(static_cast<unsigned>(cache.caches())),
                                              .threads = detail::admit_threads,
                                              .shared_bytes = detail::admit_memory::bytes(cache.first.admit)},
                                             cache, lengths);
  }
};

template <>
struct kernel<op::fill_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache) {
    detail::launcher(policy, "fill_blocks")("fill_blocks_kernel", detail::fill_blocks_kernel<E>,
                                            {dim3(static_cast<unsigned>(cache.caches())), 256}, cache);
  }
};

template <>
struct kernel<op::abandon_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache) {
    detail::launcher(policy, "abandon_blocks")("abandon_blocks_kernel", detail::abandon_blocks_kernel<E>,
                                               {dim3(static_cast<unsigned>(cache.caches())), 256}, cache);
  }
};

template <>
struct kernel<op::truncate_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache, view<const std::uint32_t, 1, space::device> lengths) {
    detail::launcher(policy, "truncate_blocks")("truncate_blocks_kernel", detail::truncate_blocks_kernel<E>,
                                                {dim3(static_cast<unsigned>(cache.caches())), 256}, cache, lengths);
  }
};

}  // namespace pqkv
