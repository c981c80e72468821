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
  constexpr unsigned rows = 32, threads = max_head_dim;
  __shared__ float tile[rows * max_head_dim];
  __shared__ bool finite[rows];
  __shared__ block::reduction<std::uint32_t, threads> reduction;
  __shared__ std::uint32_t used, largest;  // of this member; largest as bits
  __shared__ std::int64_t sum[max_head_dim];
  const block::cluster_team team(gridDim.x);
  const std::size_t head = blockIdx.y, d = keys.extent(2);

  const auto load = [&](std::size_t first) {
    __syncthreads();
    if (threadIdx.x < rows) finite[threadIdx.x] = first + threadIdx.x < sample.count;
    __syncthreads();
    for (unsigned at = threadIdx.x; at < rows * d; at += threads) {
      const std::size_t r = at / d, e = at % d;
      if (first + r >= sample.count) continue;
      const auto row = row_of(keys, head, sample(first + r));
      tile[at] = static_cast<float>(row.data[e * row.stride]);
      if (!is_finite(tile[at])) finite[r] = false;
    }
    __syncthreads();
  };

  std::uint32_t most = 0, count = 0;
  for (std::size_t first = team.rank() * rows; first < sample.count; first += team.size() * rows) {
    load(first);
    for (unsigned at = threadIdx.x; at < rows * d; at += threads) {
      const std::uint32_t magnitude = finite[at / d] ? float_bits(tile[at]) & 0x7fffffffu : 0;
      most = magnitude > most ? magnitude : most;
    }
    if (threadIdx.x < rows && finite[threadIdx.x]) ++count;
  }
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

  std::int64_t own = 0;
  for (std::size_t first = team.rank() * rows; first < sample.count; first += team.size() * rows) {
    load(first);
    if (threadIdx.x >= d) continue;
    for (unsigned r = 0; r < rows; ++r)
      if (finite[r]) own += canonical::fixed_point(tile[r * d + threadIdx.x], scale);
  }
  sum[threadIdx.x] = own;
  team.sync();
  if (team.rank() == 0 && threadIdx.x < d) {
    for (unsigned rank = 1; rank < team.size(); ++rank) own += team.remote(sum, rank)[threadIdx.x];
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
    const unsigned cluster = launch.largest_cluster();
    launch("mean_row_kernel", detail::mean_row_kernel<T, Space>,
           {dim3(cluster, static_cast<unsigned>(keys.extent(0))), max_head_dim, 0, cluster}, keys, sample, mean);
  }
};

}  // namespace pqkv
