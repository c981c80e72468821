// SPDX-License-Identifier: Apache-2.0
// Moves rows between pinned host memory and a device's. Every launch has a fixed shape and reads on the device what there is to do, so a
// captured step can be replayed while the sequences grow and the blocks in fast memory change.
//
// A step, in order: append_token_kernel writes a new row to both memories, and copies the sinks and newest tokens that are not in fast
// memory yet; attention reads each row where it is; beside it look_up_rows_kernel counts what was selected and admit_rows_kernel decides
// which blocks enter; copy_admitted_kernel copies their rows, and the last CTA of a slot makes them valid. A step with several tokens a
// row ends append() with refresh_residents_kernel instead. An attend() without an append() after a prompt reads such rows over the bus.
//
// Who waits for whom: look_up_rows_kernel and admit_rows_kernel begin while attention runs. The first needs what attention has waited for.
// The second waits, by a counter in memory, until all CTAs of the first have ended; all of them run by then, since a kernel begins early
// only when all CTAs of the kernel before it have begun. Both end after what came before them, so copy_admitted_kernel follows attention.
#pragma once

#include <algorithm>

#include "../../cache/tiered_rows.hpp"
#include "block_cache.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The tiers of a device.
template <class T, class E>
using device_tiers = tiered_store<T, E, space::device, space::pinned>;

/// A warp copies a token's row, which is contiguous in slow memory: K, then V, then scales if it has any; a whole number of 16 bytes.
template <class T, class E>
__device__ void copy_slow_row(const device_tiers<T, E>& tiers, std::size_t head, std::size_t token,
                              typename token_row<T>::element_type* to) {
  const auto* const from = reinterpret_cast<const uint4*>(tiers.slow.key(head, token).data);
  const unsigned packs = static_cast<unsigned>(tiers.row_bytes() / sizeof(uint4));
  for (unsigned at = threadIdx.x % 32; at < packs; at += 32) reinterpret_cast<uint4*>(to)[at] = from[at];
}

/// Whether this is the last CTA of `all` to call it, whose ticket it then gives back. By one thread.
__device__ inline bool is_last_ticket(std::uint32_t& ticket, unsigned all) {
  __threadfence();
  if (atomicAdd(&ticket, 1u) + 1 != all) return false;
  ticket = 0;
  return true;
}

/// grid.x: lists; grid.y: CTAs that share a list. The last CTA to end counts the pass.
template <class T, class E>
PQKV_HIDDEN __global__ void __launch_bounds__(256) look_up_rows_kernel(device_tiers<T, E> tiers, fetched_tokens<space::device> wanted) {
  block::release_dependents();
  const std::size_t list = blockIdx.x, lists = wanted.lists(), slot = wanted.plan.slots(list / lists);
  const std::uint32_t count = wanted.plan.counts(list);
  const one_block_cache<E> one = tiers.cache_of_list(slot, list % lists, lists);
  resident_tokens& shared = tiers.residents(slot);
  const resident_tokens resident = shared;
  unsigned near = 0;
  std::uint64_t slow = 0;
  if (count != 0)
    lookup_list(
        one, count, blockIdx.y, gridDim.y, [&](std::uint32_t i) { return wanted.indices(list, i); }, [](std::uint32_t, std::int32_t) {},
        [&](std::uint32_t token) { near += resident.has(token) ? 1 : 0; });
  const token_span span = wanted.plan.spans(list);
  const auto count_slow = [&](std::uint32_t first, std::uint32_t last) {
    const std::uint32_t begin = first / one.block_tokens, thread = blockIdx.y * blockDim.x + threadIdx.x;
    for (std::uint64_t block = begin + thread; block * one.block_tokens < last; block += gridDim.y * blockDim.x)
      slow += tiers.slow_tokens(one, resident, static_cast<std::uint32_t>(block), first, last);
  };
  count_slow(0, span.leading);
  count_slow(span.window_begin, span.window_end);
  near = block::warp_sum(near);
  slow = block::warp_sum(slow);
  if (threadIdx.x % 32 == 0) {
    add_to(shared.near_misses, near);
    add_to(shared.slow_rows, slow);
  }
  __syncthreads();  // the CTA's look-ups have been counted
  if (threadIdx.x == 0 && is_last_ticket(tiers.looked_up(1), gridDim.x * gridDim.y)) {
    __threadfence();
    atomicAdd(&tiers.looked_up(0), 1u);
  }
  block::wait_for_last_kernel();
}

/// One CTA for each block cache, after the look-ups of `passes` passes. The last one of a slot shows the host what has been counted, with
/// the rows that are about to be copied.
template <class T, class E>
PQKV_HIDDEN __global__ void __launch_bounds__(admit_threads)
    admit_rows_kernel(device_tiers<T, E> tiers, view<const std::uint32_t, 1, space::device> lengths, std::uint32_t passes) {
  block::release_dependents();
  if (threadIdx.x == 0) {
    while (atomicAdd(&tiers.looked_up(0), 0u) < passes) {
    }
    __threadfence();
    if (is_last_ticket(tiers.looked_up(2), gridDim.x)) tiers.looked_up(0) = 0;
  }
  __syncthreads();
  const unsigned each = static_cast<unsigned>(tiers.caches_of_slot()), slot = blockIdx.x / each;
  const one_block_cache<E> one = tiers.cache.one(blockIdx.x);
  admit_by_cta(one, lengths(slot));
  if (threadIdx.x == 0) {
    const std::uint64_t rows = std::uint64_t{one.progress->admitted} * tiers.cache_heads * one.block_tokens;
    resident_tokens& resident = tiers.residents(slot);
    add_to(resident.slow_rows, rows);
    if (is_last_ticket(tiers.tickets(slot), each)) {
      __threadfence();
      tiers.counts(slot) = tier_statistics::of(tiers.counted_blocks(slot), resident, tiers.row_bytes());
    }
  }
  block::wait_for_last_kernel();
}

