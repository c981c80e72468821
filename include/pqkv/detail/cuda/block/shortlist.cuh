// SPDX-License-Identifier: Apache-2.0
// The nearest centroid of rows of half or bfloat16 by matrix products, where it is beyond doubt. What is compared is
// <x, c> - <mu, c> - |c|^2 / 2: rows go into the products as they are, centroids as a sum of two numbers of the rows' type, so only
// rounding separates it from the canonical distance; where the two best lie within the bound of both errors, the caller decides by
// the canonical one. A warp takes 32 rows (16 of 128 dimensions) from device memory straight into registers.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "mma.cuh"
#include "reduce.cuh"
#include "shared.cuh"

namespace pqkv::detail::block {

/// @tparam Groups  ds / 32: 1, 2 or 4
template <class T, unsigned Groups>
class shortlist {
 public:
  static constexpr unsigned ds = Groups * 32, slots = Groups > 2 ? 2 : 4;  // rows of a lane's operands
  static constexpr unsigned tile_rows = slots * 8;

  /// Numbers of one set of centroids, in shared memory.
  struct bounds {
    std::uint32_t norm, bias;  // largest |c|^2 and |bias| as bits, both of scaled centroids
  };
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t c) {
    return shared_memory::bytes<uint4>(c / 8 * Groups * 2 * 32) + shared_memory::bytes<float>(c);
  }
  __device__ shortlist(shared_memory& memory, bounds& own, unsigned c)
      : operands_(memory.take<uint4>(c / 8 * Groups * 2 * 32)), minus_bias_(memory.take<float>(c)), bounds_(own), c_(c) {}

  /// By the CTA, which must not use the last centroids any more; ends with a barrier.
  /// @param centroids  [ds, c], centred by mu [ds]
  /// @param mu_norm    at least |mu|
  /// @param largest    no coordinate of a centroid is larger
  template <unsigned Threads>
  __device__ void stage(const float* centroids, const float* mu, float mu_norm, float largest) {
    int exponent = static_cast<int>(float_bits(largest) >> 23 & 0xffu) - 127;
    exponent = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
    scale_ = canonical::power_of_two(-exponent);
    if (threadIdx.x == 0) bounds_ = {};
    __syncthreads();
    for (unsigned at = threadIdx.x; at < c_ / 8 * Groups * 32; at += Threads) {
      const unsigned lane = at % 32, group = at / 32 % Groups, tile = at / 32 / Groups, x = tile * 8 + lane / 4;
      const float* from = centroids + (group * 32 + lane % 4 * 8) * c_ + x;
      std::uint32_t most[4], rest[4];
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        const split_pair<T> pair(from[2 * i * c_] * scale_, from[(2 * i + 1) * c_] * scale_);
        most[i] = pair.most;
        rest[i] = pair.rest;
      }
      uint4* to = operands_ + (tile * Groups + group) * 2 * 32 + lane;
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
      const unsigned lanes = __activemask();
      for (int step = 1; step < 4; step *= 2) {
        square += __shfl_xor_sync(lanes, square, step);
        product += __shfl_xor_sync(lanes, product, step);
      }
      if (threadIdx.x % 4 != 0) continue;
      const float bias = static_cast<float>((square / 2 + product) * static_cast<double>(scale_));
      minus_bias_[x] = -bias;
      atomicMax(&bounds_.norm, float_bits(static_cast<float>(square * 1.001 * static_cast<double>(scale_) * static_cast<double>(scale_))));
      atomicMax(&bounds_.bias, float_bits(fabsf(bias)));
    }
    __syncthreads();
    // Errors of one value, in units of the scaled centroids. Products: what the two parts of a centroid leave over; sums: 4 Groups
    // instructions that each round 18 addends, cut off and not rounded; the canonical distance, halved: as on the host, with
    // |y| <= |x| + |mu|, and y's own rounding. Two values, a twentieth more.
    const float c = sqrtf(float_from_bits(bounds_.norm)), bias = float_from_bits(bounds_.bias);
    constexpr float sums = 4 * Groups * 18 * 0x1p-23f;
    largest_norm_ = c;
    linear_ = 2.1f * (0x1p-17f * c + 0x1p-24f * 12.0f + sums * c);
    constant_ = 2.1f * (sums + 0x1p-23f) * bias + 0x1p-120f + scale_ * 0x1p-70f * 0x1p-70f;  // what underflows
    if (!(largest < 0x1p101f)) constant_ = float_from_bits(0x7f800000u);  // beyond what the scale brings into range: none is sure
    square_ = 2.1f * scale_ * 0x1p-24f * (ds / 2 + 2);
    reach_ = mu_norm + c / scale_;
  }

  /// Rows of this warp's tile; a lane holds a quarter of each of `slots` rows. @param row_at  pointer to the row of tile row r
  struct rows {
    uint4 word[slots][Groups];

    template <class RowAt>
    __device__ void load(RowAt row_at) {
#pragma unroll
      for (unsigned s = 0; s < slots; ++s) {
        const uint4* from = reinterpret_cast<const uint4*>(row_at(s * 8 + threadIdx.x % 32 / 4)) + threadIdx.x % 4;
#pragma unroll
        for (unsigned g = 0; g < Groups; ++g) word[s][g] = from[g * 4];
      }
    }
  };
  /// The tile row whose outcome a lane has, below tile_rows for a lane that has one.
  __device__ static unsigned own_row() { return threadIdx.x % 4 < slots ? threadIdx.x % 4 * 8 + threadIdx.x % 32 / 4 : tile_rows; }
  /// Element that word i / 2 of group g of a lane holds in its lower (i even) or upper half.
  __device__ static unsigned element(unsigned g, unsigned i) { return g * 32 + threadIdx.x % 4 * 8 + i; }

  struct outcome {
    unsigned centroid;
    bool sure;
  };
  /// Of row own_row(), by all lanes. @param norm  at least |x| of it
  __device__ outcome find(const rows& x, float norm) const {
    const float lowest = float_from_bits(0xff800000u);
    float best[slots], second[slots];
    unsigned index[slots];
#pragma unroll
    for (unsigned s = 0; s < slots; ++s) best[s] = second[s] = lowest, index[s] = 0;
    const unsigned lane = threadIdx.x % 32, column = lane % 4 * 2;
#pragma unroll 2
    for (unsigned tile = 0; tile < c_ / 8; ++tile) {
      const float2 start = *reinterpret_cast<const float2*>(minus_bias_ + tile * 8 + column);
      float value[slots / 2][4];
#pragma unroll
      for (unsigned p = 0; p < slots / 2; ++p) value[p][0] = value[p][2] = start.x, value[p][1] = value[p][3] = start.y;
#pragma unroll
      for (unsigned g = 0; g < Groups; ++g)
#pragma unroll
        for (unsigned part = 0; part < 2; ++part) {
          const uint4 c = operands_[((tile * Groups + g) * 2 + part) * 32 + lane];
#pragma unroll
          for (unsigned p = 0; p < slots / 2; ++p) {
            const uint4 &upper = x.word[2 * p][g], &lower = x.word[2 * p + 1][g];
            const std::uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y}, next[4] = {upper.z, lower.z, upper.w, lower.w};
            multiply_add<T>(value[p], first, c.x, c.y);
            multiply_add<T>(value[p], next, c.z, c.w);
          }
        }
#pragma unroll
      for (unsigned s = 0; s < slots; ++s)
#pragma unroll
        for (unsigned i = 0; i < 2; ++i) {
          const float v = value[s / 2][s % 2 * 2 + i];
          second[s] = fmaxf(second[s], fminf(best[s], v));
          index[s] = v > best[s] ? tile * 8 + i : index[s];
          best[s] = fmaxf(best[s], v);
        }
    }
    // Lanes of a row exchange what each other keeps, so that every lane ends with one row.
    const bool odd = lane % 2 != 0, upper = lane % 4 >= 2;
    candidate half_of[slots / 2];
