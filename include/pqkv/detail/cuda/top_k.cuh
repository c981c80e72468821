// SPDX-License-Identifier: Apache-2.0
// Exact selection on the device, in one launch and without scratch. A row of medium length goes to one CTA, or to a few CTAs if there are
// few rows, and is read once: a sample gives a bracket. Any other row goes to a cluster of up to eight CTAs, which keep its keys in shared
// memory if they fit, and select by radix passes.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../search/top_k.hpp"
#include "block/bracket.cuh"
#include "block/select.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Used one after the other, if the first fails.
template <unsigned Threads>
union top_k_scratch {
  block::bracket_select<Threads> bracket;
  block::radix_select<Threads> radix;
};

/// How the CTAs of a team share a row of up to `n` scores that is selected by a bracket, and their shared memory.
template <unsigned Threads>
struct bracket_shape {
  using bracket_select = block::bracket_select<Threads>;

  unsigned size = 1;     // CTAs of a row
  std::uint32_t share;   // keys of a member, whole granules
  unsigned room;         // words of shared memory that a member has for keys and indices

  static bool takes(std::size_t n) { return n > block::bracket_sample && n <= tuning::bracket_keys; }
  /// @param most  CTAs that a team may have
  bracket_shape(std::size_t rows, std::size_t n, unsigned most) {
    while (2 * size <= most && 2 * size * rows <= tuning::multiprocessors && n >= 2 * size * bracket_select::granule) size *= 2;
    share = ceil_div(n, size * bracket_select::granule) * bracket_select::granule;
    room = size > 1 ? bracket_select::room_of_team : bracket_select::room_of_one;
  }
  std::size_t shared_bytes() const {
    using block::shared_memory;
    return shared_memory::bytes<top_k_scratch<Threads>>(1) + 2 * shared_memory::bytes<std::uint32_t>(share / 32) +
           shared_memory::bytes<std::uint32_t>(room);
  }
};

/// grid.x: CTAs of a cluster; grid.y: rows.
/// @param cached  how many keys the dynamic shared memory holds
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
  block::release_dependents();
  block::wait_for_last_kernel();

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
  // All CTAs of a team take the same branch: it depends on the longest slice.
  if (block::slice::longest(team, n) > cached) return select_by([&](std::uint32_t i) { return canonical::order_key(row[own.begin + i]); });
#pragma unroll 8
  for (std::uint32_t i = threadIdx.x; i < own.count; i += Threads) keys[i] = canonical::order_key(row[own.begin + i]);
  __syncthreads();
  select_by([&](std::uint32_t i) { return keys[i]; });
}

/// grid.x: CTAs of a cluster, rows one after the other, since there may be many.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    top_k_bracket_kernel(view<const float, 2, space::device> scores, view<std::int32_t, 2, space::device> indices,
                         bracket_shape<Threads> shape) {
  using bracket_select = block::bracket_select<Threads>;
  const block::cluster_team team(shape.size);
  const std::uint32_t share = shape.share;
  const std::size_t which = blockIdx.x / shape.size;
  const std::uint32_t n = static_cast<std::uint32_t>(scores.extent(1)), k_max = static_cast<std::uint32_t>(indices.extent(1)),
                      k = k_max < n ? k_max : n;
  const float* row = scores.data + which * scores.stride(0);
  std::int32_t* out = indices.data + which * indices.stride(0);
  const std::uint32_t begin = share * team.rank() < n ? share * team.rank() : n;
  const typename bracket_select::part own{begin, n - begin < share ? n : begin + share};
  block::release_dependents();
  block::wait_for_last_kernel();

  for (std::uint32_t i = k + team.rank() * Threads + threadIdx.x; i < k_max; i += team.size() * Threads) out[i] = -1;
  if (k == 0) return;
  if (k == n) {
    for (std::uint32_t i = own.begin + threadIdx.x; i < own.end; i += Threads) out[i] = static_cast<std::int32_t>(i);
    return;
  }
  block::shared_memory memory;
  auto& select = *memory.take<top_k_scratch<Threads>>(1);
  std::uint32_t *chosen = memory.take<std::uint32_t>(share / 32), *equal = memory.take<std::uint32_t>(share / 32),
                *words = memory.take<std::uint32_t>(shape.room);
  if (select.bracket.select(team, row, n, k, own, 0, chosen, equal, words, shape.room, out)) return;
  team.sync();
  const auto key_at = [&](std::uint32_t i) { return canonical::order_key(row[own.begin + i]); };
  const block::threshold limit = select.radix.find(team, own.end - own.begin, k, key_at, [](std::uint32_t) { return 1u; });
  select.radix.emit(team, own.end - own.begin, limit, key_at, static_cast<std::int32_t>(own.begin), out, k);
}

}  // namespace detail

template <>
struct kernel<op::top_k, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> scores, view<std::int32_t, 2, space::device> indices) {
    constexpr unsigned threads = detail::tuning::select_threads, bracket_threads = detail::tuning::bracket_threads;
    const detail::launcher launch(policy, "top_k");
    const std::size_t n = scores.extent(1);
    const unsigned rows = static_cast<unsigned>(scores.extent(0));
    using bracket_shape = detail::bracket_shape<bracket_threads>;
    if (bracket_shape::takes(n)) {
      const auto kernel = detail::top_k_bracket_kernel<bracket_threads>;
      const unsigned most = launch.largest_cluster(kernel);
      const bracket_shape shape(rows, n, most);
      if (shape.shared_bytes() <= launch.shared_limit(kernel)) {
        launch("top_k_bracket_kernel", kernel,
               {.grid = dim3(shape.size * rows),
                .threads = bracket_threads,
                .shared_bytes = shape.shared_bytes(),
                .cluster = shape.size,
                .early = most > 1},
               scores, indices, shape);
        return;
      }
    }
    const auto kernel = detail::top_k_kernel<threads>;
    const unsigned cluster = n > 4096 ? launch.largest_cluster(kernel) : 1;
    const std::size_t cached = std::min<std::size_t>(n / cluster + 32, detail::tuning::select_cached_keys);
    launch("top_k_kernel", kernel,
           {.grid = dim3(cluster, rows),
            .threads = threads,
            .shared_bytes = cached * sizeof(std::uint32_t),
            .cluster = cluster,
            .early = launch.is_built_for_hopper(kernel)},
           scores, indices, static_cast<unsigned>(cached));
  }
};

}  // namespace pqkv
