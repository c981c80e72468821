// SPDX-License-Identifier: Apache-2.0
// The softmax sums of tokens that a query attends to in any case: sinks and window. With them, retrieve() can normalise a query head's
// probabilities over all tokens instead of over the middle alone. A head whose attention goes to sinks and window then has less say in what
// its group retrieves. Canonical, like everything that decides which tokens are selected.
#pragma once

#include <cstddef>

#include "../cache/kv_store.hpp"
#include "../cache/token_set.hpp"
#include "../core/error.hpp"
#include "../exec/kernel.hpp"
#include "../quantize/shape.hpp"
#include "../search/scan.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct sum_attended {
  static constexpr std::size_t tile_tokens = 64;  // tokens whose weights are relative to one logit. The bits depend on it
};
}  // namespace op

/// The checks of sum_attended().
/// @param ranges  how many ranges there are; 0: none
template <class Query, class Store, class Spans, class Sums>
constexpr status can_sum_attended(const Query& query, const Store& store, const Spans& spans, const Sums& sums,
                                  std::size_t ranges = 0) noexcept {
  const std::size_t h = store.heads(), hq = query.extent(0), lists = spans.extent(0);
  return detail::checks("sum_attended")
      .that(h > 0 && hq % h == 0, status::code::shape, "query.extent(0)", relation::multiple_of, "h", h, hq)
      .extent("query.extent(1)", query.extent(1), store.head_dim(), "d, from store")
      .extent("query.stride(1)", query.stride(1), 1, "last axis contiguous")
      .at_most("store.head_dim", store.head_dim(), max_head_dim, "d")
      .that(lists > 0 && lists % h == 0 && hq % lists == 0, status::code::shape, "spans.extent(0)", relation::stated, "h, or hq", h, lists)
      .extent("sums.extent(0)", sums.extent(0), hq, "hq, from query")
      .extent("sums.stride(0)", sums.stride(0), 1, "contiguous")
      .extent("ranges.extent(0)", ranges == 0 ? h : ranges, h, "h, from store");
}

/// Sums the softmax weights of the tokens of each query head's span. A logit that is not finite counts as -infinity.
///
/// Logits are canonical inner products. Of every 64 tokens, counted from the beginning of each part of a span, the weights relative to the
/// largest logit are added in fixed point; these sums are merged in order. So host and device give the same bits.
///
/// @param query  [hq, d] float
/// @param store  keys of h heads; values are not used
/// @param spans  [h], or [hq]: the tokens
/// @param sums   [hq], written
/// @param scale  of the logits in the softmax; 0: 1 / sqrt(d)
/// @param ranges [h] what retrieve() will rank, or empty: heads that rank nothing are left out, and their sums are 0
/// @throws shape_error, value_error
/// @cost   reads each key once for all query heads of its head; d multiply-adds a query head and token; no allocation; one launch on a
///         device, asynchronous
template <exec::policy P, kv_store Store>
requires reachable_from<typename Store::space_type, P>
void sum_attended(const P& policy, view<const float, 2, typename P::space_type> query, const Store& store,
                  view<const token_span, 1, typename P::space_type> spans, view<attended_sum, 1, typename P::space_type> sums,
                  float scale = 0, view<const middle_range, 1, typename P::space_type> ranges = {}) {
  require_ok(can_sum_attended(query, store, spans, sums, ranges.extent(0)));
  detail::run_operation<op::sum_attended>(policy, query, store, spans, sums, scale, ranges);
}

}  // namespace pqkv
