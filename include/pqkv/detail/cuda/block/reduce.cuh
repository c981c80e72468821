// SPDX-License-Identifier: Apache-2.0
// Sums, maxima and prefix sums over a warp and over a CTA. Every function is called by all threads; those over a CTA end with a
// barrier, so their scratch may be used again at once.
#pragma once

#include <cstdint>

namespace pqkv::detail::block {

inline constexpr unsigned all_lanes = 0xffffffffu;

template <class T>
__device__ T warp_sum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}
template <class T>
__device__ T warp_max(T x) {
  for (int step = 16; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(all_lanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}
/// Sum over the lanes below.
template <class T>
__device__ T warp_prefix(T x) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  T inclusive = x;
  for (int step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(all_lanes, inclusive, static_cast<unsigned>(step));
    if (lane >= step) inclusive += other;
  }
  return inclusive - x;
}

/// Scratch of a CTA of Threads threads.
template <class T, unsigned Threads>
struct reduction {
  static constexpr unsigned warps = Threads / 32;
  T partial[warps + 1];

  __device__ T sum(T x) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    T total = 0;
    for (unsigned w = 0; w < warps; ++w) total += partial[w];
    __syncthreads();
    return total;
  }
  __device__ T max(T x) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    T top = partial[0];
    for (unsigned w = 1; w < warps; ++w) top = partial[w] > top ? partial[w] : top;
    __syncthreads();
    return top;
  }
  /// Sum over the threads below; `total` over all.
  __device__ T prefix(T x, T& total) {
    const T below = warp_prefix(x);
    if (threadIdx.x % 32 == 31) partial[threadIdx.x / 32] = below + x;
    __syncthreads();
    T before = 0;
    total = 0;
    for (unsigned w = 0; w < warps; ++w) {
      if (w == threadIdx.x / 32) before = total;
      total += partial[w];
    }
    __syncthreads();
    return before + below;
  }
};

}  // namespace pqkv::detail::block
