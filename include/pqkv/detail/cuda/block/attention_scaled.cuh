// SPDX-License-Identifier: Apache-2.0
// Attention of up to eight query heads to the tokens of one warp, for rows of 8-bit integers with a scale. Works as block/attention.cuh
// with half the bytes in the ring. Registers turn the integers into half (keys) and bfloat16 (values), both exactly. A key's scale
// multiplies its logits and a value's scale its weights, so no single element is scaled.
// A word in the ring has four neighbouring elements, so the places of an operand hold other elements than PTX shows. Queries are read, and
// sums written, in that order.
#pragma once

#include "attention.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Takes two bytes of a word and gives each an upper byte from another word.
template <unsigned Selector>
__device__ std::uint32_t chosen_bytes(std::uint32_t word, std::uint32_t upper) {
  std::uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(word), "r"(upper), "n"(Selector));
  return r;
}

/// Turns four signed bytes into two pairs of half: elements 0 and 1, 2 and 3. 0x6400 + u is 1024 + u, where u is the byte plus 128.
struct half_bytes {
  std::uint32_t low, high;

  __device__ explicit half_bytes(std::uint32_t bytes) {
    const std::uint32_t shifted = bytes ^ 0x80808080u;
    low = less_bias(chosen_bytes<0x4140>(shifted, 0x64646464u));
    high = less_bias(chosen_bytes<0x4342>(shifted, 0x64646464u));
  }

 private:
  __device__ static std::uint32_t less_bias(std::uint32_t pair) {
    std::uint32_t r;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(pair), "r"(0x64806480u));  // 1152
    return r;
  }
};

/// Turns four signed bytes into two pairs of bfloat16: elements 0 and 2, 1 and 3. 0x4300 + u is 128 + u for u < 128. A signed byte is its
/// low seven bits, minus 128 if its sign bit is set.
struct bfloat_bytes {
  std::uint32_t even, odd;

  __device__ explicit bfloat_bytes(std::uint32_t bytes)
      : even(of(chosen_bytes<0x4240>(bytes, 0x43434343u))), odd(of(chosen_bytes<0x4341>(bytes, 0x43434343u))) {}

 private:
  __device__ static std::uint32_t of(std::uint32_t pair) {
    std::uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(pair & 0xff80ff80u), "r"(0xbf80bf80u), "r"(pair & 0xff7fff7fu));
    return r;
  }
};

template <unsigned Dims>
class attention_warp<scaled_int8, Dims> {
 public:
  static constexpr unsigned tokens = 16, stages = Dims == 256 ? 3 : 5, queries = 8;
  static constexpr unsigned sums_pitch = Dims + 16;  // of a row of sums in shared memory: two rows begin in different banks
  static constexpr unsigned row_bytes = Dims, scale_bytes = 2 * tokens * sizeof(float), stage_bytes = 2 * tokens * row_bytes + scale_bytes,
                            ring_bytes = stages * stage_bytes;

  using third_parts = uint2[1][32];  // two parts of half have enough bits
  using query_operands = uint4[Dims / 16][32];

  /// @param ring  shared memory of this warp, ring_bytes, aligned to 16
  __device__ attention_warp(void* ring, third_parts&, unsigned d)
      : ring_(static_cast<unsigned char*>(ring)), address_(shared_address(ring)), d_(d) {}

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
      const float4 four = *reinterpret_cast<const float4*>(row + s * 16 + lane() % 4 * 4);
      const split_pair<half> lower(four.x * shrink, four.y * shrink), upper(four.z * shrink, four.w * shrink);
      operands[s][lane()] = {lower.most, lower.rest, upper.most, upper.rest};
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
  __device__ float top() const { return softmax_.top; }
  __device__ float total() const { return softmax_.total_of_head(); }
  /// The sums of weights times values. @param sums  [queries, sums_pitch], written by the warp
  __device__ void store_sums(float* sums) const {
    float4* row = reinterpret_cast<float4*>(sums + lane() / 4 * sums_pitch + lane() % 4 * 4);
#pragma unroll
    for (unsigned s = 0; s < Dims / 16; ++s) {
      const float(&even)[4] = softmax_.sum[2 * s], (&odd)[4] = softmax_.sum[2 * s + 1];
      row[s * 4] = {even[0] + even[2], odd[0] + odd[2], even[1] + even[3], odd[1] + odd[3]};
    }
  }

