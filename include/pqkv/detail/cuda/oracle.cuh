// SPDX-License-Identifier: Apache-2.0
// Exact selection on the device: the logits of every key, what they add up to, and the best of each range. Logits of all query heads go to
// scratch, since a probability is known only when all of them are.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../selector/oracle.hpp"
#include "oracle_logits.cuh"
#include "oracle_select.cuh"
#include "retrieve.cuh"

namespace pqkv::inline PQKV_MODE {

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
    constexpr bool is_16_bit = std::is_same_v<typename Store::value_type, half> || std::is_same_v<typename Store::value_type, bfloat16>;
    const std::size_t hq = query.extent(0), d = store.head_dim(), lists = scores.extent(0),
                      columns = std::min(scores.extent(1), store.tokens());
    require_ok(detail::checks("exact_scores").at_most("store.head_dim", d, max_head_dim, "d on a device"));
    if (lists == 0) return;
    const std::size_t parts = is_16_bit ? tile_parts(lists) : detail::exact_scores_device_parts(lists);
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
    if constexpr (is_16_bit) {
      if (call.g <= 4)
        multiply_keys<4>(launch, query, store, call, lists);
      else
        multiply_keys<8>(launch, query, store, call, lists);
    } else {
      score_keys(launch, query, store, call, lists);
    }
    reduce_logits(launch, call, store.tokens(), columns, scores);
  }

 private:
  template <unsigned Queries, class Store>
  static void multiply_keys(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                            const detail::exact_call& call, std::size_t lists) {
    by_dims(store.head_dim(), [&]<unsigned Dims>(std::integral_constant<unsigned, Dims>) {
      constexpr unsigned threads = 256;
      const auto kernel = detail::exact_tile_kernel<Queries, Dims, threads, Store>;
      launch("exact_tile_kernel", kernel,
             {.grid = grid_of(call, lists, Queries), .threads = threads, .early = launch.is_built_for_hopper(kernel)}, query, store, call);
    });
  }
  template <class Store>
  static void score_keys(const detail::launcher& launch, view<const float, 2, space::device> query, const Store& store,
                         const detail::exact_call& call, std::size_t lists) {
    constexpr unsigned queries = 4;
    by_dims(store.head_dim(), [&]<unsigned Dims>(std::integral_constant<unsigned, Dims>) {
      const auto kernel = detail::exact_logits_kernel<queries, Dims / 8, Store>;
      launch("exact_logits_kernel", kernel,
             {.grid = grid_of(call, lists, queries), .threads = 256, .early = launch.is_built_for_hopper(kernel)}, query, store, call);
    });
  }
  static void reduce_logits(const detail::launcher& launch, const detail::exact_call& call, std::size_t tokens, std::size_t columns,
                            view<float, 2, space::device> scores) {
    constexpr unsigned threads = 256, of_cta = threads * detail::exact_reduced_at_once;
    const auto kernel = detail::exact_reduction_kernel<threads>;
    launch("exact_reduction_kernel", kernel,
           {.grid = dim3(std::max(1u, detail::ceil_div(columns, of_cta)), static_cast<unsigned>(scores.extent(0))),
            .threads = threads,
            .shared_bytes = detail::block::shared_memory::bytes<detail::exact_head>(call.g),
            .early = launch.is_built_for_hopper(kernel)},
           call, tokens, scores);
  }
  /// As many parts as CTAs run at a time, two on a multiprocessor, or several times as many.
  static std::size_t tile_parts(std::size_t lists) {
    constexpr std::size_t at_a_time = 2 * detail::tuning::multiprocessors;
    const std::size_t parts = lists <= at_a_time / 8 ? at_a_time / lists : 4 * at_a_time / lists;
    return std::clamp<std::size_t>(parts, 1, detail::exact_scores_most_parts);
  }
  static dim3 grid_of(const detail::exact_call& call, std::size_t lists, unsigned queries) {
    return {call.parts, static_cast<unsigned>(lists), detail::ceil_div(call.g, queries)};
  }
  template <class Go>
  static void by_dims(std::size_t d, Go go) {
    if (d <= 64)
      go(std::integral_constant<unsigned, 64>{});
    else if (d <= 128)
      go(std::integral_constant<unsigned, 128>{});
    else
      go(std::integral_constant<unsigned, 256>{});
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
    const detail::launcher launch(policy, "list_best");
    const detail::retrieved_lists out{indices, counts};
    if (detail::bracket_shape<detail::tuning::bracket_threads>::takes(n) && list_by_brackets(launch, scores, ranges, out)) return;
    // A call without table or codes: its items are the tokens of the ranges.
    const auto table = make_view<space::device>(static_cast<const float*>(nullptr), lists, std::size_t{1}, std::size_t{1});
    const auto codes = make_view<space::device>(static_cast<const std::uint8_t*>(nullptr), h, std::size_t{1}, n);
    const group_reduction one_each = lists == h ? group_reduction::logit_sum : group_reduction::none;
    detail::block::scoring call({table, {}}, codes, one_each, 1);
    call.ranges = ranges;
    const unsigned cluster = n > 4096 ? launch.largest_cluster(detail::select_kernel<threads>) : 1;
    const std::size_t cached = std::min<std::size_t>(n / cluster + 32, detail::tuning::select_cached_keys);
    launch("select_kernel", detail::select_kernel<threads>,
           {dim3(cluster, static_cast<unsigned>(lists)), threads, cached * sizeof(std::uint32_t), cluster}, call, out, scores,
           static_cast<detail::block::threshold*>(nullptr), static_cast<unsigned>(cached));
  }

 private:
  /// @return whether the device has the shared memory
  static bool list_by_brackets(const detail::launcher& launch, view<const float, 2, space::device> scores,
                               view<const middle_range, 1, space::device> ranges, const detail::retrieved_lists& out) {
    constexpr unsigned threads = detail::tuning::bracket_threads;
    const auto kernel = detail::list_best_kernel<threads>;
    const unsigned most = launch.largest_cluster(kernel);
    const detail::bracket_shape<threads> shape(scores.extent(0), scores.extent(1), most);
    if (shape.shared_bytes() > launch.shared_limit(kernel)) return false;
    launch("list_best_kernel", kernel,
           {.grid = dim3(static_cast<unsigned>(scores.extent(0)) * shape.size),
            .threads = threads,
            .shared_bytes = shape.shared_bytes(),
            .cluster = shape.size,
            .early = most > 1},
           scores, ranges, out, shape);
    return true;
  }
};

}  // namespace pqkv
