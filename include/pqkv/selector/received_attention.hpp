// SPDX-License-Identifier: Apache-2.0
// How much attention each token receives: softmax weights of some queries, summed for every token. Methods that keep a part of the tokens
// rank them by it (h2o.hpp, snapkv.hpp). Host memory only. Float arithmetic, not canonical.
#pragma once

#include <cstdint>

#include "../cache/kv_store.hpp"
#include "../core/error.hpp"
#include "../exec/kernel.hpp"
#include "../quantize/shape.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct received_attention {
  /// What scratch_bytes() must know, of a call with lists of tokens.
  struct sizes {
    std::size_t lists = 0, rows = 0, tokens = 0;  // rows and tokens of a list, at most
  };
};
}  // namespace op

/// Queries, and the tokens that each of them attends to. List i reads the keys of head first_head + i * heads / lists.
struct weighed_queries {
  view<const float, 3> queries;           // [lists, rows, d]; the rows of a list one after the other, contiguous
  std::size_t first_head = 0;             // of the store
  std::size_t heads = 1;                  // h: heads that the lists are spread over
  view<const std::uint32_t, 2> tokens{};  // [lists, ...] each row attends to the first counts[list] of these; empty: see first_token
  view<const std::uint32_t, 1> counts{};  // [lists]
  std::size_t first_token = 0;            // without lists of tokens: row r attends to tokens [0, first_token + r / rows_per_token]
  std::size_t rows_per_token = 1;         // query heads of one token in a list
};

/// The checks of received_attention().
template <class Store, class Sums>
constexpr status can_weigh(const weighed_queries& call, const Store& store, const Sums& sums) noexcept {
  const std::size_t lists = call.queries.extent(0), rows = call.queries.extent(1), d = store.head_dim();
  return detail::checks("received_attention")
      .that(call.heads > 0 && lists % call.heads == 0, status::code::shape, "queries.extent(0)", relation::multiple_of, "h", call.heads,
            lists)
      .at_most("first_head", call.first_head + call.heads, store.heads(), "heads of the store, less h")
      .extent("queries.extent(2)", call.queries.extent(2), d, "d, from store")
      .extent("queries.stride(2)", call.queries.stride(2), 1, "last axis contiguous")
      .extent("queries.stride(1)", call.queries.stride(1), d, "rows contiguous")
      .at_most("store.head_dim", d, max_head_dim, "d")
      .that(call.rows_per_token > 0 && rows % call.rows_per_token == 0, status::code::shape, "queries.extent(1)", relation::multiple_of,
            "rows_per_token", call.rows_per_token, rows)
      .extent("counts.extent(0)", call.tokens.data == nullptr ? lists : call.counts.extent(0), lists, "lists, from queries")
      .extent("tokens.extent(0)", call.tokens.data == nullptr ? lists : call.tokens.extent(0), lists, "lists, from queries")
      .extent("sums.extent(0)", sums.extent(0), lists, "lists, from queries")
      .extent("sums.stride(1)", sums.stride(1), 1, "last axis contiguous");
}

/// sums[list, i] += the weights that the list's i-th token, or token i where there is no list, gets from the list's rows.
///
/// A non-finite logit counts as -infinity, so such a key gets no weight. A row without a finite logit contributes nothing.
/// @param sums   [lists, at least the tokens] double
/// @param scale  of the logits in the softmax; 0: 1 / sqrt(d)
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small. Nothing has been added then
/// @cost   reads a key once for each token's rows, for a causal call once for several tokens. With lists of tokens
///         scratch_bytes<op::received_attention>(); a causal call takes logits of up to 4 blocks of 32 rows a list from the heap: use it
///         between steps
template <exec::policy P, kv_store Store>
requires reachable_from<typename Store::space_type, P>
void received_attention(const P& policy, const weighed_queries& call, const Store& store, view<double, 2> sums, float scale = 0) {
  require_ok(can_weigh(call, store, sums));
  detail::run_operation<op::received_attention>(policy, call, store, sums, scale);
}

}  // namespace pqkv
