// SPDX-License-Identifier: Apache-2.0
// Exact selection on the device: the logits of every key, what they add up to, and the best of each range. Logits of all query heads go to
// scratch, since a probability is known only when all of them are.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../selector/oracle.hpp"
#include "attention.cuh"
#include "retrieve.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

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
      total *= exp2f((top - logit) * scale);  // 0 at first
      top = logit;
    }
    if (is_finite(logit)) total += exp2f((logit - top) * scale);
  }
  __device__ void add(const float2& other, float scale) {
    if (!is_finite(other.x)) return;
    if (other.x > top) {
      total *= exp2f((top - other.x) * scale);
      top = other.x;
    }
    total += other.y * exp2f((other.x - top) * scale);
  }
};

/// grid.x: parts of the tokens; grid.y: lists; grid.z: groups of up to Queries of a list's query heads. Lanes lanes read a key. Not
/// PQKV_HIDDEN: an engine's store may be a type without linkage.
template <unsigned Queries, unsigned Lanes, class Store>
__global__ void __launch_bounds__(256) exact_logits_kernel(view<const float, 2, space::device> query, Store store, exact_call call) {
  using row_part = scored_row<Lanes, typename Store::value_type>;
  constexpr unsigned readers = 256 / Lanes;  // keys at once
  static_assert(Queries <= Lanes);
  const unsigned list = blockIdx.y, first = list * call.g + blockIdx.z * Queries, left = call.g - blockIdx.z * Queries,
                 queries = left < Queries ? left : Queries, d = static_cast<unsigned>(store.head_dim()), lane = threadIdx.x % Lanes,
                 reader = threadIdx.x / Lanes;
  const auto& rows = mapped(store);
  const std::size_t head = mapped_head(store, call.head_of(list));
  const middle_range range = call.range(list, store.tokens());
  const std::uint32_t share = (range.size() + call.parts - 1) / call.parts, begin = range.begin + share * blockIdx.x,
                      end = range.end < begin + share ? range.end : begin + share;
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
      out[t - range.begin] = own;
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

/// grid.x: CTAs that share a list's tokens; grid.y: lists. Dynamic shared memory: float2 for each query head of a list.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    exact_reduction_kernel(exact_call call, std::size_t tokens, view<float, 2, space::device> scores) {
  float2* of_head = block::shared_memory().take<float2>(call.g);  // the largest logit; 1 / the sum of exponentials
  const unsigned list = blockIdx.y, first = list * call.g;
  for (unsigned q = threadIdx.x / 32; q < call.g; q += Threads / 32) {
    running_sum sum;
    for (unsigned part = threadIdx.x % 32; part < call.parts; part += 32) sum.add(call.sums[(first + q) * call.parts + part], call.scale);
    for (int step = 16; step > 0; step /= 2) {
      const float top = __shfl_xor_sync(block::all_lanes, sum.top, step), total = __shfl_xor_sync(block::all_lanes, sum.total, step);
      sum.add(float2{top, total}, call.scale);
    }
    if (threadIdx.x % 32 == 0) of_head[q] = {sum.top, 1 / sum.total};
  }
  __syncthreads();
  const bool weighs = block::uses_probabilities(call.reduction),
             is_maximum = call.reduction == group_reduction::probability_max || call.reduction == group_reduction::logit_max;
  const std::uint32_t n = call.range(list, tokens).size();
  for (std::uint32_t i = blockIdx.x * Threads + threadIdx.x; i < n; i += gridDim.x * Threads) {
    float score = is_maximum ? float_from_bits(0xff800000u) : 0.0f;
    for (unsigned q = 0; q < call.g; ++q) {
      const float2 of = of_head[q];
      if (!is_finite(of.x)) continue;  // no finite logit
      const float logit = call.logits[(first + q) * call.columns + i], x = weighs ? exp2f((logit - of.x) * call.scale) * of.y : logit;
      score = is_maximum ? (x > score ? x : score) : score + x;
    }
    scores(list, i) = score;
  }
}

}  // namespace detail

