// SPDX-License-Identifier: Apache-2.0
// Inner products of up to eight queries with the keys of one warp, for keys of half or bfloat16, by matrix products with sums in float. A
// lane reads 16 bytes of two keys at a time, and they are operands as they are: the order of a product's terms is free, so the queries are
// laid out in the order in which keys arrive. A query is the sum of three numbers of eight bits each (bfloat16), or of two (half); each has
// a column of the product, so that floats keep their precision. Nothing of a key goes through shared memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../../cache/kv_store.hpp"
#include "copy.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "shared.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// A CTA's queries as operands B, in shared memory. A column has one part of one query: first the leading parts of all queries, then the
/// second parts, then the third.
/// @tparam Dims  64, 128 or 256: d rounded up
template <class T, unsigned Dims, unsigned Queries>
class query_operands {
  static_assert(Queries == 4 || Queries == 8);
  static constexpr unsigned parts = std::is_same_v<T, bfloat16> ? 3 : 2;

 public:
  static constexpr unsigned steps = Dims / 16, tiles = (parts * Queries + 7) / 8;  // products of 16 elements; of 8 columns
  struct alignas(tiles % 2 == 0 ? 16 : 8) operand {
    uint2 of_tile[tiles];
  };

  /// By all threads. Ends with a barrier.
  /// @param row_of  pointer to a query of d elements; queries are below `count`, the others' columns become zeros
  template <unsigned Threads, class RowOf>
  __device__ void set(unsigned count, unsigned d, RowOf row_of) {
    for (unsigned q = threadIdx.x / 32; q < Queries; q += Threads / 32) {
      float largest = 0;
      for (unsigned i = threadIdx.x % 32; q < count && i < d; i += 32) largest = fmaxf(largest, fabsf(row_of(q)[i]));
      largest = warp_max(largest);
      const int exponent = static_cast<int>(float_bits(largest) >> 23 & 0xffu) - 127;
      if (threadIdx.x % 32 == 0) exponent_[q] = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < steps * 32; i += Threads) set_operand(i / 32, i % 32, count, d, row_of);
    __syncthreads();
  }
  __device__ const operand& of(unsigned step) const { return operand_[step][threadIdx.x % 32]; }
  /// Queries are divided by this power of two, because half has few exponents.
  __device__ float unit(unsigned q) const { return float_from_bits(static_cast<std::uint32_t>(127 + exponent_[q]) << 23); }

 private:
  template <class RowOf>
  __device__ void set_operand(unsigned step, unsigned lane, unsigned count, unsigned d, RowOf row_of) {
    const unsigned first = step / 2 * 32 + lane % 4 * 8 + step % 2 * 4;  // key_tile has these elements in the operand's places
#pragma unroll
    for (unsigned tile = 0; tile < tiles; ++tile) {
      const unsigned column = tile * 8 + lane / 4, q = column % Queries, part = column / Queries;
      float x[4] = {};
      if (q < count) {
        const float* row = row_of(q);
        const float shrink = float_from_bits(static_cast<std::uint32_t>(127 - exponent_[q]) << 23);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) x[i] = first + i < d ? row[first + i] * shrink : 0.0f;
      }
      operand_[step][lane].of_tile[tile] = {part_of(x[0], x[1], part), part_of(x[2], x[3], part)};
    }
  }
  __device__ static std::uint32_t part_of(float first, float second, unsigned part) {
    if (part >= parts) return 0;
    const split_pair<T> pair(first, second);
    if (part < 2) return part == 0 ? pair.most : pair.rest;
    const float_pair most = unpack_pair<T>(pair.most), rest = unpack_pair<T>(pair.rest);
    return pack_pair<T>(first - most.first - rest.first, second - most.second - rest.second);
  }

  operand operand_[steps][32];
  int exponent_[Queries];
};

/// Dims elements of 16 keys, distributed over a warp: lane l has a quarter of keys l / 4 and l / 4 + 8.
template <class T, unsigned Dims>
struct key_tile {
  static constexpr unsigned keys = 16, runs = Dims / 32;  // of 32 elements, of which a lane has 8

