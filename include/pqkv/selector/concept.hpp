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

/// Bytes that one step reads besides the attended rows.
struct traffic {
  std::uint64_t index_bytes = 0;     // codes, counts, id lists
  std::uint64_t selector_bytes = 0;  // codebooks; keys, for a selector that scores them
};

/// A selector that reads nothing but the attended rows.
struct no_traffic {
  PQKV_HD constexpr traffic operator()(const middle_range&) const { return {}; }
};

/// The outcome of training, perhaps on a device that has not finished it.
template <class Space>
struct learning {
  bool tried = false;                             // false: nothing to train
  view<const std::uint8_t, 2, Space> outcomes{};  // each 0 if it succeeded; empty: it succeeded
  std::uint32_t due_again = 0;                    // if it succeeded: the length from which maintain() repeats it; 0: never
  std::uint64_t codes = 0;                        // how many codes it wrote, if it succeeded
};

/// A store of the rows of all slots, for the requirements of the concept.
template <class Space>
using any_rows = strided_rows<float, Space>;

/// Defaults for a selector that keeps nothing of a slot. It derives from this and has its own params, can_construct(), constructor, lists()
/// and select().
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

/// A selector that must see every query: see selector_for.
template <class S, class P>
concept selects_by_spans = requires(S selector, const P& policy, const selector::any_rows<typename P::space_type>& rows,
                                    view<const float, 2, typename P::space_type> query, const head_map<typename P::space_type>& map,
                                    view<const token_span, 1, typename P::space_type> spans,
                                    view<const middle_range, 1, typename P::space_type> ranges,
                                    view<std::int32_t, 2, typename P::space_type> indices,
                                    view<std::uint32_t, 1, typename P::space_type> counts) {
  selector.select(policy, query, rows, map, spans, ranges, indices, counts);
};

/// A selector S in the memory space of policy P. Rows are kv_rows of all slots by absolute position; slot b's head is b * h + head.
///
///   params, can_construct(shape, params)        its settings, and the check of what it cannot do
///   index_bytes(shape, params)                  the memory it will own
///   scratch_bytes(policy, shape, params)        the policy's scratch that a step needs
///   S(policy, shape, params), lists()           takes all its memory; how many lists a slot has, fixed
///   covers()                                    whether it lists the middle of a slot, takes all or none of it: before and after learning
///   least_rows()                                how many rows after the sinks learning needs
///   learn(policy, slot, rows, sequence, middle) learns from all of a slot's keys; may be repeated after a failure
///   index()                                     encode, commit, forget, parts: see cache/sequence_steps.hpp
///   select(policy, query, rows, map, ranges, indices, counts)   for queries [rows * hq, d]; empty ranges get no list. Or, for a selector
///     that must see every query, select(policy, query, rows, map, spans, ranges, indices, counts): spans [rows * lists] are what a query
///     attends to besides its list, and the call is made also where no query has a list
///   traffic_of(element_bytes)                   a function of a middle_range that can be copied to a device. On the host it may also be
///     one of a middle_range and a token_span, which is called for every query
///   maintain(policy, slot, sequence, middle)    cheap upkeep between steps
///   clear(policy, slot)                         forgets a slot
///
/// A selector that also learns from a prompt's queries has can_observe(params) and observe(policy, slot, queries [n, hq, d]), and
/// can_observe_in(slot) if a slot may refuse them. One that learns from the queries of steps has see(policy, query, rows, planned): it is
/// called before select(), with every query that attend() or retrieve() answers, [tokens * hq, d]; `planned` says to which tokens they
/// belong (planned_queries, cache/step_plan.hpp). One that can be saved and loaded has signature(), index().learnt_parts() and, if a part
/// is rebuilt from others, rebuild(policy, slot, middle).
template <class S, class P>
concept selector_for = requires(S selector, const S& constant, const P& policy, const cache_shape& shape, const typename S::params& params,
                                const selector::any_rows<typename P::space_type>& rows, view<const float, 2, typename P::space_type> query,
                                const head_map<typename P::space_type>& map, view<const middle_range, 1, typename P::space_type> ranges,
                                view<std::int32_t, 2, typename P::space_type> indices,
                                view<std::uint32_t, 1, typename P::space_type> counts, middle_range middle, std::size_t slot,
                                const sequence& at) {
  { S::can_construct(shape, params) } -> std::same_as<status>;
  S(policy, shape, params);
  { constant.lists() } -> std::same_as<std::size_t>;
  { S::index_bytes(shape, params) } -> std::same_as<std::size_t>;
  { S::scratch_bytes(policy, shape, params) } -> std::same_as<std::size_t>;
  { constant.covers() } -> std::same_as<selector::coverage_rule>;
  { constant.least_rows() } -> std::same_as<std::size_t>;
  { selector.learn(policy, slot, rows, at, middle) } -> std::same_as<selector::learning<typename P::space_type>>;
  { selector.index().parts() } -> std::same_as<slot_parts>;
  requires selects_by_spans<S, P> || requires { selector.select(policy, query, rows, map, ranges, indices, counts); };
  { constant.traffic_of(slot)(middle) } -> std::same_as<selector::traffic>;
  selector.maintain(policy, slot, at, middle);
  selector.clear(policy, slot);
};

namespace detail {
/// Shows a selector the queries of a pass, if it learns from them, and has it fill their lists. @param listed  whether any query has a list
template <class S, class P, class Rows, class Space = typename P::space_type>
void ask_selector(S& selector, const P& policy, view<const float, 2, Space> query, const Rows& rows, const head_map<Space>& map,
                  const planned_queries<Space>& planned, const step_plan<Space>& plan, view<std::int32_t, 2, Space> indices, bool listed) {
  if constexpr (requires { selector.see(policy, query, rows, planned); }) selector.see(policy, query, rows, planned);
  if constexpr (selects_by_spans<S, P>)
    selector.select(policy, query, rows, map, as_const(plan.spans), as_const(plan.ranges), indices, plan.counts);
  else if (listed)
    selector.select(policy, query, rows, map, as_const(plan.ranges), indices, plan.counts);
}

/// Plans a pass and has the selector fill its lists: in one step where the selector can, else one after the other.
/// @param working  the policy with the cache's own scratch
/// @return whether any query may have a list
template <class S, class P, class Working, class Rows, class Space = typename P::space_type>
bool plan_and_select(S& selector, const P& policy, const Working& working, view<const float, 2, Space> query, const Rows& rows,
                     const head_map<Space>& map, const planned_queries<Space>& planned, const step_plan<Space>& plan,
                     view<std::int32_t, 2, Space> indices) {
  if constexpr (requires { selector.select_planned(working, query, rows, planned, plan, indices); })
    if (selector.select_planned(working, query, rows, planned, plan, indices)) return true;
  const bool listed = plan_step(policy, planned, plan);
  ask_selector(selector, working, query, rows, map, planned, plan, indices, listed);
  return listed;
}
}  // namespace detail

}  // namespace pqkv
