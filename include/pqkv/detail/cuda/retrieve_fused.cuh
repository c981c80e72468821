// SPDX-License-Identifier: Apache-2.0
// Retrieval of lists with few items (the cells of a joint-code index, or a short range) in one launch. Several CTAs share a list's tokens,
// but each computes the threshold itself: sharing that work needs the barriers of a cluster, which cost as much time as they save
// (docs/results_gpu.md, "What binds").
#pragma once

#include <algorithm>

#include "../../search/retrieve.hpp"
#include "block/bitmap.cuh"
#include "block/cluster.cuh"
#include "block/list_select.cuh"
#include "block/reached_cells.cuh"
#include "block/scan_scorer.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "retrieve_cells.cuh"
#include "retrieve_lists.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// The tokens from which one CTA of a list selects: [begin, end), counted from the beginning of the list's range.
struct token_share {
  std::uint32_t begin, end;

  __device__ token_share(std::uint32_t tokens, unsigned part, unsigned log_parts) {
    const std::uint32_t share = ((tokens >> log_parts) + 32) / 32 * 32;
    begin = share * part < tokens ? share * part : tokens;
    end = tokens - begin < share ? tokens : begin + share;
  }
};

enum class call_case { any, usual };  // of block::scoring::is_usual()

/// Each list has 2^log_parts CTAs; the CTAs of all lists follow one another along grid.x, the axis that CUDA limits least. Each CTA finds
/// the list's threshold and writes the selected tokens of its part.
/// @param lists       gives each list's range and table
/// @param most_items  how many items the keys have room for
/// @param most_lists  room for offsets of the id lists: all of an index, or 0
/// @param words       size of the bitmap of tokens, a multiple of 8; a part with more tokens is processed in several steps
/// @tparam Case       call_case::usual leaves out the instructions that unusual calls need. Each CTA runs the
///                    kernel's instructions only once, so fetching and issuing them takes much of its time
// measured: a decode step, codes 2 x 6, n 524288, H200, 2026-11: 34.1 us (cold caches 40.7), with the usual kernel 32.8 (36.5)
template <unsigned Threads, unsigned Pack, call_case Case, class Lists>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    retrieve_kernel(const __grid_constant__ block::scoring given, const __grid_constant__ Lists lists, retrieved_lists out,
                    std::uint8_t* skipped, unsigned most_items, unsigned most_lists, unsigned words, unsigned log_parts) {
  const block::scoring call = Case == call_case::usual ? given.as_usual() : given;
  using scorer_type = block::list_scorer<Threads, Pack, typename Lists::entries>;
  __shared__ typename scorer_type::scratch scoring_scratch;
  __shared__ union {
    block::list_select<Threads> select;
    block::reached_cells<Threads> reached;
  } scratch;  // used at different times
  __shared__ block::reduction<std::uint32_t, Threads> places;
  __shared__ block::reduction<std::uint64_t, Threads> sums;
  __shared__ std::uint32_t largest;  // key
  if (threadIdx.x == 0) largest = 0;
  if constexpr (!Lists::plans) block::wait_for_last_kernel();  // planned lists wait themselves
  const unsigned list = blockIdx.x >> log_parts, part = blockIdx.x & ((1u << log_parts) - 1);
  const typename Lists::one own_list(lists, call, list, part, 1u << log_parts);
  const std::size_t head = own_list.head();
  block::shared_memory memory;
  const typename Lists::entries entries = own_list.begin(memory);
  std::uint32_t *counts = nullptr, *offsets = most_lists != 0 ? memory.take<std::uint32_t>(most_lists) : nullptr;
  if (!call.index.empty()) {
    counts = memory.take<std::uint32_t>(call.index.cells());
    copy_words<Threads>(counts, &call.index.counts(head, 0), static_cast<std::uint32_t>(call.index.cells()));
    if (offsets != nullptr) copy_words<Threads>(offsets, &call.index.offsets(head, 0), most_lists);
  }
  std::uint32_t *keys = memory.take<std::uint32_t>(most_items),
                *bitmap = memory.take<std::uint32_t>(words + block::sparse_bitmap<Threads>::touched_words(words));
  scorer_type scorer(call, list, 0, call.g, scoring_scratch, memory, entries);
  const block::index_extent extent = call.extent_of(head);
  if constexpr (Lists::exchanges)
    own_list.finish(entries, [&](const middle_range& own) {  // its counts are under way to other ranks while tables are computed
      if (own_list.whole(entries).size() == 0) return;       // on all ranks
      const indexed_range held(extent, own.end);
      if (held.last > held.end) {
        uncount_later<Threads>(call, head, held, counts);
        __syncthreads();
      }
      own_list.exchange().send_counts(counts, static_cast<std::uint32_t>(call.index.cells()));
    });
  else
    own_list.finish(entries);
  const middle_range range = own_list.range(entries);  // read here, so that the load overlaps with stage()
  scorer.stage(part == 0 ? skipped : nullptr);
  // A range that its index does not hold and that is too long to be scanned here breaks retrieve()'s contract. Nothing is then read or
  // written out of bounds.
  const bool are_cells = Lists::exchanges || call.is_joint(range, extent) || range.size() > most_items;
  const indexed_range held = are_cells ? indexed_range(extent, range.end) : indexed_range();
  const index_tail<Threads> tail(call, head, held);
  const token_share own(range.size(), part, log_parts);
  std::uint32_t k = 0, ranked = range.size();  // how many are selected, of how many
  if constexpr (Lists::exchanges) {
    k = own_list.whole(entries).selected(), ranked = own_list.whole(entries).size();
    if (threadIdx.x == 0 && range.size() == 0) out.counts(list) = 0;  // otherwise by the CTA of the last part
  } else {
    k = out.selected(range);
    if (part == 0) out.finish<Threads>(list, k);
  }
  const std::uint32_t room = Lists::exchanges ? out.room() : k;
  std::int32_t* indices = out.list(list);
  block::wait_copies<0>();
  if constexpr (Lists::exchanges) {  // the other ranks wait for this one's messages, even if it selects nothing
    if (ranked == 0) return;         // on all ranks
    __syncthreads();
    own_list.exchange().add_counts(counts, static_cast<std::uint32_t>(call.index.cells()));
    own_list.count_exchange();
  } else {
    if (k == 0 || own.begin == own.end) return;
    if (k == range.size()) {
      for (std::uint32_t i = own.begin + threadIdx.x; i < own.end; i += Threads) indices[i] = static_cast<std::int32_t>(range.begin + i);
      return;
    }
  }

  block::scored_items items = call.items(range, head, are_cells);
  if (are_cells) items.counts = counts;
  const auto key_at = [&](std::uint32_t i) { return keys[i]; };
  __syncthreads();  // tables and counts are there
  if (!Lists::exchanges && held.last > held.end) {
    uncount_later<Threads>(call, head, held, counts);
    __syncthreads();
  }
  scorer.prepare(items, ranked);
  const std::uint32_t own_largest = __reduce_max_sync(block::all_lanes, scorer.score(items, 0, items.n, keys));
  if (threadIdx.x % 32 == 0) atomicMax(&largest, own_largest);
  __syncthreads();
  const block::threshold limit = scratch.select.find(items.n, k, largest, scratch.select.wide_shift, key_at,
                                                     [&](std::uint32_t i) { return are_cells ? counts[i] : 1u; });
  const bool all_equal = scratch.select.takes_all_equal();
  __syncthreads();
  const auto list_at = [&](std::uint32_t i) {
    return offsets != nullptr ? uint2{offsets[i], offsets[i + 1]} : uint2{call.index.offsets(head, i), call.index.offsets(head, i + 1)};
  };
  const auto has_tokens = [&](std::uint32_t i) {
    if constexpr (Lists::exchanges)
      return items.counts[i] != 0 && keys[i] >= limit.key && list_at(i).x != list_at(i).y;  // the counts are those of all ranks
    else
      return items.counts[i] != 0;
  };
  const std::uint32_t most_tokens = words * 32;

  // Of the tokens whose score equals the threshold, the lowest positions are selected. If all of them are selected, or if all stand in one
  // id list, the position where they end is known before any token is marked. They are then marked like tokens above the threshold.
  std::uint32_t end_of_equal = 0xffffffffu;
  bool is_cut = all_equal;
  const std::int32_t* ids = call.index.ids.data + (are_cells ? head * call.index.ids.stride(0) : 0);
  const bool are_collected = are_cells && items.n <= scratch.reached.most;
  const std::uint32_t ids_room = static_cast<std::uint32_t>(call.index.ids.extent(1));
  const auto for_tokens = [&](auto mark) { scratch.reached.for_tokens(ids, ids_room, 0, limit, key_at, list_at, mark); };
  if (are_collected) {
    scratch.reached.collect(ids_room, 0, items.n, limit, has_tokens, key_at, list_at);
    if (!Lists::exchanges && !all_equal && scratch.reached.equal_lists == 1 && limit.of_equal <= scratch.reached.equal_length) {
      const std::uint32_t last_equal = static_cast<std::uint32_t>(ids[scratch.reached.equal_begin + limit.of_equal - 1]);
      if (last_equal < held.listed) end_of_equal = last_equal + 1, is_cut = true;  // otherwise some are not yet in the id lists
    }
  }
  if constexpr (Lists::exchanges) {
    if (!all_equal) {
      const auto is_equal = [&](std::uint32_t token) { return keys[tail.cell(token)] == limit.key; };
      const auto exchange = own_list.exchange();
      if (part != 0) {  // the first part's CTA sends this rank's
      } else if (are_collected && scratch.reached.equal_lists <= 1) {
        const std::uint32_t listed = scratch.reached.equal_lists == 0 ? 0 : scratch.reached.equal_length;
        exchange.send_equal(places, limit.of_equal, ids + scratch.reached.equal_begin, listed, held.listed, held.end, is_equal);
      } else {  // rare: several cells have this score, and their ids together are not in order. So all tokens are read, in order
        __syncthreads();
        const block::threshold lowest = scratch.select.find(
            range.size(), limit.of_equal, 0xffffffffu, 22, [](std::uint32_t i) { return ~i; },
            [&](std::uint32_t i) { return is_equal(range.begin + i) ? 1u : 0u; });
        const std::uint32_t last = ~lowest.key < range.size() ? range.begin + ~lowest.key + 1 : range.end;
        exchange.send_equal(places, limit.of_equal, ids, 0, range.begin, last, is_equal);
        if (are_collected) scratch.reached.collect(ids_room, 0, items.n, limit, has_tokens, key_at, list_at);
      }
      is_cut = true;
    }
    if (own.begin == own.end) return;
  }
  const bool is_sparse = are_collected && is_cut && k < range.size() / 32;  // few tokens are selected
  const auto find_end_of_equal = [&] {
    if constexpr (Lists::exchanges)  // once all lists are collected, nobody reads the counts any more: their memory is used again
      end_of_equal = own_list.exchange().end_of_equal(limit.of_equal, are_collected ? counts : bitmap, are_collected ? items.n : words);
  };
  if (Lists::exchanges && !all_equal && !is_sparse) find_end_of_equal();
  std::uint32_t listed_equal = end_of_equal < held.listed ? end_of_equal : held.listed;
  const auto count_listed = [&](std::uint32_t listed) {  // the last part of a rank's share knows how many it has
    if (Lists::exchanges && threadIdx.x == 0 && own.end == range.size()) out.counts(list) = listed < room ? listed : room;
  };
  if (is_sparse) {
    std::uint32_t before = 0;  // selected tokens at lower positions
    for (std::uint32_t first = own.begin; first < own.end; first += most_tokens) {
      const std::uint32_t tokens = own.end - first < most_tokens ? own.end - first : most_tokens;
      block::sparse_bitmap<Threads> selected(bitmap, bitmap + words, (tokens + 31) / 32);
      __syncthreads();
      std::uint32_t passed = 0;  // tokens of lower parts, counted by this thread
      const auto mark = [&](std::uint32_t token) {
        const std::uint32_t t = token - range.begin;
        if (t - first < tokens) selected.mark(t - first);
        if (t < own.begin) ++passed;
      };
      // Tokens above the threshold are marked while the positions of those at it are under way.
      const bool equal_later = Lists::exchanges && !all_equal && first == own.begin;
      for_tokens([&](std::uint32_t token, bool above) {
        if (token < (above ? held.listed : equal_later ? 0u : listed_equal)) mark(token);
      });
      tail.mark(limit, key_at, [&](std::uint32_t token, bool above) {
        if (above || (!equal_later && token < end_of_equal)) mark(token);
      });
      if (equal_later) {
        find_end_of_equal();
        listed_equal = end_of_equal < held.listed ? end_of_equal : held.listed;
        const auto mark_equal = [&](std::uint32_t token, bool above) {
          if (!above && token < listed_equal) mark(token);
        };
        if (scratch.reached.equal_lists > 1)
          for_tokens(mark_equal);
        else if (scratch.reached.equal_lists == 1)
          for (std::uint32_t i = threadIdx.x; i < scratch.reached.equal_length; i += Threads)
            mark_equal(static_cast<std::uint32_t>(ids[scratch.reached.equal_begin + i]), false);
        tail.mark(limit, key_at, [&](std::uint32_t token, bool above) {
          if (!above && token < end_of_equal) mark(token);
        });
      }
      // Attention may start here and not earlier: beside all of this kernel it would be slowed down by more than the early start saves.
      // measured: a decode step, codes 2 x 6, n 524288, H200, 2026-11: 36.3 us (cold caches 44.0), released here 35.4 (41.5)
      block::release_dependents();
      if (first == own.begin && first != 0) before = places.sum(passed);
      __syncthreads();
      before += selected.emit(places, before, static_cast<std::int32_t>(range.begin + first), indices, room);
      __syncthreads();  // the bitmap is about to be reused
    }
    return count_listed(before);
  }

  std::uint64_t before = 0;  // marked tokens at lower positions
  const std::uint32_t half = words / 2;
  std::uint32_t *chosen = bitmap, *equal = bitmap + half;
  for (std::uint32_t first = own.begin; first < own.end; first += half * 32) {
    const std::uint32_t tokens = own.end - first < half * 32 ? own.end - first : half * 32, used = (tokens + 31) / 32;
    std::uint64_t passed = 0;  // tokens of lower parts, counted by this thread
    if (are_cells) {
      for (std::uint32_t w = threadIdx.x; w < used; w += Threads) chosen[w] = equal[w] = 0;
      __syncthreads();
      const auto mark = [&](std::uint32_t token, bool above) {
        const std::uint32_t t = token - range.begin;
        if (t - first < tokens) atomicOr(&(above || is_cut ? chosen : equal)[(t - first) / 32], 1u << (t - first) % 32);
        if (t < own.begin) passed += block::token_count(above || is_cut);
      };
      const auto mark_listed = [&](std::uint32_t token, bool above) {
        if (token < (above ? held.listed : listed_equal)) mark(token, above);
      };
      if (are_collected)
        for_tokens(mark_listed);
      else
        mark_cells<Threads>(scratch.reached, call, items.n, head, limit, has_tokens, key_at, list_at, mark_listed);
      tail.mark(limit, key_at, [&](std::uint32_t token, bool above) {
        if (above || token < end_of_equal) mark(token, above);
      });
    } else {
      for (std::uint32_t i = threadIdx.x; first == own.begin && i < first; i += Threads)
        if (keys[i] >= limit.key) passed += block::token_count(keys[i] > limit.key);
      for (std::uint32_t i = threadIdx.x; i / 32 < used; i += Threads) {  // whole warps
        const std::uint32_t key = i < tokens ? keys[first + i] : 0;
        const unsigned aboves = __ballot_sync(block::all_lanes, i < tokens && key > limit.key),
                       equals = __ballot_sync(block::all_lanes, i < tokens && key == limit.key);
        if (i % 32 == 0) chosen[i / 32] = aboves, equal[i / 32] = equals;
      }
    }
    block::release_dependents();  // as above
    if (first == own.begin && first != 0) before = sums.sum(passed);
    __syncthreads();
    block::bitmap_emission<Threads> emission(sums);
    const std::uint64_t here = emission.count(chosen, are_cells && is_cut ? nullptr : equal, used);
    emission.emit(before, limit.of_equal, static_cast<std::int32_t>(range.begin + first), indices, room);
    before += here;
    __syncthreads();  // the bitmaps are about to be reused
  }
  count_listed(static_cast<std::uint32_t>(before >> 32));
}

