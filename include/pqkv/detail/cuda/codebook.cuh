// SPDX-License-Identifier: Apache-2.0
// The mean training row of each head on the device: a head is a cluster whose members take every eighth tile of rows. Sums in fixed
// point are free of order, so the bits are the host's.
#pragma once

#include "../../core/canonical.hpp"
#include "../../core/row.hpp"
#include "../../quantize/codebook.hpp"
#include "block/cluster.cuh"
#include "block/reduce.cuh"
#include "kernel.cuh"

namespace pqkv {
namespace detail {

/// CTAs of a cluster are grid.x, heads grid.y.
template <class T, class Space>
PQKV_HIDDEN __global__ void __launch_bounds__(max_head_dim)
    mean_row_kernel(view<T, 3, Space> keys, stratified_sample sample, view<float, 2, space::device> mean) {
  constexpr unsigned threads = max_head_dim, runs = max_head_dim / 32, at_once = 4;
  __shared__ block::reduction<std::uint32_t, threads> reduction;
  __shared__ std::uint32_t used, largest;  // of this member; largest as bits
  __shared__ unsigned long long sum[max_head_dim];
  const block::cluster_team team(gridDim.x);
  const std::size_t head = blockIdx.y;
  const unsigned d = static_cast<unsigned>(keys.extent(2)), lane = threadIdx.x % 32;

  // Calls take(x) for every finite row of this warp's, [runs] elements a lane.
  const auto for_rows = [&](auto take) {
    const std::size_t step = std::size_t{team.size()} * (threads / 32) * at_once;
    for (std::size_t first = (team.rank() * (threads / 32) + threadIdx.x / 32) * at_once; first < sample.count; first += step) {
      float x[at_once][runs];
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {  // all loads before the first use
        const auto row = row_of(keys, head, sample(first + a < sample.count ? first + a : first));
#pragma unroll
        for (unsigned i = 0; i < runs; ++i) x[a][i] = i * 32 + lane < d ? static_cast<float>(row.data[(i * 32 + lane) * row.stride]) : 0.0f;
      }
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        bool finite = first + a < sample.count;
#pragma unroll
        for (unsigned i = 0; i < runs; ++i) finite &= is_finite(x[a][i]);
        if (__all_sync(block::all_lanes, finite) != 0) take(x[a]);
      }
    }
  };

  std::uint32_t most = 0, count = 0;
  for_rows([&](const float(&x)[runs]) {
#pragma unroll
    for (unsigned i = 0; i < runs; ++i) {
      const std::uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
      most = magnitude > most ? magnitude : most;
    }
    count += lane == 0 ? 1 : 0;
  });
  most = reduction.max(most);
  count = reduction.sum(count);
  if (threadIdx.x == 0) largest = most, used = count;
  team.sync();
  count = 0;
  for (unsigned rank = 0; rank < team.size(); ++rank) {
    const std::uint32_t theirs = *team.remote(&largest, rank);
    most = theirs > most ? theirs : most;
    count += *team.remote(&used, rank);
  }
  const float scale = canonical::power_of_two(canonical::fixed_point_exponent(float_from_bits(most)));

  sum[threadIdx.x] = 0;
  __syncthreads();
  std::int64_t of_lane[runs] = {};
  for_rows([&](const float(&x)[runs]) {
#pragma unroll
    for (unsigned i = 0; i < runs; ++i) of_lane[i] += canonical::fixed_point(x[i], scale);
  });
#pragma unroll
  for (unsigned i = 0; i < runs; ++i) atomicAdd(&sum[i * 32 + lane], static_cast<unsigned long long>(of_lane[i]));
  team.sync();
  if (team.rank() == 0 && threadIdx.x < d) {
    std::int64_t own = 0;
    for (unsigned rank = 0; rank < team.size(); ++rank) own += static_cast<std::int64_t>(team.remote(sum, rank)[threadIdx.x]);
    mean(head, threadIdx.x) = count == 0 ? 0.0f : static_cast<float>(bfloat16(canonical::fixed_point_mean(own, count, scale)));
  }
  team.sync();  // the first member may still read the others' sums
}

}  // namespace detail

template <>
struct kernel<op::mean_row, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, const stratified_sample& sample, view<float, 2, space::device> mean) {
    const detail::launcher launch(policy, "train");
    const auto kernel = detail::mean_row_kernel<T, Space>;
    const unsigned cluster = launch.largest_cluster(kernel);
    launch("mean_row_kernel", kernel,
           {dim3(cluster, static_cast<unsigned>(keys.extent(0))), max_head_dim, 0, cluster}, keys, sample, mean);
  }
};

}  // namespace pqkv
