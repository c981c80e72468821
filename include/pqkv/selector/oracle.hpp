// SPDX-License-Identifier: Apache-2.0
// The exact top-k of the middle, by scoring every key: the ceiling for any selector at a budget, shown beside all of them. Not a
// method to decode with: it reads every key in every step.
#pragma once

#include "../core/buffer.hpp"
#include "../search/top_k.hpp"
#include "concept.hpp"

namespace pqkv {
namespace op {
struct exact_scores {};
}  // namespace op

/// The checks of exact_scores().
template <class Query, class Keys, class Ranges, class Scores>
constexpr status can_score_exactly(const Query& query, const Keys& keys, const Ranges& ranges, group_reduction reduction,
                                   const Scores& scores) noexcept {
  const std::size_t h = keys.extent(0), hq = query.extent(0);
  return detail::checks("exact_scores")
      .that(h > 0 && hq % h == 0, status::code::shape, "query.extent(0)", "hq, a multiple of h", static_cast<double>(h),
            static_cast<double>(hq))
      .extent("query.extent(1)", query.extent(1), keys.extent(2), "d, from keys")
      .extent("query.stride(1)", query.stride(1), 1, "last axis contiguous")
      .at_most("keys.extent(2)", static_cast<double>(keys.extent(2)), max_head_dim, "d, at most")
      .extent("ranges.extent(0)", ranges.extent(0), h, "h, from keys")
      .extent("scores.extent(0)", scores.extent(0), score_lists(reduction, h, hq), "h, or hq under reduction none")
      .extent("scores.stride(1)", scores.stride(1), 1, "last axis contiguous");
}

/// Scratch bytes of exact_scores() on the host policy, ranges of up to `tokens`.
constexpr std::size_t exact_scores_scratch_bytes(std::size_t query_heads, std::size_t tokens) {
  return query_heads * (tokens * sizeof(float) + cache_line_bytes);
}

/// scores[list, i] of token ranges[h].begin + i: the reduction of the exact logits or softmax probabilities of the group.
///
/// @param query   [hq, d] float
/// @param keys    [h, n, d] float, half or bfloat16, any strides
/// @param ranges  [h] which tokens; `retrieve` is not looked at
/// @param scores  [h, at least the longest range] float ([hq, ...] under `none`), written
/// A non-finite logit counts as -infinity, so one bad key cannot hide the others; a query head with none finite contributes nothing.
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small
/// @cost   reads every key of the ranges; exact_scores_scratch_bytes(). Float arithmetic, not canonical
template <exec::policy P, class T, class Space>
  requires storage_scalar<T> && reachable_from<Space, P>
void exact_scores(const P& policy, view<const float, 2, typename P::space_type> query, view<T, 3, Space> keys,
                  view<const middle_range, 1, typename P::space_type> ranges, group_reduction reduction,
                  view<float, 2, typename P::space_type> scores) {
  require_ok(can_score_exactly(query, keys, ranges, reduction, scores));
  kernel<op::exact_scores, typename P::backend_type>::run(policy, query, keys, ranges, reduction, scores);
}

namespace selector {

/// Ranks by the exact scores of all keys: what every other selector is measured against.
class oracle {
 public:
  /// What can be set.
  struct params {
    group_reduction reduction = group_reduction::probability_sum;
  };

  static constexpr status can_construct(const cache_shape&, const params&) noexcept { return {}; }
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params& settings) {
    return shape.batch * score_lists(settings.reduction, shape.kv_heads, shape.query_heads) * shape.capacity * sizeof(float);
  }
  static constexpr std::size_t scratch_bytes(const cache_shape& shape, const params&) {
    return exact_scores_scratch_bytes(shape.batch * shape.query_heads, shape.capacity);
  }
  oracle(const cache_shape& shape, const params& settings)
      : shape_(shape),
        params_(settings),
        lists_(score_lists(settings.reduction, shape.kv_heads, shape.query_heads)),
        scores_(shape.batch * lists_ * shape.capacity) {}

  std::size_t lists() const { return lists_; }
  coverage covers(std::size_t) const { return coverage::listed; }
  traffic step_traffic(middle_range middle, std::size_t element_bytes) const {
    return {0, std::uint64_t{middle.size()} * shape_.kv_heads * shape_.head_dim * element_bytes};
  }

  void observe_prefill(const auto&, std::size_t, const auto&, middle_range) {}
  void append(const auto&, std::size_t, const auto&, std::size_t, std::size_t) {}
  void fork(const auto&, std::size_t, std::size_t, std::size_t) {}
  void reset(std::size_t) {}
  void maintain(const auto&, std::size_t, const auto&, middle_range) {}

  template <exec::policy P, class T>
  void select(const P& policy, view<const float, 2> query, view<T, 3> keys, view<const middle_range, 1> ranges,
              view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts) {
    const auto scores = make_view(scores_.data(), shape_.batch * lists_, shape_.capacity);
    exact_scores(policy, query, keys, ranges, params_.reduction, scores);
    const std::size_t lists_per_head = lists_ / shape_.kv_heads;
    for (std::size_t list = 0; list < scores.extent(0); ++list) {
      const middle_range range = ranges(list / lists_per_head);
      counts(list) = range.selected();
      if (counts(list) == 0) continue;
      const auto out = indices.slice(0, list, 1).slice(1, 0, counts(list));
      top_k(policy, scores.slice(0, list, 1).slice(1, 0, range.size()), out);
      for (std::size_t i = 0; i < counts(list); ++i) out(0, i) += static_cast<std::int32_t>(range.begin);
    }
  }

 private:
  cache_shape shape_;
  params params_;
  std::size_t lists_;
  buffer<float> scores_;
};

}  // namespace selector
}  // namespace pqkv