  uint4 run[2][runs];

  /// Reads elements [first, first + Dims) of a row of d, zeros after its end.
  /// @param which  0: key l / 4; 1: key l / 4 + 8
  __device__ void load(unsigned which, const kv_row<T>& row, unsigned first, unsigned d) {
    const unsigned at = first + threadIdx.x % 4 * 8;
    if (row.stride == 1 && d % 8 == 0 && reinterpret_cast<std::uintptr_t>(row.data) % 16 == 0) {
#pragma unroll
      for (unsigned r = 0; r < runs; ++r) run[which][r] = at + r * 32 < d ? read_once(row.data + at + r * 32) : uint4{};
    } else {
#pragma unroll
      for (unsigned r = 0; r < runs; ++r) run[which][r] = {pair(row, at + r * 32, d), pair(row, at + r * 32 + 2, d),
                                                           pair(row, at + r * 32 + 4, d), pair(row, at + r * 32 + 6, d)};
    }
  }
  /// @param first_step  of these elements
  template <unsigned AllDims, unsigned Queries>
  __device__ void multiply(const query_operands<T, AllDims, Queries>& queries, unsigned first_step,
                           float (&sum)[query_operands<T, AllDims, Queries>::tiles][4]) const {
    using operands = query_operands<T, AllDims, Queries>;
#pragma unroll
    for (unsigned r = 0; r < runs; ++r) {
      const uint4 &upper = run[0][r], &lower = run[1][r];
#pragma unroll
      for (unsigned half_of = 0; half_of < 2; ++half_of) {
        const std::uint32_t key[4] = {half_of == 0 ? upper.x : upper.z, half_of == 0 ? lower.x : lower.z,
                                      half_of == 0 ? upper.y : upper.w, half_of == 0 ? lower.y : lower.w};
        const typename operands::operand query = queries.of(first_step + 2 * r + half_of);
#pragma unroll
        for (unsigned tile = 0; tile < operands::tiles; ++tile)
          multiply_add<T>(sum[tile], key, query.of_tile[tile].x, query.of_tile[tile].y);
      }
    }
  }

 private:
  __device__ static std::uint32_t pair(const kv_row<T>& row, unsigned i, unsigned d) {
    return pack_pair<T>(i < d ? row[i] : 0.0f, i + 1 < d ? row[i + 1] : 0.0f);
  }
};

/// One lane's inner products of a tile: of `keys` keys with two queries.
template <unsigned Queries>
struct lane_products {
  static constexpr unsigned keys = Queries / 4;

  float of[keys][2];

  /// The i-th key of this lane in the tile, and its first query.
  __device__ static unsigned key(unsigned i) {
    return threadIdx.x % 32 / 4 + (Queries == 4 ? threadIdx.x % 4 / 2 * 8 : i * 8);
  }
  __device__ static unsigned query() { return threadIdx.x % (Queries / 2) * 2; }

  /// The sum of the columns of a query.
  template <unsigned Tiles>
  __device__ explicit lane_products(float (&sum)[Tiles][4]) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
#pragma unroll
      for (unsigned tile = Tiles - 1; tile > 0; --tile) sum[tile - 1][i] += sum[tile][i];
      if (Queries == 8) of[i / 2 % keys][i % 2] = sum[0][i];
    }
    if (Queries == 4) {  // two lanes have columns of the same queries and keys; each adds up those of one key
      const bool is_upper = threadIdx.x % 4 >= 2;
#pragma unroll
      for (unsigned i = 0; i < 2; ++i) {
        const float other = __shfl_xor_sync(all_lanes, is_upper ? sum[0][i] : sum[0][i + 2], 2);
        of[0][i] = (is_upper ? sum[0][i + 2] : sum[0][i]) + other;
      }
    }
  }
  /// Lanes that have the same queries are this power of two apart, and multiples of it.
  static constexpr unsigned next = Queries / 2;
};

}  // namespace pqkv::detail::block
