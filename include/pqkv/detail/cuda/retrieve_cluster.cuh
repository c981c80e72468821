// SPDX-License-Identifier: Apache-2.0
// Selects from many tokens in one launch, by a cluster of CTAs for each list. Every CTA looks up its tokens for the normalisers, and again
// for the scores, which it compares with a bracket around the threshold; or the first look-ups leave rounded products, by which most tokens
// are compared (block/scan_screen.cuh). Between these steps the CTAs exchange a few numbers through each other's shared memory: sums, the
// scores of a sample, the tokens inside the bracket. Each then finds the exact threshold by itself and writes its part of the list. If the
// sample misled, the scores go to scratch and the cluster selects by radix.
//
// Long lists are spread over the device instead: large clusters do not fit beside each other, and leave multiprocessors idle. A list's CTAs
// then exchange the same numbers through device memory. They wait for each other, so they are one cooperative launch: all run, or none.
//
// For probabilities of several query heads, on devices of compute capability 9.0 or higher. Everything else: retrieve_filter.cuh.
// Source: the sample and bracket of block/bracket.cuh.
#pragma once

#include "retrieve_cluster_select.cuh"
#include "kernel.cuh"
#include "retrieve_lists.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Where the clusters of a launch have nothing to do beside ranking.
struct nothing_beside {
  static constexpr bool sums = false;
  static constexpr unsigned clusters = 0;
  bool divide(unsigned, unsigned, std::size_t, std::size_t) { return true; }
};

/// A list's scratch before its keys are written. Computed again where it is needed: kept in registers over the look-ups, it would spill.
__device__ __forceinline__ block::rounded_tokens rounded_of(const block::scoring& call, const view<std::uint32_t, 2, space::device>& keys,
                                                            unsigned list) {
  asm volatile("" : "+r"(list));  // the compiler does not see that it has computed this before
  return {&keys(list, 0), retrieve_device_positions(call.codes.extent(2))};
}

/// Ranks a list as one of its CTAs.
/// @param keys  [lists, n] scratch, of filter_memory
template <class Ranking>
__device__ __forceinline__ void rank_list(Ranking& ranking, unsigned list, const retrieved_lists& out, std::uint8_t* skipped,
                                          const block::scoring& call, const view<std::uint32_t, 2, space::device>& keys) {
  const middle_range range = ranking.stage(skipped);
  const std::uint32_t k = out.selected(range);
  if (ranking.team().rank() == 0) out.template finish<Ranking::list_threads>(list, k);
  if (k == 0 || k == range.size()) return ranking.write_all(k, out.list(list));
  ranking.normalise(k, [&] { return rounded_of(call, keys, list); });
  const block::bracket limits = ranking.find_bracket();
  ranking.compare(limits, [&] { return rounded_of(call, keys, list); });
  if (!ranking.write(k, out.list(list))) ranking.write_by_radix(k, &keys(list, 0), out.list(list));
}

/// grid.x: CTAs of a cluster; grid.y: clusters that do what is to be done beside ranking, then lists. Not PQKV_HIDDEN: an engine's store
/// may be a type without linkage.
/// @param keys  [lists, n] scratch
template <unsigned Threads, unsigned Pack, class Lists, class Beside>
__global__ void __launch_bounds__(Threads)
    cluster_kernel(const __grid_constant__ block::scoring call, const __grid_constant__ Lists lists,
                   const __grid_constant__ cluster_shape shape, retrieved_lists out, std::uint8_t* skipped,
                   const __grid_constant__ view<std::uint32_t, 2, space::device> keys, const __grid_constant__ Beside beside) {
  using ranking_type = cluster_ranking<Threads, Pack, Lists>;
  __shared__ typename ranking_type::scratch scratch;
  if (shape.ctas > 1) block::cluster_team(shape.ctas).arrive();
  unsigned list = blockIdx.y;
  if constexpr (Beside::sums) {
    if (blockIdx.y < beside.clusters) {
      block::wait_for_last_kernel();
      return beside.call.template run<Threads>(block::cluster_team(shape.ctas), blockIdx.y, beside.clusters);
    }
    list -= beside.clusters;
  }
  if constexpr (!Lists::plans) block::wait_for_last_kernel();  // planned lists wait themselves
  ranking_type ranking(call, lists, shape, list, scratch, block::shared_memory());
  rank_list(ranking, list, out, skipped, call, keys);
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
  const auto needed = [&] {
    return other + Ranking::table_bytes(call, lists, shape.log_copies) + Ranking::kept_bytes(shape.kept);
  };
  while (needed() > room && shape.kept > cluster_shape::least_kept(shape.ctas)) shape.kept -= 256;
  while (needed() > room && shape.log_copies > 0) --shape.log_copies;
  shape.copied = static_cast<unsigned>(Ranking::table_bytes(call, lists, shape.log_copies) / sizeof(std::uint32_t));
  return needed() > room ? 0 : needed();
}

