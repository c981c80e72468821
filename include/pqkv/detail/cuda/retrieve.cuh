// SPDX-License-Identifier: Apache-2.0
// Table to selected tokens on the device. Few items (the cells of a joint-code index, or a short range): one launch, in which every
// CTA of a list scores all items and finds the threshold by itself, then writes the tokens of its part of the range; doing the
// little work again costs less than a wait for other CTAs. Many items: scores in scratch, one cluster a list to select.
#pragma once

#include <algorithm>

#include "../../search/retrieve.hpp"
#include "block/bitmap.cuh"
#include "block/retrieve.cuh"
#include "block/select.cuh"
#include "block/shared.cuh"
#include "scan.cuh"

namespace pqkv {
namespace detail {

/// Where the lists go.
struct retrieved_lists {
  view<std::int32_t, 2, space::device> indices;
  view<std::uint32_t, 1, space::device> counts;

  __device__ std::uint32_t room() const { return static_cast<std::uint32_t>(indices.extent(1)); }
  __device__ std::int32_t* list(unsigned which) const { return indices.data + which * indices.stride(0); }
  /// How many are selected of a range, at most what has room.
  __device__ std::uint32_t selected(const middle_range& range) const { return range.selected() < room() ? range.selected() : room(); }
  /// By one CTA: the count, and -1 behind the list.
  template <unsigned Threads>
  __device__ void finish(unsigned which, std::uint32_t k) const {
    if (threadIdx.x == 0) counts(which) = k;
    for (std::uint32_t i = k + threadIdx.x; i < room(); i += Threads) list(which)[i] = -1;
  }
};

/// Cells that reach the threshold, as a flat range of the tokens in their lists.
template <unsigned Threads>
struct reached_cells {
  static constexpr unsigned turns = 4, most = turns * Threads;
  std::uint32_t ends[most];   // where a list ends in the flat range, times 2, plus 1 where the cell is above the threshold
  std::uint32_t bases[most];  // of a list: place in the index - place in the flat range
  block::reduction<std::uint64_t, Threads> places;
};

/// Calls mark(token, whether it is above the threshold) for every token of the cells that reach it, lists and tail. Lists of reached cells
/// stand next to each other in rows of codes, so threads share their tokens, not the cells. Ends with a barrier.
/// @param items  the cells
/// @param part   of `parts` CTAs that have 32 cells each in turn
template <unsigned Threads, class KeyAt, class Mark>
__device__ void for_selected_cells(reached_cells<Threads>& reached, const scoring& call, const block::scored_items& items, std::size_t head,
                                   const middle_range& range, block::threshold limit, KeyAt key_at, Mark mark, unsigned part = 0,
                                   unsigned parts = 1) {
  constexpr unsigned turns = reached_cells<Threads>::turns, at_once = 4;  // at_once: loads of a thread in flight
  const auto& index = call.index;
  for (std::uint32_t base = 0; base * parts < items.n; base += turns * Threads) {
    std::uint32_t begins[turns], lengths[turns];
    unsigned aboves = 0;
#pragma unroll
    for (unsigned a = 0; a < turns; ++a) {
      const std::uint32_t at = base + a * Threads + threadIdx.x, cell = (at / 32 * parts + part) * 32 + at % 32;
      begins[a] = lengths[a] = 0;
      if (cell >= items.n || items.weight(cell) == 0) continue;
      const std::uint32_t key = key_at(cell);
      if (key < limit.key) continue;
      begins[a] = index.offsets(head, cell);
      lengths[a] = index.offsets(head, cell + 1);
      aboves |= key > limit.key ? 1u << a : 0u;
    }
    std::uint64_t own = 0, all = 0;  // cells in the upper half, tokens in the lower
#pragma unroll
    for (unsigned a = 0; a < turns; ++a) {
      lengths[a] -= begins[a];
      if (lengths[a] != 0) own += (std::uint64_t{1} << 32) + lengths[a];
    }
    std::uint64_t place = reached.places.prefix(own, all);
#pragma unroll
    for (unsigned a = 0; a < turns; ++a)
      if (lengths[a] != 0) {
        const std::uint32_t slot = static_cast<std::uint32_t>(place >> 32), first = static_cast<std::uint32_t>(place);
        reached.ends[slot] = 2 * (first + lengths[a]) + (aboves >> a & 1u);
        reached.bases[slot] = begins[a] - first;
        place += (std::uint64_t{1} << 32) + lengths[a];
      }
    __syncthreads();
    const std::uint32_t cells = static_cast<std::uint32_t>(all >> 32), tokens = static_cast<std::uint32_t>(all);
    for (std::uint32_t first = threadIdx.x; first < tokens; first += at_once * Threads) {
      std::uint32_t slot[at_once] = {}, token[at_once];
      for (std::uint32_t step = cells == 1 ? 0 : 1u << (31 - __clz(static_cast<int>(cells - 1))); step > 0; step /= 2)
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a)  // as many lists end at or before it
          if (slot[a] + step < cells && reached.ends[slot[a] + step - 1] / 2 <= first + a * Threads) slot[a] += step;
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        const std::uint32_t at = first + a * Threads, i = reached.bases[slot[a]] + at;
        token[a] = at < tokens && i < index.ids.extent(1) ? static_cast<std::uint32_t>(index.ids(head, i)) - range.begin : 0xffffffffu;
      }
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a)
        if (token[a] != 0xffffffffu) mark(token[a], (reached.ends[slot[a]] & 1u) != 0);
    }
    __syncthreads();
  }
  const block::scored_items tokens{call.codes.data + head * call.codes.stride(0), call.codes.stride(1), nullptr, 0, call.m, call.bits};
  const std::uint32_t last = index.last(head) < range.end ? index.last(head) : range.end;
  for (std::uint32_t t = index.merged(head) + part * Threads + threadIdx.x; t < last; t += parts * Threads) {
    const std::uint32_t key = key_at(tokens.cell(t));
    if (key >= limit.key) mark(t - range.begin, key > limit.key);
  }
  __syncthreads();
}