#pragma unroll
    for (unsigned p = 0; p < slots / 2; ++p) {
      const candidate even_row{best[2 * p], second[2 * p], index[2 * p] + column},
          odd_row{best[2 * p + 1], second[2 * p + 1], index[2 * p + 1] + column};
      half_of[p] = merge(odd ? odd_row : even_row, odd ? even_row : odd_row, 1);
    }
    const candidate own = slots == 4 ? merge(upper ? half_of[slots / 2 - 1] : half_of[0], upper ? half_of[0] : half_of[slots / 2 - 1], 2)
                                     : merge(half_of[0], half_of[0], 2);
    const float all = norm + reach_, slack = constant_ + linear_ * norm + square_ * all * all;
    return {own.index, norm * largest_norm_ < 1e37f && own.best - own.second > slack};
  }

 private:
  struct candidate {
    float best, second;
    unsigned index;
  };
  /// What the lane `step` away sends joins what this one keeps.
  __device__ static candidate merge(const candidate& kept, const candidate& sent, int step) {
    const candidate other{__shfl_xor_sync(all_lanes, sent.best, step), __shfl_xor_sync(all_lanes, sent.second, step),
                          __shfl_xor_sync(all_lanes, sent.index, step)};
    return {fmaxf(kept.best, other.best), fmaxf(fmaxf(kept.second, other.second), fminf(kept.best, other.best)),
            other.best > kept.best ? other.index : kept.index};
  }

  uint4* operands_;    // [c / 8, Groups, most and rest, 32]
  float* minus_bias_;  // [c]
  bounds& bounds_;
  unsigned c_;
  float scale_ = 1, largest_norm_ = 0, linear_ = 0, constant_ = 0, square_ = 0, reach_ = 0;
};

/// canonical::fixed_point(): its product with a power of two is exact in float too, or rounds to 0 in both.
__device__ inline int fixed_point(float x, float scale) {
  int term;
  asm("cvt.rni.s32.f32 %0, %1;" : "=r"(term) : "f"(canonical::mul(x, scale)));
  return term;
}

/// Sums of fixed-point numbers by one CTA, in two halves of 32 bits, which shared memory adds by itself. Of at most 2^15 numbers a place.
class shared_sums {
 public:
  static constexpr std::uint32_t most_terms = 1u << 15;
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t count) { return 2 * shared_memory::bytes<int>(count); }

  __device__ shared_sums(shared_memory& memory, unsigned count) : lower_(memory.take<int>(count)), upper_(memory.take<int>(count)) {}
  __device__ void clear(unsigned at) { lower_[at] = upper_[at] = 0; }
  /// |term| < 2^30
  __device__ void add(unsigned at, int term, int sign) {
    atomicAdd(&lower_[at], sign * (term & 0x7fff));
    atomicAdd(&upper_[at], sign * (term >> 15));
  }
  __device__ std::int64_t take(unsigned at) {
    const std::int64_t sum = static_cast<std::int64_t>(upper_[at]) * 32768 + lower_[at];
    clear(at);
    return sum;
  }

 private:
  int *lower_, *upper_;
};

}  // namespace pqkv::detail::block
