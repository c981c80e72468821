// SPDX-License-Identifier: Apache-2.0
// The rows that k-means begins from, found by one CTA. It takes many steps of a random permutation of all rows at a time, with the same
// result as one after the other, and keeps the rows that equal no earlier one.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "../../../core/random.hpp"
#include "reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// The state of the search, in shared memory.
/// @tparam Most  rows of a batch
template <unsigned Threads, unsigned Most>
class initial_rows {
  static_assert(Threads >= Most);

 public:
  /// Takes steps first to first + batch of the permutation; their rows become drawn(). Each step swaps order[step] with a later place. All
  /// places are read and written together, and a warp works out what earlier steps left in them. Begins and ends with a barrier.
  /// @param order  [used]
  __device__ void draw(random_stream draws, std::uint32_t first, unsigned batch, std::uint32_t* order, std::uint32_t used) {
    __syncthreads();
    const std::uint32_t step = first + threadIdx.x;
    if (threadIdx.x < batch) {
      const std::uint32_t other = step + draws.below(step, used - step);
      other_[threadIdx.x] = other;
      drawn_[threadIdx.x] = order[other];
      moved_[threadIdx.x] = order[step];
    }
    __syncthreads();
    for (unsigned b = 0; threadIdx.x < 32 && b < batch; ++b) {
      const std::uint32_t other = other_[b];
      unsigned of_other = 0, of_own = 0;  // the last step that wrote there, plus 1
      for (unsigned j = threadIdx.x; j < b; j += 32) {
        if (other_[j] == other) of_other = j + 1;
        if (other_[j] == first + b) of_own = j + 1;
      }
      of_other = __reduce_max_sync(all_lanes, of_other);
      of_own = __reduce_max_sync(all_lanes, of_own);
      if (threadIdx.x == 0) {
        if (of_other != 0) drawn_[b] = moved_[of_other - 1];
        if (of_own != 0) moved_[b] = moved_[of_own - 1];
      }
      __syncwarp();
    }
    __syncthreads();
    bool is_last = threadIdx.x < batch;  // the last step that writes this place
    for (unsigned j = threadIdx.x + 1; j < batch; ++j) is_last &= other_[j] != other_[threadIdx.x];
    if (is_last) order[other_[threadIdx.x]] = moved_[threadIdx.x];
    __syncthreads();
  }

  /// Keeps those of rows [found, found + batch) of `taken` that equal no earlier row; returns how many rows there are then. Begins and ends
  /// with a barrier.
  /// @param taken  [found + batch, width]
  __device__ unsigned keep_distinct(float* taken, unsigned width, unsigned found, unsigned batch) {
    __syncthreads();
    bool any = false;
    for (unsigned row = threadIdx.x / 32; row < batch; row += Threads / 32) {
      bool repeated = false;
      for (unsigned earlier = threadIdx.x % 32; earlier < found + row && !repeated; earlier += 32) {
        const float *a = taken + (found + row) * width, *b = taken + earlier * width;
        repeated = true;
        for (unsigned e = 0; e < width && repeated; ++e)  // as order keys: equal floats, whatever the compiler does to subnormals
          repeated = canonical::order_key(a[e]) == canonical::order_key(b[e]);
      }
      repeated = __any_sync(all_lanes, repeated) != 0;
      if (threadIdx.x % 32 == 0) repeated_[row] = repeated ? 1 : 0;
      any |= repeated;
    }
    if (__syncthreads_or(any ? 1 : 0) == 0) return found + batch;
    unsigned kept = found;
    for (unsigned row = 0; row < batch; ++row) {
      if (repeated_[row] != 0) continue;
      if (kept != found + row)
        for (unsigned e = threadIdx.x; e < width; e += Threads) taken[kept * width + e] = taken[(found + row) * width + e];
      ++kept;
    }
    __syncthreads();
    return kept;
  }

  /// The row that a step of the batch drew.
  __device__ std::uint32_t drawn(unsigned of_batch) const { return drawn_[of_batch]; }

 private:
  std::uint32_t other_[Most], drawn_[Most], moved_[Most], repeated_[Most];  // of each step
};

}  // namespace pqkv::detail::block
