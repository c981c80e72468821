// SPDX-License-Identifier: Apache-2.0
// The exact top-k of the middle, by scoring every key. No selector can do better at the same budget, so it is shown beside all of them. Not
// a method to decode with: it reads every key in every step.
#pragma once

#include "../exec/memory.hpp"
#include "../search/top_k.hpp"
#include "concept.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct exact_scores {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t query_heads = 0, tokens = 0;  // tokens of the longest range
  };
};
struct list_best {};  // run(policy, scores [lists, n], ranges [h], indices [lists, k_max], counts [lists]): the best of scores[list, i] of
                      // token ranges[h].begin + i, as many as the range selects; equal scores to the lower token
}  // namespace op

namespace detail {
/// Into how many parts a device cuts the tokens of a list.
/// @{
inline constexpr std::size_t exact_scores_most_parts = 512;
constexpr std::size_t exact_scores_device_parts(std::size_t lists) {
  const std::size_t parts = 2 * exact_scores_most_parts / (lists < 2 ? 2 : lists);
  return parts < 2 ? 2 : parts;
}
/// @}
constexpr std::size_t exact_scores_device_scratch_bytes(const op::exact_scores::sizes& s) {
  constexpr std::size_t most = static_cast<std::size_t>(-1);  // stands for more than can be counted
  const std::size_t row =
      s.tokens * sizeof(float) + exact_scores_most_parts * 2 * sizeof(float) + cache_line_bytes;  // logits; a sum and maximum of each part
  return s.query_heads <= most / row ? s.query_heads * row + 2 * cache_line_bytes : most;
}
}  // namespace detail

/// The checks of exact_scores().
template <class Query, class Store, class Ranges, class Scores>
constexpr status can_score_exactly(const Query& query, const Store& store, const Ranges& ranges, group_reduction reduction,
                                   const Scores& scores) noexcept {
  const std::size_t h = store.heads(), hq = query.extent(0);
  return detail::checks("exact_scores")
      .that(h > 0 && hq % h == 0, status::code::shape, "query.extent(0)", relation::multiple_of, "h", h, hq)
      .extent("query.extent(1)", query.extent(1), store.head_dim(), "d, from store")
      .extent("query.stride(1)", query.stride(1), 1, "last axis contiguous")
      .at_most("store.head_dim", store.head_dim(), 2 * max_head_dim, "d; selector::quest has rows of 2 d")
      .extent("ranges.extent(0)", ranges.extent(0), h, "h, from store")
      .extent("scores.extent(0)", scores.extent(0), score_lists(reduction, h, hq), "h, or hq under reduction none")
      .extent("scores.stride(1)", scores.stride(1), 1, "last axis contiguous");
}

/// scores[list, i] of token ranges[h].begin + i: the reduction of the exact logits or softmax probabilities of the group. A non-finite
/// logit counts as -infinity, so one bad key cannot hide the others. A query head without a finite logit contributes nothing.
///
/// @param query   [hq, d] float
/// @param store   keys of h heads; values are not used
/// @param ranges  [h] which tokens; `retrieve` is not used. On a device, where reading them would mean waiting, a range is cut to what
///                there is
/// @param scores  [h, at least the longest range] float ([hq, ...] under `none`), written
/// @param scale   of the logits in the softmax; 0: 1 / sqrt(d)
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small
/// @cost   reads every key of the ranges; scratch_bytes<op::exact_scores>(). Float arithmetic, not canonical: device and host agree within
///         rounding
template <exec::policy P, kv_store Store>
requires reachable_from<typename Store::space_type, P>
void exact_scores(const P& policy, view<const float, 2, typename P::space_type> query, const Store& store,
                  view<const middle_range, 1, typename P::space_type> ranges, group_reduction reduction,
                  view<float, 2, typename P::space_type> scores, float scale = 0) {
  require_ok(can_score_exactly(query, store, ranges, reduction, scores));
  detail::run_operation<op::exact_scores>(policy, query, store, ranges, reduction, scores, scale);
}

