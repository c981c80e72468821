// SPDX-License-Identifier: Apache-2.0
// From table to selected tokens on the device, in one of three ways. Few items (the cells of a joint-code index, or a short range): one
// launch. Several CTAs share a list's tokens, but each finds the threshold for itself, since the barriers of a cluster cost as much time as
// they save (docs/results_gpu.md, what binds). Many tokens: retrieve_filter.cuh. Many cells: scores go to scratch, and one cluster selects
// from each list.
#pragma once

#include <algorithm>

#include "../../search/retrieve.hpp"
#include "block/bitmap.cuh"
#include "block/list_select.cuh"
#include "block/reached_cells.cuh"
#include "block/scan_scorer.cuh"
#include "block/select.cuh"
#include "block/shared.cuh"
#include "retrieve_cells.cuh"
#include "retrieve_filter.cuh"
#include "retrieve_lists.cuh"
#include "scan.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The tokens [begin, end) that one CTA of a list selects from, counted from the first of the list's range.
struct token_share {
  std::uint32_t begin, end;

  __device__ token_share(std::uint32_t tokens, unsigned part, unsigned log_parts) {
    const std::uint32_t share = ((tokens >> log_parts) + 32) / 32 * 32;
    begin = share * part < tokens ? share * part : tokens;
    end = tokens - begin < share ? tokens : begin + share;
  }
};

