// SPDX-License-Identifier: Apache-2.0
// Attention on the device: a CTA takes a part of a list's tokens for up to eight query heads, a warp four tokens at a time with a few
// dimensions in each lane; partial results merge in a second kernel. Agrees with the host within rounding.
// Source: online softmax: Milakov and Gimelshein 2018; splits over tokens: FlashDecoding.
#pragma once

#include "../../attention.hpp"
#include "../../core/canonical.hpp"
#include "arena.cuh"
#include "block/reduce.cuh"
#include "kernel.cuh"

namespace pqkv {
namespace detail {

/// Partial results [splits, hq] of attention: sum [d] of weights times values, top and total of the softmax; total NaN where a logit
/// was not finite, 0 without tokens.
struct attention_parts {
  float *sums, *tops, *totals;
  std::size_t hq, d;

  attention_parts(arena& memory, std::size_t splits, std::size_t query_heads, std::size_t head_dim) : hq(query_heads), d(head_dim) {
    sums = memory.take<float>(splits * hq * (d + 2));
    tops = sums + splits * hq * d;
    totals = tops + splits * hq;
  }
};

/// `Dims` elements of a row from 32 lanes, Dims each; zeros beyond d.
template <unsigned Dims, class T>
__device__ void load_lane(kv_row<T> row, unsigned d, float (&x)[Dims]) {
  struct alignas(Dims * sizeof(T) < 16 ? Dims * sizeof(T) : 16) pack {
    T element[Dims];
  };
  const unsigned first = threadIdx.x % 32 * Dims;
  const T* from = row.data + first * row.stride;
  if (row.stride == 1 && first + Dims <= d && reinterpret_cast<std::uintptr_t>(from) % alignof(pack) == 0) {
    const pack all = *reinterpret_cast<const pack*>(from);
#pragma unroll
    for (unsigned i = 0; i < Dims; ++i) x[i] = static_cast<float>(all.element[i]);
  } else {
#pragma unroll
    for (unsigned i = 0; i < Dims; ++i) x[i] = first + i < d ? static_cast<float>(from[i * row.stride]) : 0.0f;
  }
}

/// Splits are grid.x, groups of up to Queries query heads of a list grid.y. Not PQKV_HIDDEN: an engine's store may be a type without
/// linkage, and then nvcc warns of the attribute.
template <unsigned Queries, unsigned Dims, unsigned Warps, class Store>
__global__ void __launch_bounds__(Warps * 32)
    attention_kernel(view<const float, 2, space::device> query, Store store, token_set<space::device> tokens, attention_parts parts,
                     canonical::softmax_scale scale) {
  constexpr unsigned batch = 4;
  const float lowest = float_from_bits(0xff800000u), nan = float_from_bits(0x7fc00000u);
  const unsigned hq = static_cast<unsigned>(query.extent(0)), lists = static_cast<unsigned>(tokens.spans.extent(0)), g = hq / lists,
                 groups = (g + Queries - 1) / Queries, list = blockIdx.y / groups, q0 = list * g + blockIdx.y % groups * Queries,
                 queries = (list + 1) * g - q0 < Queries ? (list + 1) * g - q0 : Queries;
  const unsigned d = static_cast<unsigned>(store.head_dim()), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::size_t head = list / (lists / store.heads());
  const token_span span = tokens.spans(list);
  const std::uint32_t listed = tokens.indices.data != nullptr ? tokens.counts(list) : 0,
                      window = span.window_end > span.window_begin ? span.window_end - span.window_begin : 0,
                      all = span.leading + listed + window, share = (all + gridDim.x - 1) / gridDim.x,
                      begin = blockIdx.x * share < all ? blockIdx.x * share : all, end = all - begin < share ? all : begin + share;
  const auto token_at = [&](std::uint32_t i) -> std::size_t {
    if (i < span.leading) return i;
    i -= span.leading;
    if (i < listed) return static_cast<std::size_t>(tokens.indices(list, i));
    return span.window_begin + (i - listed);
  };

  float q[Queries][Dims], sum[Queries][Dims] = {}, top[Queries], total[Queries] = {};
  bool broken[Queries] = {};
#pragma unroll
  for (unsigned a = 0; a < Queries; ++a) {
    load_lane<Dims>(kv_row<float>{&query(q0 + (a < queries ? a : 0), 0), 1}, d, q[a]);
    top[a] = lowest;
  }
  for (std::uint32_t first = begin + warp * batch; first < end; first += Warps * batch) {
    float key[batch][Dims], value[batch][Dims], logit[batch][Queries];
#pragma unroll
    for (unsigned b = 0; b < batch; ++b) {
      const std::size_t t = token_at(first + b < end ? first + b : first);
      load_lane<Dims>(store.key(head, t), d, key[b]);
      load_lane<Dims>(store.value(head, t), d, value[b]);
    }
#pragma unroll
    for (unsigned b = 0; b < batch; ++b)
#pragma unroll
      for (unsigned a = 0; a < Queries; ++a) {
        float dot = 0;
#pragma unroll
        for (unsigned i = 0; i < Dims; ++i) dot = fmaf(q[a][i], key[b][i], dot);
        logit[b][a] = block::warp_sum(dot);
      }
#pragma unroll
    for (unsigned a = 0; a < Queries; ++a) {
      float highest = top[a];
#pragma unroll
      for (unsigned b = 0; b < batch; ++b) {
        if (first + b >= end) logit[b][a] = lowest;
        else if (!is_finite(logit[b][a])) broken[a] = true;
        highest = canonical::max(logit[b][a], highest);
      }
      if (broken[a]) continue;
      const float shrink = total[a] == 0 ? 0.0f : canonical::exponential(top[a] - highest, scale);
      top[a] = highest;
      total[a] *= shrink;
#pragma unroll
      for (unsigned i = 0; i < Dims; ++i) sum[a][i] *= shrink;
#pragma unroll
      for (unsigned b = 0; b < batch; ++b) {
        const float weight = canonical::exponential(logit[b][a] - highest, scale);
        total[a] += weight;
#pragma unroll
        for (unsigned i = 0; i < Dims; ++i) sum[a][i] = fmaf(weight, value[b][i], sum[a][i]);
      }
    }
  }

  __shared__ float warp_top[Warps], warp_total[Warps], warp_sum[Warps][32 * Dims];
#pragma unroll
  for (unsigned a = 0; a < Queries; ++a) {
    if (a >= queries) break;
    __syncthreads();
    if (lane == 0) {
      warp_top[warp] = top[a];
      warp_total[warp] = broken[a] ? nan : total[a];
    }
#pragma unroll
    for (unsigned i = 0; i < Dims; ++i) warp_sum[warp][lane * Dims + i] = sum[a][i];
    __syncthreads();
    float highest = lowest, of_all = 0, shrink[Warps];
    for (unsigned w = 0; w < Warps; ++w) highest = canonical::max(warp_top[w], highest);
    for (unsigned w = 0; w < Warps; ++w) {
      shrink[w] = warp_total[w] == 0 ? 0.0f : canonical::exponential(warp_top[w] - highest, scale);
      of_all += warp_total[w] == 0 ? 0.0f : warp_total[w] * shrink[w];
    }
    const std::size_t part = std::size_t{blockIdx.x} * hq + q0 + a;
    for (unsigned i = threadIdx.x; i < d; i += Warps * 32) {
      float x = 0;
      for (unsigned w = 0; w < Warps; ++w) x += shrink[w] * warp_sum[w][i];
      parts.sums[part * d + i] = x;
    }
    if (threadIdx.x == 0) {
      parts.tops[part] = highest;
      parts.totals[part] = of_all;
    }
  }
}

/// A CTA is a query head, a thread one or two dimensions.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    merge_kernel(attention_parts parts, unsigned splits, canonical::softmax_scale scale, double inverse_root,
                 view<float, 2, space::device> out, view<float, 1, space::device> lse) {
  const unsigned q = blockIdx.x;
  float highest = float_from_bits(0xff800000u), total = 0;
  bool broken = false;
  for (unsigned s = 0; s < splits; ++s) {
    const float of_part = parts.totals[s * parts.hq + q];
    broken |= !is_finite(of_part);
    if (of_part != 0) highest = canonical::max(parts.tops[s * parts.hq + q], highest);
  }
  for (unsigned s = 0; s < splits; ++s) {
    const float of_part = parts.totals[s * parts.hq + q];
    if (of_part != 0 && !broken) total += of_part * canonical::exponential(parts.tops[s * parts.hq + q] - highest, scale);
  }
  const float nan = float_from_bits(0x7fc00000u);
  for (std::size_t i = threadIdx.x; i < parts.d; i += Threads) {
    float x = 0;
    for (unsigned s = 0; s < splits && !broken; ++s)
      if (parts.totals[s * parts.hq + q] != 0)
        x = fmaf(canonical::exponential(parts.tops[s * parts.hq + q] - highest, scale), parts.sums[(s * parts.hq + q) * parts.d + i], x);
    out(q, i) = broken ? nan : total == 0 ? 0.0f : x / total;
  }
  if (threadIdx.x == 0 && lse.data != nullptr)
    lse(q) = broken ? nan
             : total == 0 ? float_from_bits(0xff800000u)
                          : static_cast<float>(static_cast<double>(highest) * inverse_root + log(static_cast<double>(total)));
}

}  // namespace detail

