// SPDX-License-Identifier: Apache-2.0
// What a selector is: the part of a pqcache that decides which middle tokens a step attends to. It keeps whatever index it needs
// for every slot, sees keys at prefill and when they leave the window, and lists tokens for a query. Everything else (storage,
// sinks, window, attention, life cycle) is the cache's, so that methods are compared under the same conditions.
#pragma once

#include <concepts>
#include <cstdint>

#include "../cache/kv_store.hpp"
#include "../cache/sequence_steps.hpp"
#include "../cache/slot_file.hpp"
#include "../core/error.hpp"
#include "../search/retrieve.hpp"

namespace pqkv::inline PQKV_MODE {

namespace selector {

/// Bytes that one step reads beside the attended rows.
struct traffic {
  std::uint64_t index_bytes = 0;     // codes, counts, id lists
  std::uint64_t selector_bytes = 0;  // codebooks; keys, for a selector that scores them
};

/// Nothing but attended rows is read.
struct no_traffic {
  PQKV_HD constexpr traffic operator()(const middle_range&) const { return {}; }
};

/// What training came to, perhaps on a device that is not done yet.
template <class Space>
struct learning {
  bool tried = false;                             // false: nothing to train
  view<const std::uint8_t, 2, Space> outcomes{};  // 0 each where it succeeded; empty: it did
  std::uint32_t due_again = 0;                    // where it succeeded: tokens from which maintain() has it repeated; 0: never
};

/// Rows of all slots, as a selector of any store sees them in a concept's requirement.
template <class Space>
using any_rows = strided_rows<float, Space>;

/// What a selector may leave out: one that keeps nothing of a slot derives from this and has its own params, can_construct(), constructor,
/// lists() and select().
struct defaults {
  static constexpr std::size_t index_bytes(const auto&, const auto&) { return 0; }
  static constexpr std::size_t scratch_bytes(const auto&, const auto&, const auto&) { return 0; }
  static constexpr coverage_rule covers() { return {coverage::listed, coverage::listed}; }
  static constexpr std::size_t least_rows() { return 0; }
  template <exec::policy P>
  learning<typename P::space_type> learn(const P&, std::size_t, const auto&, const sequence&, middle_range) {
    return {true, {}};
  }
  static no_index index() { return {}; }
  static constexpr selector_signature signature() { return {}; }
  static constexpr no_traffic traffic_of(std::size_t) { return {}; }
  void maintain(const auto&, std::size_t, const sequence&, middle_range) {}
  void clear(const auto&, std::size_t) {}
};

}  // namespace selector

/// A selector S in the memory of policy P. Rows are kv_rows of all slots, slot b's head at b * h + head, by absolute position.
///
///   params, can_construct(shape, params)        what can be set, and what the selector cannot do
///   index_bytes(shape, params)                  what it will own; scratch_bytes(policy, shape, params): of the policy, in a step
///   S(policy, shape, params), lists()           takes all its memory; lists of a slot, fixed
///   covers()                                    how a slot is attended to before and after it has learned
///   least_rows()                                rows behind the sinks that learning needs
///   learn(policy, slot, rows, sequence, middle) from all of a slot's keys; may be repeated after a failure
///   index()                                     encode, commit, forget, parts: see cache/sequence_steps.hpp
///   select(policy, query, rows, map, ranges, indices, counts)   for queries [rows * hq, d]; empty ranges get no list
///   traffic_of(element_bytes)                   a function of a middle_range that can be copied to a device
///   maintain(policy, slot, sequence, middle)    cheap upkeep between steps
///   clear(policy, slot)                         forgets a slot
///
/// One that learns from a prompt's queries too has can_observe(params) and observe(policy, slot, queries [n, hq, d]).
/// To be saved and loaded a selector also has signature(), index().learnt_parts() and, where a part is made from others,
/// rebuild(policy, slot, middle).
template <class S, class P>
concept selector_for =
    requires(S selector, const S& constant, const P& policy, const cache_shape& shape, const typename S::params& params,
             const selector::any_rows<typename P::space_type>& rows, view<const float, 2, typename P::space_type> query,
             const head_map<typename P::space_type>& map, view<const middle_range, 1, typename P::space_type> ranges,
             view<std::int32_t, 2, typename P::space_type> indices, view<std::uint32_t, 1, typename P::space_type> counts,
             middle_range middle, std::size_t slot, const sequence& at) {
      { S::can_construct(shape, params) } -> std::same_as<status>;
      S(policy, shape, params);
      { constant.lists() } -> std::same_as<std::size_t>;
      { S::index_bytes(shape, params) } -> std::same_as<std::size_t>;
      { S::scratch_bytes(policy, shape, params) } -> std::same_as<std::size_t>;
      { constant.covers() } -> std::same_as<selector::coverage_rule>;
      { constant.least_rows() } -> std::same_as<std::size_t>;
      { selector.learn(policy, slot, rows, at, middle) } -> std::same_as<selector::learning<typename P::space_type>>;
      { selector.index().parts() } -> std::same_as<slot_parts>;
      selector.select(policy, query, rows, map, ranges, indices, counts);
      { constant.traffic_of(slot)(middle) } -> std::same_as<selector::traffic>;
      selector.maintain(policy, slot, at, middle);
      selector.clear(policy, slot);
    };

}  // namespace pqkv
