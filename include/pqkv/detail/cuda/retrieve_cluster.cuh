// SPDX-License-Identifier: Apache-2.0
// Selects from many tokens in one launch, by a cluster of CTAs for each list. Every CTA looks up its tokens twice: for the normalisers, and
// for the scores, which it compares with a bracket around the threshold. Between these steps the CTAs exchange a few numbers through each
// other's shared memory: sums, the scores of a sample, the tokens inside the bracket. Each then finds the exact threshold by itself and
// writes its part of the list. If the sample misled, the scores go to scratch and the cluster selects by radix.
//
// For probabilities of several query heads, on devices of compute capability 9.0 or higher. Everything else: retrieve_filter.cuh.
// Source: the sample and bracket of block/bracket.cuh.
#pragma once

#include <algorithm>

#include "attended_sum.cuh"
#include "retrieve_cluster_steps.cuh"
#include "kernel.cuh"
#include "retrieve_lists.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Where the clusters of a launch have nothing to do beside ranking.
struct nothing_beside {
  static constexpr bool sums = false;
  static constexpr unsigned clusters = 0;
  bool divide(unsigned, unsigned, std::size_t) { return true; }
};

/// Some clusters sum the attended tokens of all lists, while the others scan. They are the first of the grid. A list's CTAs wait for its sums
/// once they have the sums over their own tokens. This needs no other CTAs than those that have begun: a GPU begins the CTAs of a launch in
/// the order of their numbers, which CUB's scans rely on too (cub/agent/agent_scan.cuh: a CTA waits for those with lower numbers).
template <class Store, class Spans>
struct sums_beside {
  static constexpr bool sums = true;
  attended_call<Store, Spans> call;
  unsigned clusters = 0;  // 0: nothing is summed

  /// Decides how many clusters sum.
  /// @param resident  clusters that the device runs at a time, at least so many as there are lists
  /// @param room      bytes of shared memory of a CTA
  /// @return false: with smaller clusters there will be some for it
  bool divide(unsigned ctas, unsigned resident, std::size_t room) {
    if (call.lists == 0) return true;
    const unsigned spare = resident > call.lists ? resident - call.lists : 0;
    if (spare == 0 && ctas > 1) return false;
    // A CTA that has too many lists would not be done when the others need the sums: then all begin with that.
    constexpr unsigned most_lists = 4;  // not measured
    clusters = call.lists > most_lists * spare * ctas ? resident : spare;
    clusters = clusters < call.lists ? clusters : call.lists;
    call.shape.ctas = ctas;
    call.shape.side_by_side = std::min((call.lists + clusters - 1) / clusters, ctas);
    clusters = (call.lists + call.shape.side_by_side - 1) / call.shape.side_by_side < clusters
                   ? (call.lists + call.shape.side_by_side - 1) / call.shape.side_by_side
                   : clusters;
    call.shape.tiles_at_once = attended_shape::most_tiles;
    return call.shape.fit(room);
  }
};

/// grid.x: CTAs of a cluster; grid.y: clusters that sum attended tokens, then lists. Not PQKV_HIDDEN: a store may be a type without linkage.
/// @param keys  [lists, n] scratch
template <unsigned Threads, unsigned Pack, class Lists, class Beside>
__global__ void __launch_bounds__(Threads)
    cluster_kernel(const __grid_constant__ block::scoring call, const __grid_constant__ Lists lists,
                   const __grid_constant__ cluster_shape shape, retrieved_lists out, std::uint8_t* skipped,
                   view<std::uint32_t, 2, space::device> keys, const __grid_constant__ Beside beside) {
  using ranking_type = cluster_ranking<Threads, Pack, Lists>;
  __shared__ typename ranking_type::scratch scratch;
  if (shape.ctas > 1) block::cluster_team(shape.ctas).arrive();
  block::wait_for_last_kernel();
  unsigned list = blockIdx.y;
  if constexpr (Beside::sums) {
    if (blockIdx.y < beside.clusters) return beside.call.template run<Threads>(block::cluster_team(shape.ctas), blockIdx.y, beside.clusters);
    list -= beside.clusters;
  }
  ranking_type ranking(call, lists, shape, list, scratch, block::shared_memory());
  const middle_range range = ranking.stage(skipped);
  const std::uint32_t k = out.selected(range);
  if (ranking.team().rank() == 0) out.finish<Threads>(list, k);
  if (k == 0 || k == range.size()) return ranking.write_all(k, out.list(list));
  ranking.normalise(k);
  const block::bracket limits = ranking.find_bracket();
  ranking.compare(limits);
  if (!ranking.write(k, out.list(list))) ranking.write_by_radix(k, &keys(list, 0), out.list(list));
}

