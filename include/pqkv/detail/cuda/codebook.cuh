// SPDX-License-Identifier: Apache-2.0
// The mean training row of each head on the device. A cluster takes a head, and its members take every eighth run of rows. Sums in fixed
// point do not depend on their order, so the bits are the host's.
#pragma once

#include "../../core/canonical.hpp"
#include "../../core/row.hpp"
#include "../../quantize/codebook.hpp"
#include "block/cluster.cuh"
#include "block/fixed_sums.cuh"
#include "block/reduce.cuh"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// grid.x: CTAs of a cluster; grid.y: heads.
/// @tparam Run  elements of a row that a lane reads together: 16 bytes of them where rows allow it, else 1
template <class T, class Space, unsigned Run>
PQKV_HIDDEN __global__ void __launch_bounds__(tuning::mean_threads)
    mean_row_kernel(view<T, 3, Space> keys, stratified_sample sample, view<float, 2, space::device> mean) {
  struct alignas(Run * sizeof(T)) run_of_row {
    std::remove_cv_t<T> element[Run];
  };
  using words = std::conditional_t<Run == 1, run_of_row, uint4>;  // kept in their stored form until they are used
  constexpr unsigned threads = tuning::mean_threads, warps = threads / 32, runs = (max_head_dim / Run + 31) / 32,
                     at_once = runs == 1 ? 8 : 4;
  __shared__ block::reduction<std::uint32_t, threads> reduction;
  __shared__ std::uint32_t used, largest;  // of this member; largest as bits
  __shared__ unsigned long long sum[max_head_dim];
  const block::cluster_team team(gridDim.x);
  const std::size_t head = blockIdx.y;
  const unsigned d = static_cast<unsigned>(keys.extent(2)), lane = threadIdx.x % 32;
  unsigned log_lanes = 0;  // threads next to each other in a row
  while (log_lanes < 5 && Run << log_lanes < d) ++log_lanes;
  const unsigned lanes = 1u << log_lanes, rows_at_once = 32 >> log_lanes, own_row = lane >> log_lanes,
                 row_lanes = (lanes == 32 ? ~0u : (1u << lanes) - 1) << (own_row << log_lanes);
  const auto element_at = [&](unsigned i) { return ((i << log_lanes) + (lane & (lanes - 1))) * Run; };

  // Calls take(x) for every finite row of this warp, with [runs, Run] elements in each lane. A warp takes 32 rows at a time, and each lane
  // finds the place of one of them among the keys: finding a place costs as much as reading a row.
  const auto for_rows = [&](auto take) {
    const std::size_t step = std::size_t{team.size()} * warps * 32;
    for (std::size_t first = (team.rank() * warps + threadIdx.x / 32) * 32; first < sample.count; first += step) {
      const std::uint64_t place = sample(first + lane < sample.count ? first + lane : first);
      const unsigned rows = sample.count - first < 32 ? static_cast<unsigned>(sample.count - first) : 32;
      for (unsigned begin = 0; begin < rows; begin += at_once * rows_at_once) {
        words read[at_once][runs];
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) {  // all loads come first; beyond the last row or element they load another one
          const unsigned which = begin + a * rows_at_once + own_row;
          const std::size_t t = static_cast<std::size_t>(__shfl_sync(block::all_lanes, place, static_cast<int>(which % 32)));
          const auto row = row_of(keys, head, t);
#pragma unroll
          for (unsigned i = 0; i < runs; ++i)
            read[a][i] = *reinterpret_cast<const words*>(row.data + (element_at(i) < d ? element_at(i) : 0) * (Run == 1 ? row.stride : 1));
        }
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) {
          float x[runs][Run];
          bool finite = begin + a * rows_at_once + own_row < rows;
#pragma unroll
          for (unsigned i = 0; i < runs; ++i) {
            const run_of_row elements = __builtin_bit_cast(run_of_row, read[a][i]);
#pragma unroll
            for (unsigned e = 0; e < Run; ++e) {
              x[i][e] = element_at(i) < d ? static_cast<float>(elements.element[e]) : 0.0f;
              finite &= is_finite(x[i][e]);
            }
          }
          if ((__ballot_sync(block::all_lanes, finite) & row_lanes) == row_lanes) take(x);
        }
      }
    }
  };

  std::uint32_t most = 0, count = 0;
  for_rows([&](const float(&x)[runs][Run]) {
#pragma unroll
    for (unsigned i = 0; i < runs; ++i)
#pragma unroll
      for (unsigned e = 0; e < Run; ++e) {
        const std::uint32_t magnitude = float_bits(x[i][e]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
      }
    count += (lane & (lanes - 1)) == 0 ? 1 : 0;
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

  if (threadIdx.x < max_head_dim) sum[threadIdx.x] = 0;
  __syncthreads();
  std::int64_t of_lane[runs][Run] = {};
  for_rows([&](const float(&x)[runs][Run]) {
#pragma unroll
    for (unsigned i = 0; i < runs; ++i)
#pragma unroll
      for (unsigned e = 0; e < Run; ++e) of_lane[i][e] += block::fixed_point(x[i][e], scale);
  });
#pragma unroll
  for (unsigned i = 0; i < runs; ++i)
#pragma unroll
    for (unsigned e = 0; e < Run; ++e)
      if (element_at(i) < d) atomicAdd(&sum[element_at(i) + e], static_cast<unsigned long long>(of_lane[i][e]));
  team.sync();
  if (team.rank() == 0 && threadIdx.x < d) {
    std::int64_t own = 0;
    for (unsigned rank = 0; rank < team.size(); ++rank) own += static_cast<std::int64_t>(team.remote(sum, rank)[threadIdx.x]);
    mean(head, threadIdx.x) = count == 0 ? 0.0f : static_cast<float>(bfloat16(canonical::fixed_point_mean(own, count, scale)));
  }
  team.sync();  // the first member may still read the other members' sums
}

}  // namespace detail

template <>
struct kernel<op::mean_row, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, const stratified_sample& sample, view<float, 2, space::device> mean) {
    const detail::launcher launch(policy, "train");
    const auto go = [&](auto kernel) {
      const unsigned cluster = launch.largest_cluster(kernel);
      launch("mean_row_kernel", kernel, {dim3(cluster, static_cast<unsigned>(keys.extent(0))), detail::tuning::mean_threads, 0, cluster},
             keys, sample, mean);
    };
    constexpr unsigned run = 16 / sizeof(T);
    const bool in_runs = keys.stride(2) == 1 && reinterpret_cast<std::uintptr_t>(keys.data) % 16 == 0 && keys.extent(2) % run == 0 &&
                         keys.stride(0) % run == 0 && keys.stride(1) % run == 0;
    if (in_runs)
      go(detail::mean_row_kernel<T, Space, run>);
    else
      go(detail::mean_row_kernel<T, Space, 1>);
  }
};

}  // namespace pqkv
