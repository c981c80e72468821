// SPDX-License-Identifier: Apache-2.0
// What attended_sum.cuh is made of: how the CTAs of a cluster share lists and tiles, logits and sums of a tile, and sums merged in order.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../cache/token_set.hpp"
#include "../../core/canonical.hpp"
#include "../../core/row.hpp"
#include "../../selector/attended_sum.hpp"
#include "block/copy.cuh"
#include "block/reduce.cuh"
#include "block/shared.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// What one list's CTAs sum.
struct summed_list {
  std::size_t head = 0;  // of the store
  token_span span{};     // empty where nothing is ranked
};

/// How the CTAs of a cluster share its lists, those of a list its tokens, and the shared memory of one.
struct attended_shape {
  static constexpr unsigned threads = 256, tile = op::sum_attended::tile_tokens, most_ctas = 8, most_tiles = 16, rounds = 2,
                            heads_at_once = 4;
  static_assert(tile == 64);  // a lane has two tokens of a tile

  unsigned ctas, g, d;
  unsigned run;                // elements of a key in 16 bytes
  unsigned tiles_at_once = 2;  // of a CTA
  unsigned side_by_side = 1;   // lists of a cluster; at most `ctas`

  /// @tparam T  of the store's rows
  template <class T>
  static attended_shape of(unsigned ctas, std::size_t g, std::size_t d) {
    return {ctas, static_cast<unsigned>(g), static_cast<unsigned>(d), 16 / static_cast<unsigned>(sizeof(typename kv_row<T>::element_type))};
  }
  __host__ __device__ unsigned runs() const { return (d + run - 1) / run; }
  /// Floats of a query.
  __host__ __device__ unsigned padded() const { return runs() * run; }
  /// Bytes of a key in shared memory: an odd number of runs, so that lanes read runs of rows one after the other without conflicts.
  __host__ __device__ unsigned row_bytes() const { return (runs() | 1) * 16; }
  /// Query heads, in whole groups of heads_at_once; a single one alone.
  __host__ __device__ unsigned padded_heads() const { return g == 1 ? 1 : (g + heads_at_once - 1) / heads_at_once * heads_at_once; }
  /// CTAs of the which-th list of a cluster: `which`, which + side_by_side, ... The first one merges.
  __host__ __device__ unsigned members(unsigned which) const { return (ctas - which + side_by_side - 1) / side_by_side; }
  /// Tiles whose sums the first CTA of so many merges at a time.
  __host__ __device__ unsigned merged_at_once(unsigned of_ctas) const { return of_ctas * tiles_at_once * rounds; }
  std::size_t shared_bytes() const {
    using block::shared_memory;
    return shared_memory::bytes<summed_list>(side_by_side) + shared_memory::bytes<float>(padded_heads() * padded()) +
           shared_memory::bytes<unsigned char>(tiles_at_once * tile * row_bytes()) + shared_memory::bytes<float>(tiles_at_once * tile) +
           shared_memory::bytes<float>(tiles_at_once * padded_heads() * tile) +
           shared_memory::bytes<attended_sum>(merged_at_once(members(0)) * g) + shared_memory::bytes<attended_sum>(g);
  }
  /// Takes fewer tiles at once until a CTA's shared memory suffices. @return whether it does
  bool fit(std::size_t room) {
    while (shared_bytes() > room && tiles_at_once > 1) --tiles_at_once;
    return shared_bytes() <= room;
  }
};

/// One of a span's tiles. Tiles of the leading tokens come before those of the window.
struct attended_tile {
  std::uint32_t begin = 0, tokens = 0;

  __device__ static unsigned count(std::uint32_t tokens) { return (tokens + attended_shape::tile - 1) / attended_shape::tile; }
  __device__ static std::uint32_t window(const token_span& span) {
    return span.window_begin < span.window_end ? span.window_end - span.window_begin : 0;
  }
  __device__ attended_tile(const token_span& span, unsigned which) {
    const unsigned leading = count(span.leading), at = (which < leading ? which : which - leading) * attended_shape::tile;
    const std::uint32_t left = (which < leading ? span.leading : window(span)) - at;
    begin = (which < leading ? 0 : span.window_begin) + at;
    tokens = left < attended_shape::tile ? left : attended_shape::tile;
  }
};

/// 16 bytes of a row, as they are stored.
template <class T>
struct attended_run {
  using element = typename kv_row<T>::element_type;
  static constexpr unsigned size = 16 / sizeof(element);
  struct alignas(16) elements {
    element of[size];
  };

  /// Begins to copy elements [first, first + size) of a row of d into shared memory; zeros after the row.
  __device__ static void copy(kv_row<T> row, unsigned d, unsigned first, unsigned char* to) {
    if (row.stride == 1 && first + size <= d && reinterpret_cast<std::uintptr_t>(row.data + first) % 16 == 0) {
      block::copy_async(block::shared_address(to), row.data + first, 16);
      return;
    }
    elements all;
#pragma unroll
    for (unsigned e = 0; e < size; ++e) all.of[e] = first + e < d ? row.data[(first + e) * row.stride] : element{};
    *reinterpret_cast<elements*>(to) = all;
  }
  /// Elements [e, e + 4) as floats.
  __device__ static void values(const elements& all, unsigned e, float scale, float (&to)[4]) {
    if constexpr (std::is_same_v<T, scaled_int8>) {
      // An integer x + 128 in the lowest bits of 2^23, less 2^23 + 128. Conversions take eight times as long.
      const std::uint32_t four = reinterpret_cast<const std::uint32_t*>(all.of)[e / 4] ^ 0x80808080u;
#pragma unroll
      for (unsigned f = 0; f < 4; ++f) {
        const float shifted = float_from_bits(__byte_perm(four, 0x4b000000u, 0x7440 + f));
        to[f] = canonical::mul(canonical::sub(shifted, 0x1p23f + 128.0f), scale);
      }
    } else {
#pragma unroll
      for (unsigned f = 0; f < 4; ++f) to[f] = static_cast<float>(all.of[e + f]);
    }
  }
};