/// Divides the shared memory of a CTA. Returns how much it needs, or 0 if `room` is too little.
/// @param shape        ctas is given, the rest is written
/// @param n            the most tokens of a list
/// @param other_parts  CTAs of a list on other ranks
template <class Ranking, class Lists>
std::size_t divide_memory(cluster_shape& shape, const block::scoring& call, const Lists& lists, std::size_t n, unsigned other_parts,
                          std::size_t room) {
  shape.log_copies = 3, shape.kept = tuning::cluster_kept;
  shape.words = cluster_shape::share(static_cast<std::uint32_t>(n) + 8, shape.ctas) / 32;
  const std::size_t other = Ranking::other_bytes(call, lists, shape.ctas + other_parts, shape.words);
  const auto needed = [&] { return other + Ranking::table_bytes(call, lists, shape.log_copies) + Ranking::kept_bytes(shape.kept); };
  while (needed() > room && shape.kept > cluster_shape::least_kept(shape.ctas)) shape.kept -= 256;
  while (needed() > room && shape.log_copies > 0) --shape.log_copies;
  shape.copied = static_cast<unsigned>(Ranking::table_bytes(call, lists, shape.log_copies) / sizeof(std::uint32_t));
  return needed() > room ? 0 : needed();
}

/// Calls start(how, shape) to launch a kernel of cluster_ranking for all lists, and returns true. Returns false where a CTA has too little
/// shared memory.
/// @tparam Ranking  what the kernel's CTAs are
/// @param beside    what some clusters do beside it; its division is written
template <class Ranking, class Kernel, class Lists, class Beside, class Start>
bool start_clusters(const launcher& launch, const char* name, Kernel kernel, const block::scoring& call, const Lists& lists, std::size_t n,
                    unsigned other_parts, Beside& beside, const Start& start) {
  const std::size_t room = launch.shared_limit(kernel);
  cluster_shape shape{};
  shape.ctas = cluster_shape::most_ctas;
  while (shape.ctas > 1 && shape.ctas * call.lists > tuning::multiprocessors) --shape.ctas;
  for (;; --shape.ctas) {
    const std::size_t bytes = divide_memory<Ranking>(shape, call, lists, n, other_parts, room);
    if (bytes == 0) return false;
    launcher::shape how{.grid = dim3(shape.ctas, call.lists),
                        .threads = Ranking::list_threads,
                        .shared_bytes = bytes,
                        .cluster = shape.ctas,
                        .early = true};
    const unsigned resident = shape.ctas > 1 ? launch.resident_clusters(name, kernel, how) : tuning::multiprocessors;
    if (shape.ctas > 1 && (resident < call.lists || !beside.divide(shape.ctas, resident, bytes))) continue;
    if (shape.ctas == 1 && !beside.divide(1, resident, bytes)) return false;
    how.grid.y += beside.clusters;
    start(how, shape);
    return true;
  }
}

/// Launches cluster_kernel and returns true, if it takes the call; otherwise does nothing and returns false.
/// @param keys    [lists, n] scratch
/// @param beside  what some clusters do beside it: nothing_beside or sums_beside
template <unsigned Pack, class Lists, class Beside = nothing_beside>
bool rank_in_clusters(const launcher& launch, const block::scoring& call, const Lists& lists, const retrieved_lists& out,
                      std::uint8_t* skipped, view<std::uint32_t, 2, space::device> keys, Beside beside = {}) {
  constexpr unsigned threads = tuning::cluster_threads;
  const auto kernel = cluster_kernel<threads, Pack, Lists, Beside>;
  if (Pack == 1 || call.given != nullptr || !block::uses_probabilities(call.reduction) || !launch.is_built_for_hopper(kernel)) return false;
  return start_clusters<cluster_ranking<threads, Pack, Lists>>(
      launch, "cluster_kernel", kernel, call, lists, call.codes.extent(2), 0, beside,
      [&](const launcher::shape& how, const cluster_shape& shape) {
        launch("cluster_kernel", kernel, how, call, lists, shape, out, skipped, keys, beside);
      });
}

}  // namespace detail
}  // namespace pqkv
