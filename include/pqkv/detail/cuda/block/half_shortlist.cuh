// SPDX-License-Identifier: Apache-2.0
// Finds the centroids that may be nearest to rows of float, half or bfloat16, by matrix products in half. Rows are centred, scaled and
// rounded to half when they are loaded into registers; centroids are rounded once, for all rows. Centroids are compared by v = <y, c> -
// |c|^2 / 2. For each row the error of v has a known bound, so every centroid that may have the least canonical distance is within that
// bound of the largest v. Usually that is one centroid; if there are two, the caller decides by the canonical distance: about one normally
// distributed row in a hundred. Exact values would take two or three products in place of one. Rows are operand A of the products, so four
// lanes hold the values of a row. Needs compute capability 8.0 or higher.
#pragma once

#include <cfloat>
#include <cstdint>

#include "../../../core/canonical.hpp"
#include "copy.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "shared.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// d = a * b + c
__device__ inline void multiply_half(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1, const float4& c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c.x), "f"(c.y), "f"(c.z), "f"(c.w));
}

/// The square root, with a relative error of about 2^-22; 0 for numbers below 2^-126. Not canonical.
__device__ inline float sqrt_near(float x) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

/// Two measures of a row y that find() needs, in 32 bits: |y|^2, rounded up to 15 bits after the leading one; and, in the lowest 8 bits,
/// the relative error of y rounded to half, |y - z| / |y|, in steps of 2^-18. That error is at most 2^-11.
struct row_measure {
  static constexpr float step = 0x1p-18f;
  std::uint32_t bits;

  __device__ float square() const { return float_from_bits(bits & ~0xffu); }
  __device__ float share() const { return static_cast<float>(bits & 0xffu) * step; }
};

/// Sums over the elements of a row y. Four lanes have a quarter of the row each.
struct row_summary {
  std::uint32_t most;      // the bits of the largest |y_e|; at least the bits of infinity if an element is not finite
  float square, residual;  // |y|^2; |y - z|^2, where z is y rounded to the 11 bits that half keeps

  __device__ void add(float y) {
    const std::uint32_t magnitude = float_bits(y) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
    const float left_out = y - float_from_bits((float_bits(y) + 0x1000u) & ~0x1fffu);
    square = fmaf(y, y, square);
    residual = fmaf(left_out, left_out, residual);
  }
  __device__ void add_neighbours() {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const std::uint32_t other = __shfl_xor_sync(all_lanes, most, step);
      most = other > most ? other : most;
      square += __shfl_xor_sync(all_lanes, square, step);
      residual += __shfl_xor_sync(all_lanes, residual, step);
    }
  }
  /// Each sum has at most 150 roundings, a relative error below 2^-16; the factors 1.001 and 1.00002 allow for it.
  __device__ row_measure measure() const {
    const float share = sqrtf(canonical::div(residual, square)) * (1.001f / row_measure::step) + 1.0f;  // a NaN for a row of zeros
    const std::uint32_t steps = static_cast<std::uint32_t>(share < 255.0f ? share : 255.0f);
    return {((float_bits(square * 1.00002f) + 0xffu) & ~0xffu) | steps};
  }
};

/// @tparam T       the rows' type; rows are loaded in pieces of 16 bytes
/// @tparam Groups  ds / 32: 1, 2 or 4
template <class T, unsigned Groups>
class half_shortlist {
  static constexpr unsigned tiles = Groups > 2 ? 1 : 2, steps = 2 * Groups;  // tiles of 16 rows; steps of 16 coordinates

 public:
  static constexpr unsigned ds = Groups * 32, slots = 2 * tiles;  // rows of which a lane has a quarter
  static constexpr unsigned tile_rows = slots * 8;
  static constexpr unsigned of_piece = 16 / sizeof(T), pieces = ds / 4 / of_piece;  // elements of a piece; pieces of a lane's part of a row
  static constexpr std::size_t rows_of_warp = std::size_t{slots} * pieces * 32;     // uint4 that a warp's rows take in shared memory

