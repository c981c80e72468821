// SPDX-License-Identifier: Apache-2.0
// Partial results of attention() over parts of the tokens, and the kernel that merges them.
#pragma once

#include "../../attention.hpp"
#include "../../core/canonical.hpp"
#include "arena.cuh"
#include "block/cluster.cuh"
#include "block/reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// Partial results [splits, hq] of attention: the sum [d] of weights times values, and the softmax's top (as a power of two) and total. The
/// total is NaN if a logit was not finite, and 0 without tokens.
struct attention_partials {
  float *sums, *tops, *totals;
  std::size_t hq, d, pitch;  // pitch: of a row of sums

  attention_partials(arena& memory, std::size_t splits, std::size_t query_heads, std::size_t head_dim)
      : hq(query_heads), d(head_dim), pitch(attention_device_row_floats(head_dim)) {
    sums = memory.take<float>(splits * hq * (pitch + 2));
    tops = sums + splits * hq * pitch;
    totals = tops + splits * hq;
  }
  __device__ float* row(std::size_t part) const { return sums + part * pitch; }
};

inline constexpr unsigned max_splits = 64;  // of detail::attention_device_splits()
static_assert(attention_device_splits(1) <= max_splits);

// measured: the case attention/listed of bench/cuda/attention.cu, k 2048, H200, 2026-12: 512 threads, each with a dimension of nine parts,
// 8.6 us; these 7.2 us. With 512 threads the launch had to wait for attention's registers.
inline constexpr unsigned merge_warps = 8;   // of a query head
inline constexpr unsigned merged_run = 128;  // dimensions that a warp reads at a time, four a lane

/// Where attention's results go: to memory. Another type with this member may use them further before they are stored
/// (share_steps_merging.cuh).
struct stored_output {
  view<float, 2, space::device> out;
  view<float, 1, space::device> lse;  // or without data

  /// What a CTA needs of it for query head q, read before the results are there.
  __device__ const stored_output& open(std::size_t) const { return *this; }
  /// @param value  value(i): output i of query head q; sum(): its log-sum-exp. By all threads of a CTA
  template <class Value, class Sum>
  __device__ void write(std::size_t q, std::size_t d, Value value, Sum sum) const {
    for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) out(q, i) = value(i);
    if (threadIdx.x == 0 && lse.data != nullptr) lse(q) = sum();
  }
};

/// One CTA for each query head; warp w takes parts w, w + merge_warps and so on. A warp reads all of its parts before it uses the first,
/// and finds the weights of all parts for itself, so that the CTA meets once. It has room beside attention's CTAs, and waits there.
/// @tparam Runs  of merged_run dimensions: d, rounded up
template <unsigned Runs, class Output>
PQKV_HIDDEN __global__ void __launch_bounds__(merge_warps * 32)
    merge_kernel(attention_partials parts, unsigned splits, const __grid_constant__ Output output) {
  constexpr canonical::softmax_scale as_it_is{1.0f, -125.0f};
  constexpr unsigned own_parts = max_splits / merge_warps, of_lane = max_splits / 32;
  static_assert(own_parts * merge_warps == max_splits && of_lane * 32 == max_splits);
  const unsigned q = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  block::release_dependents();
  block::wait_for_last_kernel();
  __shared__ float4 of_warp[merge_warps][Runs * merged_run / 4];
  const auto& opened = output.open(q);

  float total_of[of_lane], top_of[of_lane];
#pragma unroll
  for (unsigned j = 0; j < of_lane; ++j) {
    const bool is_part = lane + 32 * j < splits;
    total_of[j] = is_part ? parts.totals[(lane + 32 * j) * parts.hq + q] : 0.0f;
    top_of[j] = is_part ? parts.tops[(lane + 32 * j) * parts.hq + q] : 0.0f;
  }
  float4 x[own_parts][Runs] = {};
  const std::size_t stride = merge_warps * parts.hq * parts.pitch;
  const float* row = parts.row(warp * parts.hq + q) + 4 * lane;
#pragma unroll
  for (unsigned a = 0; a < own_parts; ++a, row += stride)
#pragma unroll
    for (unsigned r = 0; r < Runs; ++r)
      if (a * merge_warps + warp < splits && r * merged_run + 4 * lane < parts.pitch)
        x[a][r] = *reinterpret_cast<const float4*>(row + r * merged_run);

  float highest = float_from_bits(0xff800000u), total = 0;
  bool broken = false;
#pragma unroll
  for (unsigned j = 0; j < of_lane; ++j) {
    broken |= !is_finite(total_of[j]);
    if (total_of[j] != 0) highest = canonical::max(top_of[j], highest);
  }
  broken = __any_sync(block::all_lanes, broken) != 0;
  for (int step = 16; step > 0; step /= 2) highest = canonical::max(__shfl_xor_sync(block::all_lanes, highest, step), highest);
  float factor[of_lane];
#pragma unroll
  for (unsigned j = 0; j < of_lane; ++j) {
    factor[j] = total_of[j] != 0 && !broken ? canonical::exponential(top_of[j] - highest, as_it_is) : 0.0f;
    total += total_of[j] * factor[j];
  }
  total = broken ? float_from_bits(0x7fc00000u) : block::warp_sum(total);

  float4 sum[Runs] = {};
#pragma unroll
  for (unsigned a = 0; a < own_parts; ++a) {
    constexpr unsigned parts_of_lane = 32 / merge_warps;
    const float weight = __shfl_sync(block::all_lanes, factor[a / parts_of_lane], static_cast<int>(a % parts_of_lane * merge_warps + warp));
#pragma unroll
    for (unsigned r = 0; r < Runs; ++r)
      sum[r] = {fmaf(weight, x[a][r].x, sum[r].x), fmaf(weight, x[a][r].y, sum[r].y), fmaf(weight, x[a][r].z, sum[r].z),
                fmaf(weight, x[a][r].w, sum[r].w)};
  }
#pragma unroll
  for (unsigned r = 0; r < Runs; ++r) of_warp[warp][r * 32 + lane] = sum[r];
  __syncthreads();
  const auto value = [&](std::size_t i) {
    float all = 0;
#pragma unroll
    for (unsigned w = 0; w < merge_warps; ++w) all += reinterpret_cast<const float*>(of_warp[w])[i];
    return !is_finite(total) ? total : total == 0 ? 0.0f : all / total;
  };
  const auto sum_of_all = [&] {
    return !is_finite(total) ? total
           : total == 0
               ? float_from_bits(0xff800000u)
               : static_cast<float>((static_cast<double>(highest) + static_cast<double>(log2f(total))) * 0.69314718055994530942);
  };
  opened.write(q, parts.d, value, sum_of_all);
}

}  // namespace pqkv::detail
