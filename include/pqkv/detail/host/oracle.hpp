// SPDX-License-Identifier: Apache-2.0
// Exact scores on the host: a task is one list; its query heads share each key.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../selector/oracle.hpp"
#include "simd/rows.hpp"

namespace pqkv {

template <>
struct kernel<op::exact_scores, backend::host> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<const float, 2> query, view<T, 3, Space> keys, view<const middle_range, 1> ranges,
                  group_reduction reduction, view<float, 2> scores) {
    const std::size_t h = keys.extent(0), hq = query.extent(0), lists = scores.extent(0), g = hq / lists, lists_per_head = lists / h;
    std::size_t longest = 0;
    for (std::size_t head = 0; head < h; ++head) {
      longest = std::max<std::size_t>(longest, ranges(head).size());
      require_ok(detail::checks("exact_scores")
                     .at_most("ranges.end", ranges(head).end, static_cast<double>(keys.extent(1)), "n, from keys, at most")
                     .at_most("ranges.size", ranges(head).size(), static_cast<double>(scores.extent(1)), "scores.extent(1), at most"));
    }
    workspace memory(policy.scratch, exact_scores_scratch_bytes(hq, longest), "exact_scores");
    float* logits = memory.take<float>(hq * longest);
    isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
      using leaf = detail::leaf<decltype(isa)>;
      policy.runner.run(lists, [&](std::size_t list) {
        const detail::float_environment rounding;
        const std::size_t head = list / lists_per_head, n = ranges(head).size();
        float* own = logits + list * g * longest;
        dots<leaf>(query.slice(0, list * g, g), keys, head, ranges(head), own, longest);
        reduce<leaf>(own, longest, g, n, keys.extent(2), reduction, scores.data + list * scores.stride(0));
      });
    });
  }

 private:
  static constexpr float lowest = float_from_bits(0xff800000u);  // -infinity: what a non-finite logit counts as

  template <class Leaf, class T, class Space>
  static void dots(view<const float, 2> query, view<T, 3, Space> keys, std::size_t head, middle_range range, float* logits,
                   std::size_t stride) {
    const std::size_t d = keys.extent(2);
    alignas(cache_line_bytes) float copy[max_head_dim];
    for (std::size_t i = 0; i < range.size(); ++i) {
      const float* key = detail::load_row<Leaf>(row_of(keys, head, range.begin + i), d, copy);
      for (std::size_t q = 0; q < query.extent(0); ++q) {
        float* logit = logits + q * stride + i;
        Leaf::group_dots(&query(q, 0), 1, key, d, logit, stride);
        if (!is_finite(*logit)) *logit = lowest;
      }
    }
  }

  /// Turns logits [g, n] into one score per token. A query head without a finite logit contributes nothing.
  template <class Leaf>
  static void reduce(float* logits, std::size_t stride, std::size_t g, std::size_t n, std::size_t d, group_reduction reduction,
                     float* scores) {
    const bool probabilities = reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
    const bool maximum = reduction == group_reduction::probability_max || reduction == group_reduction::logit_max;
    const auto scale = canonical::softmax_scale::of(d);
    std::fill_n(scores, n, maximum ? lowest : 0.0f);
    for (std::size_t q = 0; q < g; ++q) {
      float* row = logits + q * stride;
      const float top = n == 0 ? lowest : *std::max_element(row, row + n);
      if (top == lowest) continue;
      if (probabilities) {
        for (std::size_t i = 0; i < n; ++i) row[i] -= top;
        Leaf::exponentials(row, n, scale, row);
        double total = 0;
        for (std::size_t i = 0; i < n; ++i) total += static_cast<double>(row[i]);
        for (std::size_t i = 0; i < n; ++i) row[i] = static_cast<float>(static_cast<double>(row[i]) / total);
      }
      for (std::size_t i = 0; i < n; ++i) scores[i] = maximum ? std::max(scores[i], row[i]) : scores[i] + row[i];
    }
  }
};

}  // namespace pqkv
