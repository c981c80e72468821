// SPDX-License-Identifier: Apache-2.0
// Finds the nearest centroid of rows of half or bfloat16 by matrix products, and says where it is beyond doubt. The value compared is <x,
// c> - <mu, c> - |c|^2 / 2. Rows enter the products unchanged; each centroid is the sum of two numbers of the rows' type. So only rounding
// separates this value from the canonical distance. If the two best values are closer than both errors together, the caller decides by the
// canonical distance. A warp loads 32 rows (16 of 128 dimensions) from device memory straight into registers. Rows are the columns of the
// products: as columns, two words of a row are an operand as they are; as rows of A they would have to be rearranged before every
// instruction.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "mma.cuh"
#include "nearest.cuh"
#include "reduce.cuh"
#include "shared.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// @tparam Groups  ds / 32: 1, 2 or 4
template <class T, unsigned Groups>
class shortlist {
 public:
  static constexpr unsigned ds = Groups * 32, slots = Groups > 2 ? 2 : 4;  // rows of a lane's operands
  static constexpr unsigned tile_rows = slots * 8;

  /// Bounds of one set of centroids, in shared memory.
  struct bounds {
    std::uint32_t norm, bias;  // largest |c|^2 and largest |bias| as bits, both of scaled centroids
  };
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t c) {
    return shared_memory::bytes<uint4>(c / 16 * 2 * Groups * 2 * 32) + shared_memory::bytes<float>(c);
  }
  __device__ shortlist(shared_memory& memory, bounds& own, unsigned c)
      : operands_(memory.take<uint4>(c / 16 * 2 * Groups * 2 * 32)), minus_bias_(memory.take<float>(c)), bounds_(own), c_(c) {}

  /// The CTA loads a set of centroids. No thread may still use the last set. Ends with a barrier.
  /// @param centroids  [ds, c], centred by mu [ds]
  /// @param mu_norm    at least |mu|
  /// @param largest    at least every coordinate's magnitude
  template <unsigned Threads>
  __device__ void stage(const float* centroids, const float* mu, float mu_norm, float largest) {
    int exponent = static_cast<int>(float_bits(largest) >> 23 & 0xffu) - 127;
    exponent = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
    scale_ = canonical::power_of_two(-exponent);
    if (threadIdx.x == 0) bounds_ = {};
    __syncthreads();
    for (unsigned at = threadIdx.x; at < c_ / 16 * Groups * 2 * 32; at += Threads) {
      const unsigned lane = at % 32, turn = at / 32 % (2 * Groups), tile = at / 32 / (2 * Groups), x = tile * 16 + lane / 4;
      const float* from = centroids + (turn / 2 * 32 + lane % 4 * 8 + turn % 2 * 4) * c_ + x;
      std::uint32_t most[4], rest[4];
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {  // each turn takes words of two centroids, eight apart
        const float* pair_at = from + i / 2 * 2 * c_ + i % 2 * 8;
        const split_pair<T> pair(pair_at[0] * scale_, pair_at[c_] * scale_);
        most[i] = pair.most;
        rest[i] = pair.rest;
      }
      uint4* to = operands_ + (tile * 2 * Groups + turn) * 2 * 32 + lane;
      to[0] = {most[0], most[1], most[2], most[3]};
      to[32] = {rest[0], rest[1], rest[2], rest[3]};
    }
    for (unsigned x = threadIdx.x / 4; x < c_; x += Threads / 4) {  // c is a multiple of 16: whole warps
      double square = 0, product = 0;
      for (unsigned e = threadIdx.x % 4; e < ds; e += 4) {
        const double value = static_cast<double>(centroids[e * c_ + x]), offset = static_cast<double>(mu[e]);
        square = ::fma(value, value, square);
        product = ::fma(value, offset, product);
      }
      for (int step = 1; step < 4; step *= 2) {
        square += __shfl_xor_sync(all_lanes, square, step);
        product += __shfl_xor_sync(all_lanes, product, step);
      }
      if (threadIdx.x % 4 != 0) continue;
      const float bias = static_cast<float>((square / 2 + product) * static_cast<double>(scale_));
      minus_bias_[x] = -bias;
      atomicMax(&bounds_.norm, float_bits(static_cast<float>(square * 1.001 * static_cast<double>(scale_) * static_cast<double>(scale_))));
      atomicMax(&bounds_.bias, float_bits(fabsf(bias)));
    }
    __syncthreads();
    // The error bound of one value, in units of the scaled centroids, has three parts. Products: what the two parts of a centroid leave
    // out. Sums: 4 Groups instructions, each of which truncates 18 addends. The canonical distance, halved: as on the host, with |y| <= |x|
    // + |mu|, and y's own rounding. Two values are compared, so the bound is doubled, plus a twentieth.
    const float c = sqrtf(float_from_bits(bounds_.norm)), bias = float_from_bits(bounds_.bias);
    constexpr float sums = 4 * Groups * 18 * 0x1p-23f;
    largest_norm_ = c;
    linear_ = 2.1f * (0x1p-17f * c + 0x1p-24f * 12.0f + sums * c);
    constant_ = 2.1f * (sums + 0x1p-23f) * bias + 0x1p-120f + scale_ * 0x1p-70f * 0x1p-70f;  // the last terms: underflow
    if (!(largest < 0x1p101f)) constant_ = float_from_bits(0x7f800000u);  // beyond the range of the scale no decision is sure
    square_ = 2.1f * scale_ * 0x1p-24f * (ds / 2 + 2);
    reach_ = mu_norm + c / scale_;
  }

  /// The rows of this warp's tile. A lane holds a quarter of each of `slots` rows. @param row_at  pointer to row r of the tile
  struct rows {
    uint4 word[slots][Groups];

    template <class RowAt>
    __device__ void load(RowAt row_at) {
      for_parts(row_at, [&](unsigned s, unsigned g, const uint4* from) { word[s][g] = *from; });
    }

    /// Of row own_row(): |x| rounded up (infinite where its square overflows), and whether all its elements are finite. By all lanes.
    struct measure {
      float norm;
      bool finite;
    };
    __device__ measure own_measure() const {
      float own_square = 0, own_zero = 0;
#pragma unroll
      for (unsigned s = 0; s < slots; ++s) {
        float square = 0, zero = 0;  // zero: the sum of 0 times each element, a NaN if one is not finite
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) {
          const std::uint32_t words[4] = {word[s][g].x, word[s][g].y, word[s][g].z, word[s][g].w};
#pragma unroll
          for (unsigned w = 0; w < 4; ++w) {
            const float_pair pair = unpack_pair<T>(words[w]);
            square = fmaf(pair.first, pair.first, fmaf(pair.second, pair.second, square));
            zero = fmaf(pair.first, 0.0f, fmaf(pair.second, 0.0f, zero));
          }
        }
        for (int step = 1; step < 4; step *= 2) {
          square += __shfl_xor_sync(all_lanes, square, step);
          zero += __shfl_xor_sync(all_lanes, zero, step);
        }
        const int holder = static_cast<int>(own_row() % 8 * 4);  // a lane that has, in one of the slots, a part of the own row
        const float square_there = __shfl_sync(all_lanes, square, holder), zero_there = __shfl_sync(all_lanes, zero, holder);
        if (own_row() / 8 == s) own_square = square_there, own_zero = zero_there;
      }
      return {sqrtf(own_square) * 1.001f, own_zero == 0};
    }

   private:
    template <class RowAt, class Take>
    __device__ static void for_parts(RowAt row_at, Take take) {
#pragma unroll
      for (unsigned s = 0; s < slots; ++s) {
        const uint4* from = reinterpret_cast<const uint4*>(row_at(s * 8 + threadIdx.x % 32 / 4)) + threadIdx.x % 4;
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) take(s, g, from + g * 4);
      }
    }
  };
  /// The row of the tile whose outcome this lane gets; tile_rows or more if it gets none.
  __device__ static unsigned own_row() { return threadIdx.x % 32 / 8 * 8 + threadIdx.x % 4 * 2 + threadIdx.x / 4 % 2; }
  /// The lane whose own_row() is r.
  __device__ static unsigned owner_lane(unsigned r) { return r / 8 * 8 + r % 2 * 4 + r % 8 / 2; }
  /// The element that a lane holds in word i / 2 of group g: in the lower half for even i, else in the upper.
  __device__ static unsigned element(unsigned g, unsigned i) { return g * 32 + threadIdx.x % 4 * 8 + i; }

  struct outcome {
    unsigned centroid;
    bool sure;
  };
  /// Finds the nearest centroid of row own_row(). By all lanes.
  /// @param norm  at least |x| of that row
  __device__ outcome find(const rows& x, float norm) const {
    const float lowest = float_from_bits(0xff800000u);
    constexpr unsigned held = 2 * slots;  // rows for which a lane sees every eighth centroid
    float best[held], second[held];
    unsigned index[held];
#pragma unroll
    for (unsigned r = 0; r < held; ++r) best[r] = second[r] = lowest, index[r] = 0;
    const unsigned lane = threadIdx.x % 32;
#pragma unroll 1
    for (unsigned tile = 0; tile < c_ / 16; ++tile) {
      const float first = minus_bias_[tile * 16 + lane / 4], next = minus_bias_[tile * 16 + 8 + lane / 4];
      float value[slots][4];
#pragma unroll
      for (unsigned s = 0; s < slots; ++s) value[s][0] = value[s][1] = first, value[s][2] = value[s][3] = next;
      const uint4* operands = operands_ + tile * 4 * Groups * 32 + lane;
      uint4 ahead = operands[0];
#pragma unroll
      for (unsigned at = 0; at < 4 * Groups; ++at) {
        const std::uint32_t of_centroids[4] = {ahead.x, ahead.y, ahead.z, ahead.w};
        if (at + 1 < 4 * Groups) ahead = operands[(at + 1) * 32];
#pragma unroll
        for (unsigned s = 0; s < slots; ++s) {
          const uint4& of_row = x.word[s][at / 4];
          if (at / 2 % 2 == 0)
            multiply_add<T>(value[s], of_centroids, of_row.x, of_row.y);
          else
            multiply_add<T>(value[s], of_centroids, of_row.z, of_row.w);
        }
      }
#pragma unroll
      for (unsigned half = 0; half < 2; ++half)
#pragma unroll
        for (unsigned r = 0; r < held; ++r) {
          const float v = value[r / 2][half * 2 + r % 2];
          second[r] = fmaxf(second[r], fminf(best[r], v));
          index[r] = v > best[r] ? tile * 2 + half : index[r];
          best[r] = fmaxf(best[r], v);
        }
    }
    // Lanes that saw different centroids of the same rows exchange results, until every lane has the result of one row.
    const auto seen = [&](unsigned r) { return candidate{best[r], second[r], index[r] * 8 + lane / 4}; };
    const bool odd = lane / 4 % 2 != 0, upper = lane / 8 % 2 != 0, last = lane / 16 != 0;
    candidate half_of[slots];
#pragma unroll
    for (unsigned s = 0; s < slots; ++s) half_of[s] = merge(seen(2 * s), seen(2 * s + 1), odd, 4);
    candidate quarter_of[slots / 2];
#pragma unroll
    for (unsigned s = 0; s < slots / 2; ++s) quarter_of[s] = merge(half_of[2 * s], half_of[2 * s + 1], upper, 8);
    const candidate own = merge(quarter_of[0], quarter_of[slots / 2 - 1], last, 16);
    constexpr float unseen = 0x1p-59f;  // of |x|: what may be missing where fast math flushes squares below 2^-126 to 0
    const float all = norm + reach_, slack = constant_ + linear_ * (norm + unseen) + square_ * all * all;
    return {own.index, norm * largest_norm_ < 1e37f && own.best - own.second > slack};
  }

 private:
  struct candidate {
    float best, second;
    unsigned index;
  };
  /// A lane keeps one of two candidates, sends the other to the lane `step` away, and merges what that lane sends with its own. Passed by
  /// value: a choice between two places would put both into local memory.
  __device__ static candidate merge(candidate a, candidate b, bool keeps_b, int step) {
    const float best = keeps_b ? b.best : a.best, second = keeps_b ? b.second : a.second;
    const unsigned index = keeps_b ? b.index : a.index;
    const candidate other{__shfl_xor_sync(all_lanes, keeps_b ? a.best : b.best, step),
                          __shfl_xor_sync(all_lanes, keeps_b ? a.second : b.second, step),
                          __shfl_xor_sync(all_lanes, keeps_b ? a.index : b.index, step)};
    return {fmaxf(best, other.best), fmaxf(fmaxf(second, other.second), fminf(best, other.best)), other.best > best ? other.index : index};
  }

  uint4* operands_;    // [c / 16, 2 Groups, upper part and rest, 32]
  float* minus_bias_;  // [c]
  bounds& bounds_;
  unsigned c_;
  float scale_ = 1, largest_norm_ = 0, linear_ = 0, constant_ = 0, square_ = 0, reach_ = 0;
};

}  // namespace pqkv::detail::block
