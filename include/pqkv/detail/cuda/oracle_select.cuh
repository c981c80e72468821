// SPDX-License-Identifier: Apache-2.0
// From logits to scores, and from scores to the best of each range.
#pragma once

#include "../../core/canonical.hpp"
#include "block/bracket.cuh"
#include "block/select.cuh"
#include "block/shared.cuh"
#include "oracle_logits.cuh"
#include "retrieve_lists.cuh"
#include "top_k.cuh"

namespace pqkv::inline PQKV_MODE::detail {

inline constexpr unsigned exact_reduced_at_once = 8;  // tokens of a thread

/// What a query head's logits are relative to.
struct exact_head {
  float top, inverse;  // the largest logit, -infinity if none is finite; 1 / the sum of exponentials
};

/// grid.x: shares of a list's tokens; grid.y: lists. Dynamic shared memory: an exact_head for each query head of a list. A thread reads
/// logits of the first query heads before it knows what they are relative to.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    exact_reduction_kernel(exact_call call, std::size_t tokens, view<float, 2, space::device> scores) {
  constexpr unsigned at_once = exact_reduced_at_once, ahead = 4;  // tokens; query heads
  exact_head* heads = block::shared_memory().take<exact_head>(call.g);
  block::wait_for_last_kernel();
  block::release_dependents();
  const unsigned list = blockIdx.y;
  const std::size_t first = std::size_t{list} * call.g;
  const std::uint32_t n = call.range(list, tokens).size(), begin = blockIdx.x * Threads * at_once + threadIdx.x;
  if (n <= blockIdx.x * Threads * at_once) return;
  float logit[ahead][at_once];
  const auto read = [&](unsigned q) {
#pragma unroll
    for (unsigned a = 0; a < ahead; ++a)
#pragma unroll
      for (unsigned j = 0; j < at_once; ++j)
        if (q + a < call.g && begin + j * Threads < n) logit[a][j] = call.logits[(first + q + a) * call.columns + begin + j * Threads];
  };
  read(0);
  for (unsigned q = threadIdx.x / 32; q < call.g; q += Threads / 32) {
    running_sum sum;
#pragma unroll 4
    for (unsigned part = threadIdx.x % 32; part < call.parts; part += 32) sum.add(call.sums[(first + q) * call.parts + part], call.scale);
    sum.add_lanes<1>(call.scale);
    if (threadIdx.x % 32 == 0) heads[q] = {sum.top, 1 / sum.total};
  }
  __syncthreads();
  const bool weighs = block::uses_probabilities(call.reduction),
             is_maximum = call.reduction == group_reduction::probability_max || call.reduction == group_reduction::logit_max;
  float score[at_once];
#pragma unroll
  for (unsigned j = 0; j < at_once; ++j) score[j] = is_maximum ? float_from_bits(0xff800000u) : 0.0f;
  for (unsigned q = 0; q < call.g; q += ahead) {
    if (q != 0) read(q);
#pragma unroll
    for (unsigned a = 0; a < ahead; ++a) {
      if (q + a >= call.g) break;
      const exact_head of = heads[q + a];
      if (!is_finite(of.top)) continue;
#pragma unroll
      for (unsigned j = 0; j < at_once; ++j) {
        const float x = weighs ? block::power_of_two_near((logit[a][j] - of.top) * call.scale) * of.inverse : logit[a][j];
        score[j] = is_maximum ? fmaxf(x, score[j]) : score[j] + x;
      }
    }
  }
#pragma unroll
  for (unsigned j = 0; j < at_once; ++j)
    if (begin + j * Threads < n) scores(list, begin + j * Threads) = score[j];
}

/// grid.x: CTAs of a cluster, lists one after the other. The shape is for the longest range.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    list_best_kernel(view<const float, 2, space::device> scores, view<const middle_range, 1, space::device> ranges, retrieved_lists out,
                     bracket_shape<Threads> shape) {
  constexpr std::uint32_t granule = block::bracket_select<Threads>::granule;
  const block::cluster_team team(shape.size);
  const unsigned list = blockIdx.x / shape.size;
  block::shared_memory memory;
  auto& select = *memory.take<top_k_scratch<Threads>>(1);
  std::uint32_t *chosen = memory.take<std::uint32_t>(shape.share / 32), *equal = memory.take<std::uint32_t>(shape.share / 32),
                *words = memory.take<std::uint32_t>(shape.room);
  block::release_dependents();
  block::wait_for_last_kernel();

  middle_range range = ranges(list / (scores.extent(0) / ranges.extent(0)));
  if (range.size() > scores.extent(1)) range.end = range.begin + static_cast<std::uint32_t>(scores.extent(1));
  const std::uint32_t n = range.size(), k = out.selected(range);
  if (team.rank() == 0) out.finish<Threads>(list, k);
  if (k == 0) return;
  if (k == n) {
    for (std::uint32_t i = team.rank() * Threads + threadIdx.x; i < k; i += team.size() * Threads)
      out.list(list)[i] = static_cast<std::int32_t>(range.begin + i);
    return;
  }
  const float* row = &scores(list, 0);
  const bool has_bracket = n > block::bracket_sample;
  const std::uint32_t of_team = team.size() * granule,
                      share = has_bracket ? (n + of_team - 1) / of_team * granule : block::slice::longest(team, n),
                      begin = share * team.rank() < n ? share * team.rank() : n, end = n - begin < share ? n : begin + share;
  if (has_bracket) {
    if (select.bracket.select(team, row, n, k, {begin, end}, range.begin, chosen, equal, words, shape.room, out.list(list))) return;
    team.sync();
  }
  const auto select_by = [&](auto key_at) {
    const block::threshold limit = select.radix.find(team, end - begin, k, key_at, [](std::uint32_t) { return 1u; });
    select.radix.emit(team, end - begin, limit, key_at, static_cast<std::int32_t>(range.begin + begin), out.list(list), k);
  };
  if (share > shape.room) return select_by([&](std::uint32_t i) { return canonical::order_key(row[begin + i]); });
  for (std::uint32_t i = threadIdx.x; i < end - begin; i += Threads) words[i] = canonical::order_key(row[begin + i]);
  __syncthreads();
  select_by([&](std::uint32_t i) { return words[i]; });
}

}  // namespace pqkv::detail
