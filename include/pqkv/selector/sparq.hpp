// SPDX-License-Identifier: Apache-2.0
// Selection by a few coordinates of the query, as SparQ attention does it. The r coordinates in which a group's queries are largest are
// read of every key; the inner products over them stand for the exact ones. For comparison with other selectors, in host memory only: no
// CUDA kernel, and its arithmetic is not canonical.
//
// Where this differs from the paper:
// - The paper adds the mean value to the output, weighted by the probability of all tokens that were not taken. A selector lists tokens
//   and does not own the output, so there is no such term.
// - Probabilities are taken over the middle, as for the other selectors; the paper takes them over all tokens.
// - The paper stores the keys a second time, by coordinate, so that only the chosen coordinates travel. There is no second copy here.
//   traffic_of() counts the chosen coordinates, which is what such a copy would cost. Read out of rows of keys, they bring whole cache
//   lines with them: up to all of a row. So it saves no time here, and is compared by what it finds.
// Source: Ribar, Chelombiev, Hudlass-Galley, Blake, Luschi, Orr, "SparQ Attention: Bandwidth-efficient LLM inference", ICML 2024.
#pragma once

#include <optional>

#include "../exec/memory.hpp"
#include "concept.hpp"
#include "oracle.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct sparse_query_scores {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t query_heads = 0, tokens = 0, head_dim = 0;  // tokens of the longest range
  };
};
}  // namespace op

/// The checks of sparse_query_scores().
template <class Query, class Store, class Ranges, class Scores>
constexpr status can_score_sparsely(const Query& query, const Store& store, const Ranges& ranges, std::size_t coordinates,
                                    group_reduction reduction, const Scores& scores) noexcept {
  const std::size_t h = store.heads(), hq = query.extent(0);
  return detail::checks("sparse_query_scores")
      .that(h > 0 && hq % h == 0, status::code::shape, "query.extent(0)", relation::multiple_of, "h", h, hq)
      .extent("query.extent(1)", query.extent(1), store.head_dim(), "d, from store")
      .extent("query.stride(1)", query.stride(1), 1, "last axis contiguous")
      .at_most("store.head_dim", store.head_dim(), max_head_dim, "d")
      .at_least("coordinates", coordinates, 1, "r")
      .at_most("coordinates", coordinates, store.head_dim(), "d, from store")
      .extent("ranges.extent(0)", ranges.extent(0), h, "h, from store")
      .extent("scores.extent(0)", scores.extent(0), score_lists(reduction, h, hq), "h, or hq under reduction none")
      .extent("scores.stride(1)", scores.stride(1), 1, "last axis contiguous");
}

/// scores[list, i] of token ranges[h].begin + i: as exact_scores(), from r coordinates of each key.
///
/// R = the r coordinates i with the largest sum over the list's query heads of |q_i|; ties to the lower coordinate
/// logit = sum over i in R of q_i key_i, times sqrt(sum over all i of |q_i| / sum over i in R of |q_i|)
///
/// The softmax's scale times that root is 1 over the paper's temperature. With r = d the scores are those of exact_scores() to the bit.
/// @param query        [hq, d] float
/// @param store        keys of h heads; values are not used
/// @param ranges       [h] which tokens; `retrieve` is not used
/// @param coordinates  r, 1 to d
/// @param scores       [h, at least the longest range] float ([hq, ...] under `none`), written
/// @param scale        of the logits in the softmax; 0: 1 / sqrt(d)
/// A query head with an infinity or a NaN takes no part in the choice of coordinates and contributes nothing. A non-finite logit counts as
/// -infinity; a key's infinity or NaN outside the chosen coordinates is not seen.
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small
/// @cost   reads r coordinates of every key of the ranges; scratch_bytes<op::sparse_query_scores>(). Float arithmetic, not canonical
template <exec::policy P, kv_store Store>
requires reachable_from<typename Store::space_type, P>
void sparse_query_scores(const P& policy, view<const float, 2, typename P::space_type> query, const Store& store,
                         view<const middle_range, 1, typename P::space_type> ranges, std::size_t coordinates, group_reduction reduction,
                         view<float, 2, typename P::space_type> scores, float scale = 0) {
  require_ok(can_score_sparsely(query, store, ranges, coordinates, reduction, scores));
  detail::run_operation<op::sparse_query_scores>(policy, query, store, ranges, coordinates, reduction, scores, scale);
}