/// Each list has 2^log_parts CTAs; the CTAs of all lists follow one another along grid.x, which has room for many. Each CTA finds the
/// list's threshold and writes the selected tokens of its part.
/// @param most_items  how many items the keys have room for
/// @param words       of a bitmap of tokens, a multiple of 8; a part with more tokens goes through the bitmap in steps
template <unsigned Threads, unsigned Pack>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) retrieve_kernel(block::scoring call, retrieved_lists out, std::uint8_t* skipped,
                                                                       unsigned most_items, unsigned words, unsigned log_parts) {
  using scorer_type = block::list_scorer<Threads, Pack>;
  __shared__ typename scorer_type::scratch scoring_scratch;
  __shared__ union {
    block::list_select<Threads> select;
    block::reached_cells<Threads> reached;
  } scratch;  // used at different times
  __shared__ block::reduction<std::uint32_t, Threads> places;
  __shared__ block::reduction<std::uint64_t, Threads> sums;
  const unsigned list = blockIdx.x >> log_parts, part = blockIdx.x & ((1u << log_parts) - 1);
  const std::size_t head = call.head_of(list);
  block::shared_memory memory;
  std::uint32_t* counts = call.index.empty() ? nullptr : copy_counts(call.index, head, memory);
  std::uint32_t *keys = memory.take<std::uint32_t>(most_items),
                *bitmap = memory.take<std::uint32_t>(words + block::sparse_bitmap<Threads>::touched_words(words));
  scorer_type scorer(call, list, 0, call.g, scoring_scratch, memory);
  const middle_range range = call.range(list);  // the load runs while the tables are staged
  const block::index_extent extent = call.extent_of(head);
  scorer.stage(part == 0 ? skipped : nullptr);
  // A range that its index does not hold and that is too long to be scanned here breaks retrieve()'s contract. Nothing is then read or
  // written out of bounds.
  const bool are_cells = call.is_joint(range, extent) || range.size() > most_items;
  const indexed_range held = are_cells ? indexed_range(extent, range.end) : indexed_range();
  const token_share own(range.size(), part, log_parts);
  const std::uint32_t k = out.selected(range);
  if (part == 0) out.finish<Threads>(list, k);
  std::int32_t* indices = out.list(list);
  block::wait_copies<0>();
  if (k == 0 || own.begin == own.end) return;
  if (k == range.size()) {
    for (std::uint32_t i = own.begin + threadIdx.x; i < own.end; i += Threads) indices[i] = static_cast<std::int32_t>(range.begin + i);
    return;
  }

  block::scored_items items = call.items(range, head, are_cells);
  if (are_cells) items.counts = counts;
  const auto key_at = [&](std::uint32_t i) { return keys[i]; };
  __syncthreads();  // tables and counts are there
  if (held.last > held.end) {
    uncount_later<Threads>(call, head, held, counts);
    __syncthreads();
  }
  const std::uint32_t ceiling = scorer.prepare(items, range.size());
  scorer.score(items, 0, items.n, keys);
  __syncthreads();
  const block::threshold limit =
      scratch.select.find(items.n, k, ceiling, scratch.select.wide_shift, key_at, [&](std::uint32_t i) { return items.weight(i); });
  const bool all_equal = scratch.select.takes_all_equal();
  __syncthreads();
  const auto has_tokens = [&](std::uint32_t i) { return items.counts[i] != 0; };
  const auto list_at = [&](std::uint32_t i) { return uint2{call.index.offsets(head, i), call.index.offsets(head, i + 1)}; };
  const std::uint32_t most_tokens = words * 32;

  // Of the tokens whose score equals the threshold, the lowest positions are selected. If all of them are selected, or if all stand in one
  // id list, the position where they end is known before any token is marked. They are then marked like tokens above the threshold.
  std::uint32_t end_of_equal = 0xffffffffu;
  bool is_cut = all_equal;
  const std::int32_t* ids = call.index.ids.data + (are_cells ? head * call.index.ids.stride(0) : 0);
  const bool are_collected = are_cells && items.n <= scratch.reached.most;
  if (are_collected) {
    scratch.reached.collect(static_cast<std::uint32_t>(call.index.ids.extent(1)), 0, items.n, limit, has_tokens, key_at, list_at);
    if (!all_equal && scratch.reached.equal_lists == 1 && limit.of_equal <= scratch.reached.equal_length) {
      const std::uint32_t last_equal = static_cast<std::uint32_t>(ids[scratch.reached.equal_begin + limit.of_equal - 1]);
      if (last_equal < held.listed) end_of_equal = last_equal + 1, is_cut = true;  // else some of them are not yet in the lists
    }
  }
  const std::uint32_t listed_equal = end_of_equal < held.listed ? end_of_equal : held.listed;
  if (are_collected && is_cut && k < range.size() / 32) {  // few tokens are selected
    std::uint32_t before = 0;                              // selected tokens at lower positions
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
      scratch.reached.for_tokens(ids, [&](std::uint32_t token, bool above) {
        if (token < (above ? held.listed : listed_equal)) mark(token);
      });
      mark_tail<Threads>(
          call, head, held, limit, key_at,
          [&](std::uint32_t token, bool above) {
            if (above || token < end_of_equal) mark(token);
          },
          0, 1);
      if (first == own.begin && first != 0) before = places.sum(passed);
      __syncthreads();
      before += selected.emit(places, before, static_cast<std::int32_t>(range.begin + first), indices, k);
      __syncthreads();  // the bitmap is about to be reused
    }
    return;
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
        scratch.reached.for_tokens(ids, mark_listed);
      else
        mark_cells<Threads>(scratch.reached, call, items.n, head, limit, has_tokens, key_at, list_at, mark_listed);
      mark_tail<Threads>(
          call, head, held, limit, key_at,
          [&](std::uint32_t token, bool above) {
            if (above || token < end_of_equal) mark(token, above);
          },
          0, 1);
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
    if (first == own.begin && first != 0) before = sums.sum(passed);
    __syncthreads();
    block::bitmap_emission<Threads> emission(sums);
    const std::uint64_t here = emission.count(chosen, are_cells && is_cut ? nullptr : equal, used);
    emission.emit(before, limit.of_equal, static_cast<std::int32_t>(range.begin + first), indices, k);
    before += here;
    __syncthreads();  // the bitmaps are about to be reused
  }
}