/// How a kernel of cluster_ranking would be launched.
struct cluster_launch {
  cluster_shape shape{};
  launcher::shape how{};
  unsigned resident = 0;  // clusters at a time
};

/// Chooses clusters for all lists. how.shared_bytes is 0 where a CTA has too little shared memory.
/// @tparam Ranking  what the kernel's CTAs are
/// @param beside    what some clusters do beside it; its division is written
template <class Ranking, class Kernel, class Lists, class Beside>
cluster_launch choose_clusters(const launcher& launch, const char* name, Kernel kernel, const block::scoring& call, const Lists& lists,
                               std::size_t n, unsigned other_parts, const Beside& beside) {
  const std::size_t room = launch.shared_limit(kernel);
  const auto look_at = [&](unsigned ctas) {
    cluster_launch made;
    made.shape.ctas = ctas;
    made.how = {.grid = dim3(ctas, call.lists),
                .threads = Ranking::list_threads,
                .shared_bytes = divide_memory<Ranking>(made.shape, call, lists, n, other_parts, room),
                .cluster = ctas,
                .early = true};
    if (made.how.shared_bytes != 0) made.resident = ctas > 1 ? launch.resident_clusters(name, kernel, made.how) : tuning::multiprocessors;
    return made;
  };
  unsigned ctas = cluster_shape::most_ctas;
  while (ctas > 1 && ctas * call.lists > tuning::multiprocessors) --ctas;
  cluster_launch best = look_at(ctas);
  while (best.how.shared_bytes != 0 && ctas > 1 && best.resident < call.lists) best = look_at(--ctas);
  if constexpr (Beside::sums)
    if (best.how.shared_bytes != 0 && ctas > 1 && beside.call.lists != 0) {
      const cluster_launch smaller = look_at(ctas - 1);
      if (smaller.how.shared_bytes != 0 && beside.time(ctas - 1, smaller.resident, n) < beside.time(ctas, best.resident, n)) best = smaller;
    }
  return best;
}

/// As cluster_kernel, where a list's CTAs are spread over the device. grid.x: CTAs of a cluster; grid.y: clusters that do what is to be
/// done beside ranking, then `spread.clusters` for each list.
template <unsigned Threads, unsigned Pack, class Lists, class Beside>
__global__ void __launch_bounds__(Threads)
    spread_kernel(const __grid_constant__ block::scoring call, const __grid_constant__ Lists lists,
                  const __grid_constant__ cluster_shape shape, retrieved_lists out, std::uint8_t* skipped,
                  view<std::uint32_t, 2, space::device> keys, const __grid_constant__ spread_memory spread,
                  const __grid_constant__ Beside beside) {
  using ranking_type = cluster_ranking<Threads, Pack, Lists, spread_parts>;
  __shared__ typename ranking_type::scratch scratch;
  unsigned cluster = blockIdx.y;
  if constexpr (Beside::sums) {
    if (blockIdx.y < beside.clusters) {
      const block::cluster_team team(gridDim.x);
      if (team.size() > 1) team.arrive();
      block::wait_for_last_kernel();
      return beside.call.template run<Threads>(team, blockIdx.y, beside.clusters);
    }
    cluster -= beside.clusters;
  }
  if constexpr (!Lists::plans) block::wait_for_last_kernel();
  const unsigned list = cluster / spread.clusters, part = (cluster - list * spread.clusters) * gridDim.x + blockIdx.x;
  ranking_type ranking(call, lists, shape, list, scratch, block::shared_memory(), spread_parts(spread, list, part, &keys(list, 0)));
  rank_list(ranking, list, out, skipped, call, keys);
}