template <>
struct kernel<op::exact_scores, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::exact_scores::sizes& sizes) {
    return detail::exact_scores_device_scratch_bytes(sizes);
  }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store,
                  view<const middle_range, 1, space::device> ranges, group_reduction reduction, view<float, 2, space::device> scores,
                  float softmax_scale) {
    static_assert(std::is_trivially_copyable_v<Store>, "pqkv: a kv_store goes into kernels by value; make it trivially copyable");
    const std::size_t hq = query.extent(0), d = store.head_dim(), lists = scores.extent(0),
                      columns = std::min(scores.extent(1), store.tokens());
    require_ok(detail::checks("exact_scores").at_most("store.head_dim", d, max_head_dim, "d on a device"));
    if (lists == 0) return;
    const std::size_t parts = detail::exact_scores_device_parts(lists);
    arena memory = detail::device_scratch(policy.scratch, scratch_bytes({hq, columns}), "exact_scores");
    float* const logits = memory.take<float>(hq * columns);
    const detail::exact_call call{ranges,
                                  reduction,
                                  static_cast<unsigned>(hq / lists),
                                  static_cast<unsigned>(lists / store.heads()),
                                  static_cast<unsigned>(parts),
                                  canonical::softmax_scale::of(d, softmax_scale).scale,
                                  logits,
                                  columns,
                                  memory.take<float2>(hq * parts)};
    const detail::launcher launch(policy, "exact_scores");
    if (d <= 64)
      score_keys<8>(launch, query, store, call, lists);
    else if (d <= 128)
      score_keys<16>(launch, query, store, call, lists);
    else
      score_keys<32>(launch, query, store, call, lists);
    launch("exact_reduction_kernel", detail::exact_reduction_kernel<256>,
           {dim3(static_cast<unsigned>(parts), static_cast<unsigned>(lists)), 256, detail::block::shared_memory::bytes<float2>(call.g)},
           call, store.tokens(), scores);
  }

 private:
  template <unsigned Lanes, class Store>
  static void score_keys(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                         const detail::exact_call& call, std::size_t lists) {
    constexpr unsigned queries = 4;
    launch("exact_logits_kernel", detail::exact_logits_kernel<queries, Lanes, Store>,
           {dim3(call.parts, static_cast<unsigned>(lists), (call.g + queries - 1) / queries), 256}, query, store, call);
  }
};

template <>
struct kernel<op::list_best, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> scores, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts) {
    constexpr unsigned threads = detail::tuning::select_threads;
    const std::size_t lists = scores.extent(0), n = scores.extent(1), h = ranges.extent(0);
    if (lists == 0) return;
    // A call without table or codes: its items are the tokens of the ranges.
    const auto table = make_view<space::device>(static_cast<const float*>(nullptr), lists, std::size_t{1}, std::size_t{1});
    const auto codes = make_view<space::device>(static_cast<const std::uint8_t*>(nullptr), h, std::size_t{1}, n);
    const group_reduction one_each = lists == h ? group_reduction::logit_sum : group_reduction::none;
    detail::block::scoring call({table, {}}, codes, one_each, 1);
    call.ranges = ranges;
    const detail::launcher launch(policy, "list_best");
    const unsigned cluster = n > 4096 ? launch.largest_cluster(detail::select_kernel<threads>) : 1;
    const std::size_t cached = std::min<std::size_t>(n / cluster + 32, detail::tuning::select_cached_keys);
    launch("select_kernel", detail::select_kernel<threads>,
           {dim3(cluster, static_cast<unsigned>(lists)), threads, cached * sizeof(std::uint32_t), cluster}, call,
           detail::retrieved_lists{indices, counts}, scores, static_cast<detail::block::threshold*>(nullptr),
           static_cast<unsigned>(cached));
  }
};

}  // namespace pqkv
