// SPDX-License-Identifier: Apache-2.0
// The nearest centroid of each row of a tile, by the canonical distance. Rows are in shared memory, where neighbouring words are of
// neighbouring rows; centroids pass through it in pieces of 16 coordinates by 64. A thread has 4 rows by 4 centroids in registers. And the
// nearest centroid of a single row, by a warp.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// A distance and its centroid as one number that orders them by the rule: smaller distance first, then lower index.
__device__ inline std::uint64_t nearest_key(float distance, std::uint32_t centroid) {
  std::uint32_t bits = float_bits(distance);  // distances are not negative, so their bits are in the same order
  if ((bits & 0x7fffffffu) > 0x7f800000u) bits = centroid == 0 ? 0u : 0xffffffffu;  // a NaN is never nearer, and never replaced
  return std::uint64_t{bits} << 32 | centroid;
}

template <unsigned Rows>
struct nearest_tile {
  static constexpr unsigned threads = Rows * 4, row_stride = Rows + 4, piece_dims = 16, piece_centroids = 64;

  float piece[piece_dims * piece_centroids];
  std::uint64_t best[Rows];  // of each row, written by find()

  /// All threads of the CTA call it; the tile must be complete. Ends with a barrier.
  ///
  /// @param y          [width, row_stride] in shared memory
  /// @param centroids  [width, c] in global memory
  __device__ void find(const float* y, unsigned width, const float* centroids, unsigned c) {
    const unsigned group = threadIdx.x / 16, lane = threadIdx.x % 16;
    std::uint64_t nearest[4] = {~0ull, ~0ull, ~0ull, ~0ull};
    for (unsigned x0 = 0; x0 < c; x0 += piece_centroids) {
      float acc[4][4] = {};
      for (unsigned i0 = 0; i0 < width; i0 += piece_dims) {
        __syncthreads();
        for (unsigned at = threadIdx.x; at < piece_dims * piece_centroids; at += threads) {
          const unsigned i = i0 + at / piece_centroids, x = x0 + at % piece_centroids;
          piece[at] = i < width && x < c ? centroids[std::size_t{i} * c + x] : 0.0f;
        }
        __syncthreads();
        const unsigned dims = width - i0 < piece_dims ? width - i0 : piece_dims;
        for (unsigned i = 0; i < dims; ++i) {
          const float4 row = *reinterpret_cast<const float4*>(y + (i0 + i) * row_stride + 4 * group);
          const float4 column = *reinterpret_cast<const float4*>(piece + i * piece_centroids + 4 * lane);
          const float rows[4] = {row.x, row.y, row.z, row.w}, columns[4] = {column.x, column.y, column.z, column.w};
#pragma unroll
          for (unsigned r = 0; r < 4; ++r)
#pragma unroll
            for (unsigned x = 0; x < 4; ++x) {
              const float e = canonical::sub(rows[r], columns[x]);
              acc[r][x] = canonical::fma(e, e, acc[r][x]);
            }
        }
      }
#pragma unroll
      for (unsigned r = 0; r < 4; ++r)
#pragma unroll
        for (unsigned x = 0; x < 4; ++x) {
          const std::uint32_t centroid = x0 + 4 * lane + x;
          const std::uint64_t key = centroid < c ? nearest_key(acc[r][x], centroid) : ~0ull;
          nearest[r] = key < nearest[r] ? key : nearest[r];
        }
    }
#pragma unroll
    for (unsigned r = 0; r < 4; ++r) {
      for (unsigned step = 8; step > 0; step /= 2) {
        const std::uint64_t other = __shfl_xor_sync(0xffffffffu, nearest[r], static_cast<int>(step));
        nearest[r] = other < nearest[r] ? other : nearest[r];
      }
      if (lane == 0) best[4 * group + r] = nearest[r];
    }
    __syncthreads();
  }
};

/// The nearest centroid of one row, by a warp; each lane takes one or two centroids.
/// @tparam Groups    ds / 32
/// @param from       [ds]
/// @param offset     [ds], subtracted from the row
/// @param centroids  [ds, c] in global memory
template <unsigned Groups, class T>
__device__ unsigned nearest_by_warp(const T* from, const float* offset, const float* centroids, unsigned c) {
  const unsigned lane = threadIdx.x % 32;
  float y[Groups];
#pragma unroll
  for (unsigned g = 0; g < Groups; ++g) y[g] = canonical::sub(static_cast<float>(from[g * 32 + lane]), offset[g * 32 + lane]);
  std::uint64_t best = ~0ull;
  for (unsigned x0 = 0; x0 < c; x0 += 64) {
    const unsigned first = x0 + lane < c ? x0 + lane : c - 1, second = x0 + lane + 32 < c ? x0 + lane + 32 : c - 1;
    float acc[2] = {};
#pragma unroll
    for (unsigned g = 0; g < Groups; ++g)
#pragma unroll 8
      for (unsigned i = 0; i < 32; ++i) {
        const float of_row = __shfl_sync(all_lanes, y[g], static_cast<int>(i));
        const float* of = centroids + (g * 32 + i) * c;
        const float a = canonical::sub(of_row, of[first]), b = canonical::sub(of_row, of[second]);
        acc[0] = canonical::fma(a, a, acc[0]);
        acc[1] = canonical::fma(b, b, acc[1]);
      }
    const std::uint64_t a = nearest_key(acc[0], first), b = nearest_key(acc[1], second);
    best = a < best ? a : best;
    best = b < best ? b : best;
  }
  for (int step = 16; step > 0; step /= 2) {
    const std::uint64_t other = __shfl_xor_sync(all_lanes, best, step);
    best = other < best ? other : best;
  }
  return static_cast<unsigned>(best & 0xffu);
}

}  // namespace pqkv::detail::block
