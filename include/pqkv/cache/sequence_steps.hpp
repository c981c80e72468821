// SPDX-License-Identifier: Apache-2.0
// What a step changes: sequences grow, are cut, copied and begun. Each is one operation in the seam. All of them compute first and commit
// last: until the sequence itself says so, what they wrote lies behind its end, where nobody reads. On a device they only enqueue, and
// where a sequence stands is read there, so that a captured step is replayed while the sequences grow.
#pragma once

#include "../core/slot_parts.hpp"
#include "step_plan.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct store_tokens {};     // run(policy, rows, stored, K, V): a prompt's rows [h, n, d] behind a slot's end
struct append_tokens {};    // run(policy, rows, index, tokens, K, V): stores rows, encodes what leaves the window, commits
struct settle_prompt {};    // run(policy, slots, settled_prompt): commits a prompt, or a late training
struct truncate_tokens {};  // run(policy, index, cut): forgets the last tokens
struct copy_slot {};        // run(policy, parts, slots, from, to): one slot becomes a copy of another
struct count_attended {};   // run(policy, slots, attended, traffic): statistics of answered queries
struct share_lists {};      // run(policy, queries, plan, found): queries of a row get the list of its first one
struct write_lists {};      // run(policy, queries, plan, found, indices, counts): what retrieve() answers
}  // namespace op

/// The sequences of a cache and what was counted of them.
template <class Space>
struct slot_table {
  view<sequence, 1, Space> sequences;          // [batch]
  view<slot_statistics, 1, Space> statistics;  // [batch]
  view<std::uint32_t, 1, Space> tickets;       // [batch] zeros: how many of a row's CTAs are done
  view<leaving_tokens, 1, Space> leaving;      // [batch] scratch: what leaves in a step
  view<std::uint32_t, 2, Space> nonfinite;     // [2, batch] scratch: rows of keys, of values
  flat_budget_rule rule;
};

/// What op::store_tokens is for.
template <class Space>
struct stored_tokens {
  std::size_t first_head, first_token;      // where row 0 of head 0 goes
  view<std::uint32_t, 1, Space> nonfinite;  // [2] raised by the rows of keys, of values, that are not finite once stored
};

/// What op::append_tokens is for.
template <class Space>
struct appended_tokens {
  slot_table<Space> slots;
  basic_step<Space> step;
  std::size_t tokens;    // of the step at most: the extent of K, V
  std::size_t capacity;  // of a slot
};

/// What op::settle_prompt commits.
template <class Space>
struct settled_prompt {
  std::size_t slot;
  sequence after;                               // as it is then; `learned` where it does not hang on outcomes
  bool tried;                                   // to train; then `learned` says whether all outcomes are 0
  view<const std::uint8_t, 2, Space> outcomes;  // of training, 0 each where it succeeded; empty: none to ask
  view<std::uint32_t, 1, Space> nonfinite;      // [2] rows of keys and of values, added to the statistics and zeroed; or empty
  std::uint32_t due_again = 0;                  // where training succeeded: length at which maintain() repeats it; 0: never
};

/// What op::truncate_tokens is for: row i's slot keeps its first lengths[i] tokens. One that is shorter stays as it is and is counted.
template <class Space>
struct truncated_tokens {
  slot_table<Space> slots;
  view<const std::uint32_t, 1, Space> which;    // [rows] slots; empty: every slot in order
  view<const std::uint32_t, 1, Space> lengths;  // [rows]; empty: one row, told by the host
  std::uint32_t slot = 0, length = 0;           // that row

  PQKV_HD constexpr std::size_t rows() const { return lengths.data != nullptr ? lengths.extent(0) : 1; }
  PQKV_HD constexpr std::uint32_t slot_of(std::size_t row) const {
    return lengths.data == nullptr ? slot : which.data != nullptr ? which(row) : static_cast<std::uint32_t>(row);
  }
  PQKV_HD constexpr std::uint32_t length_of(std::size_t row) const { return lengths.data == nullptr ? length : lengths(row); }
};

/// What op::count_attended counts: T query tokens of a step.
template <class Space>
struct attended_queries {
  step_plan<Space> plan;
  std::size_t first;  // query token of the step to begin with
  basic_step<Space> step;
  view<const float, 2, Space> query;  // [T * hq, d]
  std::size_t lists;                  // of a token
  std::size_t row_bytes;              // K and V of one token and head
  bool attends;                       // false: retrieve(), which only looks at the queries
};

/// The index of a selector that keeps none. What an index must offer to op::append_tokens and op::truncate_tokens:
///
///   encode(policy, rows, leaving)   prepares tokens that are to leave windows; may fail, and nobody sees what it wrote
///   commit(leaving)                 they are ranked from now on; cannot fail
///   forget(leaving, after)          a cut took them out of the middle, and `after` is what is left; cannot fail
///   parts()                         what it owns of each slot
struct no_index {
  template <class P, class Rows>
  void encode(const P&, const Rows&, view<const leaving_tokens, 1>) const noexcept {}
  void commit(const leaving_tokens&) const noexcept {}
  void forget(const leaving_tokens&, const sequence&) const noexcept {}
  slot_parts parts() const noexcept { return {}; }
  slot_parts learnt_parts() const noexcept { return {}; }
};

}  // namespace pqkv
