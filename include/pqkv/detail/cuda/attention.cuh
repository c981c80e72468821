// SPDX-License-Identifier: Apache-2.0
// Attention on the device. A CTA takes a part of a list's tokens for up to eight query heads; attention_merge.cuh merges the parts. Rows of
// 16-bit numbers and of 8-bit integers are multiplied by matrix products, and every warp has its own ring buffer of tokens. Rows of floats
// would lose precision that way: they are multiplied by fused multiply-adds, with eight or more lanes for a token. Results agree with the
// host's within rounding.
// Sources: online softmax: Milakov and Gimelshein 2018; splits over tokens: FlashDecoding.
#pragma once

#include "../../attention.hpp"
#include "../../cache/tiered_store.hpp"
#include "../../core/canonical.hpp"
#include "arena.cuh"
#include "attention_merge.cuh"
#include "attention_share.cuh"
#include "block/attention.cuh"
#include "block/attention_scaled.cuh"
#include "block/cluster.cuh"
#include "block/reduce.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The store without its map of heads, and the mapped number of a head: a kernel looks up the map once and not for every token.
/// @{
template <class Store>
__device__ const Store& mapped(const Store& store) {
  return store;
}
template <class Store>
__device__ std::size_t mapped_head(const Store&, std::size_t head) {
  return head;
}
template <class Store>
__device__ const Store& mapped(const mapped_store<Store>& store) {
  return store.store;
}
template <class Store>
__device__ std::size_t mapped_head(const mapped_store<Store>& store, std::size_t head) {
  return store.map.head(head);
}
/// @}

/// The rows of one head: what does not depend on the token is read once.
/// @{
template <class Store>
__device__ const Store& rows_of_head(const Store& store, std::size_t) {
  return store;
}
template <class T, class E, class Space, class Slow>
__device__ auto rows_of_head(const tiered_store<T, E, Space, Slow>& store, std::size_t head) {
  return store.of_head(head);
}
/// @}

/// For rows of half, bfloat16 or 8-bit integers. grid.x: splits; grid.y: lists; grid.z: groups of up to eight of a list's query heads.
template <unsigned Dims, unsigned Warps, class Store>
__global__ void __launch_bounds__(Warps * 32)
    attention_tile_kernel(view<const float, 2, space::device> query, Store store, token_set<space::device> tokens, attention_partials parts,
                          attention_shape shape) {
  using warp_part = block::attention_warp<typename Store::value_type, Dims>;
  constexpr unsigned queries = warp_part::queries, threads = Warps * 32;
  block::wait_for_last_kernel();
  block::release_dependents();
  const attention_share<queries> own(shape, tokens, warp_part::tokens);
  const unsigned d = static_cast<unsigned>(store.head_dim()), warp = threadIdx.x / 32;
  using query_rows = block::queries_on_the_way<Dims, threads>;
  const query_rows asked(&query(own.first_query, 0), query.stride(0), own.queries, d);  // while the list's size is read
  if (own.begin == own.end) return own.write_nothing(parts);
  unsigned char* memory = block::shared_memory().take<unsigned char>(Warps * warp_part::ring_bytes);
  __shared__ typename warp_part::third_parts third;
  warp_part mine(memory + warp * warp_part::ring_bytes, third, d);
  using query_operands = typename warp_part::query_operands;
  static_assert(query_rows::queries == queries && query_rows::bytes <= warp_part::stage_bytes);
  static_assert(Warps >= 2 && sizeof(query_operands) <= warp_part::stage_bytes);
  // The last stages of two warps' rings, which are not filled before the first tile is used.
  unsigned char* last_stage = memory + (warp_part::stages - 1) * warp_part::stage_bytes;
  float* asked_rows = reinterpret_cast<float*>(last_stage);
  query_operands& operands = *reinterpret_cast<query_operands*>(last_stage + warp_part::ring_bytes);
  const std::size_t head = mapped_head(store, own.kv_head);
  const auto& rows = rows_of_head(mapped(store), head);
  mine.attend(
      rows, head, own.begin, own.end, warp, Warps, [&](std::uint32_t i) { return own.token_at(i); },
      [&] {
        asked.store(asked_rows);
        __syncthreads();
        mine.make_operands(asked_rows, query_rows::pitch, own.queries, shape.scale.scale, operands);
        __syncthreads();
        mine.take_operands(operands);
        __syncthreads();
      });

  static_assert(warp_part::ring_bytes >= queries * warp_part::sums_pitch * sizeof(float));
  __shared__ float top[Warps][queries], total[Warps][queries];
  float* sums = reinterpret_cast<float*>(memory + warp * warp_part::ring_bytes);  // overwrites this warp's ring
  const float of_all = mine.total();
  if (threadIdx.x % 4 == 0) {
    top[warp][threadIdx.x % 32 / 4] = mine.top();
    total[warp][threadIdx.x % 32 / 4] = of_all;
  }
  __syncwarp();
  mine.store_sums(sums);
  __syncthreads();
  for (unsigned at = threadIdx.x * 4; at < own.queries * Dims; at += threads * 4) {
    const unsigned q = at / Dims, i = at % Dims;
    const std::size_t part = std::size_t{blockIdx.x} * parts.hq + own.first_query + q;
    float highest = float_from_bits(0xff800000u), all = 0;
#pragma unroll
    for (unsigned w = 0; w < Warps; ++w)
      if (total[w][q] != 0) highest = fmaxf(top[w][q], highest);  // otherwise the warp had no tokens
    float4 x{};
#pragma unroll
    for (unsigned w = 0; w < Warps; ++w) {
      const float of_warp = total[w][q], shrink = of_warp != 0 ? block::power_of_two_near(top[w][q] - highest) : 0.0f;
      if (of_warp != 0) all = fmaf(of_warp, shrink, all);
      if (shrink == 0) continue;  // a warp without tokens, or one whose weights vanish: it must add nothing, not a NaN
      const float4 y =
          *reinterpret_cast<const float4*>(memory + w * warp_part::ring_bytes + (q * warp_part::sums_pitch + i) * sizeof(float));
      x = {fmaf(y.x, shrink, x.x), fmaf(y.y, shrink, x.y), fmaf(y.z, shrink, x.z), fmaf(y.w, shrink, x.w)};
    }
    if (i < d) *reinterpret_cast<float4*>(parts.row(part) + i) = x;
    if (i == 0) parts.tops[part] = highest, parts.totals[part] = all;
  }
}

