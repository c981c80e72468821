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

/// grid.x: CTAs of a cluster; grid.y: lists.
/// @param keys  [lists, n] scratch
template <unsigned Threads, unsigned Pack, class Lists>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    cluster_kernel(const __grid_constant__ block::scoring call, const __grid_constant__ Lists lists,
                   const __grid_constant__ cluster_shape shape, retrieved_lists out, std::uint8_t* skipped,
                   view<std::uint32_t, 2, space::device> keys) {
  using ranking_type = cluster_ranking<Threads, Pack, Lists>;
  __shared__ typename ranking_type::scratch scratch;
  if (shape.ctas > 1) block::cluster_team(shape.ctas).arrive();
  block::wait_for_last_kernel();
  const unsigned list = blockIdx.y;
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

/// Launches a kernel of cluster_ranking for all lists, with (call, lists, shape, more...), and returns true. Returns false, and nothing is
/// enqueued, where a CTA has too little shared memory.
/// @tparam Ranking  what the kernel's CTAs are
/// @param before    called right before the launch
template <class Ranking, class Kernel, class Lists, class Before, class... More>
bool launch_clusters(const launcher& launch, const char* name, Kernel kernel, const block::scoring& call, const Lists& lists, std::size_t n,
                     unsigned other_parts, const Before& before, const More&... more) {
  const std::size_t room = launch.shared_limit(kernel);
  cluster_shape shape{};
  shape.ctas = cluster_shape::most_ctas;
  while (shape.ctas > 1 && shape.ctas * call.lists > tuning::multiprocessors) --shape.ctas;
  for (;; --shape.ctas) {
    const std::size_t bytes = divide_memory<Ranking>(shape, call, lists, n, other_parts, room);
    if (bytes == 0) return false;
    const launcher::shape how{.grid = dim3(shape.ctas, call.lists),
                              .threads = Ranking::list_threads,
                              .shared_bytes = bytes,
                              .cluster = shape.ctas,
                              .early = true};
    if (shape.ctas > 1 && launch.resident_clusters(name, kernel, how) < call.lists) continue;
    before();
    launch(name, kernel, how, call, lists, shape, more...);
    return true;
  }
}

/// Launches cluster_kernel and returns true, if it takes the call; otherwise does nothing and returns false.
/// @param keys    [lists, n] scratch
/// @param before  called right before the launch
template <unsigned Pack, class Lists, class Before = no_work>
bool rank_in_clusters(const launcher& launch, const block::scoring& call, const Lists& lists, const retrieved_lists& out,
                      std::uint8_t* skipped, view<std::uint32_t, 2, space::device> keys, const Before& before = {}) {
  constexpr unsigned threads = tuning::cluster_threads;
  const auto kernel = cluster_kernel<threads, Pack, Lists>;
  if (Pack == 1 || call.given != nullptr || !block::uses_probabilities(call.reduction) || !launch.is_built_for_hopper(kernel)) return false;
  return launch_clusters<cluster_ranking<threads, Pack, Lists>>(launch, "cluster_kernel", kernel, call, lists, call.codes.extent(2), 0,
                                                                before, out, skipped, keys);
}

}  // namespace detail
}  // namespace pqkv
