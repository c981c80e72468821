// SPDX-License-Identifier: Apache-2.0
// Scores of all tokens (or cells) on the device, for scan() and for lists of retrieve() that are too long for one CTA. Several CTAs share a
// list, first for its normalisers, then for its scores. Sums of fixed-point numbers do not depend on their order, so the bits are the
// host's.
#pragma once

#include <algorithm>

#include "../../search/retrieve.hpp"
#include "arena.cuh"
#include "block/cluster.cuh"
#include "block/scan_scorer.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// How CTAs share the lists of a call.
struct scan_shape {
  unsigned runs;   // CTAs of a list
  unsigned chunk;  // query heads that a CTA has in shared memory at a time: all of them, or whole packs

  /// How many of g query heads are in the chunk that begins with `first`.
  __device__ unsigned queries(unsigned g, unsigned first) const { return g - first < chunk ? g - first : chunk; }
  /// The items of CTA `run`; they begin at a multiple of max_centroids.
  struct run_of_items {
    std::uint32_t begin, end;
  };
  __device__ run_of_items of(const block::scored_items& items, unsigned run) const {
    const std::uint32_t granule = max_centroids, share = ((items.n + runs - 1) / runs + granule - 1) / granule * granule,
                        begin = share * run < items.n ? share * run : items.n;
    return {begin, items.n - begin < share ? items.n : begin + share};
  }
};

/// grid.x: runs of items; grid.y: chunks of query heads; grid.z: lists. Computes the Z of a run.
template <unsigned Threads, unsigned Pack>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) normaliser_kernel(block::scoring call, scan_shape shape) {
  using scorer_type = block::list_scorer<Threads, Pack>;
  __shared__ typename scorer_type::scratch scratch;
  block::release_dependents();
  const unsigned list = blockIdx.z, first = blockIdx.y * shape.chunk, queries = shape.queries(call.g, first);
  block::shared_memory memory;
  scorer_type scorer(call, list, first, queries, scratch, memory);
  scorer.stage(nullptr);
  const block::scored_items items = call.items(list);
  const auto own = shape.of(items, blockIdx.x);
  __syncthreads();
  scorer.add_up(items, own.begin, own.end);
  for (unsigned q = threadIdx.x; q < queries; q += Threads)
    call.totals[(std::size_t{list} * call.g + first + q) * scan_device_runs + blockIdx.x] = scorer.total(q);
}

/// One CTA completes the normalisers of a list from the sums of all runs. While the exponentials are in its memory, it also calls `rank`,
/// which may score any items.
template <unsigned Threads, unsigned Pack, class Rank>
__device__ void settle_list(const block::scoring& call, scan_shape shape, unsigned list, std::uint8_t* skipped,
                            const block::shared_memory& memory, Rank rank) {
  using scorer_type = block::list_scorer<Threads, Pack>;
  __shared__ typename scorer_type::scratch scratch;
  const block::scored_items items = call.items(list);
  bool is_complete = false;  // whether the last kernel's results have been waited for
  for (unsigned first = 0; first < call.g; first += shape.chunk) {
    const unsigned queries = shape.queries(call.g, first);
    block::shared_memory rest = memory;
    scorer_type scorer(call, list, first, queries, scratch, rest);
    __syncthreads();
    scorer.stage(skipped);
    if (!is_complete) block::wait_for_last_kernel();
    is_complete = true;
    if (call.given != nullptr) {
      scorer.resume(nullptr);
      rank(scorer);
      continue;
    }
    for (unsigned q = threadIdx.x; q < queries && block::uses_probabilities(call.reduction); q += Threads) {
      const std::uint64_t* of_runs = call.totals + (std::size_t{list} * call.g + first + q) * scan_device_runs;
      std::uint64_t z = 0;
#pragma unroll 8
      for (unsigned run = 0; run < shape.runs; ++run) z += of_runs[run];
      scorer.give_total(q, z);
    }
    __syncthreads();
    scorer.complete(items, call.range(list).size(), call.numbers);
    rank(scorer);
  }
}

/// All CTAs of a list, once it has its normalisers: scores[i - begin] of items [begin, end).
/// @param begins  whether it is the CTA's first call
template <unsigned Threads, unsigned Pack, class Score>
__device__ void score_items(const block::scoring& call, scan_shape shape, unsigned list, const block::scored_items& items,
                            const block::shared_memory& memory, bool begins, std::uint32_t begin, std::uint32_t end, Score* scores) {
  using scorer_type = block::list_scorer<Threads, Pack>;
  __shared__ typename scorer_type::scratch scratch;
  for (unsigned first = 0; first < call.g; first += shape.chunk) {
    block::shared_memory rest = memory;
    scorer_type scorer(call, list, first, shape.queries(call.g, first), scratch, rest);
    if (begins || shape.chunk < call.g) {
      __syncthreads();
      scorer.stage(nullptr);
      if (begins && first == 0) block::wait_for_last_kernel();
      scorer.resume(call.numbers);
    }
    scorer.score(items, begin, end, scores);
  }
}

