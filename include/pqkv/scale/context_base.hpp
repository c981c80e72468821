// SPDX-License-Identifier: Apache-2.0
// What context-parallel caches in host memory and on devices have in common: their parameters, the checks of these, which tokens of a
// sequence a rank holds, and this rank's rows, index and memory of a step. Only context_calls.hpp includes this file, and share_steps.hpp,
// which needs the parameters.
#pragma once

#include <algorithm>
#include <string>

#include "../core/checksum.hpp"
#include "../cache/budget.hpp"
#include "../cache/kv_store.hpp"
#include "../cache/sequence.hpp"
#include "../pqcache.hpp"
#include "../search/partial_ranking.hpp"
#include "../search/pq_index.hpp"
#include "../selector/pq.hpp"
#include "agreement.hpp"
#include "token_layout.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// Which tokens the ranks attend to together.
enum class selection_mode : std::uint8_t {
  exact,  // exactly the tokens that one rank with all tokens would select; two or three exchanges
  local   // each rank attends to the best k / ranks of its own tokens, scored by these alone; no exchange
};

/// When the ranks check that all of them make the same call and that none refuses it.
enum class agreement_mode : std::uint8_t {
  each_call,     // before every verb, by a message of 8 bytes: if one rank refuses, all do, and nothing changes
  with_exchange  // the first message of attend() and retrieve() carries the votes, and append() has none. For engines that checked their
                 // calls: if one rank refuses an append(), the next attend() of that slot fails on all ranks, and the slot must be reset.
                 // On devices, other ranks learn of a refused step from the next call that waits (docs/scale.md)
};

/// The parameters of one cache over all ranks. Everything but `rows` must be the same on every rank.
template <class Rows>
struct context_params : cache_shape {  // capacity: tokens of a slot on all ranks together
  budget_rule budget{};
  // Ranks take neither weighted axes nor normalisation::attended, and always train codebooks anew (refresh_iterations is taken as 0)
  selector::pq_params selector{.axes = axis_order::rotary_halves, .over = selector::normalisation::middle};
  typename Rows::params rows{};
  std::size_t block = 128;  // new tokens go to the ranks in blocks of this many
  std::size_t run = 0;      // of the first ranks * run tokens of a sequence, each rank holds `run` successive ones (token_layout)
  selection_mode selection_over_ranks = selection_mode::exact;
  agreement_mode agreement = agreement_mode::each_call;
};

/// Keys [h, n, d] as a store of rows, for training, which reads no values. Head `first_head` of the store is head 0 here.
template <class T, class Space = space::host>
struct sampled_keys {
  using value_type = T;

  view<T, 3, Space> keys;
  std::size_t first_head = 0;

  PQKV_HD constexpr std::size_t head_dim() const { return keys.extent(2); }
  PQKV_HD constexpr kv_row<T> key(std::size_t head, std::size_t token) const { return row_of(keys, head - first_head, token); }
  constexpr view<const T, 3, Space> strided_keys(std::size_t head, std::size_t h, std::size_t first, std::size_t count) const {
    return as_const(keys.slice(0, head - first_head, h).slice(1, first, count));
  }
};

/// All memory of a rank besides rows, index and messages, taken from one block.
template <class Space>
struct context_memory : pqkv::detail::cache_memory<Space> {
  slot_table<Space> shares;                 // this rank's shares of the sequences, while a slot is copied
  view<middle_range, 1, Space> own_ranges;  // [tokens * h]
  view<float, 2, Space> scores;             // [tokens * lists, k_max]
  view<normaliser, 1, Space> normalisers;   // [tokens * hq]
  pq_workspace<Space> ranking;
  vote* votes;               // [ranks + 1], this rank's own last
  std::uint32_t* disagreed;  // of a device: 1 if the votes of a step differed
  std::uint64_t* reason;     // of a device: [refusal_reason::count]
  std::size_t scratch_bytes;
};

/// The part of a context-parallel cache that knows its parameters and has its memory. Template parameters as in context_parallel.
template <class Rows, class Communicator>
class context_base {
 public:
  using value_type = typename Rows::value_type;
  using params = context_params<Rows>;
  /// The memory space of rows, index and steps.
  using space_type = typename Rows::space_type;
  using step_type = basic_step<space_type>;
  template <class T, std::size_t Rank>
  using view_of = view<T, Rank, space_type>;
  /// Whether the host can read the sequences' states without waiting for a device.
  static constexpr bool is_on_host = std::is_same_v<space_type, space::host>;
  static_assert(is_on_host || std::is_same_v<space_type, space::device>,
                "pqkv: the rows of a context_parallel are in host or in device memory");

