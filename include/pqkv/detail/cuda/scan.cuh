// SPDX-License-Identifier: Apache-2.0
// Scores of all tokens (or cells) on the device, for scan() and for the many-item path of retrieve(): short kernels over the grid,
// since every pass over the tokens must be complete before the next. Sums of fixed-point numbers are free of order, so atomics
// keep the host's bits. The passes of a recentring that no query head needs end at once.
#pragma once

#include <algorithm>

#include "../../search/retrieve.hpp"
#include "arena.cuh"
#include "block/reduce.cuh"
#include "block/scan.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv {
namespace detail {

/// Numbers of one query head on the way.
struct head_state {
  std::uint64_t total;      // Z, of the first pass
  std::uint64_t recentred;  // Z again, where the first was too small
  std::uint32_t best_key;   // order key of the best item's sum
  std::uint32_t usable;     // no non-finite entry
};

/// One call, by value into every kernel.
struct scoring {
  distance_table_view<space::device> table;
  codes_view<space::device> codes;
  cell_index_view<space::device> index{};                // empty: tokens alone
  view<const middle_range, 1, space::device> ranges{};   // empty: all tokens
  group_reduction reduction{};
  search_path path = search_path::scan;
  unsigned lists{}, g{}, m{}, c{}, bits{}, lists_per_head{};
  canonical::softmax_scale scale{};
  float* tops{};        // [hq, m] scratch
  head_state* states{}; // [hq] scratch

  scoring(distance_table_view<space::device> of, codes_view<space::device> from, group_reduction how, std::size_t head_dim)
      : table(of), codes(from), reduction(how), scale(canonical::softmax_scale::of(head_dim)) {
    const std::size_t hq = table.entries.extent(0), h = codes.extent(0);
    lists = static_cast<unsigned>(score_lists(how, h, hq));
    g = static_cast<unsigned>(hq / lists);
    m = static_cast<unsigned>(codes.extent(1));
    c = static_cast<unsigned>(table.entries.extent(2));
    while ((1u << bits) < c) ++bits;
    lists_per_head = static_cast<unsigned>(lists / h);
  }

  unsigned query_heads() const { return lists * g; }
  void carve(arena& memory) {
    tops = memory.take<float>(std::size_t{query_heads()} * m);
    states = memory.take<head_state>(query_heads());
  }