/// The elements of a row that one of `Lanes` lanes holds: Dims / 8 runs of eight, zeros from d on. They are converted to float only when
/// they are used, since a conversion right after the load would wait for it.
template <unsigned Lanes, unsigned Dims, class T>
struct lane_row {
  static constexpr unsigned run = 8, pack_size = 16 / sizeof(T), packs = run / pack_size;
  static_assert(Dims % run == 0);
  struct alignas(16) pack {
    T element[pack_size];
  };

  pack all[Dims / pack_size];

  __device__ float operator[](unsigned i) const { return static_cast<float>(all[i / pack_size].element[i % pack_size]); }
  /// The position of element (*this)[i] in the row.
  __device__ static unsigned index(unsigned i) { return (i / run * Lanes + threadIdx.x % Lanes) * run + i % run; }

  __device__ void load(kv_row<T> row, unsigned d) {
    if (row.stride == 1 && d == Lanes * Dims && reinterpret_cast<std::uintptr_t>(row.data) % alignof(pack) == 0) {
#pragma unroll
      for (unsigned p = 0; p < Dims / pack_size; ++p) all[p] = *reinterpret_cast<const pack*>(row.data + index(p * pack_size));
    } else {
#pragma unroll
      for (unsigned i = 0; i < Dims; ++i) all[i / pack_size].element[i % pack_size] = index(i) < d ? row.data[index(i) * row.stride] : T{};
    }
  }
};

