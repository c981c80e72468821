// SPDX-License-Identifier: Apache-2.0
// Exact selection on the device. A row of middling length is a CTA that goes through it once, by a bracket from a sample; other rows are a
// cluster of up to eight CTAs, which have their keys in shared memory where they fit and go through radix passes. One launch, no scratch.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../search/top_k.hpp"
#include "block/bracket.cuh"
#include "block/select.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv {
namespace detail {

/// One after the other, where the first fails.
template <unsigned Threads>
union top_k_scratch {
  block::bracket_select<Threads> bracket;
  block::radix_select<Threads> radix;
};

/// CTAs of a cluster along grid.x, rows along grid.y.
/// @param cached  keys that the dynamic shared memory holds
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    top_k_kernel(view<const float, 2, space::device> scores, view<std::int32_t, 2, space::device> indices, unsigned cached) {
  __shared__ block::radix_select<Threads> select;
  const block::cluster_team team(gridDim.x);
  const std::uint32_t n = static_cast<std::uint32_t>(scores.extent(1)), k_max = static_cast<std::uint32_t>(indices.extent(1)),
                      k = k_max < n ? k_max : n;
  const float* row = scores.data + blockIdx.y * scores.stride(0);
  std::int32_t* out = indices.data + blockIdx.y * indices.stride(0);
  const block::slice own(team, n);
  std::uint32_t* keys = block::shared_memory().take<std::uint32_t>(cached);

  for (std::uint32_t i = k + team.rank() * Threads + threadIdx.x; i < k_max; i += team.size() * Threads) out[i] = -1;
  if (k == 0) return;
  if (k == n) {
    for (std::uint32_t i = own.begin + threadIdx.x; i < own.begin + own.count; i += Threads) out[i] = static_cast<std::int32_t>(i);
    return;
  }
  const auto select_by = [&](auto key_at) {
    const block::threshold limit = select.find(team, own.count, k, key_at, [](std::uint32_t) { return 1u; });
    select.emit(team, own.count, limit, key_at, static_cast<std::int32_t>(own.begin), out, k);
  };
  // Members of a team agree on the way: the first has the longest slice.
  if (block::slice::longest(team, n) > cached) return select_by([&](std::uint32_t i) { return canonical::order_key(row[own.begin + i]); });
#pragma unroll 8
  for (std::uint32_t i = threadIdx.x; i < own.count; i += Threads) keys[i] = canonical::order_key(row[own.begin + i]);
  __syncthreads();
  select_by([&](std::uint32_t i) { return keys[i]; });
}

/// A CTA is a row.
/// @param words  of either bitmap, whole granules
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    top_k_bracket_kernel(view<const float, 2, space::device> scores, view<std::int32_t, 2, space::device> indices, std::uint32_t words) {
  const std::uint32_t n = static_cast<std::uint32_t>(scores.extent(1)), k_max = static_cast<std::uint32_t>(indices.extent(1)),
                      k = k_max < n ? k_max : n;
  const float* row = scores.data + blockIdx.x * scores.stride(0);
  std::int32_t* out = indices.data + blockIdx.x * indices.stride(0);

  for (std::uint32_t i = k + threadIdx.x; i < k_max; i += Threads) out[i] = -1;
  if (k == 0) return;
  if (k == n) {
    for (std::uint32_t i = threadIdx.x; i < n; i += Threads) out[i] = static_cast<std::int32_t>(i);
    return;
  }
  block::shared_memory memory;
  auto& select = *memory.take<top_k_scratch<Threads>>(1);
  std::uint32_t *chosen = memory.take<std::uint32_t>(words), *equal = memory.take<std::uint32_t>(words);
  if (select.bracket.select(row, n, k, chosen, equal, out)) return;
  __syncthreads();
  const block::cluster_team alone(1);
  const auto key_at = [&](std::uint32_t i) { return canonical::order_key(row[i]); };
  const block::threshold limit = select.radix.find(alone, n, k, key_at, [](std::uint32_t) { return 1u; });
  select.radix.emit(alone, n, limit, key_at, 0, out, k);
}

}  // namespace detail

template <>
struct kernel<op::top_k, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> scores, view<std::int32_t, 2, space::device> indices) {
    constexpr unsigned threads = detail::tuning::select_threads;
    const detail::launcher launch(policy, "top_k");
    const std::size_t n = scores.extent(1);
    if (n > detail::block::bracket_sample && n <= detail::tuning::bracket_keys) {
      const auto kernel = detail::top_k_bracket_kernel<threads>;
      constexpr unsigned granule = detail::block::bracket_select<threads>::granule;
      const std::size_t words = detail::ceil_div(n, granule * 32) * granule;
      const std::size_t shared = detail::block::shared_memory::bytes<detail::top_k_scratch<threads>>(1) +
                                 2 * detail::block::shared_memory::bytes<std::uint32_t>(words);
      if (shared <= launch.shared_limit(kernel)) {
        launch("top_k_bracket_kernel", kernel, {dim3(static_cast<unsigned>(scores.extent(0))), threads, shared}, scores, indices,
               static_cast<std::uint32_t>(words));
        return;
      }
    }
    const unsigned cluster = n > 4096 ? launch.largest_cluster(detail::top_k_kernel<threads>) : 1;
    const std::size_t cached = std::min<std::size_t>(n / cluster + 32, detail::tuning::select_cached_keys);
    launch("top_k_kernel", detail::top_k_kernel<threads>,
           {dim3(cluster, static_cast<unsigned>(scores.extent(0))), threads, cached * sizeof(std::uint32_t), cluster}, scores, indices,
           static_cast<unsigned>(cached));
  }
};

}  // namespace pqkv