/// grid.x: CTAs that share the rows of a slot's blocks; grid.y: slots. The last CTA of a slot makes the blocks valid. Most steps have none.
template <class T, class E>
PQKV_HIDDEN __global__ void __launch_bounds__(512) copy_admitted_kernel(device_tiers<T, E> tiers) {
  block::wait_for_last_kernel();
  const std::size_t slot = blockIdx.y, each = tiers.caches_of_slot();
  const unsigned warps = blockDim.x / 32;
  std::uint32_t copied = 0;
  for (std::size_t c = slot * each; c < (slot + 1) * each; ++c) copied += tiers.cache.one(c).progress->admitted;
  if (copied == 0) return;
  for (std::size_t c = slot * each; c < (slot + 1) * each; ++c) {
    const one_block_cache<E> one = tiers.cache.one(c);
    const std::uint32_t b = one.block_tokens, h = tiers.cache_heads, all = one.progress->admitted * h * b;
    for (std::uint32_t at = blockIdx.x * warps + threadIdx.x / 32; at < all; at += gridDim.x * warps) {
      const std::uint32_t run = at / b, t = at - run * b, i = run / h;
      const std::size_t head = c * h + (run - i * h);
      const block_admission& entered = one.admitted[i];
      copy_slow_row(tiers, head, std::size_t{entered.block} * b + t, &tiers.blocks(head, std::size_t{entered.slot} * b + t, 0));
    }
  }
  __shared__ bool is_last;
  __syncthreads();  // all rows of the CTA are copied
  if (threadIdx.x == 0) is_last = is_last_ticket(tiers.tickets(slot), gridDim.x);
  __syncthreads();
  if (!is_last) return;
  for (std::size_t c = slot * each; c < (slot + 1) * each; ++c) {
    const one_block_cache<E> one = tiers.cache.one(c);
    for (std::uint32_t i = threadIdx.x; i < one.progress->admitted; i += blockDim.x) one.fill(i);
  }
}

/// One CTA for each row of a cut.
template <class T, class E>
PQKV_HIDDEN __global__ void __launch_bounds__(256) truncate_rows_kernel(device_tiers<T, E> tiers, truncated_tokens<space::device> call) {
  const std::uint32_t slot = call.slot_of(blockIdx.x), length = call.length_of(blockIdx.x);
  if (slot >= tiers.residents.extent(0)) return;
  for (std::size_t c = 0, each = tiers.caches_of_slot(); c < each; ++c) truncate_one(tiers.cache.one(slot * each + c), length);
  if (threadIdx.x == 0) tiers.residents(slot).truncate(length);
}

}  // namespace detail

/// append() has made the copies.
template <>
struct kernel<op::fetch_rows, backend::cuda> {
  template <class P, class T, class E>
  static void run(const P&, const detail::device_tiers<T, E>&, const fetched_tokens<space::device>&) {}
};

template <>
struct kernel<op::look_up_rows, backend::cuda> {
  template <class P, class T, class E>
  static void run(const P& policy, const detail::device_tiers<T, E>& tiers, const fetched_tokens<space::device>& wanted) {
    const detail::launcher launch(policy, "attend");
    const auto look_up = detail::look_up_rows_kernel<T, E>;
    launch("look_up_rows_kernel", look_up,
           {.grid = dim3(static_cast<unsigned>(wanted.plan.counts.extent(0)), detail::lookup_runs(wanted.indices.extent(1))),
            .threads = 256,
            .early = launch.is_built_for_hopper(look_up)},
           tiers, wanted);
  }
};

template <>
struct kernel<op::admit_rows, backend::cuda> {
  template <class P, class T, class E>
  static void run(const P& policy, const detail::device_tiers<T, E>& tiers, view<const sequence, 1, space::device> sequences,
                  std::uint32_t passes) {
    const detail::launcher launch(policy, "attend");
    const auto admit = detail::admit_rows_kernel<T, E>;
    launch("admit_rows_kernel", admit,
           {.grid = dim3(static_cast<unsigned>(tiers.cache.caches())),
            .threads = detail::admit_threads,
            .shared_bytes = detail::admit_memory::bytes(tiers.cache.first.admit),
            .early = launch.is_built_for_hopper(admit)},
           tiers, lengths_of(sequences), passes);
    const unsigned slots = static_cast<unsigned>(sequences.extent(0)), ctas = std::max(detail::tuning::tier_copy_ctas / slots, 1u);
    const auto copy = detail::copy_admitted_kernel<T, E>;
    launch("copy_admitted_kernel", copy, {.grid = dim3(ctas, slots), .threads = 512, .early = launch.is_built_for_hopper(copy)}, tiers);
  }
};

template <>
struct kernel<op::truncate_rows, backend::cuda> {
  template <class P, class T, class E>
  static void run(const P& policy, const detail::device_tiers<T, E>& tiers, const truncated_tokens<space::device>& call) {
    detail::launcher(policy, "truncate")("truncate_rows_kernel", detail::truncate_rows_kernel<T, E>,
                                         {dim3(static_cast<unsigned>(call.rows())), 256}, tiers, call);
  }
};

}  // namespace pqkv