/// grid.x: CTAs of a cluster; grid.y: lists. Selects by scores that are already computed. Writes the list if its items are tokens; keeps
/// the threshold if they are cells.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    select_kernel(block::scoring call, retrieved_lists out, view<const float, 2, space::device> scores, block::threshold* limits,
                  unsigned cached) {
  __shared__ block::radix_select<Threads> select;
  const block::cluster_team team(gridDim.x);
  const unsigned list = blockIdx.y;
  const middle_range range = call.range(list);
  const std::uint32_t k = out.selected(range);
  const block::scored_items items = call.items(list);
  if (team.rank() == 0) out.finish<Threads>(list, k);
  if (k == 0) return;
  if (k == range.size()) {
    for (std::uint32_t i = team.rank() * Threads + threadIdx.x; i < k; i += team.size() * Threads)
      out.list(list)[i] = static_cast<std::int32_t>(range.begin + i);
    return;
  }
  const block::slice own(team, items.n);
  std::uint32_t* keys = block::shared_memory().take<std::uint32_t>(cached);
  const auto select_by = [&](auto key_at) {
    const block::threshold limit = select.find(team, own.count, k, key_at, [&](std::uint32_t i) { return items.weight(own.begin + i); });
    if (!items.are_cells())
      select.emit(team, own.count, limit, key_at, static_cast<std::int32_t>(range.begin + own.begin), out.list(list), k);
    else if (team.rank() == 0 && threadIdx.x == 0)
      limits[list] = limit;
    team.sync();  // other CTAs of the team may still read this one's histogram
  };
  // All CTAs of a team take the same branch: it depends on the longest slice.
  if (block::slice::longest(team, items.n) > cached)
    return select_by([&](std::uint32_t i) { return canonical::order_key(scores(list, own.begin + i)); });
#pragma unroll 8
  for (std::uint32_t i = threadIdx.x; i < own.count; i += Threads) keys[i] = canonical::order_key(scores(list, own.begin + i));
  __syncthreads();
  select_by([&](std::uint32_t i) { return keys[i]; });
}

/// grid.x: shares of the cells; grid.y: lists. Marks the tokens of the lists whose items are cells.
/// @param maps  [lists, 2, words] zeros; written: a bit for each selected token, and one for each whose score equals the threshold
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    mark_kernel(block::scoring call, retrieved_lists out, view<const float, 2, space::device> scores, const block::threshold* limits,
                view<std::uint32_t, 3, space::device> maps) {
  __shared__ block::reached_cells<Threads> reached;
  const unsigned list = blockIdx.y;
  const middle_range range = call.range(list);
  const std::uint32_t k = out.selected(range);
  const std::size_t head = call.head_of(list);
  if (!call.is_joint(range, head) || k == 0 || k == range.size()) return;
  const block::scored_items items = call.items(range, head, true);
  const indexed_range held(call.extent_of(head), range.end);
  const auto mark = [&](std::uint32_t token, bool above) {
    const std::uint32_t t = token - range.begin;
    if (t < range.size()) atomicOr(&maps(list, above ? 0 : 1, t / 32), 1u << t % 32);
  };
  const auto mark_listed = [&](std::uint32_t token, bool above) {
    if (token < held.listed) mark(token, above);
  };
  const auto cell_at = [&](std::uint32_t i) { return (i / 32 * gridDim.x + blockIdx.x) * 32 + i % 32; };  // CTAs take 32 cells in turn
  const auto key_of = [&](std::uint32_t cell) { return canonical::order_key(scores(list, cell)); };
  mark_cells<Threads>(
      reached, call, (items.n / 32 + gridDim.x) / gridDim.x * 32, head, limits[list],
      [&](std::uint32_t i) { return cell_at(i) < items.n && items.weight(cell_at(i)) != 0; },
      [&](std::uint32_t i) { return key_of(cell_at(i)); },
      [&](std::uint32_t i) {
        return uint2{call.index.offsets(head, cell_at(i)), call.index.offsets(head, cell_at(i) + 1)};
      },
      mark_listed);
  mark_tail<Threads>(call, head, held, limits[list], key_of, mark, blockIdx.x, gridDim.x);
}

