// SPDX-License-Identifier: Apache-2.0
// What a step changes: sequences begin, grow, are cut and copied. Each change is one operation (exec/kernel.hpp). All of them compute first
// and commit last: they write past the sequence's end, where nobody reads, until the sequence itself is updated. On a device they only
// enqueue. The device reads a sequence's length itself, so a captured step can be replayed while the sequences grow.
#pragma once

#include "../core/arena.hpp"
#include "../core/slot_parts.hpp"
#include "step_plan.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct store_tokens {};     // run(policy, rows, stored, K, V): a prompt's rows [h, n, d] to a slot's end
struct append_tokens {};    // run(policy, rows, index, tokens, K, V): stores rows, encodes what leaves the window, commits
struct commit_prompt {};    // run(policy, slots, committed_prompt): commits a prompt, or a late training
struct truncate_tokens {};  // run(policy, index, cut): forgets the last tokens
struct copy_slot {};        // run(policy, parts, slots, from, to): one slot becomes a copy of another
struct count_attended {};   // run(policy, slots, attended, traffic): statistics of answered queries
struct share_lists {};      // run(policy, queries, plan, found): queries of a row get the list of its first one
struct write_lists {};      // run(policy, queries, plan, found, indices, counts): the results of retrieve()
}  // namespace op

/// The sequences of a cache, and their statistics.
template <class Space>
struct slot_table {
  view<sequence, 1, Space> sequences;          // [batch]
  view<slot_statistics, 1, Space> statistics;  // [batch]
  view<std::uint32_t, 1, Space> tickets;       // [batch] zeros: how many of a row's CTAs have read its sequence
  view<leaving_tokens, 1, Space> leaving;      // [batch] scratch: the tokens that leave in a step
  view<std::uint32_t, 2, Space> nonfinite;     // [2, batch] scratch: rows of keys, of values
  flat_budget_rule rule;

  static constexpr slot_table place(arena& memory, std::size_t batch, const flat_budget_rule& rule) {
    const auto of = [&]<class T>(T, std::size_t size) { return make_view<Space>(memory.take<T>(size), size); };
    return {of(sequence{}, batch),
            of(slot_statistics{}, batch),
            of(std::uint32_t{}, batch),
            of(leaving_tokens{}, batch),
            make_view<Space>(memory.take<std::uint32_t>(2 * batch), 2, batch),
            rule};
  }
};

/// The arguments of op::store_tokens.
template <class Space>
struct stored_tokens {
  std::size_t first_head, first_token;      // where row 0 of head 0 goes
  view<std::uint32_t, 1, Space> nonfinite;  // [2] raised by the number of rows, of keys and of values, that are not finite once stored
};

/// The arguments of op::append_tokens.
template <class Space>
struct appended_tokens {
  slot_table<Space> slots;
  basic_step<Space> step;
  std::size_t tokens;    // tokens of the step at most: the extent of K, V
  std::size_t capacity;  // tokens that a slot can hold
};

/// The arguments of op::commit_prompt.
template <class Space>
struct committed_prompt {
  std::size_t slot;
  sequence after;                               // the sequence afterwards; `learned` is final unless it depends on outcomes
  bool tried;                                   // whether training was tried; `learned` then becomes whether all outcomes are 0
  view<const std::uint8_t, 2, Space> outcomes;  // of training, each 0 if it succeeded; empty: there are none
  view<std::uint32_t, 1, Space> nonfinite;      // [2] rows of keys and of values, added to the statistics and zeroed; or empty
  std::uint32_t due_again = 0;                  // if training succeeded: the length at which maintain() repeats it; 0: never
  std::uint64_t codes = 0;                      // if training succeeded: how many codes it wrote
};

/// The arguments of op::truncate_tokens: row i's slot keeps its first lengths[i] tokens. A slot that is shorter stays as it is and is
/// counted.
template <class Space>
struct truncated_tokens {
  slot_table<Space> slots;
  view<const std::uint32_t, 1, Space> which;    // [rows] slots; empty: every slot in order
  view<const std::uint32_t, 1, Space> lengths;  // [rows]; empty: one row, given by the host
  std::uint32_t slot = 0, length = 0;           // that row

  PQKV_HD constexpr std::size_t rows() const { return lengths.data != nullptr ? lengths.extent(0) : 1; }
  PQKV_HD constexpr std::uint32_t slot_of(std::size_t row) const {
    return lengths.data == nullptr ? slot : which.data != nullptr ? which(row) : static_cast<std::uint32_t>(row);
  }
  PQKV_HD constexpr std::uint32_t length_of(std::size_t row) const { return lengths.data == nullptr ? length : lengths(row); }
};

/// The arguments of op::count_attended, for T query tokens of a step.
template <class Space>
struct attended_queries {
  step_plan<Space> plan;
  std::size_t first;  // the first of them in the step
  basic_step<Space> step;
  view<const float, 2, Space> query;  // [T * hq, d]
  std::size_t lists;                  // lists of one token
  std::size_t row_bytes;              // K and V of one token and head
  bool attends;                       // false: retrieve(), which counts non-finite queries only
};

/// The index of a selector that keeps none. What an index must offer to op::append_tokens and op::truncate_tokens:
///
///   encode(policy, rows, leaving)   prepares tokens that are to leave windows; may fail, and nobody reads what it wrote
///   commit(leaving)                 these tokens are ranked from now on; cannot fail
///   forget(leaving, after)          these tokens are no longer in the middle, and `after` is the sequence that is left; cannot fail
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
