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
  std::size_t hq, d;

  attention_partials(arena& memory, std::size_t splits, std::size_t query_heads, std::size_t head_dim) : hq(query_heads), d(head_dim) {
    sums = memory.take<float>(splits * hq * (d + 2));
    tops = sums + splits * hq * d;
    totals = tops + splits * hq;
  }
};

inline constexpr unsigned max_splits = 64;  // of detail::attention_device_splits()
static_assert(attention_device_splits(1) <= max_splits);

inline constexpr unsigned merged_dims = 256,  // at most
    merge_columns = 128;                      // threads next to each other in a row, each for one or two dimensions

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

/// One CTA for each query head. Each slice of its threads takes every Slices-th part and reads all of its parts before it uses the first.
/// @tparam Runs  dimensions of a thread
template <unsigned Slices, unsigned Runs, class Output>
PQKV_HIDDEN __global__ void __launch_bounds__(Slices* merge_columns)
    merge_kernel(attention_partials parts, unsigned splits, const __grid_constant__ Output output) {
  constexpr canonical::softmax_scale as_it_is{1.0f, -125.0f};
  constexpr unsigned runs = Runs, own_parts = max_splits / 4;
  static_assert(Runs * merge_columns <= merged_dims);
  static_assert(own_parts * Slices >= max_splits || Slices == 1);
  const unsigned q = blockIdx.x, lane = threadIdx.x % 32, slice = threadIdx.x / merge_columns, column = threadIdx.x % merge_columns;
  block::release_dependents();
  block::wait_for_last_kernel();
  __shared__ float shrink[max_splits], of_slice[Slices][runs * merge_columns], highest_of_all, total_of_all;
  const auto& opened = output.open(q);
  const auto for_parts = [&](auto take) {  // take(r, a, part, dimension): number a of this slice, run r of dimensions
#pragma unroll
    for (unsigned r = 0; r < runs; ++r)
#pragma unroll
      for (unsigned a = 0; a < own_parts; ++a)
        if (a * Slices + slice < splits && r * merge_columns + column < parts.d) take(r, a, a * Slices + slice, r * merge_columns + column);
  };
  constexpr unsigned of_lane = max_splits / 32;
  float x[runs][own_parts], sum[runs] = {}, total_of[of_lane], top_of[of_lane];
#pragma unroll
  for (unsigned j = 0; j < of_lane; ++j) {
    const bool is_part = threadIdx.x < 32 && lane + 32 * j < splits;
    total_of[j] = is_part ? parts.totals[(lane + 32 * j) * parts.hq + q] : 0.0f;
    top_of[j] = is_part ? parts.tops[(lane + 32 * j) * parts.hq + q] : 0.0f;
  }
  for_parts([&](unsigned r, unsigned a, unsigned s, unsigned i) { x[r][a] = parts.sums[(s * parts.hq + q) * parts.d + i]; });
  if (threadIdx.x < 32) {
    float highest = float_from_bits(0xff800000u), total = 0;
    bool broken = false;
#pragma unroll
    for (unsigned j = 0; j < of_lane; ++j) {
      broken |= !is_finite(total_of[j]);
      if (total_of[j] != 0) highest = canonical::max(top_of[j], highest);
    }
    broken = __any_sync(block::all_lanes, broken) != 0;
    for (int step = 16; step > 0; step /= 2) highest = canonical::max(__shfl_xor_sync(block::all_lanes, highest, step), highest);
#pragma unroll
    for (unsigned j = 0; j < of_lane; ++j) {
      const float factor = total_of[j] != 0 && !broken ? canonical::exponential(top_of[j] - highest, as_it_is) : 0.0f;
      shrink[lane + 32 * j] = factor;
      total += total_of[j] * factor;
    }
    total = block::warp_sum(total);
    if (lane == 0) {
      highest_of_all = highest;
      total_of_all = broken ? float_from_bits(0x7fc00000u) : total;
    }
  }
  __syncthreads();
  for_parts([&](unsigned r, unsigned a, unsigned s, unsigned) { sum[r] = fmaf(shrink[s], x[r][a], sum[r]); });
#pragma unroll
  for (unsigned r = 0; r < runs; ++r) of_slice[slice][r * merge_columns + column] = sum[r];
  __syncthreads();
  const float total = total_of_all;
  const auto value = [&](std::size_t i) {
    float all = 0;
#pragma unroll
    for (unsigned s = 0; s < Slices; ++s) all += of_slice[s][i];
    return !is_finite(total) ? total : total == 0 ? 0.0f : all / total;
  };
  const auto sum_of_all = [&] {
    return !is_finite(total) ? total
           : total == 0
               ? float_from_bits(0xff800000u)
               : static_cast<float>((static_cast<double>(highest_of_all) + static_cast<double>(log2f(total))) * 0.69314718055994530942);
  };
  opened.write(q, parts.d, value, sum_of_all);
}

}  // namespace pqkv::detail
