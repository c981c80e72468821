// SPDX-License-Identifier: Apache-2.0
// Attention of up to eight query heads to the tokens of one warp, by matrix products. The warp copies rows to a ring buffer in shared
// memory, for tiles of 16 tokens; the next tiles load while one is in use. A product has room for 16 rows of queries or weights. Rows 0 to
// 7 hold the upper bits of each float, rows 8 to 15 the rest, so that floats keep their precision without a second product. For bfloat16
// rows a query is split into three parts of eight bits each, and the third part has its own products.
// Sources: online softmax: Milakov and Gimelshein 2018; token gather by cp.async: FlashInfer's paged decode.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../../cache/kv_store.hpp"
#include "mma.cuh"
#include "reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// The exponent of a head's largest query element. The query is divided by this power of two, because half has few exponents. Four lanes
/// share a head.
/// @param row  [Dims] shared memory, aligned to 16 bytes
template <unsigned Dims>
__device__ int exponent_of_head(const float* row) {
  float largest = 0;
#pragma unroll
  for (unsigned s = 0; s < Dims / 16; ++s) {
    const float4 four = *reinterpret_cast<const float4*>(row + s * 16 + threadIdx.x % 4 * 4);
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(four.x), fabsf(four.y)), fmaxf(fabsf(four.z), fabsf(four.w))));
  }
  largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, 2));
  const int exponent = static_cast<int>(float_bits(largest) >> 23 & 0xffu) - 127;
  return exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
}

/// The queries of a CTA on their way to all of its warps: neighbouring threads read a row, and shared memory hands it on. A warp that read
/// what its lanes need would read few bytes at a time, and the numbers of its first tokens would wait behind them.
template <unsigned Dims, unsigned Threads>
class queries_on_the_way {
 public:
  static constexpr unsigned queries = 8, pitch = Dims + 4;  // of a row in shared memory: the rows begin in different banks
  static constexpr unsigned bytes = queries * pitch * sizeof(float);

  /// @param rows  [count, d], each `stride` after the last
  __device__ queries_on_the_way(const float* rows, std::size_t stride, unsigned count, unsigned d) {
    const float* from = rows + thread() / Dims * stride + thread() % Dims;
#pragma unroll
    for (unsigned a = 0; a < own; ++a) {
      if (a != 0 && a * Threads % Dims == 0) from += (Threads + Dims - 1) / Dims * stride;
      element_[a] = query(a) < count && index(a) < d ? from[a * Threads % Dims] : 0.0f;
    }
  }
  /// @param rows  [queries, pitch] shared memory; a barrier must follow
  __device__ void store(float* rows) const {
#pragma unroll
    for (unsigned a = 0; a < own; ++a) rows[query(a) * pitch + index(a)] = element_[a];
  }

 private:
  static constexpr unsigned own = queries * Dims / Threads;
  static_assert(own * Threads == queries * Dims && (Threads % Dims == 0 || Dims % Threads == 0));
  __device__ static unsigned thread() { return threadIdx.x % Threads; }
  __device__ static unsigned query(unsigned a) { return a * Threads / Dims + thread() / Dims; }
  __device__ static unsigned index(unsigned a) { return a * Threads % Dims + thread() % Dims; }

  float element_[own];
};

/// Starts copying 32 rows of Chunks * 16 bytes, of which lane l knows the l-th, several at a time.
/// @param used     chunks of a row that are copied; the others become zeros
/// @param swizzle  chunk c of row r goes to place c ^ swizzle(r); swizzle(r | s) is swizzle(r) ^ swizzle(s) where r and s share no bit
template <unsigned Chunks, class Swizzle>
__device__ void copy_rows(std::uint32_t to, std::uint64_t row_of_lane, unsigned used, Swizzle swizzle) {
  constexpr unsigned at_once = 32 / Chunks;
  const unsigned first = threadIdx.x % 32 / Chunks, chunk = threadIdx.x % Chunks, place = (chunk ^ swizzle(first)) * 16;
  const bool wanted = chunk < used;
  const std::uint64_t skipped = wanted ? chunk * 16 : 0;
  to += first * Chunks * 16;
#pragma unroll
  for (unsigned turn = 0; turn < Chunks; ++turn) {
    const unsigned r = turn * at_once;
    const std::uint64_t from = __shfl_sync(all_lanes, row_of_lane, static_cast<int>(r + first)) + skipped;
    copy_async(to + r * Chunks * 16 + (place ^ (swizzle(r) * 16)), reinterpret_cast<const void*>(from), wanted ? 16 : 0);
  }
}

