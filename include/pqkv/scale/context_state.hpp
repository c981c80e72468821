// SPDX-License-Identifier: Apache-2.0
// The part of a context-parallel cache that its verbs work on: this rank's share of rows and codes, the states of the whole sequences,
// memory for messages, and argument checks. The verbs are in context_parallel.hpp, the only file that includes this one, by way of
// context_training.hpp.
#pragma once

#include <algorithm>

#include "../attention.hpp"
#include "../cache/cache_checks.hpp"
#include "../cache/dense_rows.hpp"
#include "../cache/slot_file.hpp"
#include "../pqcache.hpp"
#include "../search/pq_index.hpp"
#include "context_base.hpp"
#include "exact_selection.hpp"
#include "partial_outputs.hpp"
#include "share_file.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The part of a context-parallel cache in host memory that its verbs work on. Template parameters as in context_parallel.
template <class Rows, class Communicator>
class context_state : public context_base<Rows, Communicator> {
  using base = context_base<Rows, Communicator>;

 public:
  using base::lists;
  using typename base::params;
  using typename base::value_type;
  static_assert(space::usable_from<typename Rows::space_type, space::host>, "pqkv: context_parallel works in host memory");

  const Rows& rows() const { return rows_; }
  Rows& rows() { return rows_; }
  /// This rank's codebooks, codes and cells.
  const pq_index<>& index() const { return index_; }

  /// The state of a slot's whole sequence; the same on every rank. @pre slot < batch
  /// @{
  const sequence& at(std::size_t slot) const { return work_.slots.sequences(slot); }
  std::size_t size(std::size_t slot) const { return at(slot).n; }
  middle_range middle(std::size_t slot) const { return at(slot).middle(rule_); }
  /// @}
  /// Tokens of a slot that this rank holds.
  std::size_t held(std::size_t slot) const { return layout_.held(ranks_.rank(), at(slot).n); }
  /// The most tokens that a list of this rank's retrieve() can hold.
  std::size_t retrieve_capacity(std::size_t slot) const {
    const middle_range ranked = middle(slot), own = local(ranked);
    return at(slot).coverage(ranked, covers()) == selector::coverage::listed ? std::min<std::size_t>(own.size(), ranked.retrieve)
                                                                             : own.size();
  }

 protected:
  using base::covers, base::layout_, base::local, base::local_shape, base::params_, base::ranks_, base::rule_;

  template <exec::policy P>
  context_state(const P& policy, const Communicator& ranks, const params& p)
      : base(ranks, p),
        rows_(policy, local_shape(p, layout_, ranks.rank()), p.rows),
        index_(policy, params_.selector.index_of(local_shape(p, layout_, ranks.rank()))),
        merged_(p.batch) {
    arena count;
    place(count, policy);
    memory_ = make_owner<std::byte>(policy, count.used_bytes());
    arena memory(memory_);
    work_ = place(memory, policy);
  }

  pqkv::detail::cache_checks<space::host> admission() const noexcept { return {params_, work_.slots.sequences.data, lists()}; }

  /// The checks of prefill(): a rank must be given as many rows as it holds of the chunk's tokens.
  template <class K, class V>
  status can_prefill(std::size_t slot, const K& keys, const V& values, std::size_t n) const {
    if (const status s = admission().prefill(slot, keys, values, params_.capacity); !s.ok()) return s;
    const std::size_t before = at(slot).n, left = params_.capacity - before;
    return pqkv::detail::checks("prefill")
        .that(n <= left, status::code::capacity, "n", relation::at_most, "free tokens of the slot", left, n)
        .extent("keys.extent(1)", keys.extent(1),
                n <= left ? layout_.held(ranks_.rank(), before + n) - layout_.held(ranks_.rank(), before) : 0,
                "this rank's tokens of the chunk, from layout()");
  }

  /// Adds a step's slots and counts, and the states of their sequences, to what the ranks compare.
  void same_step(agreement& agreed, const cache_step& step, std::size_t tokens) const {
    agreed.same_number(tokens);
    for (std::size_t row = 0; row < step.rows(params_.batch); ++row) {
      agreed.same_number(std::uint64_t{step.slot(row)} << 32 | step.count(row));
      agreed.same(&at(step.slot(row)), sizeof(sequence));
    }
  }

  /// The header of the file with this rank's share of a slot; it says what the file holds.
  share_file_header header_of(const sequence& now, slot_contents contents) const {
    const selector::pq_params& pq = params_.selector;
    share_file_header header;
    header.rank = static_cast<std::uint32_t>(ranks_.rank());
    header.layout(layout_);
    header.slot.contents = contents;
    header.slot.kv_heads = static_cast<std::uint32_t>(params_.kv_heads);
    header.slot.head_dim = static_cast<std::uint32_t>(params_.head_dim);
    header.slot.element = pqkv::detail::element_number<value_type>();
    header.slot.selector = {1, static_cast<std::uint32_t>(pq.subspaces), pq.bits, static_cast<std::uint32_t>(pq.metric), 0,
                            0, static_cast<std::uint32_t>(pq.axes)};
    if (contents == slot_contents::index_and_rows) header.slot.row_bytes = static_cast<std::uint32_t>(rows_.parts().part[0].token_bytes);
    header.slot.at = now;
    header.slot.middle_begin = now.middle(rule_).begin;
    header.slot.middle_end = now.middle(rule_).end;
    header.slot.payload_bytes = payload_bytes(header, saved_parts(header.slot));
    return header;
  }
  slot_parts saved_parts(const slot_file_header& header) const {
    slot_parts parts;
    if (header.at.learned != 0) parts.add(index_.view().learnt_parts());
    if (header.contents == slot_contents::index_and_rows) parts.add(rows_.parts());
    return parts;
  }