/// Launches spread_kernel and returns true, if that is possible and faster than clusters would be.
/// @param clusters  how they would be launched
template <unsigned Pack, class Lists, class Clear, class Beside>
bool rank_spread(const launcher& launch, const block::scoring& call, const Lists& lists, const retrieved_lists& out, std::uint8_t* skipped,
                 view<std::uint32_t, 2, space::device> keys, spread_memory spread, const Clear& clear, Beside beside,
                 const cluster_launch& clusters) {
  constexpr unsigned threads = tuning::cluster_threads;
  using ranking_type = cluster_ranking<threads, Pack, Lists, spread_parts>;
  const auto kernel = spread_kernel<threads, Pack, Lists, Beside>;
  const std::size_t n = call.codes.extent(2), room = launch.shared_limit(kernel), work = n * call.m * ranking_type::packs_of(call.g) / 4;
  if (spread.arrived == nullptr || clusters.how.shared_bytes == 0) return false;
  bool has_sums = false;
  if constexpr (Beside::sums) has_sums = beside.call.lists != 0;
  float least = look_up_time(clusters.shape.ctas, work);
  if constexpr (Beside::sums)
    if (has_sums) least = beside.time(clusters.shape.ctas, clusters.resident, work);
  least -= tuning::spread_delay;
  cluster_launch best;
  unsigned best_sums = 0;
  // Every division of the device into clusters that sum and CTAs that rank is tried.
  for (unsigned size = 1; size <= (has_sums ? tuning::select_cluster : 1); ++size) {
    cluster_launch made;
    made.how = {.grid = dim3(size), .threads = threads, .shared_bytes = room, .cluster = size, .early = true, .together = true};
    made.resident = size > 1 ? launch.resident_clusters("spread_kernel", kernel, made.how) : launch.multiprocessors();
    for (unsigned sums = has_sums ? 1 : 0; sums <= (has_sums ? call.lists : 0) && sums < made.resident; ++sums) {
      const unsigned each = std::min((made.resident - sums) / call.lists, cluster_shape::most_parts / size);
      if (each * size < 2) continue;
      float time = look_up_time(each * size, work);
      if constexpr (Beside::sums)
        if (has_sums) time = beside.time_spread(each * size, size, sums, work);
      if (time >= least) continue;
      made.shape = {};
      made.shape.ctas = each * size;
      made.how.shared_bytes = divide_memory<ranking_type>(made.shape, call, lists, n, 0, room);
      if (made.how.shared_bytes == 0 || spread_memory::needed(made.shape.ctas, ranking_type::rounds * call.g) > spread.stride) continue;
      made.how.grid.y = sums + each * call.lists;
      best = made, best_sums = sums, least = time;
      spread.clusters = each;
    }
  }
  if (best.how.shared_bytes == 0) return false;
  if constexpr (Beside::sums)
    if (has_sums && !beside.divide_spread(best.how.cluster, best_sums, best.how.shared_bytes)) return false;
  clear();
  launch("spread_kernel", kernel, best.how, call, lists, best.shape, out, skipped, keys, spread, beside);
  return true;
}

/// Calls start(how, shape) to launch a kernel of cluster_ranking for all lists, and returns true. Returns false where a CTA has too little
/// shared memory.
/// @param chosen  by choose_clusters()
/// @param beside  what some clusters do beside it; its division is written
template <class Beside, class Start>
bool start_clusters(cluster_launch chosen, std::size_t n, Beside& beside, const Start& start) {
  if (chosen.how.shared_bytes == 0 || !beside.divide(chosen.shape.ctas, chosen.resident, n, chosen.how.shared_bytes)) return false;
  chosen.how.grid.y += beside.clusters;
  start(chosen.how, chosen.shape);
  return true;
}

/// Launches cluster_kernel or spread_kernel and returns true, if one takes the call; otherwise does nothing and returns false.
/// @param keys    [lists, n] scratch
/// @param spread  scratch; without `arrived` lists are not spread
/// @param clear   called before a launch of spread_kernel
/// @param beside  what some clusters do beside it: nothing_beside, or sums_beside of attended_sum_beside.cuh
template <unsigned Pack, class Lists, class Clear, class Beside = nothing_beside>
bool rank_in_clusters(const launcher& launch, const block::scoring& call, const Lists& lists, const retrieved_lists& out,
                      std::uint8_t* skipped, view<std::uint32_t, 2, space::device> keys, spread_memory spread, const Clear& clear,
                      Beside beside = {}) {
  constexpr unsigned threads = tuning::cluster_threads;
  const auto kernel = cluster_kernel<threads, Pack, Lists, Beside>;
  if (Pack == 1 || call.given != nullptr || !block::uses_probabilities(call.reduction) || !launch.is_built_for_hopper(kernel)) return false;
  const std::size_t n = call.codes.extent(2);
  const cluster_launch chosen =
      choose_clusters<cluster_ranking<threads, Pack, Lists>>(launch, "cluster_kernel", kernel, call, lists, n, 0, beside);
  if (rank_spread<Pack>(launch, call, lists, out, skipped, keys, spread, clear, beside, chosen)) return true;
  return start_clusters(chosen, n, beside, [&](const launcher::shape& how, const cluster_shape& shape) {
    launch("cluster_kernel", kernel, how, call, lists, shape, out, skipped, keys, beside);
  });
}

}  // namespace detail
}  // namespace pqkv