/// grid.x: CTAs of a cluster; grid.y: lists. Writes the lists whose items are cells from their maps.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) emit_kernel(block::scoring call, retrieved_lists out, const block::threshold* limits,
                                                                   view<const std::uint32_t, 3, space::device> maps) {
  __shared__ block::reduction<std::uint64_t, Threads> sums;
  __shared__ std::uint64_t marked;
  const block::cluster_team team(gridDim.x);
  const unsigned list = blockIdx.y;
  const middle_range range = call.range(list);
  const std::uint32_t k = out.selected(range);
  if (!call.is_joint(range, call.head_of(list)) || k == 0 || k == range.size()) return;
  const block::slice own(team, static_cast<std::uint32_t>(maps.extent(2)));
  block::bitmap_emission<Threads> emission(sums);
  const std::uint64_t here = emission.count(&maps(list, 0, own.begin), &maps(list, 1, own.begin), own.count);
  if (threadIdx.x == 0) marked = here;
  team.sync();
  std::uint64_t before = 0;
  for (unsigned rank = 0; rank < team.rank(); ++rank) before += *team.remote(&marked, rank);
  emission.emit(before, limits[list].of_equal, static_cast<std::int32_t>(range.begin + own.begin * 32), out.list(list), k);
  team.sync();  // members may still read `marked`
}

}  // namespace detail

