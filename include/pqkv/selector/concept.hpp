// SPDX-License-Identifier: Apache-2.0
// What a selector is: the part of a pqcache that decides which middle tokens a step attends to. It keeps whatever index it needs
// for every slot, sees keys at prefill and when they leave the window, and lists tokens for a query. Everything else (storage,
// sinks, window, attention, life cycle) is the cache's, so that methods are compared under the same conditions.
#pragma once

#include <concepts>
#include <cstdint>

#include "../core/error.hpp"
#include "../cache/slots.hpp"
#include "../search/retrieve.hpp"

namespace pqkv {

namespace selector {

/// What a selector says of a slot before it is asked for a list.
enum class coverage : std::uint8_t { listed, everything, nothing };

/// Bytes that one step reads beside the attended rows.
struct traffic {
  std::uint64_t index_bytes = 0;     // codes, counts, id lists
  std::uint64_t selector_bytes = 0;  // codebooks; keys, for a selector that scores them
};

}  // namespace selector

/// Keys are views of the cache's store by absolute position: [h, n, d] of one slot, or [batch * h, capacity, d] for select().
///
///   can_construct(shape, params)                         what the selector cannot do
///   index_bytes, scratch_bytes(shape, params), lists()   sizes, fixed at construction; index_bytes is what it will own
///   observe_prefill(policy, slot, keys, middle)          keys [h, n, d] of the whole prompt; middle: what is ranked from now on
///   append(policy, slot, keys, first, last)              tokens that left the window and joined the middle
///   covers(slot)                                         listed, or everything or nothing without a list
///   select(policy, query, keys, ranges, indices, counts) for the slots that cover `listed`; empty ranges are left alone
///   fork(policy, from, to, tokens), reset(slot), maintain(policy, slot, keys, middle)
template <class S, class P>
concept selector_for = requires(S selector, const S& constant, const P& policy, const cache_shape& shape, const typename S::params& params,
                                view<const float, 3, typename P::space_type> keys, view<const float, 2, typename P::space_type> query,
                                view<const middle_range, 1, typename P::space_type> ranges,
                                view<std::int32_t, 2, typename P::space_type> indices,
                                view<std::uint32_t, 1, typename P::space_type> counts, middle_range middle, std::size_t slot) {
  { S::can_construct(shape, params) } -> std::same_as<status>;
  S(shape, params);
  { constant.lists() } -> std::same_as<std::size_t>;
  { S::index_bytes(shape, params) } -> std::same_as<std::size_t>;
  { S::scratch_bytes(shape, params) } -> std::same_as<std::size_t>;
  selector.observe_prefill(policy, slot, keys, middle);
  selector.append(policy, slot, keys, slot, slot);
  { constant.covers(slot) } -> std::same_as<selector::coverage>;
  selector.select(policy, query, keys, ranges, indices, counts);
  { constant.step_traffic(middle, slot) } -> std::same_as<selector::traffic>;
  selector.fork(policy, slot, slot, slot);
  selector.reset(slot);
  selector.maintain(policy, slot, keys, middle);
};

}  // namespace pqkv