  /// Bounds over one set of centroids, in shared memory: the bits of the largest |c'|^2, |kappa|^2 and |bias|; find() defines these.
  struct bounds {
    std::uint32_t norm, residual, bias;
  };
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t c) {
    return shared_memory::bytes<uint4>(chunks(c) * 4 * Groups * 32) + shared_memory::bytes<float4>(chunks(c) * 16 + ds / 4);
  }
  __device__ half_shortlist(shared_memory& memory, bounds& own, unsigned c)
      : operands_(memory.take<uint4>(chunks(c) * 4 * Groups * 32)),
        minus_bias_(memory.take<float4>(chunks(c) * 16 + ds / 4)),
        minus_offset_(minus_bias_ + chunks(c) * 16),
        bounds_(own),
        c_(c) {}

  /// The row of the tile whose outcome this lane gets; tile_rows or more if it gets none.
  __device__ static unsigned own_row() { return threadIdx.x % 4 * 8 + threadIdx.x % 32 / 4; }
  /// This lane has a quarter of `slots` rows. Returns the lane whose own_row() is number `slot` of these.
  __device__ static int owner_lane(unsigned slot) { return static_cast<int>((threadIdx.x % 32 & ~3u) + slot); }
  /// The first element of a piece of this lane's quarter of a row.
  __device__ static unsigned element(unsigned piece) { return (piece * 4 + threadIdx.x % 4) * of_piece; }
  __device__ static void unpack(const uint4& piece, float (&x)[of_piece]) {
    const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (unsigned w = 0; w < 4; ++w) {
      if constexpr (sizeof(T) == 4) {
        x[w] = float_from_bits(words[w]);
      } else {
        const float_pair pair = unpack_pair<T>(words[w]);
        x[2 * w] = pair.first, x[2 * w + 1] = pair.second;
      }
    }
  }

  /// Centres a piece and adds its elements to the sums of its row.
  /// @param offset  mu, from the piece's first element on
  __device__ static void add(row_summary& to, const uint4& piece, const float* offset) {
    float x[of_piece];
    unpack(piece, x);
#pragma unroll
    for (unsigned e = 0; e < of_piece; ++e) to.add(canonical::sub(x[e], offset[e]));
  }

  /// Sets what all rows share: their scale and the scaled mean. By all threads of the CTA; ends with a barrier.
  /// @param offset   mu [ds]
  /// @param farthest at least every |mu_e|
  /// @param largest  at least every |x_e - mu_e|
  template <unsigned Threads>
  __device__ void scale_rows(const float* offset, float farthest, float largest) {
    const int own = 14 - exponent(largest), most = 126 - exponent(farthest);  // neither a scaled row nor the scaled mean may overflow
    exponent_ = own < most ? own : most;
    exponent_ = exponent_ < 50 ? exponent_ : 50;
    scale_ = canonical::power_of_two(exponent_);
    for (unsigned at = threadIdx.x; at < ds; at += Threads) {
      // Stored side by side: the elements that a lane converts together, element(piece) and those after it.
      const unsigned e = of_piece == 4 ? at : at / 32 * 32 + at % 16 / 4 * 8 + at % 32 / 16 * 4 + at % 4;
      reinterpret_cast<float*>(minus_offset_)[at] = -canonical::mul(offset[e], scale_);
    }
    __syncthreads();
  }

  /// The CTA loads a set of centroids. No thread may still use the last set. Ends with a barrier.
  /// @param centroids  [ds, c], centred by mu
  /// @param largest    at least every coordinate's magnitude, of rows and centroids
  template <unsigned Threads>
  __device__ void stage(const float* centroids, float largest) {
    int own = 14 - exponent(largest);
    own = own < -50 ? -50 : own < exponent_ ? own : exponent_;
    const float scale = canonical::power_of_two(own);
    const double untie = static_cast<double>(canonical::power_of_two(exponent_ - own));  // 1 / tau
    if (threadIdx.x == 0) bounds_ = {};
    __syncthreads();
    const unsigned lane = threadIdx.x % 32;
    for (unsigned tile = threadIdx.x / 32; tile < chunks(c_) * 4; tile += Threads / 32) {  // a lane: a quarter of a centroid
      const unsigned x = tile * 8 + lane / 4;
      double square = 0, residual = 0;
#pragma unroll
      for (unsigned pair = 0; pair < Groups; ++pair) {
        std::uint32_t word[4];
#pragma unroll
        for (unsigned w = 0; w < 4; ++w) {
          const unsigned e = of_step(2 * pair + w / 2, w % 2 * 2);
          const float first = x < c_ ? centroids[e * c_ + x] : 0.0f, second = x < c_ ? centroids[(e + 1) * c_ + x] : 0.0f;
          word[w] = pack_pair<half>(first * scale, second * scale);
          const float_pair rounded = unpack_pair<half>(word[w]);
          const double a = static_cast<double>(first) * static_cast<double>(scale) - static_cast<double>(rounded.first),
                       b = static_cast<double>(second) * static_cast<double>(scale) - static_cast<double>(rounded.second);
          residual = ::fma(a, a, ::fma(b, b, residual));
          square = ::fma(static_cast<double>(rounded.first), static_cast<double>(rounded.first), square);
          square = ::fma(static_cast<double>(rounded.second), static_cast<double>(rounded.second), square);
        }
        operands_[(tile * Groups + pair) * 32 + lane] = {word[0], word[1], word[2], word[3]};
      }
      for (int step = 1; step < 4; step *= 2) {
        square += __shfl_xor_sync(all_lanes, square, step);
        residual += __shfl_xor_sync(all_lanes, residual, step);
      }
      if (lane % 4 != 0) continue;
      const float bias = x < c_ ? static_cast<float>((square - residual) / 2 * untie) : FLT_MAX;  // beyond c: never a candidate
      float* to = reinterpret_cast<float*>(minus_bias_ + tile * 4 + lane / 8) + lane / 4 % 2;
      to[0] = to[2] = -bias;
      if (x >= c_) continue;
      atomicMax(&bounds_.norm, float_bits(static_cast<float>(square * 1.001)));
      atomicMax(&bounds_.residual, float_bits(static_cast<float>(residual * 1.001)));
      atomicMax(&bounds_.bias, float_bits(fabsf(bias)));
    }
    __syncthreads();
    const float inverse = static_cast<float>(untie);
    tie_ = canonical::power_of_two(own - exponent_);
    minus_two_ = -2.0f * inverse;
    norm_ = sqrtf(float_from_bits(bounds_.norm)) * 1.001f * inverse;
    residual_ = sqrtf(float_from_bits(bounds_.residual)) * 1.001f * inverse;
    bias_ = float_from_bits(bounds_.bias) * inverse;
    sums_ = (steps * 18 + 2) * 0x1p-23f;
    if (!(largest < 0x1p65f)) sums_ = float_from_bits(0x7f800000u);  // beyond the range of the scales everything is a candidate
  }

  /// Copies a tile of rows into the warp's shared memory, uint4 [slots, pieces, 32]. A lane reads back only what it copied itself, except
  /// in tile_element().
  /// @param row_at  pointer to the row of a slot
  template <class RowAt>
  __device__ static void copy(uint4* shared, RowAt row_at) {
    const std::uint32_t to = shared_address(shared + threadIdx.x % 32);
#pragma unroll
    for (unsigned s = 0; s < slots; ++s) {
      const T* from = row_at(s) + element(0);  // one address for all pieces of a row
#pragma unroll
      for (unsigned p = 0; p < pieces; ++p) copy_async(to + (s * pieces + p) * 512, from + p * (4 * of_piece), 16);
    }
    end_copies();
  }
  static constexpr unsigned tile_step = 32 / (4 * of_piece) * 32 * of_piece;  // from an element of a tile to the 32nd after it
  /// Element e of the row that lane `owner` owns, in a tile that is in shared memory.
  __device__ static const T* tile_element(const uint4* shared, unsigned owner, unsigned e) {
    const uint4* piece = shared + (owner % 4 * pieces + e / (4 * of_piece)) * 32 + owner / 4 * 4 + e / of_piece % 4;
    return reinterpret_cast<const T*>(piece) + e % of_piece;
  }

  /// A lane's part of a tile's rows, as operands of the products.
  struct rows {
    std::uint32_t word[tiles][steps][4];
  };
  /// Waits for this lane's part of a tile; then centres, scales and rounds it.
  __device__ void take(const uint4* shared, rows& to) const {
    wait_copies<0>();
#pragma unroll
    for (unsigned p = 0; p < pieces; ++p) {
      constexpr unsigned here = of_piece / 4;  // steps of a piece
      float4 minus[here];
#pragma unroll
      for (unsigned h = 0; h < here; ++h) minus[h] = minus_offset_[(p * here + h) * 4 + threadIdx.x % 4];
#pragma unroll
      for (unsigned s = 0; s < slots; ++s) {
        float x[of_piece];
        unpack(shared[(s * pieces + p) * 32 + threadIdx.x % 32], x);
#pragma unroll
        for (unsigned h = 0; h < here; ++h) {
          std::uint32_t(&word)[4] = to.word[s / 2][p * here + h];
          word[s % 2] = pack_pair<half>(fmaf(x[4 * h], scale_, minus[h].x), fmaf(x[4 * h + 1], scale_, minus[h].y));
          word[s % 2 + 2] = pack_pair<half>(fmaf(x[4 * h + 2], scale_, minus[h].z), fmaf(x[4 * h + 3], scale_, minus[h].w));
        }
      }
    }
  }

  struct outcome {
    unsigned first, second;  // candidates, in any order; undefined from `count` on
    unsigned count;          // 3 or more: any centroid may be the nearest
  };

  /// Finds the candidates of row own_row(). By all lanes.
  ///
  /// Let s and t, powers of two, be the scales of rows and centroids, let h and c' be s y and t c rounded to half, and let rho = y - h / s
  /// and kappa = c - c' / t be the rounding errors, with |rho| <= r and |kappa| <= q. The bias is s t (|c|^2 / 2 - <c, kappa>), or in
  /// other words s / t (|c'|^2 - |t kappa|^2) / 2. Then
  ///   v = <h, c'> - bias = s t (<y, c> - |c|^2 / 2 - <rho, y> + <rho, y - c> - <y - c, kappa> + <rho, kappa>) + sums,
  /// where <rho, y> is the same for all centroids, and `sums` is the rounding of the products: each instruction truncates 18 addends of at
  /// most |h| |c'| + |bias|, and the bias and the threshold below are rounded once. So with D = |y - c|^2, v / (s t) is, up to that common
  /// shift, (|y|^2 - D) / 2 with an error of at most (r + q) sqrt(D) + r q + sums / (s t).
  /// The canonical distance is D (1 +- k), k = (ds + 3) 2^-24. Let b have the largest v, and let w have the least canonical distance. Then
  /// D_w <= D_b (1 + 2.001 k), and therefore
  ///   v_b - v_w <= s t (1.01 k D_b + 2.02 (r + q) sqrt(D_b) + 2 r q) + 2 sums,
  /// the slack: w is among the centroids whose v is at most the slack below v_b. v_b itself bounds D_b, since its shift is at most r |y|:
  ///   D_b <= A + 2 (r + q) sqrt(D_b),  A = |y|^2 - 2 v_b / (s t) + 2 r |y| + 2 r q + 2 sums / (s t),
  ///   sqrt(D_b) <= (r + q) + sqrt(A + (r + q)^2).
  /// A larger v_b gives a larger threshold v_b - slack, so centroids may be compared with the best of those seen so far. In the code
  /// lengths are in units of 1 / s, and tau = t / s. r also allows for underflow: in half, of at most 2^-24 per coordinate in these units;
  /// and of the squares when the row was measured. Underflow changes the canonical distance by less than that.
  __device__ outcome find(const rows& x, row_measure measure) const {
    constexpr float flushed = 0x1p-59f, floor = 0x1p-24f * (ds == 32 ? 5.7f : ds == 64 ? 8.1f : 11.4f);
    const float y = scale_ * fmaf(sqrt_near(measure.square()), 1.0001f, flushed),
                r = fmaf(y, measure.share(), fmaf(scale_, flushed, floor)), both = r + residual_,
                twice = 2.0f * fmaf(r, residual_, sums_ * fmaf(y + r, norm_, bias_)),
                start = fmaf(y, y, fmaf(2.0f * r, y, fmaf(both, both, twice)));
    const float quadratic = 1.02f * tie_ * (ds + 3) * 0x1p-24f, linear = 1.02f * 2.02f * tie_ * both, constant = 1.02f * tie_ * twice;
    candidates first{}, other{};
    unsigned count = 0;
    float best = -FLT_MAX, slack = 0;
#pragma unroll 1
    for (unsigned chunk = 0; chunk < chunks(c_); ++chunk) {
      float value[tiles][4][4];
      multiply(x, chunk, value);
      const float last = best;
      best = fmaxf(best, own_most(value));
      const float root = both + sqrt_near(fmaxf(fmaf(minus_two_, best, start), 0.0f));
      slack = fmaf(root, fmaf(quadratic, root, linear), constant);
      const float threshold = best - slack;
      if (!(last > threshold)) count = 0;
      const candidates here{own_above(value, threshold), chunk};
      if (here.bits != 0) other = here;
      if (count == 0) first = here;
      count += static_cast<unsigned>(__popc(here.bits));
    }
    const unsigned one = first.highest(), two = (first.bits & (first.bits - 1)) != 0 ? first.lowest() : other.highest();
    const bool overflowed = !(slack < 0x1p120f) || count == 0 || one >= c_;
    return {one, two, overflowed ? 3 : count};
  }

 private:
  __host__ __device__ static constexpr unsigned chunks(std::size_t c) { return c < 32 ? 1 : static_cast<unsigned>(c / 32); }
  __device__ static int exponent(float magnitude) { return static_cast<int>(float_bits(magnitude) >> 23 & 0xffu) - 127; }
  /// A lane has two pairs of elements at a step of the products. Returns the first element of the first (`pair` 0) or second one (`pair`
  /// 2).
  __device__ static unsigned of_step(unsigned step, unsigned pair) {
    constexpr unsigned here = of_piece / 4;
    return element(step / here) + step % here * 4 + pair;
  }
  /// The candidates among 32 centroids for a lane's own row, in the bit order of own_above().
  struct candidates {
    std::uint32_t bits;
    unsigned chunk;

    __device__ unsigned highest() const { return of_bit(31 - static_cast<unsigned>(__clz(static_cast<int>(bits)))); }
    __device__ unsigned lowest() const { return of_bit(static_cast<unsigned>(__ffs(static_cast<int>(bits))) - 1); }

   private:
    __device__ unsigned of_bit(unsigned bit) const {
      const unsigned at = 7 - bit % 8;
      return chunk * 32 + at / 2 * 8 + bit / 8 * 2 + at % 2;
    }
  };

  /// Computes v of 32 centroids: value[t][i][2 k + j] belongs to the row of slot 2 t + k and to centroid 8 i + 2 (lane % 4) + j.
  __device__ void multiply(const rows& x, unsigned chunk, float (&value)[tiles][4][4]) const {
    const unsigned lane = threadIdx.x % 32;
    const uint4* operands = operands_ + chunk * 4 * Groups * 32 + lane;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      const float4 begin = minus_bias_[(chunk * 4 + i) * 4 + lane % 4];
#pragma unroll
      for (unsigned pair = 0; pair < Groups; ++pair) {
        const uint4 of = operands[(i * Groups + pair) * 32];
#pragma unroll
        for (unsigned t = 0; t < tiles; ++t) {
          if (pair == 0)
            multiply_half(value[t][i], x.word[t][0], of.x, of.y, begin);
          else
            multiply_add<half>(value[t][i], x.word[t][2 * pair], of.x, of.y);
          multiply_add<half>(value[t][i], x.word[t][2 * pair + 1], of.z, of.w);
        }
      }
    }
  }

  /// The largest value of row own_row(): four lanes exchange the largest of their rows.
  __device__ static float own_most(const float (&value)[tiles][4][4]) {
    float most[slots];
#pragma unroll
    for (unsigned s = 0; s < slots; ++s) {
      most[s] = fmaxf(value[s / 2][0][s % 2 * 2], value[s / 2][0][s % 2 * 2 + 1]);
#pragma unroll
      for (unsigned i = 1; i < 4; ++i) most[s] = fmaxf(most[s], fmaxf(value[s / 2][i][s % 2 * 2], value[s / 2][i][s % 2 * 2 + 1]));
    }
    const bool upper = threadIdx.x % 4 >= 2, odd = threadIdx.x % 2 != 0;
    if constexpr (tiles == 2) {
      const float first = upper ? most[2] : most[0], second = upper ? most[3] : most[1];
      most[0] = fmaxf(first, __shfl_xor_sync(all_lanes, upper ? most[0] : most[2], 2));
      most[1] = fmaxf(second, __shfl_xor_sync(all_lanes, upper ? most[1] : most[3], 2));
    } else {
      most[0] = fmaxf(most[0], __shfl_xor_sync(all_lanes, most[0], 2));
      most[1] = fmaxf(most[1], __shfl_xor_sync(all_lanes, most[1], 2));
    }
    return fmaxf(odd ? most[1] : most[0], __shfl_xor_sync(all_lanes, odd ? most[0] : most[1], 1));
  }

  /// A bit for each centroid whose value for row own_row() is above that row's threshold; see `candidates` for the order of the bits.
  __device__ static std::uint32_t own_above(const float (&value)[tiles][4][4], float threshold) {
    std::uint32_t of_tile[2] = {};  // a byte for each slot, the first slot highest; in a byte the bit of the first value is highest
#pragma unroll
    for (unsigned s = 0; s < slots; ++s) {
      const float of_row = __shfl_sync(all_lanes, threshold, owner_lane(s));
#pragma unroll
      for (unsigned i = 0; i < 4; ++i)
#pragma unroll
        for (unsigned j = 0; j < 2; ++j)  // the sign of the difference moves in from the right
          of_tile[s / 2] = __funnelshift_l(float_bits(of_row - value[s / 2][i][s % 2 * 2 + j]), of_tile[s / 2], 1);
    }
    std::uint32_t above = of_tile[0] << 16 | of_tile[1];
    // Four lanes transpose their bytes: each ends with those of its own row, in the order of the lanes.
    const bool upper = threadIdx.x % 4 >= 2, odd = threadIdx.x % 2 != 0;
    above = __byte_perm(above, __shfl_xor_sync(all_lanes, above, 2), upper ? 0x1054 : 0x7632);
    return __byte_perm(above, __shfl_xor_sync(all_lanes, above, 1), odd ? 0x2604 : 0x7351);
  }

  uint4* operands_;       // [max(c, 32) / 8, Groups, 32]
  float4* minus_bias_;    // [max(c, 32) / 8, 4]: the negative biases of two centroids, stored twice
  float4* minus_offset_;  // [steps, 4]: -s mu of the four elements that a lane has at a step
  bounds& bounds_;
  unsigned c_;
  int exponent_ = 0;                // of scale_
  float scale_ = 1;                 // s
  float tie_ = 1, minus_two_ = -2;  // tau, -2 / tau
  float norm_ = 0, residual_ = 0, bias_ = 0, sums_ = 0;
};

}  // namespace pqkv::detail::block
