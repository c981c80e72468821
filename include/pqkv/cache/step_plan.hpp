// SPDX-License-Identifier: Apache-2.0
// What one step does with each sequence: which rows it is for, what a query attends to as a whole, what is ranked for it, when a slot is
// trained. Each decision is made in one place, by a function of plain data that a host loop and a device kernel both call.
#pragma once

#include <cstdint>

#include "token_set.hpp"
#include "../exec/kernel.hpp"
#include "sequence.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct plan_step {};  // run(policy, step_queries, step_plan) -> whether any query may have a list
}  // namespace op

/// Which slots a step is for, and how many tokens each of them gets. A slot that is not named takes no part and costs nothing. The tokens
/// of a row are consecutive, and rows follow one another: K and V are [tokens, h, d], queries [tokens, hq, d].
///
/// @tparam Space  host memory for a host cache; device memory for a cache on a device, so that a captured step can be replayed with
///                other slots and counts
template <class Space = space::host>
struct basic_step {
  static constexpr std::size_t not_given = static_cast<std::size_t>(-1);  // an extent; not 0, since an empty list names no slot

  view<const std::uint32_t, 1, Space> slots{nullptr, {not_given}, {1}};   // [rows] below batch, none twice; not given: every slot in order
  view<const std::uint32_t, 1, Space> counts{nullptr, {not_given}, {1}};  // [rows] tokens of each row, 0 or more; not given: one

  PQKV_HD constexpr bool has_slots() const { return slots.extent(0) != not_given; }
  PQKV_HD constexpr bool has_counts() const { return counts.extent(0) != not_given; }
  /// @param batch  slots of the cache
  PQKV_HD constexpr std::size_t rows(std::size_t batch) const {
    return has_slots() ? slots.extent(0) : has_counts() ? counts.extent(0) : batch;
  }
  PQKV_HD constexpr std::uint32_t slot(std::size_t row) const { return has_slots() ? slots(row) : static_cast<std::uint32_t>(row); }
  PQKV_HD constexpr std::uint32_t count(std::size_t row) const { return has_counts() ? counts(row) : 1u; }
  /// Whether row i is slot i with one token. Then nothing has to be looked up.
  PQKV_HD constexpr bool is_in_order() const { return !has_slots() && !has_counts(); }
};

/// A step of a host cache.
using cache_step = basic_step<space::host>;

/// A token of a step: the index-th of its row's `count`. Tokens after the last row get the row `rows`.
struct step_token {
  std::uint32_t row, slot, index, count;
};

/// Finds token `i` of a step.
template <class Space>
PQKV_HD constexpr step_token locate(const basic_step<Space>& step, std::size_t batch, std::size_t i) {
  const std::size_t rows = step.rows(batch);
  if (!step.has_counts()) {
    if (i >= rows) return {static_cast<std::uint32_t>(rows), 0, 0, 0};
    return {static_cast<std::uint32_t>(i), step.slot(i), 0, 1};
  }
  std::size_t row = 0;
  for (; row < rows && i >= step.count(row); ++row) i -= step.count(row);
  if (row == rows) return {static_cast<std::uint32_t>(rows), 0, 0, 0};
  return {static_cast<std::uint32_t>(row), step.slot(row), static_cast<std::uint32_t>(i), step.count(row)};
}

/// What one query attends to.
struct query_plan {
  token_span span{};     // taken as a whole
  middle_range range{};  // ranked; empty where there is nothing to rank
};

/// One of the queries of a sequence's newest `count` tokens.
struct asked_query {
  std::uint32_t index = 0, count = 1;
  bool shares = false;  // uses the list of the row's first query (draft_selection::first_query)

  /// The length at which the query's middle is determined.
  PQKV_HD constexpr std::uint32_t planned_length(const sequence& now) const { return now.n - count + (shares ? 0 : index) + 1; }
};

/// The plan of a query, which attends to the tokens up to its own.
PQKV_HD constexpr query_plan plan_query(const sequence& now, const asked_query& query, const flat_budget_rule& rule,
                                        selector::coverage_rule covers) {
  using selector::coverage;
  if (query.count > now.n || now.prefilling != 0) return {};
  const std::uint32_t end = now.n - query.count + query.index + 1;
  const sequence then = now.at(query.planned_length(now));
  const middle_range middle = then.middle(rule);
  const coverage covered = then.coverage(middle, covers);
  if (covered == coverage::everything) return {{end, 0, 0}, {}};
  return {{middle.begin, middle.end, end}, covered == coverage::listed ? middle : middle_range{}};
}

/// The middle of a query that attends to all of it; empty for other queries. retrieve() then lists these tokens.
PQKV_HD constexpr middle_range whole_middle(const sequence& now, const asked_query& query, const flat_budget_rule& rule,
                                            selector::coverage_rule covers) {
  if (query.count > now.n || now.prefilling != 0) return {};
  const sequence then = now.at(query.planned_length(now));
  const middle_range middle = then.middle(rule);
  return then.coverage(middle, covers) == selector::coverage::everything ? middle : middle_range{};
}

/// Whether a slot is to be trained now: for the first time, or again because it has grown since. A try that fails reads every row, so a
/// long sequence must not repeat it in every step.
/// @param least_rows  how many rows after the sinks training needs
PQKV_HD constexpr bool is_learning_due(const sequence& s, const flat_budget_rule& rule, std::size_t least_rows) {
  if (s.prefilling != 0 || s.n == 0 || s.n < s.learn_again || s.n < s.middle(rule).begin + least_rows) return false;
  return s.learned == 0 || s.learn_again != 0;
}
/// The sequence after a try to train it at its present length.
/// @param next  the length at which a learned index is to be learned again; 0: never
PQKV_HD constexpr sequence after_learning(sequence s, bool learned, std::uint32_t next) {
  s.learned = learned ? 1 : 0;
  s.learn_again = learned ? next : s.n + s.n / 64 + 1;
  return s;
}