  /// The checks of the constructor.
  static status can_construct(const params& p, std::size_t ranks, std::size_t rank) noexcept {
    const token_layout layout{ranks, p.block, p.run};
    if (const status s = can_cache(p); !s.ok()) return s;
    if (const status s = can_budget(p.budget, "context_parallel"); !s.ok()) return s;
    if (const status s = can_lay_out(layout, "context_parallel"); !s.ok()) return s;
    if constexpr (!is_on_host)
      if (const status s = pqkv::detail::can_enqueue(p, "context_parallel"); !s.ok()) return s;
    if (const status s = Rows::can_construct(local_shape(p, layout, rank), p.rows); !s.ok()) return s;
    if (const status s = selector::basic_pq<typename Rows::space_type>::can_construct(p, p.selector); !s.ok()) return s;
    return pqkv::detail::checks("context_parallel")
        .that(rank < ranks, status::code::value, "ranks.rank()", relation::below, "ranks.size()", ranks, rank)
        .at_most("selector.residual.subspaces", p.selector.residual.subspaces, 0, "no second stage over several ranks")
        .that(p.selector.over.value_or(normalisation_of_ranks) == normalisation_of_ranks, status::code::value, "selector.over",
              relation::required, "normalisation::middle over several ranks", 0, 1)
        .that(!p.selector.overlap, status::code::value, "selector.overlap", relation::required,
              "empty: its L depends on a machine's speed, and ranks must train alike", 0, 1)
        .that(p.selector.axes != axis_order::weighted_pairs, status::code::value, "selector.axes", relation::required,
              "contiguous or rotary_halves over several ranks", 1, 2);
  }

  /// The parameters of the constructor.
  const params& parameters() const { return params_; }
  /// Which rank holds which tokens.
  const token_layout& layout() const { return layout_; }
  /// This rank's keys and values.
  const Rows& rows() const { return rows_; }
  Rows& rows() { return rows_; }
  /// This rank's codebooks, codes and cells.
  const pq_index<space_type>& index() const { return index_; }
  /// Lists of selected tokens for one query token: h, or hq under the reduction `none`.
  std::size_t lists() const { return score_lists(params_.selector.reduction, params_.kv_heads, params_.query_heads); }

 protected:
  static constexpr selector::normalisation normalisation_of_ranks = selector::normalisation::middle;
  static constexpr selector::coverage_rule covers() { return selector::pq::covers(); }

  /// @throws shape_error, value_error; std::bad_alloc; on a device cuda_error
  template <exec::policy P>
  context_base(const P& policy, const Communicator& ranks, const params& p)
      : params_(checked(p, ranks.size(), ranks.rank())),
        layout_{ranks.size(), p.block, p.run},
        ranks_(ranks),
        rule_(p.budget.flat()),
        rows_(policy, local_shape(p, layout_, ranks.rank()), p.rows),
        index_(policy, params_.selector.index_of(local_shape(p, layout_, ranks.rank()))),
        work_(take_memory(policy, memory_, [&](arena& memory) { return place(memory, policy); })),
        known_(is_on_host ? 0 : p.batch),
        votes_(is_on_host ? 0 : layout_.ranks),
        merged_(p.batch),
        settings_(settings_sum()) {}

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

  /// The parameters as this class keeps them.
  static params checked(params p, std::size_t ranks, std::size_t rank) {
    require_ok(can_construct(p, ranks, rank));
    p.selector.refresh_iterations = 0;
    return p;
  }
  /// The shape of this rank's share.
  static cache_shape local_shape(const params& p, const token_layout& layout, std::size_t rank) noexcept {
    cache_shape own = p;
    own.capacity = std::max<std::size_t>(1, rank < layout.ranks && layout.block != 0 ? layout.held(rank, p.capacity) : 1);
    return own;
  }
  token_share share() const { return {layout_, ranks_.rank()}; }
  /// A position or a range of the sequence, in places of this rank's share.
  template <class T>
  T local(const T& what) const {
    return share().local(what);
  }