/// One CTA for each list.
template <unsigned Threads, unsigned Pack>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) settle_kernel(block::scoring call, scan_shape shape, std::uint8_t* skipped) {
  block::release_dependents();
  settle_list<Threads, Pack>(call, shape, blockIdx.x, skipped, block::shared_memory(), [](const auto&) {});
}

/// grid.x: runs of items; grid.y: lists.
template <unsigned Threads, unsigned Pack>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    score_kernel(block::scoring call, scan_shape shape, view<float, 2, space::device> scores) {
  const unsigned list = blockIdx.y;
  const block::scored_items items = call.items(list);
  const auto own = shape.of(items, blockIdx.x);
  score_items<Threads, Pack>(call, shape, list, items, block::shared_memory(), true, own.begin, own.end,
                             scores.data + list * scores.stride(0) + own.begin);
}

/// The launches of a call in which several CTAs share a list.
template <unsigned Pack>
class spread_launches {
  static constexpr unsigned threads = tuning::select_threads;
  using scorer_type = block::list_scorer<threads, Pack>;

 public:
  /// Whether shared memory has room for whole packs.
  static bool takes(const launcher& launch, const block::scoring& call) {
    return (call.g > 1 || Pack == 1) && scorer_type::shared_bytes(Pack, call.m, call.c) <= room(launch);
  }
  /// @param items  the most that a list has
  spread_launches(const launcher& launch, const block::scoring& call, std::size_t items) : launch_(launch), call_(call), shape_{1, call.g} {
    while (shape_.chunk > Pack && scorer_type::shared_bytes(shape_.chunk, call.m, call.c) > room(launch))
      shape_.chunk = ceil_div(shape_.chunk / 2, Pack) * Pack;
    const std::size_t useful = std::max<std::size_t>(items / tuning::spread_least_items, 1), there = tuning::multiprocessors / call.lists;
    shape_.runs = static_cast<unsigned>(std::clamp<std::size_t>(there, 1, std::min(useful, scan_device_runs)));
    is_early_ = launch.is_built_for_hopper(settle_kernel<threads, Pack>);
  }

  scan_shape shape() const { return shape_; }
  /// Whether the kernel after normalisers(), and those after it, may start early.
  bool is_early() const { return is_early_ && uses_normalisers(); }
  bool is_early_after_first() const { return is_early_; }
  std::size_t table_bytes() const { return scorer_type::shared_bytes(shape_.chunk, call_.m, call_.c); }

  void normalisers() const {
    if (uses_normalisers() && call_.given == nullptr) sums();
  }
  /// The sums of each run of items alone.
  void sums() const {
    launch_("normaliser_kernel", normaliser_kernel<threads, Pack>,
            {dim3(shape_.runs, ceil_div(call_.g, shape_.chunk), call_.lists), threads, table_bytes()}, call_, shape_);
  }
  /// Launches everything up to the scores. @param scores  [lists, items], written
  void scores(view<float, 2, space::device> scores, std::uint8_t* skipped) const {
    normalisers();
    launch_("settle_kernel", settle_kernel<threads, Pack>,
            {.grid = dim3(call_.lists), .threads = threads, .shared_bytes = table_bytes(), .early = is_early()}, call_, shape_, skipped);
    launch_("score_kernel", score_kernel<threads, Pack>,
            {.grid = dim3(shape_.runs, call_.lists), .threads = threads, .shared_bytes = table_bytes(), .early = is_early_}, call_, shape_,
            scores);
  }

 private:
  bool uses_normalisers() const { return block::uses_probabilities(call_.reduction); }
  /// Shared memory for a scorer, in bytes; the rest is for keys, bitmaps and selection.
  static std::size_t room(const launcher& launch) {
    return std::min<std::size_t>(tuning::spread_table_bytes, launch.shared_limit() - tuning::spread_other_bytes);
  }

  const launcher& launch_;
  const block::scoring& call_;
  scan_shape shape_;
  bool is_early_;  // whether kernels may start before those that they wait for have ended
};

}  // namespace detail

template <>
struct kernel<op::scan, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::scan::sizes& sizes) { return detail::scan_device_scratch_bytes(sizes.query_heads); }

  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  view<float, 2, space::device> scores, group_reduction reduction, std::size_t head_dim, float scale) {
    detail::block::scoring call(table, codes, reduction, head_dim, scale);
    arena memory = detail::device_scratch(policy.scratch, detail::scan_device_scratch_bytes(call.query_heads()), "scan");
    call.carve(memory);
    const detail::launcher launch(policy, "scan");
    if (detail::spread_launches<4>::takes(launch, call))
      detail::spread_launches<4>(launch, call, codes.extent(2)).scores(scores, nullptr);
    else
      detail::spread_launches<1>(launch, call, codes.extent(2)).scores(scores, nullptr);
  }
};

}  // namespace pqkv