/// Bounds for the lists of a call, from what the host knows: the cells of the index if some list may use it, and the most items of any
/// list. Ranges are in device memory, so each list's path is chosen there.
struct list_items {
  std::size_t cells, items;

  /// Removes an index that no list can use from the call.
  explicit list_items(block::scoring& call) {
    const std::size_t n = call.codes.extent(2);
    cells = call.index.empty() ? 0 : call.index.cells();
    if (cells != 0 && resolve_path(call.path, cells, n) != search_path::joint) cells = 0;
    if (cells == 0) call.index = {};
    const std::size_t most_scanned = call.path == search_path::joint ? 0 : cells != 0 ? cells - 1 : n;
    items = std::max(cells, most_scanned);
  }
};

/// Whether a call has too many items or query heads for one launch. @param items  the most that a list may have
inline bool needs_spreading(const block::scoring& call, std::size_t items) {
  return items > tuning::fused_items || std::size_t{call.g} * call.m * call.c > tuning::fused_entries;
}

/// Launches retrieve_kernel and returns true, if one launch can do the whole call; otherwise does nothing and returns false.
/// @param items   the most that a list may have
/// @param cells   of the index, 0 where no list uses it
/// @param before  called right before the launch
template <unsigned Pack, class Lists, class Before = no_work>
bool retrieve_in_one(const launcher& launch, block::scoring call, const Lists& lists, const retrieved_lists& out, std::uint8_t* skipped,
                     std::size_t items, std::size_t cells, const Before& before = {}) {
  using block::shared_memory;
  if (needs_spreading(call, items)) return false;
  constexpr unsigned threads = tuning::fused_threads;
  call.counts_own = true;
  const std::size_t n = call.codes.extent(2);
  auto kernel = retrieve_kernel<threads, Pack, call_case::any, Lists>;
  if constexpr (Pack > 1)
    if (call.is_usual()) kernel = retrieve_kernel<threads, Pack, call_case::usual, Lists>;
  const std::size_t room = launch.shared_limit(kernel), of_lists = shared_memory::bytes<std::uint32_t>(cells + 1);
  std::size_t fixed = lists.shared_bytes(call) + lists.centroid_bytes(call) +
                      block::list_scorer<threads, Pack>::shared_bytes(call.g, call.m, call.c) + shared_memory::bytes<std::uint32_t>(items) +
                      (call.index.empty() ? 0 : shared_memory::bytes<std::uint32_t>(cells));
  if (fixed + tuning::fused_least_bitmaps > room) return false;
  const bool has_offsets = cells != 0 && fixed + of_lists + 2 * tuning::fused_least_bitmaps <= room;
  if (has_offsets) fixed += of_lists;
  unsigned log_parts = 0;
  while (2u << log_parts <= tuning::fused_parts && call.lists << (log_parts + 1) <= tuning::multiprocessors) ++log_parts;
  const std::size_t wanted = 2 * ((n >> log_parts) / 32 + 2),                // bits for selected tokens and for equal ones
      words = std::min(wanted, (room - fixed) / 160 * 32 - 32) / 8 * 8 + 8;  // 32 words need one word of `touched`
  const std::size_t touched = block::sparse_bitmap<threads>::touched_words(static_cast<std::uint32_t>(words)),
                    bitmap = shared_memory::bytes<std::uint32_t>(words + touched);
  before();
  launch("retrieve_kernel", kernel,
         {.grid = dim3(call.lists << log_parts),
          .threads = threads,
          .shared_bytes = fixed + bitmap,
          .early = launch.is_built_for_hopper(kernel)},
         call, lists, out, skipped, static_cast<unsigned>(items), static_cast<unsigned>(has_offsets ? cells + 1 : 0),
         static_cast<unsigned>(words), log_parts);
  return true;
}

}  // namespace pqkv::detail