/// Parts of the range are grid.x, lists grid.y.
/// @param most_items   items that the keys have room for
/// @param part_tokens  of a CTA, a multiple of 32
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    retrieve_kernel(scoring call, retrieved_lists out, std::uint8_t* skipped, unsigned most_items, unsigned part_tokens) {
  __shared__ union {
    typename block::list_scorer<Threads>::scratch scoring;
    block::radix_select<Threads> select;
    reached_cells<Threads> reached;
    block::reduction<std::uint64_t, Threads> sums;
  } scratch;  // one after the other
  const unsigned list = blockIdx.y, part = blockIdx.x;
  const std::size_t head = list / call.lists_per_head;
  const middle_range range = call.range(list);
  const std::uint32_t k = out.selected(range);
  block::scored_items items = call.items(list);
  std::int32_t* indices = out.list(list);

  block::shared_memory memory;
  if (items.are_cells()) {  // read in every pass
    std::uint32_t* counts = memory.take<std::uint32_t>(items.n);
#pragma unroll 4
    for (std::uint32_t i = threadIdx.x; i < items.n; i += Threads) counts[i] = items.counts[i];
    items.counts = counts;
  }
  block::list_scorer<Threads> scorer(call, list, items, scratch.scoring, memory);
  std::uint32_t* keys = memory.take<std::uint32_t>(most_items);
  scorer.look(part == 0 ? skipped : nullptr);
  if (part == 0) out.finish<Threads>(list, k);
  const std::uint32_t begin = part * part_tokens;
  if (begin >= range.size() || k == 0) return;
  const std::uint32_t tokens = range.size() - begin < part_tokens ? range.size() - begin : part_tokens;
  if (k == range.size()) {
    for (std::uint32_t i = begin + threadIdx.x; i < begin + tokens; i += Threads) indices[i] = static_cast<std::int32_t>(range.begin + i);
    return;
  }
  if (!items.are_cells() && part != 0) return;  // few tokens: the first part writes them all

  scorer.prepare(range.size());
  scorer.score(keys);
  __syncthreads();
  const block::cluster_team alone(1);
  const auto key_at = [&](std::uint32_t i) { return keys[i]; };
  const block::threshold limit =
      scratch.select.find(alone, items.n, k, key_at, [&](std::uint32_t i) { return items.weight(i); });
  if (!items.are_cells()) {
    scratch.select.emit(alone, items.n, limit, key_at, static_cast<std::int32_t>(range.begin), indices, k);
    return;
  }

  const std::uint32_t words = part_tokens / 32;
  std::uint32_t *chosen = memory.take<std::uint32_t>(words), *equal = memory.take<std::uint32_t>(words);
  for (std::uint32_t w = threadIdx.x; w < words; w += Threads) chosen[w] = equal[w] = 0;
  __syncthreads();
  std::uint64_t before = 0;  // marked tokens of the parts before this
  for_selected_cells<Threads>(scratch.reached, call, items, head, range, limit, key_at, [&](std::uint32_t t, bool above) {
    if (t < begin)
      before += block::token_count(above);
    else if (t < begin + tokens)
      atomicOr(&(above ? chosen : equal)[(t - begin) / 32], 1u << (t - begin) % 32);
  });
  before = scratch.sums.sum(before);
  block::bitmap_emission<Threads> emission(scratch.sums);
  emission.count(chosen, equal, words);
  emission.emit(before, limit.of_equal, static_cast<std::int32_t>(range.begin + begin), indices, k);
}