/// grid.x: splits; grid.y: lists; grid.z: groups of up to Queries of a list's query heads. Not PQKV_HIDDEN: an engine's store may be a type
/// without linkage, and nvcc then warns of the attribute.
template <unsigned Queries, unsigned Lanes, unsigned Dims, unsigned Warps, class Store>
__global__ void __launch_bounds__(Warps * 32)
    attention_kernel(view<const float, 2, space::device> query, Store store, token_set<space::device> tokens, attention_partials parts,
                     attention_shape shape) {
  using value_type = typename Store::value_type;
  using row_part = lane_row<Lanes, Dims, value_type>;
  constexpr unsigned readers = Warps * 32 / Lanes;  // tokens at once
  const float lowest = float_from_bits(0xff800000u), nan = float_from_bits(0x7fc00000u);
  block::wait_for_last_kernel();
  block::release_dependents();
  const attention_share<Queries> own_share(shape, tokens, 1);
  if (own_share.begin == own_share.end) return own_share.write_nothing(parts);
  const unsigned hq = static_cast<unsigned>(query.extent(0)), q0 = own_share.first_query, queries = own_share.queries,
                 d = static_cast<unsigned>(store.head_dim()), reader = threadIdx.x / Lanes;
  const std::size_t head = mapped_head(store, own_share.kv_head);
  const auto& rows = rows_of_head(mapped(store), head);
  const canonical::softmax_scale scale = shape.scale;
  const std::uint32_t begin = own_share.begin, end = own_share.end;
  const auto token_at = [&](std::uint32_t i) { return own_share.token_at(i); };

  float q[Queries][Dims], sum[Queries][Dims] = {}, top[Queries], total[Queries] = {};
  unsigned broken = 0;  // one bit for each query head, set when it met a non-finite logit
#pragma unroll
  for (unsigned a = 0; a < Queries; ++a) {
    lane_row<Lanes, Dims, float> own;
    own.load({&query(q0 + (a < queries ? a : 0), 0), 1}, d);
#pragma unroll
    for (unsigned i = 0; i < Dims; ++i) q[a][i] = own[i];
    top[a] = lowest;
  }

  // Three loads overlap: the row in use, the next row, and the number of the token after that.
  row_part key{}, value{};
  std::uint32_t at = begin + reader;
  if (at < end) {
    const std::size_t t = token_at(at);
    key.load(rows.key(head, t), d);
    value.load(rows.value(head, t), d);
  }
  std::size_t next_token = at + readers < end ? token_at(at + readers) : 0;
  for (std::uint32_t base = begin; base < end; base += readers, at += readers) {
    row_part next_key{}, next_value{};
    if (at + readers < end) {
      next_key.load(rows.key(head, next_token), d);
      next_value.load(rows.value(head, next_token), d);
    }
    next_token = at + 2 * readers < end ? token_at(at + 2 * readers) : 0;
    float logit[Queries] = {};
#pragma unroll
    for (unsigned i = 0; i < Dims; ++i) {
      const float x = key[i];
#pragma unroll
      for (unsigned a = 0; a < Queries; ++a) logit[a] = fmaf(q[a][i], x, logit[a]);
    }
#pragma unroll
    for (unsigned step = Lanes / 2; step > 0; step /= 2)
#pragma unroll
      for (unsigned a = 0; a < Queries; ++a) logit[a] += __shfl_xor_sync(block::all_lanes, logit[a], static_cast<int>(step));
    if (at < end) {
#pragma unroll
      for (unsigned a = 0; a < Queries; ++a) {
        if (!is_finite(logit[a])) broken |= 1u << a;
        if (logit[a] > top[a]) {  // rare after the first tokens
          const float shrink = total[a] == 0 ? 0.0f : canonical::exponential(top[a] - logit[a], scale);
          top[a] = logit[a];
          total[a] *= shrink;
#pragma unroll
          for (unsigned i = 0; i < Dims; ++i) sum[a][i] *= shrink;
        }
        logit[a] = canonical::exponential(logit[a] - top[a], scale);
        total[a] += logit[a];
      }
#pragma unroll
      for (unsigned i = 0; i < Dims; ++i) {
        const float x = value[i];
#pragma unroll
        for (unsigned a = 0; a < Queries; ++a) sum[a][i] = fmaf(logit[a], x, sum[a][i]);
      }
    }
    key = next_key;
    value = next_value;
  }

  __shared__ float reader_top[readers], reader_total[readers], reader_sum[readers][Lanes * Dims];
#pragma unroll
  for (unsigned a = 0; a < Queries; ++a) {
    if (a >= queries) break;
    __syncthreads();
    if (threadIdx.x % Lanes == 0) {
      reader_top[reader] = top[a];
      reader_total[reader] = (broken >> a & 1u) != 0 ? nan : total[a];
    }
#pragma unroll
    for (unsigned i = 0; i < Dims; ++i) reader_sum[reader][row_part::index(i)] = sum[a][i];
    __syncthreads();
    float highest = lowest, of_all = 0;
#pragma unroll
    for (unsigned r = 0; r < readers; ++r) highest = canonical::max(reader_top[r], highest);
    const std::size_t part = std::size_t{blockIdx.x} * hq + q0 + a;
    constexpr unsigned own = (Lanes * Dims + Warps * 32 - 1) / (Warps * 32);
    float x[own] = {};
#pragma unroll
    for (unsigned r = 0; r < readers; ++r) {
      const float of_reader = reader_total[r], shrink = of_reader == 0 ? 0.0f : canonical::exponential(reader_top[r] - highest, scale);
      of_all += of_reader == 0 ? 0.0f : of_reader * shrink;
#pragma unroll
      for (unsigned k = 0; k < own; ++k) {
        const unsigned i = k * Warps * 32 + threadIdx.x;
        if (i < d) x[k] += shrink * reader_sum[r][i];
      }
    }
#pragma unroll
    for (unsigned k = 0; k < own; ++k) {
      const unsigned i = k * Warps * 32 + threadIdx.x;
      if (i < parts.pitch) parts.row(part)[i] = x[k];
    }
    if (threadIdx.x == 0) {
      parts.tops[part] = highest * scale.scale;
      parts.totals[part] = of_all;
    }
  }
}

}  // namespace detail

