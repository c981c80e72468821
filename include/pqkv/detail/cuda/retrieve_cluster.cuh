// SPDX-License-Identifier: Apache-2.0
// Selects from many tokens in one launch, by a cluster of CTAs for each list. Every CTA looks up its tokens twice: for the normalisers, and
// for the scores, which it compares with a bracket around the threshold. Between these steps the CTAs exchange a few numbers through each
// other's shared memory: sums, the scores of a sample, the tokens inside the bracket. Each then finds the exact threshold by itself and
// writes its part of the list. If the sample misled, the scores go to scratch and the cluster selects by radix.
//
// For probabilities of several query heads, on devices of compute capability 9.0 or higher. Everything else: retrieve_filter.cuh.
// Source: the sample and bracket of block/bracket.cuh.
#pragma once

#include "retrieve_cluster_steps.cuh"
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

/// grid.x: CTAs of a cluster; grid.y: clusters that do what is to be done beside ranking, then lists. Not PQKV_HIDDEN: an engine's store
/// may be a type without linkage.
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
    if (blockIdx.y < beside.clusters)
      return beside.call.template run<Threads>(block::cluster_team(shape.ctas), blockIdx.y, beside.clusters);
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
  struct candidate {
    cluster_shape shape{};
    launcher::shape how{};
    unsigned resident = 0;  // clusters at a time
  };
  const auto look_at = [&](unsigned ctas) {
    candidate made;
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
  candidate best = look_at(ctas);
  while (best.how.shared_bytes != 0 && ctas > 1 && best.resident < call.lists) best = look_at(--ctas);
  if (best.how.shared_bytes == 0) return false;
  if constexpr (Beside::sums)
    if (ctas > 1 && beside.call.lists != 0) {
      const candidate smaller = look_at(ctas - 1);
      if (smaller.how.shared_bytes != 0 && beside.time(ctas - 1, smaller.resident, n) < beside.time(ctas, best.resident, n)) best = smaller;
    }
  if (!beside.divide(best.shape.ctas, best.resident, n, best.how.shared_bytes)) return false;
  best.how.grid.y += beside.clusters;
  start(best.how, best.shape);
  return true;
}

/// Launches cluster_kernel and returns true, if it takes the call; otherwise does nothing and returns false.
/// @param keys    [lists, n] scratch
/// @param beside  what some clusters do beside it: nothing_beside, or sums_beside of attended_sum_beside.cuh
template <unsigned Pack, class Lists, class Beside = nothing_beside>
bool rank_in_clusters(const launcher& launch, const block::scoring& call, const Lists& lists, const retrieved_lists& out,
                      std::uint8_t* skipped, view<std::uint32_t, 2, space::device> keys, Beside beside = {}) {
  constexpr unsigned threads = tuning::cluster_threads;
  const auto kernel = cluster_kernel<threads, Pack, Lists, Beside>;
  if (Pack == 1 || call.given != nullptr || !block::uses_probabilities(call.reduction) || !launch.is_built_for_hopper(kernel)) return false;
  return start_clusters<cluster_ranking<threads, Pack, Lists>>(launch, "cluster_kernel", kernel, call, lists, call.codes.extent(2), 0,
                                                               beside, [&](const launcher::shape& how, const cluster_shape& shape) {
                                                                 launch("cluster_kernel", kernel, how, call, lists, shape, out, skipped,
                                                                        keys, beside);
                                                               });
}

}  // namespace detail
}  // namespace pqkv