/// CTAs of a cluster are grid.x, lists grid.y: selects from scores that are there. A list of tokens is written; of a list of cells the
/// threshold is kept.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    select_kernel(scoring call, retrieved_lists out, view<const float, 2, space::device> scores, block::threshold* limits,
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
    team.sync();  // members may still read this one's histogram
  };
  // Members of a team agree on the way: the first has the longest slice.
  if (block::slice::longest(team, items.n) > cached)
    return select_by([&](std::uint32_t i) { return canonical::order_key(scores(list, own.begin + i)); });
#pragma unroll 8
  for (std::uint32_t i = threadIdx.x; i < own.count; i += Threads) keys[i] = canonical::order_key(scores(list, own.begin + i));
  __syncthreads();
  select_by([&](std::uint32_t i) { return keys[i]; });
}

/// A share of the cells is grid.x, lists grid.y: marks the tokens of lists of cells.
/// @param maps  [lists, 2, words] zeros; selected tokens and equal ones, written
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    mark_kernel(scoring call, retrieved_lists out, view<const float, 2, space::device> scores, const block::threshold* limits,
                view<std::uint32_t, 3, space::device> maps) {
  __shared__ reached_cells<Threads> reached;
  const unsigned list = blockIdx.y;
  const middle_range range = call.range(list);
  const std::uint32_t k = out.selected(range);
  if (!call.is_joint(range) || k == 0 || k == range.size()) return;
  for_selected_cells<Threads>(
      reached, call, call.items(list), list / call.lists_per_head, range, limits[list],
      [&](std::uint32_t cell) { return canonical::order_key(scores(list, cell)); },
      [&](std::uint32_t t, bool above) {
        if (t < range.size()) atomicOr(&maps(list, above ? 0 : 1, t / 32), 1u << t % 32);
      },
      blockIdx.x, gridDim.x);
}