  /// All memory of a rank besides rows and index.
  struct memory_of {
    slot_table<space::host> slots, shares;  // the whole sequences; this rank's shares of them, while a slot is copied
    step_plan<space::host> plan;            // of queries_at_once() query tokens
    view<middle_range, 1> own_ranges;       // [tokens * h]
    view<std::int32_t, 2> indices;          // [tokens * lists, k_max]
    view<float, 2> scores;                  // the same
    view<normaliser, 1> normalisers;        // [tokens * hq]
    view<std::uint64_t, 1> thresholds;      // [tokens * lists]
    view<std::uint8_t, 1> is_open;          // the same
    view<std::uint64_t, 1> candidates;      // [ranks * room]
    view<float, 3> query, out;              // [tokens, hq, d]
    view<float, 2> lse;                     // [tokens, hq]
    pq_workspace<> ranking;
    vote* votes;  // [ranks]
    mailbox mail;
    std::byte* scratch;
    std::size_t scratch_bytes;
  };
  template <class P>
  memory_of place(arena& memory, const P& policy) const {
    const cache_shape own = local_shape(params_, layout_, ranks_.rank());
    const std::size_t tokens = params_.queries_at_once(), hq = tokens * params_.query_heads, h = tokens * params_.kv_heads,
                      d = params_.head_dim;
    const std::size_t most = tokens * lists(),
                      k = std::clamp<std::size_t>(params_.budget.at(params_.capacity).retrieve, 1, params_.capacity);
    const std::size_t k_max = std::min(k, own.capacity);
    memory_of all{};
    for (slot_table<space::host>* slots : {&all.slots, &all.shares}) {
      slots->sequences = make_view(memory.take<sequence>(params_.batch), params_.batch);
      slots->statistics = make_view(memory.take<slot_statistics>(params_.batch), params_.batch);
      slots->leaving = make_view(memory.take<leaving_tokens>(params_.batch), params_.batch);
      slots->nonfinite = make_view(memory.take<std::uint32_t>(2 * params_.batch), 2, params_.batch);
      slots->rule = rule_;
    }
    all.plan = {make_view(memory.take<std::uint32_t>(tokens), tokens), make_view(memory.take<token_span>(most), most),
                make_view(memory.take<middle_range>(h), h), make_view(memory.take<std::uint32_t>(most), most)};
    all.own_ranges = make_view(memory.take<middle_range>(h), h);
    all.indices = make_view(memory.take<std::int32_t>(most * k_max), most, k_max);
    all.scores = make_view(memory.take<float>(most * k_max), most, k_max);
    all.normalisers = make_view(memory.take<normaliser>(hq), hq);
    all.thresholds = make_view(memory.take<std::uint64_t>(most), most);
    all.is_open = make_view(memory.take<std::uint8_t>(most), most);
    all.query = make_view(memory.take<float>(hq * d), tokens, params_.query_heads, d);
    all.out = make_view(memory.take<float>(hq * d), tokens, params_.query_heads, d);
    all.lse = make_view(memory.take<float>(hq), tokens, params_.query_heads);
    all.ranking = pq_workspace<>::place(memory, params_.selector.index_of(own), tokens, params_.query_heads, params_.selector.reduction);
    all.votes = memory.take<vote>(layout_.ranks);
    const std::size_t partial = partial_outputs{hq, d, layout_.ranks}.room(),
                      first = exact_selection::words(most, first_candidates(k, layout_.ranks));
    all.mail.room = std::max({partial, 1 + hq, 1 + first, 1 + exact_selection::words(1, k)});
    all.mail.own = memory.take<std::uint64_t>(all.mail.room);
    all.mail.all = memory.take<std::uint64_t>(layout_.ranks * all.mail.room);
    all.candidates = make_view(memory.take<std::uint64_t>(layout_.ranks * (k + 64)), layout_.ranks * (k + 64));
    all.scratch_bytes = std::max(selector::pq::scratch_bytes(policy, own, params_.selector),
                                 scratch_bytes<op::attention>(policy, {hq, hq, d, own.capacity}));
    all.scratch = memory.take<std::byte>(all.scratch_bytes);
    return all;
  }
  /// The policy, with the cache's own scratch unless the caller brought some.
  template <class P>
  P working(const P& policy) const {
    P own = policy;
    if (own.scratch.counting() && work_.scratch_bytes != 0) own.scratch = arena(work_.scratch, work_.scratch_bytes);
    return own;
  }

  Rows rows_;
  pq_index<> index_;
  owner<std::byte, space::host> memory_;
  memory_of work_{};
  buffer<std::uint32_t> merged_;  // [batch] after the last merge, the id lists held this rank's tokens below this place
};

}  // namespace pqkv::scale
