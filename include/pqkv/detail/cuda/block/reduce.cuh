// SPDX-License-Identifier: Apache-2.0
// Sums, maxima and prefix sums over a warp and over a CTA. Every function is called by all threads; those over a CTA end with a
// barrier, so their scratch may be used again at once.
#pragma once

#include <cstdint>

#include "../../../config.hpp"

namespace pqkv::inline PQKV_MODE::detail::block {

inline constexpr unsigned all_lanes = 0xffffffffu;

template <class T>
__device__ T warp_sum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}
/// Sums of several numbers of each lane. A lane ends with the sum of x[lane / (32 / Count)] over all lanes. In each step two lanes exchange
/// the numbers that the other keeps, which costs less than a sum for each number.
template <class T, unsigned Count>
__device__ T warp_sums(const T (&x)[Count]) {
  if constexpr (Count == 1) {
    return warp_sum(x[0]);
  } else {
    static_assert(Count == 4);
    const unsigned lane = threadIdx.x % 32;
    const bool upper = lane >= 16, odd = lane / 8 % 2 != 0;
    T first = upper ? x[2] : x[0], second = upper ? x[3] : x[1];
    first += __shfl_xor_sync(all_lanes, upper ? x[0] : x[2], 16);
    second += __shfl_xor_sync(all_lanes, upper ? x[1] : x[3], 16);
    T sum = odd ? second : first;
    sum += __shfl_xor_sync(all_lanes, odd ? first : second, 8);
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(all_lanes, sum, step);
    return sum;
  }
}
template <class T>
__device__ T warp_max(T x) {
  for (int step = 16; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(all_lanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}
/// The sum over the lanes below this one.
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

/// The scratch of a CTA of Threads threads.
template <class T, unsigned Threads>
class reduction {
  static constexpr unsigned warps = Threads / 32;
  static_assert(warps <= 32);

 public:
  __device__ T sum(T x) {
    share(warp_sum(x));
    const T total = warp_sum(of_warp(0));
    __syncthreads();
    return total;
  }
  __device__ T max(T x) {
    share(warp_max(x));
    const T top = warp_max(of_warp(partial_[0]));
    __syncthreads();
    return top;
  }
  /// The sum over the threads below this one; `total` becomes the sum over all.
  __device__ T prefix(T x, T& total) {
    const T below = warp_prefix(x);
    if (threadIdx.x % 32 == 31) partial_[threadIdx.x / 32] = below + x;
    __syncthreads();
    const T own = of_warp(0), before = warp_prefix(own);
    total = __shfl_sync(all_lanes, before + own, 31);
    __syncthreads();
    return __shfl_sync(all_lanes, before, static_cast<int>(threadIdx.x / 32)) + below;
  }

 private:
  __device__ void share(T of_all_lanes) {
    if (threadIdx.x % 32 == 0) partial_[threadIdx.x / 32] = of_all_lanes;
    __syncthreads();
  }
  /// The result of the warp whose number is this lane's, or `nothing`.
  __device__ T of_warp(T nothing) const { return threadIdx.x % 32 < warps ? partial_[threadIdx.x % 32] : nothing; }

  T partial_[warps];
};

}  // namespace pqkv::detail::block