  /// What list `list` ranks; limited to what exists, since nobody could report a range from here.
  __device__ middle_range range(unsigned list) const {
    const std::uint32_t n = static_cast<std::uint32_t>(codes.extent(2));
    if (ranges.data == nullptr) return {0, n, 0};
    middle_range r = ranges(list / lists_per_head);
    r.end = r.end < n ? r.end : n;
    r.begin = r.begin < r.end ? r.begin : r.end;
    return r;
  }
  __device__ bool is_joint(const middle_range& r) const {
    return !index.empty() && resolve_path(path, index.cells(), r.size()) == search_path::joint;
  }
  __device__ block::scored_items items(unsigned list) const {
    const std::size_t head = list / lists_per_head;
    const middle_range r = range(list);
    block::scored_items of{codes.data + head * codes.stride(0) + r.begin, codes.stride(1), nullptr, r.size(), m, bits};
    if (is_joint(r)) {
      of.counts = &index.counts(head, 0);
      of.n = static_cast<std::uint32_t>(index.cells());
    }
    return of;
  }
  __device__ const float* row(unsigned q, unsigned j) const {
    return table.entries.data + q * table.entries.stride(0) + j * table.entries.stride(1);
  }
  /// A / m, by which each u is shifted. @param best  order key of the best item's sum; 0 where there was no item
  __device__ float recentring_shift(std::uint32_t best) const {
    const float sum = best == 0 ? float_from_bits(0xff800000u) : canonical::from_order_key(best);
    return canonical::div(canonical::recentring(sum, scale), static_cast<float>(m));
  }
  /// What look-ups of query head q read: exponentials, recentred where that is due, or entries; by all threads.
  /// @param e  [m, c] in shared memory, written
  template <unsigned Threads>
  __device__ void stage(unsigned q, bool recentred, float* e) const {
    const bool usable = states[q].usable != 0, probabilities = block::uses_probabilities(reduction);
    const float shift = recentred ? recentring_shift(states[q].best_key) : 0.0f;
    for (unsigned at = threadIdx.x; at < m * c; at += Threads) {
      const unsigned j = at >> bits;
      float value = row(q, j)[at & (c - 1)];
      if (probabilities) {
        float u = canonical::sub(value, tops[q * m + j]);
        if (recentred) u = canonical::sub(u, shift);
        value = canonical::exponential(u, scale);
      }
      e[at] = usable ? value : block::nothing(reduction);
    }
  }
  __device__ bool was_recentred(unsigned q) const { return canonical::needs_recentring(states[q].total, range(q / g).size()); }
  __device__ float factor(unsigned q) const {
    if (!block::uses_probabilities(reduction)) return states[q].usable != 0 ? table.bias(q) : 0.0f;
    return canonical::inverse_normaliser(was_recentred(q) ? states[q].recentred : states[q].total);
  }
};

/// A CTA is a query head: whether it can be used, and the largest entry of each subspace. `skipped` may be null.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) tops_kernel(scoring call, std::uint8_t* skipped) {
  const unsigned q = blockIdx.x, warp = threadIdx.x / 32;
  __shared__ unsigned usable;
  if (threadIdx.x == 0) usable = is_finite(call.table.bias(q)) || call.reduction != group_reduction::logit_max ? 1 : 0;
  __syncthreads();
  for (unsigned j = warp; j < call.m; j += Threads / 32) {
    const block::table_row row = block::look_at_row(call.row(q, j), call.c);
    if (threadIdx.x % 32 != 0) continue;
    call.tops[q * call.m + j] = row.top;
    if (!row.is_finite) atomicAnd(&usable, 0u);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    call.states[q] = {0, 0, 0, usable};
    if (skipped != nullptr) skipped[q] = usable != 0 ? 0 : 1;
  }
}

enum class normaliser_pass { first, best_item, recentred };

/// Runs of items are grid.x, query heads grid.y: Z of a query head, or its best item.
template <normaliser_pass Pass, unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) normaliser_kernel(scoring call) {
  const unsigned q = blockIdx.y;
  const block::scored_items items = call.items(q / call.g);
  const std::uint32_t first = blockIdx.x * tuning::score_tile_tokens;
  if (first >= items.n || call.states[q].usable == 0 || (Pass != normaliser_pass::first && !call.was_recentred(q))) return;
  const std::uint32_t last = items.n - first < tuning::score_tile_tokens ? items.n : first + tuning::score_tile_tokens;
  float* e = block::shared_memory().take<float>(std::size_t{call.m} * call.c);
  if constexpr (Pass == normaliser_pass::best_item) {
    __shared__ block::reduction<std::uint32_t, Threads> reduction;
    for (unsigned at = threadIdx.x; at < call.m * call.c; at += Threads)
      e[at] = canonical::sub(call.row(q, at >> call.bits)[at & (call.c - 1)], call.tops[q * call.m + (at >> call.bits)]);
    __syncthreads();
    std::uint32_t best = 0;  // below -infinity
    for (std::uint32_t i = first + threadIdx.x; i < last; i += Threads) {
      const std::uint32_t key = items.weight(i) != 0 ? canonical::order_key(items.sum(e, i)) : 0;
      best = key > best ? key : best;
    }
    best = reduction.max(best);
    if (threadIdx.x == 0) atomicMax(&call.states[q].best_key, best);
  } else {
    __shared__ block::reduction<std::uint64_t, Threads> reduction;
    call.template stage<Threads>(q, Pass == normaliser_pass::recentred, e);
    __syncthreads();
    std::uint64_t z = 0;
#pragma unroll 4
    for (std::uint32_t i = first + threadIdx.x; i < last; i += Threads) {
      const std::uint32_t weight = items.weight(i);
      const std::uint64_t term = canonical::to_fixed(items.product(e, i));
      z += weight != 0 ? term * weight : 0;  // an empty cell's product may be anything
    }
    z = reduction.sum(z);
    std::uint64_t* total = Pass == normaliser_pass::first ? &call.states[q].total : &call.states[q].recentred;
    if (threadIdx.x == 0) atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(z));
  }
}