template <>
struct kernel<op::attention, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::attention::sizes& sizes) { return detail::attention_device_scratch_bytes(sizes); }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store, const token_set<space::device>& tokens,
                  view<float, 2, space::device> out, view<float, 1, space::device> lse, float scale) {
    run_into(policy, query, store, tokens, scale, detail::stored_output{out, lse});
  }
  template <class P, class Store, class Output>
  static void run_into(const P& policy, view<const float, 2, space::device> query, const Store& store,
                       const token_set<space::device>& tokens, float scale, const Output& output) {
    static_assert(std::is_trivially_copyable_v<Store>, "pqkv: a kv_store goes into kernels by value; make it trivially copyable");
    const detail::launcher launch(policy, "attention");
    const std::size_t hq = query.extent(0), d = store.head_dim(), splits = detail::attention_splits(tokens, hq);
    arena memory = detail::device_scratch(policy.scratch, scratch_bytes({.query_heads = hq, .head_dim = d}), "attention");
    const detail::attention_partials parts(memory, splits, hq, d);
    const std::size_t lists = tokens.spans.extent(0);
    detail::attention_shape shape{0, 1, canonical::softmax_scale::of(d, scale),
                                  splits > detail::attention_device_short_splits(hq) ? detail::least_part : 0};
    if (lists != 0) shape.g = static_cast<unsigned>(hq / lists), shape.lists_per_head = static_cast<unsigned>(lists / store.heads());
    if constexpr (sizeof(typename Store::value_type) <= 2)
      by_tile(launch, query, store, tokens, parts, shape, splits);
    else if (shape.g <= 4)
      by_dims<4>(launch, query, store, tokens, parts, shape, splits);
    else
      by_dims<8>(launch, query, store, tokens, parts, shape, splits);
    const auto merge = [&]<unsigned Runs>(std::integral_constant<unsigned, Runs>) {
      const auto merged = detail::merge_kernel<Runs, Output>;
      launch("merge_kernel", merged,
             {.grid = dim3(static_cast<unsigned>(hq)), .threads = detail::merge_warps * 32, .early = launch.is_built_for_hopper(merged)},
             parts, static_cast<unsigned>(splits), output);
    };
    if (d > detail::merged_run)
      merge(std::integral_constant<unsigned, 2>{});
    else
      merge(std::integral_constant<unsigned, 1>{});
  }

 private:
  static dim3 grid_of(const token_set<space::device>& tokens, const detail::attention_shape& shape, std::size_t splits, unsigned queries) {
    return {static_cast<unsigned>(splits), static_cast<unsigned>(tokens.spans.extent(0)), detail::ceil_div(shape.g, queries)};
  }
  template <class Store>
  static void by_tile(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                      const token_set<space::device>& tokens, const detail::attention_partials& parts, const detail::attention_shape& shape,
                      std::size_t splits) {
    const auto go = [&]<unsigned Dims>(std::integral_constant<unsigned, Dims>) {
      constexpr unsigned warps = 512 / Dims;  // 96 KB of rings at most, which a CTA may have on every device
      using warp_part = detail::block::attention_warp<typename Store::value_type, Dims>;
      const auto kernel = detail::attention_tile_kernel<Dims, warps, Store>;
      launch("attention_tile_kernel", kernel,
             {.grid = grid_of(tokens, shape, splits, warp_part::queries),
              .threads = warps * 32,
              .shared_bytes = warps * warp_part::ring_bytes,
              .early = launch.is_built_for_hopper(kernel)},
             query, store, tokens, parts, shape);
    };
    if (parts.d <= 64)
      go(std::integral_constant<unsigned, 64>{});
    else if (parts.d <= 128)
      go(std::integral_constant<unsigned, 128>{});
    else
      go(std::integral_constant<unsigned, 256>{});
  }

  template <unsigned Queries, class Store>
  static void by_dims(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                      const token_set<space::device>& tokens, const detail::attention_partials& parts, const detail::attention_shape& shape,
                      std::size_t splits) {
    constexpr unsigned dims = Queries > 4 ? 8 : 16;  // elements of a lane: as many as fit in registers for all query heads
    if (parts.d <= 64)
      go<Queries, 8, 8>(launch, query, store, tokens, parts, shape, splits);
    else if (parts.d <= 128)
      go<Queries, 128 / dims, dims>(launch, query, store, tokens, parts, shape, splits);
    else
      go<Queries, 256 / dims, dims>(launch, query, store, tokens, parts, shape, splits);
  }
  template <unsigned Queries, unsigned Lanes, unsigned Dims, class Store>
  static void go(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                 const token_set<space::device>& tokens, const detail::attention_partials& parts, const detail::attention_shape& shape,
                 std::size_t splits) {
    constexpr unsigned warps = 4;
    const auto kernel = detail::attention_kernel<Queries, Lanes, Dims, warps, Store>;
    launch("attention_kernel", kernel,
           {.grid = grid_of(tokens, shape, splits, Queries), .threads = warps * 32, .early = launch.is_built_for_hopper(kernel)}, query,
           store, tokens, parts, shape);
  }
};

}  // namespace pqkv