template <>
struct kernel<op::attention, backend::cuda> {
  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store, const token_set<space::device>& tokens,
                  view<float, 2, space::device> out, view<float, 1, space::device> lse) {
    static_assert(std::is_trivially_copyable_v<Store>, "pqkv: a kv_store goes into kernels by value; make it trivially copyable");
    const detail::launcher launch(policy, "attention");
    const std::size_t hq = query.extent(0), d = store.head_dim(), splits = attention_device_splits(hq);
    arena memory = detail::device_scratch(policy.scratch, attention_device_scratch_bytes(hq, d), "attention");
    const detail::attention_parts parts(memory, splits, hq, d);
    const std::size_t g = tokens.spans.extent(0) == 0 ? 1 : hq / tokens.spans.extent(0);
    if (g <= 4)
      by_dims<4>(launch, query, store, tokens, parts, splits);
    else
      by_dims<8>(launch, query, store, tokens, parts, splits);
    constexpr unsigned threads = 128;
    launch("merge_kernel", detail::merge_kernel<threads>, {dim3(static_cast<unsigned>(hq)), threads}, parts, static_cast<unsigned>(splits),
           canonical::softmax_scale::of(d), 1 / std::sqrt(static_cast<double>(d)), out, lse);
  }

 private:
  template <unsigned Queries, class Store>
  static void by_dims(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                      const token_set<space::device>& tokens, const detail::attention_parts& parts, std::size_t splits) {
    if (parts.d <= 64)
      go<Queries, 2>(launch, query, store, tokens, parts, splits);
    else if (parts.d <= 128)
      go<Queries, 4>(launch, query, store, tokens, parts, splits);
    else
      go<Queries, 8>(launch, query, store, tokens, parts, splits);
  }
  template <unsigned Queries, unsigned Dims, class Store>
  static void go(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                 const token_set<space::device>& tokens, const detail::attention_parts& parts, std::size_t splits) {
    constexpr unsigned warps = 4;
    const std::size_t lists = tokens.spans.extent(0), g = lists == 0 ? 0 : query.extent(0) / lists;
    const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(lists * ((g + Queries - 1) / Queries)));
    launch("attention_kernel", detail::attention_kernel<Queries, Dims, warps, Store>, {grid, warps * 32}, query, store, tokens, parts,
           canonical::softmax_scale::of(parts.d));
  }
};

}  // namespace pqkv