/// The running softmax of eight query heads, and the weighted sums of their values, distributed over a warp: a lane works for head lane /
/// 4.
template <unsigned Dims>
struct warp_softmax {
  float top = float_from_bits(0xff800000u), total = 0;  // total: the sum of the weights of this lane's tokens
  bool broken = false;                                  // whether a logit was not finite
  float sum[Dims / 8][4] = {};

  /// Turns four logits (in units of log2) into weights. With t = 2 (lane % 4), the logits are those of tokens t, t + 1, t + 8 and t + 9 of
  /// the tile. Tokens from `left` on get weight 0.
  /// @param shift  the largest weight is 2^shift
  __device__ void weigh(float (&z)[4], std::uint32_t left, float shift) {
    const unsigned first = threadIdx.x % 4 * 2;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      broken |= !is_finite(z[i]);
      if (first + i % 2 + i / 2 * 8 >= left) z[i] = float_from_bits(0xff800000u);
    }
    float highest = fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3]));
    highest = fmaxf(highest, __shfl_xor_sync(all_lanes, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(all_lanes, highest, 2));
    if (__any_sync(all_lanes, highest > top)) {  // rare after the first tokens
      highest = fmaxf(highest, top);
      const float shrink = power_of_two_near(top - highest);
      if (__any_sync(all_lanes, total != 0)) {  // otherwise the sums are zeros
#pragma unroll
        for (unsigned e = 0; e < Dims / 8; ++e)
#pragma unroll
          for (unsigned i = 0; i < 4; ++i) sum[e][i] *= shrink;
      }
      top = highest;
      total *= shrink;
    }
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      z[i] = power_of_two_near(z[i] - top + shift);
      total += z[i];
    }
  }
  /// The total of a head; NaN if a logit was not finite. By all lanes.
  __device__ float total_of_head() const {
    float all = total;
    all += __shfl_xor_sync(all_lanes, all, 1);
    all += __shfl_xor_sync(all_lanes, all, 2);
    unsigned bad = broken ? 1 : 0;
    bad |= __shfl_xor_sync(all_lanes, bad, 1);
    bad |= __shfl_xor_sync(all_lanes, bad, 2);
    return bad != 0 ? float_from_bits(0x7fc00000u) : all;
  }
};

/// One warp takes tiles of 16 tokens, which start at `begin + 16 * (warp + i * warps)`, up to `end`. They pass through a ring of stages:
/// some rows load while one tile is in use.
/// @param token_at  the token at a place in the list
/// @param prepare   called after the copies of the first rows have been started
/// @param fill      (stage, token, left): starts copying the rows of a tile, of which only the first `left` tokens are used. Lanes 0 to 15
///                  find the K row of their `token`, the other lanes its V row
/// @param use       (stage, left): attends to a tile whose rows have been copied
template <unsigned Stages, class TokenAt, class Prepare, class Fill, class Use>
__device__ void use_through_ring(std::uint32_t begin, std::uint32_t end, unsigned warp, unsigned warps, TokenAt token_at, Prepare prepare,
                                 Fill fill, Use use) {
  constexpr std::uint32_t tokens = 16;
  const std::uint32_t step = tokens * warps, of_lane = threadIdx.x % tokens;
  std::uint32_t at = begin + warp * tokens;
  // The position of a token is read one turn before the copy of its row starts; those of the first turns are read together.
  const auto token_of = [&](std::uint32_t i) -> std::size_t { return token_at(i < end ? i : at); };
  std::size_t of_turn[Stages];
#pragma unroll
  for (unsigned turn = 0; turn < Stages; ++turn) of_turn[turn] = at < end ? token_of(at + of_lane + turn * step) : 0;
#pragma unroll
  for (unsigned turn = 0; turn < Stages - 1; ++turn) {
    const std::uint32_t first = at + turn * step;
    if (first < end) fill(turn, of_turn[turn], end - first);
    end_copies();
  }
  std::size_t token = of_turn[Stages - 1];
  prepare();
  for (unsigned stage = 0; at < end; at += step) {
    wait_copies<Stages - 2>();
    __syncwarp();
    const std::uint32_t next = at + (Stages - 1) * step;
    if (next < end) fill(stage == 0 ? Stages - 1 : stage - 1, token, end - next);
    end_copies();
    token = token_of(next + step + of_lane);
    use(stage, end - at);
    stage = stage + 1 == Stages ? 0 : stage + 1;
  }
  wait_copies<0>();
}

