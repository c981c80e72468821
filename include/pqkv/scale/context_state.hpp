// SPDX-License-Identifier: Apache-2.0
// The part of a context-parallel cache that its verbs work on: this rank's share of rows and codes, the states of the whole sequences,
// memory for messages, and argument checks. The verbs are in context_parallel.hpp, the only file that includes this one.
#pragma once

#include <algorithm>

#include "../attention.hpp"
#include "../cache/cache_checks.hpp"
#include "../cache/dense_rows.hpp"
#include "../cache/slot_file.hpp"
#include "../pqcache.hpp"
#include "../search/pq_index.hpp"
#include "../selector/pq.hpp"
#include "exact_selection.hpp"
#include "partial_outputs.hpp"
#include "share_file.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// Which tokens the ranks attend to together.
enum class selection_mode : std::uint8_t {
  exact,  // exactly the tokens that one rank with all tokens would select; two or three exchanges
  local   // each rank attends to the best k / ranks of its own tokens, scored by these alone; no exchange
};

/// When the ranks check that all of them make the same call and that none refuses it.
enum class agreement_mode : std::uint8_t {
  each_call,     // before every verb, by a message of 8 bytes: if one rank refuses, all do, and nothing changes
  with_exchange  // append() has no check; the messages that attend() sends anyway carry its check. For engines that checked their calls:
                 // if one rank refuses an append(), the next attend() fails on all ranks, and the slot must be reset
};

/// The parameters of one cache over all ranks. Everything but `rows` must be the same on every rank.
template <class Rows>
struct context_params : cache_shape {  // capacity: tokens of a slot on all ranks together
  budget_rule budget{};
  selector::pq_params selector{};  // codebooks are always trained anew (refresh_iterations is taken as 0)
  typename Rows::params rows{};
  std::size_t block = 128;  // new tokens go to the ranks in blocks of this many
  std::size_t run = 0;      // of the first ranks * run tokens of a sequence, each rank holds `run` successive ones (token_layout)
  selection_mode selection_over_ranks = selection_mode::exact;
  agreement_mode agreement = agreement_mode::each_call;
};

/// The part of a context-parallel cache that its verbs work on. Template parameters as in context_parallel.
template <class Rows, class Communicator>
class context_state {
 public:
  using value_type = typename Rows::value_type;
  using params = context_params<Rows>;
  static_assert(space::usable_from<typename Rows::space_type, space::host>, "pqkv: context_parallel works in host memory");

  /// The checks of the constructor.
  static status can_construct(const params& p, std::size_t ranks, std::size_t rank) noexcept {
    const token_layout layout{ranks, p.block, p.run};
    if (const status s = can_cache(p); !s.ok()) return s;
    if (const status s = can_budget(p.budget, "context_parallel"); !s.ok()) return s;
    if (const status s = can_lay_out(layout, "context_parallel"); !s.ok()) return s;
    if (const status s = Rows::can_construct(local_shape(p, layout, rank), p.rows); !s.ok()) return s;
    if (const status s = selector::pq::can_construct(p, p.selector); !s.ok()) return s;
    return pqkv::detail::checks("context_parallel")
        .that(rank < ranks, status::code::value, "ranks.rank()", relation::below, "ranks.size()", ranks, rank)
        .at_most("selector.residual.subspaces", p.selector.residual.subspaces, 0, "no second stage over several ranks")
        .that(p.selector.over == normalisation_of_ranks, status::code::value, "selector.over", relation::required,
              "normalisation::middle over several ranks", 0, 1)
        .that(!p.selector.overlap, status::code::value, "selector.overlap", relation::required,
              "empty: its L depends on a machine's speed, and ranks must train alike", 0, 1)
        .that(p.selector.axes != axis_order::weighted_pairs, status::code::value, "selector.axes", relation::required,
              "contiguous or rotary_halves over several ranks", 1, 2);
  }