template <>
struct kernel<op::retrieve, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::retrieve::sizes& sizes) { return detail::retrieve_device_scratch_bytes(sizes); }

  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  cell_index_view<space::device> index, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts, const retrieve_params& params,
                  view<std::uint8_t, 1, space::device> skipped, const head_map<space::device>& map) {
    detail::block::scoring call(table, codes, params.reduction, params.head_dim, params.scale, map);
    call.ranges = ranges;
    call.path = params.path;
    if (params.path != search_path::scan) call.index = index;
    // Ranges are on the device, so which list takes which path is decided there. The host knows how many items a list can have at most.
    const std::size_t n = codes.extent(2), cells = call.index.empty() ? 0 : call.index.cells();
    const bool some_joint = cells != 0 && resolve_path(params.path, cells, n) == search_path::joint;
    if (!some_joint) call.index = {};
    const std::size_t most_scanned = params.path == search_path::joint ? 0 : some_joint ? cells - 1 : n;
    const std::size_t items = std::max(some_joint ? cells : 0, most_scanned);
    const auto memory = [&] {
      const op::retrieve::sizes sizes{.lists = call.lists, .query_heads = call.query_heads(), .tokens = n, .cells = cells};
      return detail::device_scratch(policy.scratch, scratch_bytes(sizes), "retrieve");
    };
    const bool is_short = items <= detail::tuning::fused_items && std::size_t{call.g} * call.m * call.c <= detail::tuning::fused_entries;
    if (!is_short) memory();  // a lack of scratch is reported before anything uses a device
    const detail::launcher launch(policy, "retrieve");
    const detail::retrieved_lists out{indices, counts};
    const auto go = [&](auto pack) {
      if (is_short && run_fused<pack>(launch, call, out, skipped.data, items, some_joint ? cells : 0)) return;
      run_spread<pack>(launch, memory(), call, out, skipped.data, items, some_joint ? cells : 0);
    };
    if (detail::spread_launches<4>::takes(launch, call))
      go(std::integral_constant<unsigned, 4>{});
    else
      go(std::integral_constant<unsigned, 1>{});
  }

 private:
  static constexpr unsigned threads = detail::tuning::select_threads;

  /// Runs in one launch if a CTA has room for a list's items; otherwise does nothing and returns false.
  /// @param items  the most that a list may have
  template <unsigned Pack>
  static bool run_fused(const detail::launcher& launch, detail::block::scoring call, const detail::retrieved_lists& out,
                        std::uint8_t* skipped, std::size_t items, std::size_t cells) {
    using detail::block::shared_memory;
    call.counts_own = true;
    const std::size_t n = call.codes.extent(2);
    const auto kernel = detail::retrieve_kernel<threads, Pack>;
    const std::size_t fixed = detail::block::list_scorer<threads, Pack>::shared_bytes(call.g, call.m, call.c) +
                              shared_memory::bytes<std::uint32_t>(items) +
                              (call.index.empty() ? 0 : shared_memory::bytes<std::uint32_t>(cells)),
                      room = launch.shared_limit(kernel);
    if (fixed + detail::tuning::fused_least_bitmaps > room) return false;
    unsigned log_parts = 0;
    while (2u << log_parts <= detail::tuning::fused_parts && call.lists << (log_parts + 1) <= detail::tuning::multiprocessors) ++log_parts;
    const std::size_t wanted = 2 * ((n >> log_parts) / 32 + 2),                // bits for selected tokens and for equal ones
        words = std::min(wanted, (room - fixed) / 160 * 32 - 32) / 8 * 8 + 8;  // 32 words need one word of `touched`
    const std::size_t touched = detail::block::sparse_bitmap<threads>::touched_words(static_cast<std::uint32_t>(words)),
                      bitmap = shared_memory::bytes<std::uint32_t>(words + touched);
    launch("retrieve_kernel", kernel, {dim3(call.lists << log_parts), threads, fixed + bitmap}, call, out, skipped,
           static_cast<unsigned>(items), static_cast<unsigned>(words), log_parts);
    return true;
  }

  /// Runs in several launches, with scores in scratch. An index may hold tokens behind its list's range; that list is then scanned token by
  /// token, so the scratch has room for the scores of all tokens.
  /// @param usual_items  the most that a list has when its index ends with its range
  template <unsigned Pack>
  static void run_spread(const detail::launcher& launch, arena memory, detail::block::scoring call, const detail::retrieved_lists& out,
                         std::uint8_t* skipped, std::size_t usual_items, std::size_t cells) {
    const std::size_t n = call.codes.extent(2), lists = call.lists, words = n / 32 + 1;
    call.carve(memory);
    if (cells == 0) return detail::filter_lists<Pack>(launch, call, out, skipped, {memory, lists, n});
    const std::size_t most_items = std::max(n, usual_items);
    const auto scores = make_view<space::device>(memory.take<float>(lists * most_items), lists, most_items);
    auto* limits = memory.take<detail::block::threshold>(lists);
    const auto maps = make_view<space::device>(memory.take<std::uint32_t>(lists * 2 * words), lists, 2, words);
    const unsigned cluster = launch.largest_cluster(detail::select_kernel<threads>);
    const dim3 grid(cluster, call.lists);
    detail::spread_launches<Pack>(launch, call, usual_items).scores(scores, skipped);
    const std::size_t cached = std::min<std::size_t>(usual_items / cluster + 32, detail::tuning::select_cached_keys);
    launch("select_kernel", detail::select_kernel<threads>, {grid, threads, cached * sizeof(std::uint32_t), cluster}, call, out,
           as_const(scores), limits, static_cast<unsigned>(cached));
    detail::check_cuda(cudaMemsetAsync(maps.data, 0, maps.size() * sizeof(std::uint32_t), launch.stream), "retrieve", "cudaMemsetAsync");
    launch("mark_kernel", detail::mark_kernel<threads>, {dim3(8, call.lists), threads}, call, out, as_const(scores), limits, maps);
    launch("emit_kernel", detail::emit_kernel<threads>, {grid, threads, 0, cluster}, call, out, limits, as_const(maps));
  }
};

}  // namespace pqkv