/// @tparam Dims  64, 128 or 256: d rounded up
template <class T, unsigned Dims>
class attention_warp {
 public:
  static constexpr unsigned tokens = 16, stages = Dims == 256 ? 2 : 3, queries = 8;
  static constexpr unsigned sums_pitch = Dims + 8;  // of a row of sums in shared memory: eight rows begin in different banks
  static constexpr unsigned row_bytes = Dims * 2, stage_bytes = 2 * tokens * row_bytes, ring_bytes = stages * stage_bytes;

  /// The third parts of the queries, in shared memory. All warps use the same ones.
  static constexpr bool has_third = std::is_same_v<T, bfloat16>;
  using third_parts = uint2[has_third ? Dims / 16 : 1][32];
  /// The other parts, on their way from the warp that makes them to all.
  using query_operands = uint4[Dims / 16][32];

  /// @param ring  shared memory of this warp, ring_bytes, aligned to 16
  __device__ attention_warp(void* ring, third_parts& third, unsigned d)
      : ring_(static_cast<unsigned char*>(ring)), third_(third), address_(shared_address(ring)), d_(d) {}

  /// Makes this warp's share of the operands; lane l works for head l / 4. A barrier must follow.
  /// @param rows      [queries, pitch] as queries_on_the_way stored them
  /// @param operands  written
  __device__ void make_operands(const float* rows, unsigned pitch, unsigned count, float scale, query_operands& operands) {
    const float* row = rows + lane() / 4 * pitch;
    const int exponent = exponent_of_head<Dims>(row);
    const float shrink = lane() / 4 < count ? float_from_bits(static_cast<std::uint32_t>(127 - exponent) << 23) : 0.0f;
    scale_ = scale * float_from_bits(static_cast<std::uint32_t>(127 + exponent) << 23);
#pragma unroll 1
    for (unsigned s = threadIdx.x / 32; s < Dims / 16; s += blockDim.x / 32) {
      std::uint32_t most[2], rest[2], third[2];
#pragma unroll
      for (unsigned half_of = 0; half_of < 2; ++half_of) {
        const float2 two = *reinterpret_cast<const float2*>(row + s * 16 + half_of * 8 + lane() % 4 * 2);
        const float first = two.x * shrink, second = two.y * shrink;
        const split_pair<T> pair(first, second);
        const float_pair a = unpack_pair<T>(pair.most), b = unpack_pair<T>(pair.rest);
        most[half_of] = pair.most, rest[half_of] = pair.rest;
        third[half_of] = pack_pair<T>(first - a.first - b.first, second - a.second - b.second);
      }
      operands[s][lane()] = {most[0], rest[0], most[1], rest[1]};
      if constexpr (has_third) third_[s][lane()] = {third[0], third[1]};
    }
  }
  /// Takes the operands that all warps have made.
  __device__ void take_operands(const query_operands& operands) {
#pragma unroll
    for (unsigned s = 0; s < Dims / 16; ++s) {
      const uint4 four = operands[s][lane()];
      query_[s][0] = four.x, query_[s][1] = four.y, query_[s][2] = four.z, query_[s][3] = four.w;
    }
  }

  /// Attends to the tiles of 16 tokens that start at `begin + 16 * (warp + i * warps)`, up to `end`.
  /// @param token_at  the token at a place in the list
  /// @param prepare   sets the queries while the first rows load; every warp calls it
  template <class Store, class TokenAt, class Prepare>
  __device__ void attend(const Store& store, std::size_t kv_head, std::uint32_t begin, std::uint32_t end, unsigned warp, unsigned warps,
                         TokenAt token_at, Prepare prepare) {
    use_through_ring<stages>(
        begin, end, warp, warps, token_at, prepare,
        [&](unsigned stage, std::size_t token, std::uint32_t left) { fill(stage, store, kv_head, token, left); },
        [&](unsigned stage, std::uint32_t left) { use(stage, left); });
  }

  /// After attend(): the softmax's reference (log2) and total of head lane / 4; the total is NaN if a logit was not finite. By all lanes.
  __device__ float top() const { return softmax_.top - weight_shift; }
  __device__ float total() const { return softmax_.total_of_head(); }
  /// The sums of weights times values. @param sums  [queries, sums_pitch], written by the warp
  __device__ void store_sums(float* sums) const {
    float2* row = reinterpret_cast<float2*>(sums + lane() / 4 * sums_pitch + lane() % 4 * 2);
#pragma unroll
    for (unsigned e = 0; e < Dims / 8; ++e) row[e * 4] = {softmax_.sum[e][0] + softmax_.sum[e][2], softmax_.sum[e][1] + softmax_.sum[e][3]};
  }