  /// The parameters of the constructor.
  const params& parameters() const { return params_; }
  /// Which rank holds which tokens.
  const token_layout& layout() const { return layout_; }
  const Rows& rows() const { return rows_; }
  Rows& rows() { return rows_; }
  /// This rank's codebooks, codes and cells.
  const pq_index<>& index() const { return index_; }
  std::size_t lists() const { return score_lists(params_.selector.reduction, params_.kv_heads, params_.query_heads); }

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
  static constexpr selector::normalisation normalisation_of_ranks = selector::normalisation::middle;
  static constexpr selector::coverage_rule covers() { return selector::pq::covers(); }

  template <exec::policy P>
  context_state(const P& policy, const Communicator& ranks, const params& p)
      : params_((require_ok(can_construct(p, ranks.size(), ranks.rank())), p)),
        layout_{ranks.size(), p.block, p.run},
        ranks_(ranks),
        rows_(policy, local_shape(p, layout_, ranks.rank()), p.rows),
        index_(policy, params_.selector.index_of(local_shape(p, layout_, ranks.rank()))),
        rule_(p.budget.flat()),
        merged_(p.batch) {
    params_.selector.refresh_iterations = 0;
    arena count;
    place(count, policy);
    memory_ = make_owner<std::byte>(policy, count.used_bytes());
    arena memory(memory_);
    work_ = place(memory, policy);
    settings_ = settings_sum();
  }

  /// Begins a call: a vote that carries a checksum of this rank's parameters.
  agreement call(const char* function) const {
    agreement made(function);
    made.same_number(settings_);
    return made;
  }
  /// A checksum over all parameters that must be the same on every rank. Fields are added one by one, since structs have padding.
  std::uint32_t settings_sum() const {
    crc32 sum;
    const auto add = [&](auto... fields) { (sum.add(&fields, sizeof fields), ...); };
    const selector::pq_params& pq = params_.selector;
    add(params_.batch, params_.kv_heads, params_.query_heads, params_.head_dim, params_.capacity, params_.queries_at_once(),
        params_.softmax_scale, params_.selection);
    add(rule_.ratio, rule_.window_share, rule_.min_tokens, rule_.tokens, rule_.sinks, rule_.window, rule_.retrieve, rule_.frozen);
    add(pq.subspaces, pq.bits, pq.axes, pq.metric, pq.reduction, pq.train.iterations, pq.train.seed, pq.train.rows_per_centroid,
        pq.growth());
    add(layout_.ranks, layout_.block, layout_.run, params_.selection_over_ranks, params_.agreement);
    return sum.value();
  }

  /// The shape of this rank's share.
  static cache_shape local_shape(const params& p, const token_layout& layout, std::size_t rank) noexcept {
    cache_shape own = p;
    own.capacity = std::max<std::size_t>(1, rank < layout.ranks && layout.block != 0 ? layout.held(rank, p.capacity) : 1);
    return own;
  }
  /// A range of the sequence, in positions of this rank's share.
  middle_range local(const middle_range& range) const { return {local(range.begin), local(range.end), range.retrieve}; }
  std::uint32_t local(std::uint32_t position) const { return static_cast<std::uint32_t>(layout_.held(ranks_.rank(), position)); }
  token_span local(const token_span& span) const { return {local(span.leading), local(span.window_begin), local(span.window_end)}; }
  leaving_tokens local(const leaving_tokens& tokens) const { return {tokens.slot, local(tokens.first), local(tokens.last)}; }

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

  params params_;
  token_layout layout_;
  mutable Communicator ranks_;
  Rows rows_;
  pq_index<> index_;
  flat_budget_rule rule_;
  std::uint32_t settings_ = 0;
  owner<std::byte, space::host> memory_;
  memory_of work_{};
  buffer<std::uint32_t> merged_;  // [batch] after the last merge, the id lists held this rank's tokens below this place
};

}  // namespace pqkv::scale