namespace selector {

/// Memory for a score of every token that a list may hold, and what the lists are made of: for selectors that score token by token.
template <class Space = space::host>
class token_scores {
 public:
  static constexpr std::size_t required_bytes(const cache_shape& shape, group_reduction reduction) {
    arena count;
    place(count, shape, reduction);
    return count.used_bytes();
  }
  /// @throws std::bad_alloc
  token_scores(const auto& policy, const cache_shape& shape, group_reduction reduction)
      : shape_(shape), reduction_(reduction), memory_(make_owner<std::byte>(policy, required_bytes(shape, reduction))) {}

  /// Lists of one token's queries.
  std::size_t lists() const { return score_lists(reduction_, shape_.kv_heads, shape_.query_heads); }
  /// [lists, capacity], to be written: column i is the token ranges(head).begin + i.
  view<float, 2, Space> rows(std::size_t lists) const {
    arena memory(memory_);
    return place(memory, shape_, reduction_).slice(0, 0, lists);
  }
  /// Lists the best tokens of every range.
  template <exec::policy P>
  void list_best(const P& policy, view<const middle_range, 1, Space> ranges, view<std::int32_t, 2, Space> indices,
                 view<std::uint32_t, 1, Space> counts) const {
    pqkv::detail::run_operation<op::list_best>(policy, as_const(rows(counts.extent(0))), ranges, indices, counts);
  }

 private:
  static constexpr view<float, 2, Space> place(arena& memory, const cache_shape& shape, group_reduction reduction) {
    const std::size_t lists = shape.queries_at_once() * score_lists(reduction, shape.kv_heads, shape.query_heads);
    const bool fits = lists <= static_cast<std::size_t>(-1) / 8 / shape.capacity;
    return make_view<Space>(memory.take<float>(fits ? lists * shape.capacity : static_cast<std::size_t>(-1)), lists, shape.capacity);
  }

  cache_shape shape_;
  group_reduction reduction_;
  owner<std::byte, Space> memory_;
};

/// The settings of basic_oracle.
struct oracle_params {
  group_reduction reduction = group_reduction::probability_sum;
};

/// Ranks by the exact scores of all keys, for comparison with other selectors.
///
/// @tparam Space  where the scores are. On a device, heads of up to max_head_dim
template <class Space = space::host>
class basic_oracle : public defaults {
 public:
  using params = oracle_params;

  static constexpr status can_construct(const cache_shape&, const params&) noexcept { return {}; }
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params& settings) {
    return token_scores<Space>::required_bytes(shape, settings.reduction);
  }
  template <exec::policy P>
  static constexpr std::size_t scratch_bytes(const P& policy, const cache_shape& shape, const params&) {
    return pqkv::scratch_bytes<op::exact_scores>(policy, {shape.queries_at_once() * shape.query_heads, shape.capacity});
  }
  basic_oracle(const auto& policy, const cache_shape& shape, const params& settings)
      : shape_(shape), params_(settings), scores_(policy, shape, settings.reduction) {}

  std::size_t lists() const { return scores_.lists(); }
  /// Reads every key of the middle.
  struct key_traffic {
    std::uint64_t token_bytes;  // of all KV heads
    PQKV_HD constexpr traffic operator()(const middle_range& middle) const { return {0, std::uint64_t{middle.size()} * token_bytes}; }
  };
  key_traffic traffic_of(std::size_t element_bytes) const { return {shape_.kv_heads * shape_.head_dim * element_bytes}; }

  template <exec::policy P, kv_store Rows>
  void select(const P& policy, view<const float, 2, Space> query, const Rows& rows, const head_map<Space>& map,
              view<const middle_range, 1, Space> ranges, view<std::int32_t, 2, Space> indices, view<std::uint32_t, 1, Space> counts) {
    exact_scores(policy, query, mapped_store<Rows>{rows, map, ranges.extent(0)}, ranges, params_.reduction, scores_.rows(counts.extent(0)),
                 shape_.softmax_scale);
    scores_.list_best(policy, ranges, indices, counts);
  }

 private:
  cache_shape shape_;
  params params_;
  token_scores<Space> scores_;
};

/// The selector in host memory.
using oracle = basic_oracle<>;

}  // namespace selector
}  // namespace pqkv
