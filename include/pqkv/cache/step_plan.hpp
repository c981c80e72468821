// SPDX-License-Identifier: Apache-2.0
// What one step does with each sequence: which rows it is for, what a query attends to whole, what is ranked for it, when a slot is
// trained. These decisions stand here once, as functions of plain data; a host loop and a device kernel call the same ones.
#pragma once

#include <cstdint>

#include "token_set.hpp"
#include "../exec/kernel.hpp"
#include "sequence.hpp"

namespace pqkv {
namespace op {
struct plan_step {};  // run(policy, step_queries, step_plan) -> whether any query may have a list
}  // namespace op

/// Which slots a step is for, and how many tokens each of them gets. A slot that is not named takes no part and costs nothing. Tokens of
/// a row stand one after the other, and rows in their order: K and V are [tokens, h, d], queries [tokens, hq, d].
///
/// @tparam Space  host memory for a host cache; device memory for a cache on a device, so that a captured step can be replayed with
///                other slots and counts
template <class Space = space::host>
struct basic_step {
  view<const std::uint32_t, 1, Space> slots{};   // [rows] below batch, none twice; empty: every slot in order
  view<const std::uint32_t, 1, Space> counts{};  // [rows] tokens of each row, 0 or more; empty: one

  /// @param batch  slots of the cache
  PQKV_HD constexpr std::size_t rows(std::size_t batch) const {
    return slots.data != nullptr ? slots.extent(0) : counts.data != nullptr ? counts.extent(0) : batch;
  }
  PQKV_HD constexpr std::uint32_t slot(std::size_t row) const {
    return slots.data != nullptr ? slots(row) : static_cast<std::uint32_t>(row);
  }
  PQKV_HD constexpr std::uint32_t count(std::size_t row) const { return counts.data != nullptr ? counts(row) : 1u; }
  /// Whether row i is slot i: then nothing has to be looked up.
  PQKV_HD constexpr bool is_in_order() const { return slots.data == nullptr && counts.data == nullptr; }
};

/// A step of a host cache.
using step = basic_step<space::host>;

/// A token of a step: the index-th of its row's `count`. Tokens behind the last row have the row `rows`.
struct step_token {
  std::uint32_t row, slot, index, count;
};

/// Finds token `i` of a step.
template <class Space>
PQKV_HD constexpr step_token locate(const basic_step<Space>& step, std::size_t batch, std::size_t i) {
  const std::size_t rows = step.rows(batch);
  if (step.counts.data == nullptr) {
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
  token_span span{};     // taken whole
  middle_range range{};  // ranked; empty where there is nothing to rank
};

/// The plan of the index-th of `count` queries whose tokens were appended last: it attends to the tokens up to its own.
PQKV_HD constexpr query_plan plan_query(const sequence& now, std::uint32_t index, std::uint32_t count, const flat_budget_rule& rule,
                                        selector::coverage_rule covers) {
  using selector::coverage;
  if (count > now.n || now.prefilling != 0) return {};
  const sequence then = now.at(now.n - count + index + 1);
  const middle_range middle = then.middle(rule);
  const coverage covered = then.coverage(middle, covers);
  if (covered == coverage::everything) return {{then.n, 0, 0}, {}};
  return {{middle.begin, middle.end, then.n}, covered == coverage::listed ? middle : middle_range{}};
}

/// The middle of a query that attends to all of it; empty for the others. Its tokens are what retrieve() lists then.
PQKV_HD constexpr middle_range whole_middle(const sequence& now, std::uint32_t index, std::uint32_t count, const flat_budget_rule& rule,
                                            selector::coverage_rule covers) {
  if (count > now.n || now.prefilling != 0) return {};
  const sequence then = now.at(now.n - count + index + 1);
  const middle_range middle = then.middle(rule);
  return then.coverage(middle, covers) == selector::coverage::everything ? middle : middle_range{};
}

/// Whether a slot without an index is trained now. A failed try reads every row: not in every step of a long sequence.
/// @param least_rows  behind the sinks, that training needs
PQKV_HD constexpr bool is_learning_due(const sequence& s, const flat_budget_rule& rule, std::size_t least_rows) {
  return s.learned == 0 && s.prefilling == 0 && s.n != 0 && s.n >= s.learn_again && s.n >= s.middle(rule).begin + least_rows;
}
/// The sequence after a try at its present length.
PQKV_HD constexpr sequence after_learning(sequence s, bool learned) {
  s.learned = learned ? 1 : 0;
  s.learn_again = learned ? 0 : s.n + s.n / 64 + 1;
  return s;
}

/// Which queries are planned, of which sequences.
template <class Space>
struct planned_queries {
  view<const sequence, 1, Space> sequences;  // [batch]
  basic_step<Space> step;
  std::size_t first;  // query token of the step to begin with
  flat_budget_rule rule;
  selector::coverage_rule covers;
};

/// Where the plan of T query tokens goes.
template <class Space>
struct step_plan {
  view<std::uint32_t, 1, Space> slots;   // [T] of each query
  view<token_span, 1, Space> spans;      // [T * lists]
  view<middle_range, 1, Space> ranges;   // [T * h]
  view<std::uint32_t, 1, Space> counts;  // [T * lists] zeros
};

/// Writes the plan of a step's queries.
/// @return whether any of them may have a list; on a device always true
template <exec::policy P>
bool plan_step(const P& policy, const planned_queries<typename P::space_type>& queries, const step_plan<typename P::space_type>& plan) {
  return kernel<op::plan_step, typename P::backend_type>::run(policy, queries, plan);
}

}  // namespace pqkv
