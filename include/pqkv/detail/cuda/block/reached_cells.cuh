// SPDX-License-Identifier: Apache-2.0
// From the cells that reach the threshold to their tokens, by one CTA. It first collects their lists in shared memory. Threads then share
// the lists that have tokens; sharing the cells would be uneven, since cells with tokens are next to each other in rows of codes.
#pragma once

#include <cstdint>

#include "select.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// The lists of reached cells in pieces, in no order, so that threads share them evenly. Once there are too many pieces, further lists are
/// kept whole.
template <unsigned Threads>
struct reached_cells {
  // measured: retrieve/joint, 8 lists, n 131072, H200, 2026-11; pieces of 32, 64, 128: k 2048 13.1, 13.5, 14.2 us; k 16384 22.6, 24.7,
  // 28.7 us. The others are first choices
  static constexpr unsigned most = 4096, most_pieces = 3072, piece = 32, lanes = 8, long_list = 1024;
  uint2 pieces[most_pieces];  // where a piece begins in the index; twice its length, plus 1 if the cell is above the threshold
  std::uint16_t whole[most];  // cells, counted from the first one that was looked at, whose lists are not in pieces
  std::uint32_t piece_count, whole_count;
  std::uint32_t equal_lists, equal_begin, equal_length;  // cells at the threshold, and the list of one of them

  /// Collects the lists of cells [base, base + most), or as many of them as exist. Ends with a barrier.
  /// @param room     how many ids the index has
  /// @param key_at   of cell i, which may be empty; has_tokens  whether it is not
  /// @param list_at  where the list of cell i begins and ends in the index
  template <class HasTokens, class KeyAt, class ListAt>
  __device__ void collect(std::uint32_t room, std::uint32_t base, std::uint32_t cells, threshold limit, HasTokens has_tokens, KeyAt key_at,
                          ListAt list_at) {
    constexpr unsigned own_cells = most / Threads;
    if (threadIdx.x == 0) piece_count = whole_count = equal_lists = 0;
    __syncthreads();
    const std::uint32_t end = cells - base < most ? cells : base + most;
    std::uint32_t key[own_cells];
#pragma unroll
    for (unsigned a = 0; a < own_cells; ++a) key[a] = base + a * Threads + threadIdx.x < end ? key_at(base + a * Threads + threadIdx.x) : 0;
    unsigned above = 0, reached = 0;  // a bit for each cell
#pragma unroll
    for (unsigned a = 0; a < own_cells; ++a) {
      above |= key[a] > limit.key ? 1u << a : 0;
      reached |= key[a] >= limit.key ? 1u << a : 0;
    }
#pragma unroll 1
    for (; reached != 0; reached &= reached - 1) {
      const unsigned a = static_cast<unsigned>(__ffs(static_cast<int>(reached))) - 1;
      const std::uint32_t i = base + a * Threads + threadIdx.x;
      if (i < end && has_tokens(i)) add(i - base, (above >> a & 1u) != 0, clamped(list_at(i), room));
    }
    __syncthreads();
  }

  /// Calls mark(token, whether it is above the threshold) for the tokens of the lists.
  /// @param room, base, limit, key_at, list_at  as collect() got them
  template <class KeyAt, class ListAt, class Mark>
  __device__ void for_tokens(const std::int32_t* ids, std::uint32_t room, std::uint32_t base, threshold limit, KeyAt key_at, ListAt list_at,
                             Mark mark) const {
    constexpr unsigned own_ids = piece / lanes, at_once = 2, step = Threads / lanes;  // a lane reads its ids of two pieces together
    const std::uint32_t count = piece_count < most_pieces ? piece_count : most_pieces, lane = threadIdx.x % lanes;
#pragma unroll 1
    for (std::uint32_t which = threadIdx.x / lanes; which < count; which += at_once * step) {
      uint2 own[at_once];
      std::uint32_t token[at_once][own_ids];
#pragma unroll
      for (unsigned p = 0; p < at_once; ++p) {
        own[p] = which + p * step < count ? pieces[which + p * step] : uint2{0, 0};
#pragma unroll
        for (unsigned a = 0; a < own_ids; ++a)
          if (lane + a * lanes < own[p].y / 2) token[p][a] = static_cast<std::uint32_t>(ids[own[p].x + lane + a * lanes]);
      }
#pragma unroll
      for (unsigned p = 0; p < at_once; ++p)
#pragma unroll
        for (unsigned a = 0; a < own_ids; ++a)
          if (lane + a * lanes < own[p].y / 2) mark(token[p][a], (own[p].y & 1u) != 0);
    }
    for (std::uint32_t slot = 0; slot < whole_count; ++slot) {
      const std::uint32_t cell = base + whole[slot];
      const uint2 list = clamped(list_at(cell), room);
      const bool is_above = key_at(cell) > limit.key;
      if (list.y <= long_list && slot % (Threads / 32) != threadIdx.x / 32) continue;  // a warp takes it; all threads take a long one
      const std::uint32_t begin = list.y <= long_list ? threadIdx.x % 32 : threadIdx.x, by = list.y <= long_list ? 32 : Threads;
#pragma unroll 4
      for (std::uint32_t i = begin; i < list.y; i += by) mark(static_cast<std::uint32_t>(ids[list.x + i]), is_above);
    }
  }

 private:
  /// Where a list begins, and how many of its ids exist.
  __device__ static uint2 clamped(uint2 list, std::uint32_t room) {
    const std::uint32_t end = list.y < room ? list.y : room;
    return {list.x, list.x < end ? end - list.x : 0};
  }
  __device__ void add(std::uint32_t cell, bool is_above, uint2 list) {
    if (!is_above && atomicAdd(&equal_lists, 1u) == 0) equal_begin = list.x, equal_length = list.y;
    if (list.y == 0) return;
    const std::uint32_t count = (list.y + piece - 1) / piece;
    std::uint32_t slot = list.y <= long_list ? atomicAdd(&piece_count, count) : most_pieces;
    if (slot + count > most_pieces) {
      for (; slot < most_pieces; ++slot) pieces[slot] = {0, 0};
      whole[atomicAdd(&whole_count, 1u)] = static_cast<std::uint16_t>(cell);
      return;
    }
#pragma unroll 1
    for (std::uint32_t done = 0; done < list.y; done += piece, ++slot)
      pieces[slot] = {list.x + done, 2 * (list.y - done < piece ? list.y - done : piece) + (is_above ? 1u : 0u)};
  }
};

}  // namespace pqkv::detail::block