/// CTAs of a cluster are grid.x, lists grid.y: writes lists of cells from their maps.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    emit_kernel(scoring call, retrieved_lists out, const block::threshold* limits, view<const std::uint32_t, 3, space::device> maps) {
  __shared__ block::reduction<std::uint64_t, Threads> sums;
  __shared__ std::uint64_t marked;
  const block::cluster_team team(gridDim.x);
  const unsigned list = blockIdx.y;
  const middle_range range = call.range(list);
  const std::uint32_t k = out.selected(range);
  if (!call.is_joint(range) || k == 0 || k == range.size()) return;
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
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  cell_index_view<space::device> index, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts,
                  const retrieve_params& params, view<std::uint8_t, 1, space::device> skipped) {
    detail::scoring call(table, codes, params.reduction, params.head_dim);
    call.ranges = ranges;
    call.path = params.path;
    if (params.path != search_path::scan) call.index = index;
    // The ranges are on the device: which lists take which path is found there, how many items a list can have at most is known here.
    const std::size_t n = codes.extent(2), cells = call.index.empty() ? 0 : call.index.cells();
    const bool some_joint = cells != 0 && resolve_path(params.path, cells, n) == search_path::joint;
    const std::size_t most_scanned = params.path == search_path::joint ? 0 : some_joint ? cells - 1 : n;
    const std::size_t most_items = std::max(some_joint ? cells : 0, most_scanned);
    const detail::launcher launch(policy, "retrieve");
    const detail::retrieved_lists out{indices, counts};
    if (most_items <= detail::tuning::fused_items && std::size_t{call.g} * call.m * call.c <= detail::tuning::fused_entries)
      run_fused(launch, call, out, skipped.data, most_items, n);
    else
      run_spread(launch, policy.scratch, call, out, skipped.data, most_items, some_joint ? cells : 0);
  }

 private:
  static constexpr unsigned threads = detail::tuning::select_threads;

  static void run_fused(const detail::launcher& launch, const detail::scoring& call, const detail::retrieved_lists& out,
                        std::uint8_t* skipped, std::size_t most_items, std::size_t n) {
    using detail::block::shared_memory;
    using detail::ceil_div;
    using detail::tuning::fused_part_tokens;
    const unsigned spread = std::clamp(detail::tuning::multiprocessors / call.lists, 1u, 16u),
                   parts = std::max(spread, ceil_div(n, fused_part_tokens));
    const std::size_t part_tokens = std::max(ceil_div(n, parts * std::size_t{32}), 1u) * std::size_t{32};
    const std::size_t shared = detail::block::list_scorer<threads>::shared_bytes(call.g, call.m, call.c) +
                               (call.index.empty() ? 1 : 2) * shared_memory::bytes<std::uint32_t>(most_items) +
                               2 * shared_memory::bytes<std::uint32_t>(part_tokens / 32);
    launch("retrieve_kernel", detail::retrieve_kernel<threads>, {dim3(parts, call.lists), threads, shared}, call, out, skipped,
           static_cast<unsigned>(most_items), static_cast<unsigned>(part_tokens));
  }

  static void run_spread(const detail::launcher& launch, const arena& scratch, detail::scoring call, const detail::retrieved_lists& out,
                         std::uint8_t* skipped, std::size_t most_items, std::size_t cells) {
    const std::size_t n = call.codes.extent(2), lists = call.lists, words = n / 32 + 1;
    arena memory = detail::device_scratch(
        scratch, retrieve_device_scratch_bytes(lists, call.query_heads(), call.m, n, cells), "retrieve");
    call.carve(memory);
    const auto scores = make_view<space::device>(memory.take<float>(lists * most_items), lists, most_items);
    auto* limits = memory.take<detail::block::threshold>(lists);
    const auto maps = make_view<space::device>(memory.take<std::uint32_t>(lists * 2 * words), lists, 2, words);
    const unsigned cluster = launch.largest_cluster(detail::select_kernel<threads>);
    const dim3 grid(cluster, call.lists);
    detail::score_items(launch, call, most_items, scores, skipped);
    const std::size_t cached = std::min<std::size_t>(most_items / cluster + 32, detail::tuning::select_cached_keys);
    launch("select_kernel", detail::select_kernel<threads>, {grid, threads, cached * sizeof(std::uint32_t), cluster}, call, out,
           as_const(scores), limits, static_cast<unsigned>(cached));
    if (cells == 0) return;
    detail::check_cuda(cudaMemsetAsync(maps.data, 0, maps.size() * sizeof(std::uint32_t), launch.stream), "retrieve", "cudaMemsetAsync");
    launch("mark_kernel", detail::mark_kernel<threads>, {dim3(8, call.lists), threads}, call, out, as_const(scores), limits, maps);
    launch("emit_kernel", detail::emit_kernel<threads>, {grid, threads, 0, cluster}, call, out, limits, as_const(maps));
  }
};

}  // namespace pqkv