 private:
  // Where T is half, weights go up to 2^14, so that small ones keep their bits.
  static constexpr float weight_shift = std::is_same_v<T, half> ? 14.0f : 0.0f;
  static constexpr unsigned chunks = Dims / 8;  // each is 16 bytes of a row
  __device__ static unsigned lane() { return threadIdx.x % 32; }
  /// The place of chunk `chunk` of row `row` in a stage. The same chunk of eight rows falls into eight different banks.
  __device__ static unsigned place(unsigned row, unsigned chunk) { return row * row_bytes + ((chunk ^ swizzle(row)) * 16); }
  __device__ static constexpr unsigned swizzle(unsigned row) { return row % 8; }

  /// Starts copying the rows of 16 tokens, of which `left` are used. @param token  the token whose row this lane finds: beyond `left` any
  template <class Store>
  __device__ void fill(unsigned stage, const Store& store, std::size_t kv_head, std::size_t token, std::uint32_t left) const {
    const kv_row<T> row = lane() < tokens ? store.key(kv_head, token) : store.value(kv_head, token);
    const std::uint64_t data = reinterpret_cast<std::uint64_t>(row.data);
    const bool plain = row.stride == 1 && data % 16 == 0 && d_ % 8 == 0;
    const unsigned base = stage * stage_bytes;
    if (__all_sync(all_lanes, plain)) {
      copy_rows<chunks>(address_ + base, data, d_ / 8, [](unsigned r) { return swizzle(r); });
    } else {
#pragma unroll 1
      for (unsigned turn = 0; turn < 2 * tokens * chunks / 32; ++turn) {
        const unsigned at = turn * 32 + lane(), r = at / chunks, chunk = at % chunks;
        const T* from = reinterpret_cast<const T*>(__shfl_sync(all_lanes, data, static_cast<int>(r)));
        const std::size_t stride = __shfl_sync(all_lanes, row.stride, static_cast<int>(r));
        T* to = reinterpret_cast<T*>(ring_ + base + place(r, chunk));
        for (unsigned i = 0; i < 8; ++i) to[i] = r % tokens < left && chunk * 8 + i < d_ ? from[(chunk * 8 + i) * stride] : T{};
      }
    }
  }

  /// Attends to the first `left` tokens of one tile.
  __device__ void use(unsigned stage, std::uint32_t left) {
    const std::uint32_t base = address_ + stage * stage_bytes;
    float logit[2][4] = {}, least[2][4] = {};
#pragma unroll
    for (unsigned s = 0; s < Dims / 16; ++s) {
      std::uint32_t key[4];
      load_matrices(key, base + place(lane() % 8 + lane() / 16 * 8, 2 * s + lane() / 8 % 2));
      multiply_add<T>(logit[0], query_[s], key[0], key[1]);
      multiply_add<T>(logit[1], query_[s], key[2], key[3]);
      if constexpr (has_third) {
        const uint2 third = third_[s][lane()];
        const std::uint32_t operand[4] = {third.x, 0, third.y, 0};
        multiply_add<T>(least[0], operand, key[0], key[1]);
        multiply_add<T>(least[1], operand, key[2], key[3]);
      }
    }
    float z[4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) z[i] = (logit[i / 2][i % 2] + (logit[i / 2][i % 2 + 2] + least[i / 2][i % 2])) * scale_;
    softmax_.weigh(z, left, weight_shift);
    const split_pair<T> lower(z[0], z[1]), upper(z[2], z[3]);
    const std::uint32_t weight[4] = {lower.most, lower.rest, upper.most, upper.rest};
#pragma unroll
    for (unsigned s = 0; s < Dims / 16; ++s) {
      std::uint32_t value[4];
      load_transposed(value, base + place(tokens + lane() % 16, 2 * s + lane() / 16));
      multiply_add<T>(softmax_.sum[2 * s], weight, value[0], value[1]);
      multiply_add<T>(softmax_.sum[2 * s + 1], weight, value[2], value[3]);
    }
  }

  unsigned char* ring_;
  third_parts& third_;
  std::uint32_t address_;
  unsigned d_;
  float scale_ = 1;
  std::uint32_t query_[Dims / 16][4];
  warp_softmax<Dims> softmax_;
};

}  // namespace pqkv::detail::block
