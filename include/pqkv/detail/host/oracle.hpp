// SPDX-License-Identifier: Apache-2.0
// Exact scores on the host. A task is one list; its query heads share each key.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../selector/oracle.hpp"
#include "simd/rows.hpp"
#include "top_k.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::exact_scores, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::exact_scores::sizes& sizes) {
    constexpr std::size_t most = static_cast<std::size_t>(-1);  // stands for more than can be counted
    const std::size_t row = sizes.tokens * sizeof(float) + cache_line_bytes;
    return sizes.query_heads <= most / row ? sizes.query_heads * row : most;
  }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 2> query, const Store& store, view<const middle_range, 1> ranges,
                  group_reduction reduction, view<float, 2> scores, float softmax_scale);

  // Shared with other selectors of the host that score keys.
  static constexpr float lowest = float_from_bits(0xff800000u);  // -infinity, which stands for a non-finite logit

  template <class Kernels, class Store>
  static void dots(view<const float, 2> query, const Store& store, std::size_t head, middle_range range, float* logits,
                   std::size_t stride) {
    const std::size_t d = store.head_dim();
    alignas(cache_line_bytes) float copy[2 * max_head_dim];
    for (std::size_t i = 0; i < range.size(); ++i) {
      const float* key = detail::load_row<Kernels>(store.key(head, range.begin + i), d, copy);
      for (std::size_t q = 0; q < query.extent(0); ++q) {
        float* logit = logits + q * stride + i;
        Kernels::group_dots(&query(q, 0), 1, key, d, logit, stride);
        if (!is_finite(*logit)) *logit = lowest;
      }
    }
  }

  /// Turns logits [g, n] into one score per token. A query head without a finite logit contributes nothing.
  template <class Kernels>
  static void reduce(float* logits, std::size_t stride, std::size_t g, std::size_t n, canonical::softmax_scale scale,
                     group_reduction reduction, float* scores) {
    const bool probabilities = reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
    const bool maximum = reduction == group_reduction::probability_max || reduction == group_reduction::logit_max;
    std::fill_n(scores, n, maximum ? lowest : 0.0f);
    for (std::size_t q = 0; q < g; ++q) {
      float* row = logits + q * stride;
      const float top = n == 0 ? lowest : *std::max_element(row, row + n);
      if (top == lowest) continue;
      if (probabilities) {
        for (std::size_t i = 0; i < n; ++i) row[i] -= top;
        Kernels::exponentials(row, n, scale, row);
        double total = 0;
        for (std::size_t i = 0; i < n; ++i) total += static_cast<double>(row[i]);
        for (std::size_t i = 0; i < n; ++i) row[i] = static_cast<float>(static_cast<double>(row[i]) / total);
      }
      for (std::size_t i = 0; i < n; ++i) scores[i] = maximum ? std::max(scores[i], row[i]) : scores[i] + row[i];
    }
  }
};

template <class P, class Store>
void kernel<op::exact_scores, backend::host>::run(const P& policy, view<const float, 2> query, const Store& store,
                                                  view<const middle_range, 1> ranges, group_reduction reduction, view<float, 2> scores,
                                                  float softmax_scale) {
  const std::size_t h = store.heads(), hq = query.extent(0), lists = scores.extent(0), g = hq / lists, lists_per_head = lists / h;
  std::size_t longest = 0;
  for (std::size_t head = 0; head < h; ++head) {
    longest = std::max<std::size_t>(longest, ranges(head).size());
    require_ok(detail::checks("exact_scores")
                   .at_most("ranges.end", ranges(head).end, store.tokens(), "n, from store")
                   .at_most("ranges.size", ranges(head).size(), scores.extent(1), "scores.extent(1)"));
  }
  workspace memory(policy.scratch, scratch_bytes({hq, longest}), "exact_scores");
  float* logits = memory.take<float>(hq * longest);
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    detail::run_tasks(policy, lists, [&](std::size_t list) {
      const std::size_t head = list / lists_per_head, n = ranges(head).size();
      float* own = logits + list * g * longest;
      dots<kernels>(query.slice(0, list * g, g), store, head, ranges(head), own, longest);
      const auto scale = canonical::softmax_scale::of(store.head_dim(), softmax_scale);
      reduce<kernels>(own, longest, g, n, scale, reduction, scores.data + list * scores.stride(0));
    });
  });
}

template <>
struct kernel<op::list_best, backend::host> {
  template <class P>
  static void run(const P& policy, view<const float, 2> scores, view<const middle_range, 1> ranges, view<std::int32_t, 2> indices,
                  view<std::uint32_t, 1> counts) {
    for (std::size_t list = 0; list < counts.extent(0); ++list) {
      const middle_range range = ranges(list / (counts.extent(0) / ranges.extent(0)));
      counts(list) = range.selected();
      if (counts(list) == 0) continue;
      const auto out = indices.slice(0, list, 1).slice(1, 0, counts(list));
      kernel<op::top_k, backend::host>::run(policy, scores.slice(0, list, 1).slice(1, 0, range.size()), out);
      for (std::size_t i = 0; i < counts(list); ++i) out(0, i) += static_cast<std::int32_t>(range.begin);
    }
  }
};

PQKV_HOST_OPERATION(op::exact_scores, view<const float, 2>, const strided_store<float>&, view<const middle_range, 1>, group_reduction,
                    view<float, 2>, float)
PQKV_HOST_OPERATION(op::exact_scores, view<const float, 2>, const mapped_store<strided_rows<float>>&, view<const middle_range, 1>,
                    group_reduction, view<float, 2>, float)
PQKV_HOST_OPERATION(op::exact_scores, view<const float, 2>, const mapped_store<strided_rows<bfloat16>>&, view<const middle_range, 1>,
                    group_reduction, view<float, 2>, float)

}  // namespace pqkv