/// Which queries are planned, and of which sequences.
template <class Space>
struct planned_queries {
  view<const sequence, 1, Space> sequences;  // [batch]
  basic_step<Space> step;
  std::size_t first;  // the first query token of the step that is planned
  flat_budget_rule rule;
  selector::coverage_rule covers;
  draft_selection selection = draft_selection::each_query;

  /// Planned token `i`: its place in its row, and whether it has its own list.
  PQKV_HD constexpr asked_query query(const step_token& token) const {
    return {token.index, token.count, selection == draft_selection::first_query};
  }
  PQKV_HD constexpr bool has_own_list(const step_token& token, std::size_t i) const {
    return selection == draft_selection::each_query || token.index == 0 || i == 0;
  }
};

/// Where the plan of T query tokens is written.
template <class Space>
struct step_plan {
  view<std::uint32_t, 1, Space> slots;   // [T] the slot of each query
  view<token_span, 1, Space> spans;      // [T * lists]
  view<middle_range, 1, Space> ranges;   // [T * h]
  view<std::uint32_t, 1, Space> counts;  // [T * lists] zeros

  /// Memory for the plan of fewer tokens. @pre tokens <= T, T != 0
  constexpr step_plan of(std::size_t tokens) const {
    const auto part = [&](const auto& all) { return all.slice(0, 0, all.extent(0) / slots.extent(0) * tokens); };
    return {part(slots), part(spans), part(ranges), part(counts)};
  }
  /// Maps the queries to their slots; empty if they are those of all slots in order. @pre T != 0
  /// @param first  the first of them in the step
  constexpr head_map<Space> map(const basic_step<Space>& step, std::size_t first, std::size_t batch) const {
    if (step.is_in_order() && first == 0 && slots.extent(0) == batch) return {};
    return {as_const(slots), static_cast<std::uint32_t>(ranges.extent(0) / slots.extent(0))};
  }
};

/// What attention to T query tokens is about to read, for rows that are fetched (cache/tiered_rows.hpp).
template <class Space>
struct fetched_tokens {
  step_plan<Space> plan;
  view<const std::int32_t, 2, Space> indices;  // [T * lists, k_max], of which the first plan.counts are valid

  PQKV_HD constexpr std::size_t tokens() const { return plan.slots.extent(0); }
  /// Of one token. @pre tokens() != 0
  PQKV_HD constexpr std::size_t lists() const { return plan.counts.extent(0) / plan.slots.extent(0); }
  /// How many tokens there are up to that of query i, with it; 0 for a query after the last row of a step.
  PQKV_HD constexpr std::uint32_t length(std::size_t i) const {
    const token_span& span = plan.spans(i * lists());
    return span.leading > span.window_end ? span.leading : span.window_end;
  }
  /// Whether query i is the last one of its sequence here. Those of one sequence follow one another.
  PQKV_HD constexpr bool is_last_of_slot(std::size_t i) const {
    return length(i) != 0 && (i + 1 == tokens() || plan.slots(i + 1) != plan.slots(i) || length(i + 1) == 0);
  }
};

/// Rows in more than one memory, which must be told of every step: tiered_rows.
template <class Rows>
concept rows_of_tiers = requires(const Rows& rows) {
  rows.tiers();
};

namespace detail {
/// Cuts the query tokens of a step into passes of at most `most`, and calls f(first, count) for each.
template <class F>
void for_passes(std::size_t tokens, std::size_t most, F f) {
  for (std::size_t first = 0; first < tokens; first += most) f(first, tokens - first < most ? tokens - first : most);
}

/// One call of attend(), as its rows see it. If the call fails, no block enters fast memory.
template <class Rows, class P>
class tier_step {
 public:
  tier_step(const P& policy, const Rows& rows) : policy_(policy), rows_(rows) {}
  tier_step(const tier_step&) = delete;
  tier_step& operator=(const tier_step&) = delete;
  ~tier_step() {
    if constexpr (rows_of_tiers<Rows>)
      if (!done_) rows_.abandon(policy_);
  }
  template <class Space>
  void fetch(const fetched_tokens<Space>& wanted) const {
    if constexpr (rows_of_tiers<Rows>) rows_.fetch(policy_, wanted);
  }
  /// Once attention to these tokens has been enqueued.
  template <class Space>
  void look_up(const fetched_tokens<Space>& wanted) {
    if constexpr (rows_of_tiers<Rows>) rows_.look_up(policy_, wanted);
    ++passes_;
  }
  template <class Space>
  void admit(view<const sequence, 1, Space> sequences) {
    if constexpr (rows_of_tiers<Rows>) rows_.admit(policy_, sequences, passes_);
    done_ = true;
  }

 private:
  const P& policy_;
  const Rows& rows_;
  std::uint32_t passes_ = 0;
  bool done_ = false;
};
}  // namespace detail

/// Writes the plan of a step's queries.
/// @return whether any of them may have a list; on a device always true
template <exec::policy P>
bool plan_step(const P& policy, const planned_queries<typename P::space_type>& queries, const step_plan<typename P::space_type>& plan) {
  return detail::run_operation<op::plan_step>(policy, queries, plan);
}

}  // namespace pqkv