namespace selector {

/// Ranks by inner products over the coordinates in which the queries are largest. It keeps nothing of a slot.
class sparq : public defaults {
 public:
  /// Its settings.
  struct params {
    double share = 0.25;                       // of a key's coordinates that are read: 16 of 64, as in the paper
    std::optional<std::size_t> coordinates{};  // r, in place of the share
    /// How a group's probabilities become one score of a token. The paper adds them up. `none` gives each query head a list, and
    /// coordinates, of its own.
    group_reduction reduction = group_reduction::probability_sum;

    /// r for heads of d coordinates: the share to the nearest whole number, at least 1.
    constexpr std::size_t coordinates_of(std::size_t d) const {
      const auto nearest = static_cast<std::size_t>(share * static_cast<double>(d) + 0.5);
      return coordinates.value_or(nearest < 1 ? 1 : nearest);
    }
  };

  static constexpr status can_construct(const cache_shape& shape, const params& settings) noexcept {
    return pqkv::detail::checks("pqcache")
        .that(settings.share > 0 && settings.share <= 1, status::code::value, "selector.share", relation::stated, "above 0 and at most 1",
              0.25, settings.share)
        .at_least("selector.coordinates", settings.coordinates.value_or(1), 1, "r")
        .at_most("selector.coordinates", settings.coordinates.value_or(1), shape.head_dim, "d");
  }
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params& settings) {
    return token_scores<>::required_bytes(shape, settings.reduction);
  }
  template <exec::policy P>
  static constexpr std::size_t scratch_bytes(const P& policy, const cache_shape& shape, const params&) {
    return pqkv::scratch_bytes<op::sparse_query_scores>(policy,
                                                        {shape.queries_at_once() * shape.query_heads, shape.capacity, shape.head_dim});
  }
  /// @throws std::bad_alloc
  /// @pre can_construct(shape, settings)
  sparq(const auto& policy, const cache_shape& shape, const params& settings)
      : shape_(shape), params_(settings), scores_(policy, shape, settings.reduction) {}

  std::size_t lists() const { return scores_.lists(); }
  /// Counts the chosen coordinates of every key of the middle, with the scale of each row of 8-bit integers. Lists of the same KV head
  /// choose for themselves under `none`; what they read is counted once for each, up to whole keys.
  oracle::key_traffic traffic_of(std::size_t element_bytes) const {
    const std::size_t of_lists = lists() / shape_.kv_heads * params_.coordinates_of(shape_.head_dim);
    const std::size_t scale_bytes = element_bytes == sizeof(scaled_int8) ? sizeof(float) : 0;
    return {shape_.kv_heads * ((of_lists < shape_.head_dim ? of_lists : shape_.head_dim) * element_bytes + scale_bytes)};
  }

  template <exec::policy P, kv_store Rows>
  void select(const P& policy, view<const float, 2> query, const Rows& rows, const head_map<>& map, view<const middle_range, 1> ranges,
              view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts) {
    sparse_query_scores(policy, query, mapped_store<Rows>{rows, map, ranges.extent(0)}, ranges, params_.coordinates_of(shape_.head_dim),
                        params_.reduction, scores_.rows(counts.extent(0)), shape_.softmax_scale);
    scores_.list_best(policy, ranges, indices, counts);
  }

 private:
  cache_shape shape_;
  params params_;
  token_scores<> scores_;
};

}  // namespace selector
}  // namespace pqkv