 private:
  static constexpr unsigned chunks = Dims / 16;  // each is 16 bytes of a row
  __device__ static unsigned lane() { return threadIdx.x % 32; }
  /// The place of chunk `chunk` of row `row` in a stage. The same chunk of eight rows falls into eight different banks.
  __device__ static unsigned place(unsigned row, unsigned chunk) { return row * row_bytes + ((chunk ^ swizzle(row)) * 16); }
  __device__ static constexpr unsigned swizzle(unsigned row) { return Dims == 64 ? row / 2 % 4 : row % 8; }

  /// Starts copying the rows of 16 tokens, of which `left` are used. @param token  the token whose row this lane finds: beyond `left` any
  template <class Store>
  __device__ void fill(unsigned stage, const Store& store, std::size_t kv_head, std::size_t token, std::uint32_t left) const {
    const kv_row<scaled_int8> row = lane() < tokens ? store.key(kv_head, token) : store.value(kv_head, token);
    const std::uint64_t data = reinterpret_cast<std::uint64_t>(row.data);
    const unsigned base = stage * stage_bytes, scales = base + 2 * tokens * row_bytes;
    if (lane() % tokens < left)
      copy_word_async(address_ + scales + lane() * 4, row.scale);
    else
      *reinterpret_cast<float*>(ring_ + scales + lane() * 4) = 0;
    if (__all_sync(all_lanes, data % 16 == 0 && d_ % 16 == 0)) {
      copy_rows<chunks>(address_ + base, data, d_ / 16, [](unsigned r) { return swizzle(r); });
    } else {
#pragma unroll 1
      for (unsigned turn = 0; turn < 2 * tokens * chunks / 32; ++turn) {
        const unsigned at = turn * 32 + lane(), r = at / chunks, chunk = at % chunks;
        const auto* from = reinterpret_cast<const std::int8_t*>(__shfl_sync(all_lanes, data, static_cast<int>(r)));
        auto* to = reinterpret_cast<std::int8_t*>(ring_ + base + place(r, chunk));
        for (unsigned i = 0; i < 16; ++i) to[i] = r % tokens < left && chunk * 16 + i < d_ ? from[chunk * 16 + i] : std::int8_t{0};
      }
    }
  }

  /// Uses one tile, whose first `left` tokens count.
  __device__ void use(unsigned stage, std::uint32_t left) {
    const std::uint32_t base = address_ + stage * stage_bytes;
    const float* scales = reinterpret_cast<const float*>(ring_ + stage * stage_bytes + 2 * tokens * row_bytes) + lane() % 4 * 2;
    float logit[2][4] = {};
#pragma unroll
    for (unsigned s = 0; s < Dims / 16; s += 2) {
      std::uint32_t key[4];  // tokens 0 to 7 of chunks s and s + 1, then tokens 8 to 15 of both
      load_matrices(key, base + place(lane() % 8 + lane() / 16 * 8, s + lane() / 8 % 2));
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        const half_bytes pair(key[i]);
        multiply_add<half>(logit[i / 2], query_[s + i % 2], pair.low, pair.high);
      }
    }
    float z[4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) z[i] = (logit[i / 2][i % 2] + logit[i / 2][i % 2 + 2]) * (scale_ * scales[i / 2 * 8 + i % 2]);
    softmax_.weigh(z, left, 0);
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) z[i] *= scales[tokens + i / 2 * 8 + i % 2];
    const split_pair<bfloat16> lower(z[0], z[1]), upper(z[2], z[3]);
    const std::uint32_t weight[4] = {lower.most, lower.rest, upper.most, upper.rest};
#pragma unroll
    for (unsigned s = 0; s < Dims / 16; s += 2) {
      std::uint32_t value[4];  // chunk s of tokens 0 to 7 and of 8 to 15, then chunk s + 1 of both
      load_transposed(value, base + place(tokens + lane() % 16, s + lane() / 16));
#pragma unroll
      for (unsigned i = 0; i < 2; ++i) {
        const bfloat_bytes first(value[2 * i]), second(value[2 * i + 1]);
        multiply_add<bfloat16>(softmax_.sum[2 * (s + i)], weight, first.even, second.even);
        multiply_add<bfloat16>(softmax_.sum[2 * (s + i) + 1], weight, first.odd, second.odd);
      }
    }
  }

  unsigned char* ring_;
  std::uint32_t address_;
  unsigned d_;
  float scale_ = 1;
  std::uint32_t query_[Dims / 16][4];
  warp_softmax<Dims> softmax_;
};

}  // namespace pqkv::detail::block
