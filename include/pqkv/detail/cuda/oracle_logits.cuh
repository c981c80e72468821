// SPDX-License-Identifier: Apache-2.0
// The logits of every key of some ranges, for all query heads, and what their exponentials add up to. Keys of 16 bits are multiplied by
// matrix products (block/oracle_keys.cuh): their multiply-adds and sums over lanes took longer than reading them. Others have fused
// multiply-adds, with eight or more lanes for a key.
// Measured on an H200, 2026-12, keys of bench/cuda/oracle.cu, 16-bit keys, the logits alone: 76 us as below, 77 us with loads that leave
// the L2 cache first, 93 us with plain loads; 109 to 123 us through rings in shared memory that cp.async fills.
#pragma once

#include "../../core/canonical.hpp"
#include "../../search/top_k.hpp"
#include "attention.cuh"
#include "block/cluster.cuh"
#include "block/oracle_keys.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// What the kernels of exact_scores() share.
struct exact_call {
  view<const middle_range, 1, space::device> ranges;  // [h]
  group_reduction reduction;
  unsigned g, lists_per_head, parts;  // query heads of a list; CTAs that share a list's tokens
  float scale;                        // of logits, so that exp2 of them is the exponential
  float* logits;                      // [hq, columns] scratch
  std::size_t columns;
  float2* sums;  // [hq, parts] scratch: the largest logit of a part, and its exponentials relative to that

  __device__ std::size_t head_of(unsigned list) const { return list / lists_per_head; }
  /// What a list ranks, limited to what there is.
  __device__ middle_range range(unsigned list, std::size_t tokens) const {
    middle_range r = ranges(head_of(list));
    const std::size_t room = r.begin + columns, last = room < tokens ? room : tokens;
    r.end = r.end < last ? r.end : static_cast<std::uint32_t>(last);
    r.begin = r.begin < r.end ? r.begin : r.end;
    return r;
  }
};

/// A row's elements in one of Lanes lanes, as floats.
template <unsigned Lanes, class T>
struct scored_row : lane_row<Lanes, 8, T> {};
template <unsigned Lanes>
struct scored_row<Lanes, scaled_int8> {
  alignas(8) std::int8_t element[8];
  float scale;

  __device__ float operator[](unsigned i) const { return static_cast<float>(element[i]) * scale; }
  __device__ void load(kv_row<scaled_int8> row, unsigned d) {
    const unsigned first = threadIdx.x % Lanes * 8;
    scale = *row.scale;
    if (first + 8 <= d && reinterpret_cast<std::uintptr_t>(row.data) % 8 == 0) {
      *reinterpret_cast<uint2*>(element) = *reinterpret_cast<const uint2*>(row.data + first);
    } else {
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) element[i] = first + i < d ? row.data[first + i] : std::int8_t{0};
    }
  }
};

/// The largest of some logits, and the sum of their exponentials relative to it.
struct running_sum {
  float top = float_from_bits(0xff800000u), total = 0;

  __device__ void add(float logit, float scale) {
    if (logit > top) {
      total *= block::power_of_two_near((top - logit) * scale);  // 0 at first
      top = logit;
    }
    if (is_finite(logit)) total += block::power_of_two_near((logit - top) * scale);
  }
  __device__ void add(const float2& other, float scale) {
    if (!is_finite(other.x)) return;
    if (other.x > top) {
      total *= block::power_of_two_near((top - other.x) * scale);
      top = other.x;
    }
    total += other.y * block::power_of_two_near((other.x - top) * scale);
  }
  /// Adds the sums of the lanes whose numbers differ by a multiple of Step, a power of two.
  template <unsigned Step>
  __device__ void add_lanes(float scale) {
#pragma unroll
    for (unsigned step = 16; step >= Step; step /= 2) {
      const float2 other{__shfl_xor_sync(block::all_lanes, top, static_cast<int>(step)),
                         __shfl_xor_sync(block::all_lanes, total, static_cast<int>(step))};
      add(other, scale);
    }
  }
};

