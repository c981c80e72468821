// SPDX-License-Identifier: Apache-2.0
// What the kernels of retrieve() do with a joint-code index: correct its counts to an earlier length, and find the tokens of the cells that
// reach the threshold, both those in id lists and those in no list yet (the tail).
#pragma once

#include <cstdint>

#include "block/copy.cuh"
#include "block/reached_cells.cuh"
#include "block/scan.cuh"
#include "block/shared.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Calls mark(token, whether it is above the threshold) for the tokens of the lists of reached cells. Ends with a barrier.
/// @param has_tokens, key_at, list_at  as reached_cells::collect() takes them
template <unsigned Threads, class HasTokens, class KeyAt, class ListAt, class Mark>
__device__ void mark_cells(block::reached_cells<Threads>& reached, const block::scoring& call, std::uint32_t cells, std::size_t head,
                           block::threshold limit, HasTokens has_tokens, KeyAt key_at, ListAt list_at, Mark mark) {
  for (std::uint32_t base = 0; base < cells; base += reached.most) {
    reached.collect(static_cast<std::uint32_t>(call.index.ids.extent(1)), base, cells, limit, has_tokens, key_at, list_at);
    reached.for_tokens(&call.index.ids(head, 0), mark);
    __syncthreads();
  }
}

/// Gives the cell of a head's token by its absolute position.
__device__ inline block::scored_items tokens_of(const block::scoring& call, std::size_t head) {
  return {call.codes.data + head * call.codes.stride(0), call.codes.stride(1), nullptr, 0, call.m, call.bits};
}

/// What an index holds of a range. Tokens below `listed` are in its lists, where later ids are void. Tokens from there to `end` are in no
/// list yet: the tail. Tokens [end, last) are counted too, but came after the range.
struct indexed_range {
  std::uint32_t listed = 0, end = 0, last = 0;

  indexed_range() = default;
  __device__ indexed_range(const block::index_extent& held, std::uint32_t range_end)
      : listed(held.merged < range_end ? held.merged : range_end), end(held.last < range_end ? held.last : range_end), last(held.last) {}
};

/// Like mark_cells(), without a barrier, for tokens that are in no list yet; key_of(cell) gives the key of their cell.
/// @param part  this one of `parts`, which take Threads tokens each in turn
template <unsigned Threads, class KeyOf, class Mark>
__device__ void mark_tail(const block::scoring& call, std::size_t head, const indexed_range& held, block::threshold limit, KeyOf key_of,
                          Mark mark, unsigned part, unsigned parts) {
  const block::scored_items tokens = tokens_of(call, head);
  for (std::uint32_t t = held.listed + part * Threads + threadIdx.x; t < held.end; t += parts * Threads) {
    const std::uint32_t key = key_of(tokens.cell(t));
    if (key >= limit.key) mark(t, key > limit.key);
  }
}

/// Removes tokens that came after a range from a copy of the counts. By all threads, between barriers.
template <unsigned Threads>
__device__ void uncount_later(const block::scoring& call, std::size_t head, const indexed_range& held, std::uint32_t* counts) {
  const block::scored_items tokens = tokens_of(call, head);
  for (std::uint32_t t = held.end + threadIdx.x; t < held.last; t += Threads) atomicSub(&counts[tokens.cell(t)], 1u);
}

/// Starts to copy the counts of a head's cells into shared memory; they are there once the thread's copies are complete.
__device__ inline std::uint32_t* copy_counts(const cell_index_view<space::device>& index, std::size_t head, block::shared_memory& memory) {
  const std::uint32_t cells = static_cast<std::uint32_t>(index.cells()), *from = &index.counts(head, 0);
  std::uint32_t* counts = memory.take<std::uint32_t>(cells);
  const bool by_four = reinterpret_cast<std::uintptr_t>(from) % 16 == 0;  // there are at least 16 cells, and their number is a power of two
  for (std::uint32_t i = 4 * threadIdx.x; by_four && i < cells; i += 4 * blockDim.x)
    block::copy_async(block::shared_address(counts + i), from + i, 16);
  for (std::uint32_t i = threadIdx.x; !by_four && i < cells; i += blockDim.x)
    block::copy_word_async(block::shared_address(counts + i), from + i);
  block::end_copies();
  return counts;
}

}  // namespace detail
}  // namespace pqkv