/// The logits of half a tile's tokens for Heads query heads, by a warp: a lane has one token.
/// @param queries  [Heads, padded], each of d, then zeros; @param keys  the half's rows; scales: of the rows, if they have any
/// @param to       [Heads, tile], written; of the half's first token
template <unsigned Heads, class T>
__device__ void logits_of_half(const float* queries, const unsigned char* keys, const float* scales, const attended_shape& shape,
                               float* to) {
  using run = attended_run<T>;
  using elements = typename run::elements;
  const unsigned lane = threadIdx.x % 32;
  const unsigned char* const key = keys + lane * shape.row_bytes();
  const float of_key = std::is_same_v<T, scaled_int8> ? scales[lane] : 1.0f;
  float logit[Heads] = {};
#pragma unroll 1
  for (unsigned i = 0; i < shape.runs(); ++i) {
    const elements some = *reinterpret_cast<const elements*>(key + i * 16);
#pragma unroll
    for (unsigned e = 0; e < run::size; e += 4) {
      float x[4];
      run::values(some, e, of_key, x);
#pragma unroll
      for (unsigned q = 0; q < Heads; ++q) {
        const float4 of_query = *reinterpret_cast<const float4*>(queries + q * shape.padded() + i * run::size + e);
        logit[q] = canonical::fma(of_query.x, x[0], logit[q]);
        logit[q] = canonical::fma(of_query.y, x[1], logit[q]);
        logit[q] = canonical::fma(of_query.z, x[2], logit[q]);
        logit[q] = canonical::fma(of_query.w, x[3], logit[q]);
      }
    }
  }
#pragma unroll
  for (unsigned q = 0; q < Heads; ++q) to[q * attended_shape::tile + lane] = logit[q];
}

/// The sum over a tile's logits for one query head, by a warp. @param logits  [tile]
__device__ inline attended_sum sum_of_logits(const float* logits, std::uint32_t tokens, canonical::softmax_scale scale) {
  const unsigned lane = threadIdx.x % 32;
  const float logit[2] = {logits[lane], logits[lane + 32]};
  const bool counts[2] = {lane < tokens && is_finite(logit[0]), lane + 32 < tokens && is_finite(logit[1])};
  std::uint32_t best = 0;  // the largest as an order key; 0: none
#pragma unroll
  for (unsigned a = 0; a < 2; ++a)
    if (const std::uint32_t key = canonical::order_key(logit[a]); counts[a] && key > best) best = key;
  best = __reduce_max_sync(block::all_lanes, best);
  const float top = canonical::from_order_key(best);
  std::uint64_t weight = 0;
#pragma unroll
  for (unsigned a = 0; a < 2; ++a)
    if (counts[a]) weight += canonical::to_fixed(canonical::exponential(canonical::sub(logit[a], top), scale));
  weight = block::warp_sum(weight);
  return best == 0 ? attended_sum{} : attended_sum{top, weight};
}

/// `so_far` merged with the lanes' sums one after the other, with the bits of attended_sum::merged(). By a warp. The largest logits before
/// each lane are known at once, and integers may be added in any order. So lanes compute their parts side by side, and only a lane whose
/// logit is the largest so far needs the sum of all before it.
__device__ inline attended_sum merged_in_order(attended_sum so_far, const attended_sum& of_lane, canonical::softmax_scale scale) {
  const unsigned lane = threadIdx.x % 32;
  const float none = float_from_bits(0xff800000u);
  const bool is_there = of_lane.weight != 0;
  const float own = is_there ? of_lane.top : none;
  float up_to = own;  // the largest logit of this lane and those below
  for (unsigned step = 1; step < 32; step *= 2) {
    const float below = __shfl_up_sync(block::all_lanes, up_to, step);
    if (lane >= step && !(up_to > below)) up_to = below;
  }
  float before = __shfl_up_sync(block::all_lanes, up_to, 1);
  const float begin = so_far.weight != 0 ? so_far.top : none;
  if (lane == 0 || !(before > begin)) before = begin;
  const bool raises = is_there && own > before;
  float factor = 0;  // of the sum before this lane
  if (raises && before != none) factor = attended_sum::factor(before, own, scale);
  const std::uint64_t part = !is_there ? 0
                             : raises  ? of_lane.weight
                                       : of_lane.relative_to(before, scale),
                      parts_before = block::warp_prefix(part);
  std::uint64_t taken = 0;  // parts that are in so_far.weight
  for (unsigned left = __ballot_sync(block::all_lanes, raises); left != 0; left &= left - 1) {
    const int which = __ffs(static_cast<int>(left)) - 1;
    const std::uint64_t next = __shfl_sync(block::all_lanes, parts_before, which);
    so_far.weight = attended_sum::times(so_far.weight + (next - taken), __shfl_sync(block::all_lanes, factor, which));
    so_far.top = __shfl_sync(block::all_lanes, own, which);
    taken = next;
  }
  so_far.weight += __shfl_sync(block::all_lanes, parts_before + part, 31) - taken;
  return so_far;
}

}  // namespace pqkv::detail
