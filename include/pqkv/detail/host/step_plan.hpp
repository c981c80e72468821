// SPDX-License-Identifier: Apache-2.0
// The plan of a step on the host: a loop over its queries.
#pragma once

#include "../../cache/step_plan.hpp"
#include "../../exec/host.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::plan_step, backend::host> {
  template <class P>
  static bool run(const P&, const planned_queries<space::host>& queries, const step_plan<space::host>& plan) noexcept {
    const std::size_t batch = queries.sequences.extent(0), tokens = plan.slots.extent(0), rows = queries.step.rows(batch);
    if (tokens == 0) return false;
    const std::size_t lists = plan.spans.extent(0) / tokens, h = plan.ranges.extent(0) / tokens;
    bool any_listed = false;
    step_token token = locate(queries.step, batch, queries.first);
    for (std::size_t i = 0; i < tokens; ++i) {
      while (token.row < rows && token.index == token.count) next_row(queries.step, rows, token);
      query_plan one{};
      if (token.row < rows) one = plan_query(queries.sequences(token.slot), queries.query(token), queries.rule, queries.covers);
      any_listed |= one.range.size() != 0;
      if (!queries.has_own_list(token, i)) one.range = {};
      plan.slots(i) = token.slot;
      for (std::size_t head = 0; head < h; ++head) plan.ranges(i * h + head) = one.range;
      for (std::size_t list = 0; list < lists; ++list) {
        plan.spans(i * lists + list) = one.span;
        plan.counts(i * lists + list) = 0;
      }
      ++token.index;
    }
    return any_listed;
  }

 private:
  static void next_row(const cache_step& of, std::size_t rows, step_token& token) noexcept {
    ++token.row;
    token.index = 0;
    token.slot = token.row < rows ? of.slot(token.row) : 0;
    token.count = token.row < rows ? of.count(token.row) : 0;
  }
};

}  // namespace pqkv
