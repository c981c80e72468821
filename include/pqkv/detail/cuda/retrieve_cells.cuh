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
    const std::uint32_t room = static_cast<std::uint32_t>(call.index.ids.extent(1));
    reached.collect(room, base, cells, limit, has_tokens, key_at, list_at);
    reached.for_tokens(&call.index.ids(head, 0), room, base, limit, key_at, list_at, mark);
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

/// The tokens of a head that are in no list yet. A thread takes every Threads-th of them. It reads the cell of its first one at once, so
/// that the read runs beside other work: most tails are no longer than that.
template <unsigned Threads>
class index_tail {
 public:
  /// @param part  this one of `parts`, which take Threads tokens each in turn
  __device__ index_tail(const block::scoring& call, std::size_t head, const indexed_range& held, unsigned part = 0, unsigned parts = 1)
      : tokens_(tokens_of(call, head)), first_(held.listed + part * Threads + threadIdx.x), end_(held.end), step_(parts * Threads) {
    if (first_ < end_) cell_ = tokens_.cell(first_);
  }
  /// The cell of any token.
  __device__ std::uint32_t cell(std::uint32_t token) const { return token == first_ && token < end_ ? cell_ : tokens_.cell(token); }
  /// Like mark_cells(), without a barrier; key_of(cell) gives the key of a cell.
  template <class KeyOf, class Mark>
  __device__ void mark(block::threshold limit, KeyOf key_of, Mark mark) const {
    for (std::uint32_t t = first_; t < end_; t += step_) {
      const std::uint32_t key = key_of(t == first_ ? cell_ : tokens_.cell(t));
      if (key >= limit.key) mark(t, key > limit.key);
    }
  }

 private:
  block::scored_items tokens_;
  std::uint32_t first_, end_, step_, cell_ = 0;
};

/// Removes tokens that came after a range from a copy of the counts. By all threads, between barriers.
template <unsigned Threads>
__device__ void uncount_later(const block::scoring& call, std::size_t head, const indexed_range& held, std::uint32_t* counts) {
  const block::scored_items tokens = tokens_of(call, head);
  for (std::uint32_t t = held.end + threadIdx.x; t < held.last; t += Threads) atomicSub(&counts[tokens.cell(t)], 1u);
}

/// Starts to copy numbers into shared memory, aligned to 16 bytes; they are there once each thread's copies are complete.
template <unsigned Threads>
__device__ void copy_words(std::uint32_t* to, const std::uint32_t* from, std::uint32_t count) {
  const std::uint32_t by_four = reinterpret_cast<std::uintptr_t>(from) % 16 == 0 ? count / 4 * 4 : 0;
#pragma unroll 1
  for (std::uint32_t i = 4 * threadIdx.x; i < by_four; i += 4 * Threads) block::copy_async(block::shared_address(to + i), from + i, 16);
#pragma unroll 1
  for (std::uint32_t i = by_four + threadIdx.x; i < count; i += Threads) block::copy_word_async(block::shared_address(to + i), from + i);
  block::end_copies();
}

}  // namespace detail
}  // namespace pqkv
