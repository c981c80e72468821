// SPDX-License-Identifier: Apache-2.0
// From table to selected tokens on the device, in one of three ways. Few items (the cells of a joint-code index, or a short range):
// retrieve_fused.cuh. Many tokens: retrieve_cluster.cuh or retrieve_filter.cuh. Many cells: scores go to scratch, and one cluster selects
// from each list.
#pragma once

#include <algorithm>

#include "../../search/retrieve.hpp"
#include "block/bitmap.cuh"
#include "block/reached_cells.cuh"
#include "block/select.cuh"
#include "block/shared.cuh"
#include "retrieve_cells.cuh"
#include "retrieve_cluster.cuh"
#include "retrieve_filter.cuh"
#include "retrieve_fused.cuh"
#include "retrieve_lists.cuh"
#include "scan.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

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
      [&](std::uint32_t i) { return cell_at(i) < items.n ? key_of(cell_at(i)) : 0u; },
      [&](std::uint32_t i) {
        return uint2{call.index.offsets(head, cell_at(i)), call.index.offsets(head, cell_at(i) + 1)};
      },
      mark_listed);
  index_tail<Threads>(call, head, held, blockIdx.x, gridDim.x).mark(limits[list], key_of, mark);
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
    run(policy, table, codes, index, ranges, indices, counts, params, skipped, map, nullptr);
  }
  /// @param attended  [hq] sums that are added to the normalisers; the table has its biases
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  cell_index_view<space::device> index, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts, const retrieve_params& params,
                  view<std::uint8_t, 1, space::device> skipped, const head_map<space::device>& map,
                  view<const attended_sum, 1, space::device> attended) {
    run(policy, table, codes, index, ranges, indices, counts, params, skipped, map, nullptr, attended.data);
  }
  /// After run() with given normalisers and the same scratch: the selected tokens' scores, [lists, n] by their place in a list's range. Not
  /// there for lists all of whose tokens are selected. Without data where lists may have been selected in another way.
  static view<const std::uint32_t, 2, space::device> kept_keys(arena scratch, detail::block::scoring call) {
    const std::size_t n = call.codes.extent(2);
    const detail::list_items most(call);
    if (most.cells != 0 || call.given == nullptr || !detail::needs_spreading(call, most.items)) return {};
    arena memory =
        detail::device_scratch(scratch, scratch_bytes({.lists = call.lists, .query_heads = call.query_heads(), .tokens = n}), "retrieve");
    call.carve(memory);
    return as_const(detail::filter_memory(memory, call).keys);
  }
  /// @param given  null, or [hq] normalisers of the probabilities over the tokens of several places, of which this is one
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  cell_index_view<space::device> index, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts, const retrieve_params& params,
                  view<std::uint8_t, 1, space::device> skipped, const head_map<space::device>& map, const normaliser* given,
                  const attended_sum* attended = nullptr) {
    detail::block::scoring call(table, codes, params.reduction, params.head_dim, params.scale, map);
    call.ranges = ranges;
    call.path = params.path;
    call.given = given;
    call.attended = attended;
    if (params.path != search_path::scan) call.index = index;
    const detail::list_items most(call);
    const auto memory = [&] {
      const op::retrieve::sizes sizes{
          .lists = call.lists, .query_heads = call.query_heads(), .tokens = codes.extent(2), .cells = most.cells};
      return detail::device_scratch(policy.scratch, scratch_bytes(sizes), "retrieve");
    };
    if (detail::needs_spreading(call, most.items)) memory();  // a lack of scratch is reported before anything uses a device
    const detail::launcher launch(policy, "retrieve");
    const detail::retrieved_lists out{indices, counts};
    const auto go = [&](auto pack) {
      if (detail::retrieve_in_one<pack>(launch, call, detail::given_lists{}, out, skipped.data, most.items, most.cells)) return;
      run_spread<pack>(launch, memory(), call, out, skipped.data, most.items, most.cells);
    };
    if (detail::spread_launches<4>::takes(launch, call))
      go(std::integral_constant<unsigned, 4>{});
    else
      go(std::integral_constant<unsigned, 1>{});
  }

 private:
  static constexpr unsigned threads = detail::tuning::select_threads;

  /// Runs in several launches, with scores in scratch. An index may hold tokens after its list's range; that list is then scanned token by
  /// token, so the scratch has room for the scores of all tokens.
  /// @param usual_items  the most that a list has when its index ends with its range
  template <unsigned Pack>
  static void run_spread(const detail::launcher& launch, arena memory, detail::block::scoring call, const detail::retrieved_lists& out,
                         std::uint8_t* skipped, std::size_t usual_items, std::size_t cells) {
    const std::size_t n = call.codes.extent(2), lists = call.lists, words = n / 32 + 1;
    call.carve(memory);
    if (cells == 0) {
      detail::filter_memory own(memory, call);
      own.keeps_keys = call.given != nullptr;
      if constexpr (Pack > 1)
        if (detail::rank_in_clusters<Pack>(launch, call, detail::given_lists{}, out, skipped, own.keys, own.spread(own.arrivals()),
                                           [&] { own.clear_arrivals(launch, lists); }))
          return;
      return detail::filter_lists<Pack>(launch, call, out, skipped, own);
    }
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
