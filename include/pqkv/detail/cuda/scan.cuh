// SPDX-License-Identifier: Apache-2.0
// Scores of all tokens (or cells) on the device, for scan() and for the many-item path of retrieve(): short kernels over the grid,
// since every pass over the tokens must be complete before the next. Sums of fixed-point numbers are free of order, so atomics
// keep the host's bits. The passes of a recentring that no query head needs end at once.
#pragma once

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
  float* entries{};     // [hq, m, c] scratch
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
    entries = memory.take<float>(std::size_t{query_heads()} * m * c);
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
  __device__ bool was_recentred(unsigned q) const { return canonical::needs_recentring(states[q].total, range(q / g).size()); }
  __device__ float factor(unsigned q) const {
    if (!block::uses_probabilities(reduction)) return states[q].usable != 0 ? table.bias(q) : 0.0f;
    return canonical::inverse_normaliser(was_recentred(q) ? states[q].recentred : states[q].total);
  }
};

/// A CTA is a query head: its exponentials, or its entries as they are. `skipped` may be null.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) entries_kernel(scoring call, std::uint8_t* skipped) {
  const unsigned q = blockIdx.x, warp = threadIdx.x / 32;
  __shared__ float tops[max_subspaces];
  __shared__ bool usable;
  if (warp == 0) {
    const bool finite =
        block::table_is_finite(call.row(q, 0), call.table.entries.stride(1), call.m, call.c, call.table.bias(q), call.reduction);
    if (threadIdx.x == 0) {
      usable = finite;
      call.states[q] = {0, 0, 0, finite ? 1u : 0u};
      if (skipped != nullptr) skipped[q] = finite ? 0 : 1;
    }
  }
  for (unsigned j = warp; j < call.m; j += Threads / 32) {
    const float top = block::largest_entry(call.row(q, j), call.c);
    if (threadIdx.x % 32 == 0) tops[j] = call.tops[q * call.m + j] = top;
  }
  __syncthreads();
  const bool probabilities = block::uses_probabilities(call.reduction);
  for (unsigned at = threadIdx.x; at < call.m * call.c; at += Threads) {
    const unsigned j = at / call.c;
    const float entry = call.row(q, j)[at % call.c];
    float value = block::nothing(call.reduction);
    if (usable) value = probabilities ? canonical::exponential(canonical::sub(entry, tops[j]), call.scale) : entry;
    call.entries[std::size_t{q} * call.m * call.c + at] = value;
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
  const std::size_t table = std::size_t{call.m} * call.c;
  if constexpr (Pass == normaliser_pass::best_item) {
    __shared__ block::reduction<std::uint32_t, Threads> reduction;
    std::uint32_t best = 0;  // below -infinity
    for (std::uint32_t i = first + threadIdx.x; i < last; i += Threads) {
      if (items.weight(i) == 0) continue;
      float z = canonical::sub(call.row(q, 0)[items.code(0, i)], call.tops[q * call.m]);
      for (unsigned j = 1; j < call.m; ++j)
        z = canonical::add(z, canonical::sub(call.row(q, j)[items.code(j, i)], call.tops[q * call.m + j]));
      const std::uint32_t key = canonical::order_key(z);
      best = key > best ? key : best;
    }
    best = reduction.max(best);
    if (threadIdx.x == 0) atomicMax(&call.states[q].best_key, best);
  } else {
    __shared__ block::reduction<std::uint64_t, Threads> reduction;
    std::uint64_t z = 0;
    for (std::uint32_t i = first + threadIdx.x; i < last; i += Threads) {
      const std::uint32_t weight = items.weight(i);
      if (weight != 0) z += canonical::to_fixed(items.product(call.entries + q * table, i)) * weight;
    }
    z = reduction.sum(z);
    std::uint64_t* total = Pass == normaliser_pass::first ? &call.states[q].total : &call.states[q].recentred;
    if (threadIdx.x == 0) atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(z));
  }
}