/// Runs of items are grid.x, lists grid.y. Query heads pass through shared memory `at_once` at a time.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    score_kernel(scoring call, view<float, 2, space::device> scores, unsigned at_once) {
  constexpr unsigned own = tuning::score_tile_tokens / Threads;
  const unsigned list = blockIdx.y;
  const block::scored_items items = call.items(list);
  const std::uint32_t first = blockIdx.x * tuning::score_tile_tokens;
  if (first >= items.n) return;
  const std::size_t table = std::size_t{call.m} * call.c;
  block::shared_memory memory;
  float *factor = memory.take<float>(at_once), *e = memory.take<float>(at_once * table);
  float score[own];
#pragma unroll
  for (unsigned a = 0; a < own; ++a) score[a] = block::first_score(call.reduction);
  for (unsigned q0 = 0; q0 < call.g; q0 += at_once) {
    const unsigned queries = call.g - q0 < at_once ? call.g - q0 : at_once, head = list * call.g + q0;
    __syncthreads();
    for (unsigned q = 0; q < queries; ++q)
      call.template stage<Threads>(head + q, block::uses_probabilities(call.reduction) && call.was_recentred(head + q), e + q * table);
    for (unsigned q = threadIdx.x; q < queries; q += Threads) factor[q] = call.factor(head + q);
    __syncthreads();
#pragma unroll
    for (unsigned a = 0; a < own; ++a) {
      const std::uint32_t i = first + a * Threads + threadIdx.x;
      if (i < items.n) score[a] = block::add_queries(score[a], call.reduction, e, factor, queries, items, i);
    }
  }
#pragma unroll
  for (unsigned a = 0; a < own; ++a) {
    const std::uint32_t i = first + a * Threads + threadIdx.x;
    if (i < items.n) scores(list, i) = score[a];
  }
}

/// All passes up to the scores.
/// @param items   at most so many a list
/// @param scores  [lists, items], written
inline void score_items(const launcher& launch, const scoring& call, std::size_t items, view<float, 2, space::device> scores,
                        std::uint8_t* skipped) {
  constexpr unsigned threads = tuning::score_threads;
  const unsigned hq = call.query_heads(), runs = ceil_div(items, tuning::score_tile_tokens);
  const std::size_t table = std::size_t{call.m} * call.c, of_one = block::shared_memory::bytes<float>(table);
  launch("tops_kernel", tops_kernel<threads>, {dim3(hq), threads}, call, skipped);
  if (call.reduction == group_reduction::probability_sum || call.reduction == group_reduction::probability_max) {
    launch("normaliser_kernel", normaliser_kernel<normaliser_pass::first, threads>, {dim3(runs, hq), threads, of_one}, call);
    launch("normaliser_kernel", normaliser_kernel<normaliser_pass::best_item, threads>, {dim3(runs, hq), threads, of_one}, call);
    launch("normaliser_kernel", normaliser_kernel<normaliser_pass::recentred, threads>, {dim3(runs, hq), threads, of_one}, call);
  }
  const unsigned at_once = static_cast<unsigned>(std::clamp<std::size_t>(tuning::score_staged_entries / table, 1, call.g));
  const std::size_t shared = block::shared_memory::bytes<float>(at_once) + block::shared_memory::bytes<float>(at_once * table);
  launch("score_kernel", score_kernel<threads>, {dim3(runs, call.lists), threads, shared}, call, scores, at_once);
}

}  // namespace detail

template <>
struct kernel<op::scan, backend::cuda> {
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  view<float, 2, space::device> scores, group_reduction reduction, std::size_t head_dim) {
    detail::scoring call(table, codes, reduction, head_dim);
    arena memory = detail::device_scratch(policy.scratch, scan_device_scratch_bytes(call.query_heads(), call.m), "scan");
    call.carve(memory);
    detail::score_items({policy, "scan"}, call, codes.extent(2), scores, nullptr);
  }
};

}  // namespace pqkv