  /// The most tokens that a list can retrieve, on all ranks together.
  std::size_t most_retrieved() const { return std::clamp<std::size_t>(params_.budget.at(params_.capacity).retrieve, 1, params_.capacity); }
  retrieve_params how_to_retrieve() const {
    return {.head_dim = params_.head_dim,
            .reduction = params_.selector.reduction,
            .path = params_.selector.path,
            .scale = params_.softmax_scale};
  }
  /// The tokens that a pass of queries lists, by their places in this rank's share.
  token_lists<space_type> found(const step_plan<space_type>& plan) const {
    return {work_.indices.slice(0, 0, plan.counts.extent(0)), plan.counts};
  }
  planned_queries<space_type> queries_of(const step_type& step, std::size_t first) const {
    return {as_const(work_.slots.sequences), step, first, rule_, covers(), params_.selection};
  }

  /// Takes one block for what taken(arena&) takes from an arena, and returns its result.
  template <class P, class Taken>
  static auto take_memory(const P& policy, owner<std::byte, space_type>& block, const Taken& taken) {
    arena count;
    taken(count);
    block = make_owner<std::byte>(policy, count.used_bytes());
    arena memory(block);
    return taken(memory);
  }
  template <class P>
  context_memory<space_type> place(arena& memory, const P& policy) const {
    using selector_type = selector::basic_pq<space_type>;
    const cache_shape own = local_shape(params_, layout_, ranks_.rank());
    const std::size_t tokens = params_.queries_at_once(), h = tokens * params_.kv_heads, hq = tokens * params_.query_heads,
                      most = tokens * lists(), k_max = std::min(most_retrieved(), own.capacity),
                      scratch = std::max(pqkv::detail::step_scratch_bytes<selector_type>(policy, own, params_.selector),
                                         training_scratch_bytes(policy, params_.selector.index_of(own)));
    context_memory<space_type> all{};
    static_cast<pqkv::detail::cache_memory<space_type>&>(all) =
        pqkv::detail::cache_memory<space_type>::place(memory, params_, rule_, lists(), k_max, scratch);
    all.shares = slot_table<space_type>::place(memory, params_.batch, rule_);
    all.own_ranges = make_view<space_type>(memory.take<middle_range>(h), h);
    all.scores = make_view<space_type>(memory.take<float>(most * k_max), most, k_max);
    all.normalisers = make_view<space_type>(memory.take<normaliser>(hq), hq);
    all.ranking =
        pq_workspace<space_type>::place(memory, params_.selector.index_of(own), tokens, params_.query_heads, params_.selector.reduction);
    all.votes = memory.take<vote>(layout_.ranks + 1);
    all.disagreed = memory.take<std::uint32_t>(1);
    all.reason = memory.take<std::uint64_t>(is_on_host ? 0 : refusal_reason::count);
    all.scratch_bytes = scratch;
    return all;
  }
  /// Scratch to train on the keys of all ranks, which may be more than one rank holds.
  template <class P>
  std::size_t training_scratch_bytes(const P& policy, const pq_index_shape& index) const {
    const pq_shape coarse = index.coarse();
    kmeans_params all = params_.selector.train;
    all.rows_per_centroid = 0;
    const stratified_sample sample = training_rows(params_.selector.train, params_.capacity, coarse.centroids());
    return pqkv::scratch_bytes<op::kmeans>(
        policy, {params_.kv_heads * index.subspaces, static_cast<std::size_t>(sample.count), coarse.row_dim(), coarse.centroids(), all});
  }
  /// The policy, with the cache's own scratch unless the caller brought some; on a device, enough: an operation that lacked memory there
  /// would keep the other ranks waiting.
  template <class P>
  P working(const P& policy) const {
    P own = policy;
    const bool is_short = !is_on_host && own.scratch.free_bytes() < work_.scratch_bytes;
    if ((own.scratch.counting() || is_short) && work_.scratch_bytes != 0) own.scratch = arena(work_.scratch, work_.scratch_bytes);
    return own;
  }

  params params_;
  token_layout layout_;
  mutable Communicator ranks_;
  flat_budget_rule rule_;
  Rows rows_;
  pq_index<space_type> index_;
  owner<std::byte, space_type> memory_;
  context_memory<space_type> work_;
  buffer<sequence> known_;        // [batch] the host's copy of the states of a device's sequences
  buffer<vote> votes_;            // [ranks] the host's copy of a device's votes
  buffer<std::uint32_t> merged_;  // [batch] after the last merge, the id lists held this rank's tokens below this place
  std::uint32_t settings_ = 0;
  mutable bool has_compared_ = false;  // whether a vote has shown that all ranks have the same parameters
  mutable std::string refused_step_;   // why this rank refused a step on a device, until all ranks have been told
};

}  // namespace pqkv::scale