/// Inverse of canonical::order_key, for keys of numbers.
__device__ inline float from_order_key(std::uint32_t key) { return float_from_bits((key & 0x80000000u) ? key & 0x7fffffffu : ~key); }

/// How much each u is shifted by: A / m. `best` is the order key of the best item's sum; 0 where there was no item.
__device__ inline float recentring_shift(std::uint32_t best, canonical::softmax_scale scale, unsigned m) {
  const float sum = best == 0 ? float_from_bits(0xff800000u) : from_order_key(best);
  return canonical::div(canonical::recentring(sum, scale), static_cast<float>(m));
}

/// A CTA is a query head: exponentials of u - A / m.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) recentre_kernel(scoring call) {
  const unsigned q = blockIdx.x;
  if (call.states[q].usable == 0 || !call.was_recentred(q)) return;
  const float shift = recentring_shift(call.states[q].best_key, call.scale, call.m);
  for (unsigned at = threadIdx.x; at < call.m * call.c; at += Threads) {
    const unsigned j = at / call.c;
    const float u = canonical::sub(canonical::sub(call.row(q, j)[at % call.c], call.tops[q * call.m + j]), shift);
    call.entries[std::size_t{q} * call.m * call.c + at] = canonical::exponential(u, call.scale);
  }
}

/// Runs of items are grid.x, lists grid.y.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) score_kernel(scoring call, view<float, 2, space::device> scores) {
  float* factor = block::shared_memory().take<float>(call.g);
  const unsigned list = blockIdx.y;
  const block::scored_items items = call.items(list);
  const std::uint32_t first = blockIdx.x * tuning::score_tile_tokens;
  if (first >= items.n) return;
  const std::uint32_t last = items.n - first < tuning::score_tile_tokens ? items.n : first + tuning::score_tile_tokens;
  for (unsigned q = threadIdx.x; q < call.g; q += Threads) factor[q] = call.factor(list * call.g + q);
  __syncthreads();
  const float* entries = call.entries + std::size_t{list} * call.g * call.m * call.c;
  for (std::uint32_t i = first + threadIdx.x; i < last; i += Threads)
    scores(list, i) = block::group_score(call.reduction, entries, factor, call.g, items, i);
}

/// All passes up to the scores.
/// @param items   at most so many a list
/// @param scores  [lists, items], written
inline void score_items(const launcher& launch, const scoring& call, std::size_t items, view<float, 2, space::device> scores,
                        std::uint8_t* skipped) {
  constexpr unsigned threads = tuning::score_threads;
  const unsigned hq = call.query_heads(), runs = ceil_div(items, tuning::score_tile_tokens);
  launch("entries_kernel", entries_kernel<threads>, {dim3(hq), threads}, call, skipped);
  if (call.reduction == group_reduction::probability_sum || call.reduction == group_reduction::probability_max) {
    launch("normaliser_kernel", normaliser_kernel<normaliser_pass::first, threads>, {dim3(runs, hq), threads}, call);
    launch("normaliser_kernel", normaliser_kernel<normaliser_pass::best_item, threads>, {dim3(runs, hq), threads}, call);
    launch("recentre_kernel", recentre_kernel<threads>, {dim3(hq), threads}, call);
    launch("normaliser_kernel", normaliser_kernel<normaliser_pass::recentred, threads>, {dim3(runs, hq), threads}, call);
  }
  launch("score_kernel", score_kernel<threads>, {dim3(runs, call.lists), threads, block::shared_memory::bytes<float>(call.g)}, call,
         scores);
}

}  // namespace detail

template <>
struct kernel<op::scan, backend::cuda> {
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  view<float, 2, space::device> scores, group_reduction reduction, std::size_t head_dim) {
    detail::scoring call(table, codes, reduction, head_dim);
    arena memory = detail::device_scratch(policy.scratch, scan_device_scratch_bytes(call.query_heads(), call.m, call.c), "scan");
    call.carve(memory);
    detail::score_items({policy, "scan"}, call, codes.extent(2), scores, nullptr);
  }
};

}  // namespace pqkv
