// SPDX-License-Identifier: Apache-2.0
// From the cells that reach the threshold to their tokens, by one CTA. It first collects their lists in shared memory. Threads then share
// the lists that have tokens; sharing the cells would be uneven, since cells with tokens are next to each other in rows of codes.
#pragma once

#include <cstdint>

#include "select.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// The lists of reached cells, in no order: short ones from the front, long ones from the back.
template <unsigned Threads>
struct reached_cells {
  static constexpr unsigned most = 4 * Threads, long_list = 1024;  // first choices
  uint2 lists[most];  // where a list begins in the index; twice its length, plus 1 if the cell is above the threshold
  std::uint32_t short_lists, long_lists;
  std::uint32_t equal_lists, equal_begin, equal_length;  // cells at the threshold, and the list of one of them

  /// Collects the lists of cells [base, base + most), or as many of them as exist. Ends with a barrier.
  /// @param room     how many ids the index has
  /// @param has_tokens, key_at  of cell i
  /// @param list_at  where the list of cell i begins and ends in the index
  template <class HasTokens, class KeyAt, class ListAt>
  __device__ void collect(std::uint32_t room, std::uint32_t base, std::uint32_t cells, threshold limit, HasTokens has_tokens, KeyAt key_at,
                          ListAt list_at) {
    if (threadIdx.x == 0) short_lists = long_lists = equal_lists = 0;
    __syncthreads();
    for (std::uint32_t i = base + threadIdx.x; i < cells && i < base + most; i += Threads) {
      if (!has_tokens(i)) continue;
      const std::uint32_t key = key_at(i);
      if (key < limit.key) continue;
      const uint2 list = list_at(i);
      const std::uint32_t end = list.y < room ? list.y : room, length = list.x < end ? end - list.x : 0;
      if (key == limit.key && atomicAdd(&equal_lists, 1u) == 0) {
        equal_begin = list.x;
        equal_length = length;
      }
      if (length == 0) continue;
      const std::uint32_t slot = length <= long_list ? atomicAdd(&short_lists, 1u) : most - 1 - atomicAdd(&long_lists, 1u);
      lists[slot] = {list.x, 2 * length + (key > limit.key ? 1u : 0u)};
    }
    __syncthreads();
  }

  /// Calls mark(token, whether it is above the threshold) for the tokens of the lists. Eight threads take a short list, more if there are
  /// few lists; all threads take each long one.
  template <class Mark>
  __device__ void for_tokens(const std::int32_t* ids, Mark mark) const {
    constexpr unsigned at_once = 4;  // loads that a lane issues together
    unsigned lanes = 8;
    while (lanes < Threads && 2 * lanes * short_lists <= Threads) lanes *= 2;
    for (std::uint32_t slot = threadIdx.x / lanes; slot < short_lists; slot += Threads / lanes) {
      const uint2 list = lists[slot];
      const std::uint32_t length = list.y / 2;
      const std::int32_t* from = ids + list.x + threadIdx.x % lanes;
      for (std::uint32_t i = threadIdx.x % lanes; i < length; i += at_once * lanes, from += at_once * lanes) {
        std::int32_t token[at_once];
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a)
          if (i + a * lanes < length) token[a] = from[a * lanes];
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a)
          if (i + a * lanes < length) mark(static_cast<std::uint32_t>(token[a]), (list.y & 1u) != 0);
      }
    }
    for (std::uint32_t slot = 0; slot < long_lists; ++slot) {
      const uint2 list = lists[most - 1 - slot];
#pragma unroll 4
      for (std::uint32_t i = threadIdx.x; i < list.y / 2; i += Threads)
        mark(static_cast<std::uint32_t>(ids[list.x + i]), (list.y & 1u) != 0);
    }
  }
};

}  // namespace pqkv::detail::block