/// The keys of one CTA: part blockIdx.x of list blockIdx.y, for group blockIdx.z of up to Queries of the list's query heads.
template <unsigned Queries>
struct exact_share {
  unsigned first_query, queries;
  middle_range range;  // of the list
  std::uint32_t begin, end;

  /// @param granule  the size of every part but the last is a multiple of it
  __device__ exact_share(const exact_call& call, std::size_t tokens, unsigned granule) : range(call.range(blockIdx.y, tokens)) {
    first_query = blockIdx.y * call.g + blockIdx.z * Queries;
    const unsigned left = call.g - blockIdx.z * Queries;
    queries = left < Queries ? left : Queries;
    const std::uint32_t n = range.size(), share = ((n + call.parts - 1) / call.parts + granule - 1) / granule * granule,
                        before = share * blockIdx.x < n ? share * blockIdx.x : n;
    begin = range.begin + before;
    end = n - before < share ? range.end : begin + share;
  }
};

/// For keys of half or bfloat16. grid.x: parts of the tokens; grid.y: lists; grid.z: groups of up to Queries of a list's query heads. A
/// warp has 16 keys at a time in registers, of more than 128 dimensions a slice, and reads the next ones while it multiplies.
template <unsigned Queries, unsigned Dims, unsigned Threads, class Store>
__global__ void __launch_bounds__(Threads, 512 / Threads)
    exact_tile_kernel(view<const float, 2, space::device> query, Store store, exact_call call) {
  using value_type = typename Store::value_type;
  using operands = block::query_operands<value_type, Dims, Queries>;
  using products = block::lane_products<Queries>;
  constexpr unsigned warps = Threads / 32, dims = Dims < 128 ? Dims : 128, slices = Dims / dims;
  using tile = block::key_tile<value_type, dims>;
  __shared__ operands queries;
  __shared__ float2 of_warp[warps][Queries];
  block::wait_for_last_kernel();
  block::release_dependents();
  const exact_share<Queries> own(call, store.tokens(), tile::keys);
  const unsigned d = static_cast<unsigned>(store.head_dim()), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::size_t head = mapped_head(store, call.head_of(blockIdx.y));
  const auto& rows = rows_of_head(mapped(store), head);
  const std::uint32_t step = warps * tile::keys, first_key = own.begin + warp * tile::keys;
  tile keys, next;
  const auto load = [&](std::uint32_t at, unsigned slice) {
#pragma unroll
    for (unsigned which = 0; which < 2; ++which) {
      const std::uint32_t t = at + which * 8 + lane / 4;
      next.load(which, rows.key(head, t < own.end ? t : own.end - 1), slice * dims, d);
    }
  };
  if (first_key < own.end) load(first_key, 0);
  queries.template set<Threads>(own.queries, d, [&](unsigned q) { return &query(own.first_query + q, 0); });

  const unsigned first = products::query();  // of this lane's two query heads
  const float unit[2] = {queries.unit(first), queries.unit(first + 1)};
  float* const out = call.logits + (own.first_query + first) * call.columns;
  running_sum sum[2];
  for (std::uint32_t at = first_key; at < own.end; at += step) {
    float product[operands::tiles][4] = {};
#pragma unroll 1
    for (unsigned slice = 0; slice < slices; ++slice) {
      keys = next;
      const bool is_last = slice + 1 == slices;
      if (const std::uint32_t ahead = is_last ? at + step : at; ahead < own.end) load(ahead, is_last ? 0 : slice + 1);
      keys.multiply(queries, slice * dims / 16, product);
    }
    const products of_lane(product);
#pragma unroll
    for (unsigned i = 0; i < products::keys; ++i) {
      const std::uint32_t t = at + products::key(i);
#pragma unroll
      for (unsigned q = 0; q < 2; ++q) {
        const float logit = of_lane.of[i][q] * unit[q], finite = is_finite(logit) ? logit : float_from_bits(0xff800000u);
        if (t >= own.end || first + q >= own.queries) continue;
        out[q * call.columns + (t - own.range.begin)] = finite;
        sum[q].add(finite, call.scale);
      }
    }
  }
#pragma unroll
  for (unsigned q = 0; q < 2; ++q) {
    sum[q].template add_lanes<products::next>(call.scale);
    if (lane < products::next) of_warp[warp][first + q] = {sum[q].top, sum[q].total};
  }
  __syncthreads();
  if (threadIdx.x >= own.queries) return;
  running_sum all;
#pragma unroll
  for (unsigned w = 0; w < warps; ++w) all.add(of_warp[w][threadIdx.x], call.scale);
  call.sums[(own.first_query + threadIdx.x) * call.parts + blockIdx.x] = {all.top, all.total};
}

/// For other keys, with the same grid. Lanes lanes read a key. Not PQKV_HIDDEN: an engine's store may be a type without linkage.
template <unsigned Queries, unsigned Lanes, class Store>
__global__ void __launch_bounds__(256) exact_logits_kernel(view<const float, 2, space::device> query, Store store, exact_call call) {
  using row_part = scored_row<Lanes, typename Store::value_type>;
  constexpr unsigned readers = 256 / Lanes;  // keys at once
  static_assert(Queries <= Lanes);
  block::wait_for_last_kernel();
  block::release_dependents();
  const exact_share<Queries> share(call, store.tokens(), 1);
  const unsigned first = share.first_query, queries = share.queries, d = static_cast<unsigned>(store.head_dim()),
                 lane = threadIdx.x % Lanes, reader = threadIdx.x / Lanes;
  const std::size_t head = mapped_head(store, call.head_of(blockIdx.y));
  const auto& rows = rows_of_head(mapped(store), head);
  const std::uint32_t begin = share.begin, end = share.end;
  float q[Queries][8];
#pragma unroll
  for (unsigned a = 0; a < Queries; ++a) {
    lane_row<Lanes, 8, float> own;
    own.load({&query(first + (a < queries ? a : 0), 0), 1}, d);
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) q[a][i] = own[i];
  }
  running_sum sum;  // of query head `lane`
  float* const out = lane < queries ? call.logits + (first + lane) * call.columns : nullptr;
  row_part key{};
  std::uint32_t t = begin + reader;
  if (t < end) key.load(rows.key(head, t), d);
  for (std::uint32_t base = begin; base < end; base += readers, t += readers) {
    row_part next{};
    if (t + readers < end) next.load(rows.key(head, t + readers), d);
    float logit[Queries] = {};
#pragma unroll
    for (unsigned i = 0; i < 8; ++i) {
      const float x = key[i];
#pragma unroll
      for (unsigned a = 0; a < Queries; ++a) logit[a] = fmaf(q[a][i], x, logit[a]);
    }
#pragma unroll
    for (unsigned step = Lanes / 2; step > 0; step /= 2)
#pragma unroll
      for (unsigned a = 0; a < Queries; ++a) logit[a] += __shfl_xor_sync(block::all_lanes, logit[a], static_cast<int>(step));
    float own = logit[0];
#pragma unroll
    for (unsigned a = 1; a < Queries; ++a) own = lane == a ? logit[a] : own;
    own = is_finite(own) ? own : float_from_bits(0xff800000u);
    if (out != nullptr && t < end) {
      out[t - share.range.begin] = own;
      sum.add(own, call.scale);
    }
    key = next;
  }
  __shared__ float2 of_reader[readers][Queries];
  if (lane < Queries) of_reader[reader][lane] = {sum.top, sum.total};
  __syncthreads();
  if (threadIdx.x >= queries) return;
  running_sum all;
  for (unsigned r = 0; r < readers; ++r) all.add(of_reader[r][threadIdx.x], call.scale);
  call.sums[(first + threadIdx.x) * call.parts + blockIdx.x] = {all.top, all.total};
}

}  // namespace pqkv::detail
