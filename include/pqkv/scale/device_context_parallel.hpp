// SPDX-License-Identifier: Apache-2.0
// context_parallel over rows in device memory: the same verbs, which only enqueue. A captured decode step, exchanges included, can be
// replayed while the sequences grow. The communicator's calls are on the policy's stream, or its messages travel inside the kernels
// (adapt/peer.cuh). Needs the CUDA backend: <pqkv/device_context_parallel.cuh> includes both.
//
// On the host, many ranks share the work of merging their outputs. Here they do not: every rank receives every rank's outputs.
#pragma once

#include <tuple>

#include "context_parallel.hpp"
#include "device_context_state.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The cache of one layer over several ranks, each with a share of every sequence's tokens in the memory of its device.
///
/// If one rank refuses prefill(), truncate(), fork(), reset(), load() or maintain(), all do, as on the host; these calls wait for the
/// device, and so does save(). So do append() and attend() under agreement_mode::each_call. Under with_exchange these two never wait: the
/// votes travel with the partial outputs. A rank that refuses a step then sends its refusal in the step's messages, and the next call that
/// waits throws rank_error on all ranks, with the reason, or value_error if the calls differed. Over peers (adapt/peer.cuh) the refusal
/// ends the others' waiting, and the communicator cannot be used any more.
template <class Rows, class Communicator>
requires(!space::usable_from<typename Rows::space_type, space::host>) class context_parallel<Rows, Communicator>
    : public device_context_state<Rows, Communicator> {
  using state = device_context_state<Rows, Communicator>;

 public:
  using typename state::params;
  using typename state::space_type;
  using typename state::step_type;
  using typename state::value_type;
  template <class T, std::size_t Rank>
  using view_of = typename state::template view_of<T, Rank>;

  /// Takes all memory of this rank. Sends no messages.
  /// @throws shape_error, value_error; std::bad_alloc, cuda_error; capacity_error when the communicator has too little memory for mail
  template <exec::policy P>
  context_parallel(const P& policy, const Communicator& ranks, const params& p) : state(policy, ranks, p) {}

  /// Stores a prompt, as on the host. Waits for the device.
  ///
  /// @param keys    [h, own, d] those tokens of the chunk that this rank holds, in order, in memory that the device reaches
  /// @param values  [h, own, d]
  /// @param n       tokens of the chunk on all ranks
  /// @throws shape_error, value_error, capacity_error, rank_error, communication_error, cuda_error
  /// @cost   as on the host; an all_reduce combines the training sample, to which each rank gives its own keys, and zeros for all others
  template <exec::policy P, class K, class V, class Space>
  requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, P>
  void prefill(const P& policy, std::size_t slot, view<K, 3, Space> keys, view<V, 3, Space> values, std::size_t n,
               chunk which = chunk::last) {
    agreement agreed = this->begin_prefill(policy, slot, keys, values, n, which);
    zero_bytes(policy, work_.prompt_nonfinite.data, 2 * sizeof(std::uint32_t));
    run<op::store_tokens>(
        policy, rows_.view(),
        stored_tokens<space_type>{slot * params_.kv_heads, layout_.held(ranks_.rank(), known_[slot].n), work_.prompt_nonfinite}, keys,
        values);
    learn(policy, agreed, slot, known_[slot].prefilled(static_cast<std::uint32_t>(n), which), work_.prompt_nonfinite);
  }

  /// Adds a step's tokens. Every rank is given all of them and stores those that it holds.
  ///
  /// @param keys    [tokens, h, d], the same on all ranks
  /// @param values  [tokens, h, d]
  /// @param step    which slots, and how many tokens each, in device memory; the same on all ranks
  /// @throws shape_error, value_error; rank_error, communication_error. Tokens that do not fit are refused on the device
  /// @cost   on the rank that stores the token, as pqcache::append()
  template <exec::policy P, class K, class V, class Space>
  requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, P>
  void append(const P& policy, view<K, 3, Space> keys, view<V, 3, Space> values, const step_type& step = {}) {
    agreement agreed = this->call("append");
    agreed.attempt([&] {
      require_ok(this->admission().append(keys, values, step, [](std::size_t) { return std::size_t{0}; }));
      this->same_step(agreed, step, keys.extent(0));
    });
    this->begin_append(policy, agreed);
    run<op::append_share>(this->working(policy), rows_.view(), index_.view(),
                          appended_tokens<space_type>{work_.slots, step, keys.extent(0), params_.capacity}, this->share(), keys, values);
  }

  /// Attention of a step's queries over sinks, retrieved middle and window of all ranks.
  ///
  /// @param query  [tokens, hq, d] float, half or bfloat16, the same on all ranks
  /// @param out    [tokens, hq, d] written, the same on all ranks
  /// @param lse    [tokens, hq] float, written if given
  /// @throws shape_error, value_error; rank_error, communication_error
  /// @cost   selection and attention of the share; the messages that docs/scale.md lists; no allocation
  template <exec::policy P, class Q, class O, class Space>
  requires storage_scalar<Q> && writable_scalar<O> && reachable_from<Space, P>
  void attend(const P& policy, view<Q, 3, Space> query, view<O, 3, Space> out, view_of<float, 2> lse = {}, const step_type& step = {}) {
    const agreement agreed = this->begin_attend(policy, query, out, lse, step);
    if (this->carries_votes() && (agreed.refuses() || query.extent(0) == 0))
      return only_vote(policy, agreed, messages::of_lists_and_outputs);
    pqkv::detail::for_passes(query.extent(0), params_.queries_at_once(), [&](std::size_t first, std::size_t count) {
      const auto asked = pqkv::detail::as_floats(policy, query.slice(0, first, count), work_.query);
      const step_plan<space_type> plan = select(policy, agreed, asked, step, first);
      attend_planned(policy, agreed, asked, plan, plan.map(step, first, params_.batch), out.slice(0, first, count),
                     lse.data == nullptr ? lse : lse.slice(0, first, count));
    });
  }

  /// This rank's part of the middle tokens that attend() would read, as on the host, except that a list longer than `indices` is cut.
  ///
  /// @param indices  [tokens, lists, k_max] int32, written: positions in the whole sequence, ascending, then -1
  /// @param counts   [tokens, lists] uint32, written
  /// @throws as attend()
  template <exec::policy P, class Q, class Space>
  requires storage_scalar<Q> && reachable_from<Space, P>
  void retrieve(const P& policy, view<Q, 3, Space> query, view_of<std::int32_t, 3> indices, view_of<std::uint32_t, 2> counts,
                const step_type& step = {}) {
    const agreement agreed = this->begin_retrieve(policy, query, indices, counts, step);
    if (this->carries_votes() && (agreed.refuses() || query.extent(0) == 0)) return only_vote(policy, agreed, messages::of_lists);
    pqkv::detail::for_passes(query.extent(0), params_.queries_at_once(), [&](std::size_t first, std::size_t count) {
      const auto asked = pqkv::detail::as_floats(policy, query.slice(0, first, count), work_.query);
      const step_plan<space_type> plan = select(policy, agreed, asked, step, first);
      run<op::write_share_lists>(policy, planned(agreed, plan, step, first), as_const(this->found(plan).indices),
                                 indices.slice(0, first, count), counts.slice(0, first, count));
    });
  }

  /// Forgets all but the first n tokens of a slot. Waits. @throws value_error, rank_error, communication_error
  template <exec::policy P>
  void truncate(const P& policy, std::size_t slot, std::size_t n) {
    this->begin_truncate(policy, slot, n);
    run<op::truncate_share>(
        policy, index_.view(),
        truncated_tokens<space_type>{work_.slots, {}, {}, static_cast<std::uint32_t>(slot), static_cast<std::uint32_t>(n)}, this->share());
    known_[slot] = known_[slot].truncated(static_cast<std::uint32_t>(n));
    merged_[slot] = std::min(merged_[slot], this->local(known_[slot].middle(rule_).end));
  }
  /// The same for several slots, with lengths in device memory; can be part of a captured step. No vote: the lengths must be the same on
  /// all ranks. A length above the slot's is refused and counted there. If one rank refuses, the others learn it from the next call that
  /// waits.
  ///
  /// @param lengths  [rows] uint32
  /// @param slots    [rows] uint32, none twice; empty: every slot in order
  /// @throws shape_error, value_error
  template <exec::policy P>
  void truncate(const P& policy, view_of<const std::uint32_t, 1> lengths, view_of<const std::uint32_t, 1> slots = {}) {
    agreement agreed = this->call("truncate");
    agreed.attempt([&] { require_ok(this->admission().truncate(lengths, slots)); });
    this->keep_reason(agreed);
    agreed.conclude_alone();
    if (lengths.extent(0) == 0) return;  // nothing to cut
    run<op::truncate_share>(policy, index_.view(), truncated_tokens<space_type>{work_.slots, slots, lengths}, this->share());
  }

  /// Makes slot `to` a copy of slot `from` on every rank. Waits. @throws value_error, rank_error, communication_error, cuda_error
  template <exec::policy P>
  void fork(const P& policy, std::size_t from, std::size_t to) {
    this->begin_fork(policy, from, to);
    if (from == to) return;
    slot_parts parts = rows_.parts();
    parts.add(index_.view().parts());
    sequence own = known_[from];
    own.longest = this->local(own.longest);
    copy_bytes(policy, &work_.shares.sequences.data[from], &own, sizeof own);
    run<op::copy_slot>(policy, parts, work_.shares, from, to);
    copy_bytes(policy, &work_.slots.sequences.data[to], &work_.slots.sequences.data[from], sizeof own);
    this->wait(policy);  // `own` ends here
    known_[to] = known_[from];
    merged_[to] = merged_[from];
  }

  /// Empties a slot. Waits. @throws value_error, rank_error, communication_error
  template <exec::policy P>
  void reset(const P& policy, std::size_t slot) {
    this->begin_reset(policy, slot);
    zero_bytes(policy, &work_.slots.sequences.data[slot], sizeof(sequence));
    zero_bytes(policy, &work_.slots.statistics.data[slot], sizeof(slot_statistics));
    index_.clear(policy, slot);
    known_[slot] = {};
    merged_[slot] = 0;
  }

  /// Trains codebooks that are due, on all ranks together, and merges new tokens into id lists. Call it between steps. Waits.
  /// @throws rank_error, communication_error, cuda_error; value_error when the calls of an earlier step differed
  template <exec::policy P>
  void maintain(const P& policy) {
    agreement agreed = this->begin_maintain(policy);
    for (std::size_t slot = 0; slot < params_.batch; ++slot) {
      const sequence now = known_[slot];
      const std::uint32_t end = this->local(now.middle(rule_).end);
      merged_[slot] = std::min(merged_[slot], end);
      if (is_learning_due(now, rule_, index_.shape().least_rows())) {
        this->commit(policy, {slot, now.without_index(), false, {}, {}});
        learn(policy, agreed, slot, now, {});
      } else if (now.learned != 0 && end - merged_[slot] >= params_.selector.tail_tokens) {
        agreed.attempt([&] { index_.merge(this->working(policy), slot); });
        merged_[slot] = end;
      }
    }
    this->ask_all(policy, agreed);
  }

 private:
  // Memory of a training. It is a member because freeing it after a failed exchange would wait for the stream: the next training frees it.
  owner<std::byte, space_type> training_;

  using state::exchange_, state::index_, state::work_;
  using state::known_, state::layout_, state::mails_, state::merged_, state::params_, state::ranks_, state::rows_, state::rule_;
  using state::votes_;

  template <class Op, class P, class... Argument>
  static decltype(auto) run(const P& policy, const Argument&... argument) {
    return pqkv::detail::run_operation<Op>(policy, argument...);
  }
  /// Trains a slot's codebooks on the keys of all ranks if there are enough, encodes and counts this rank's middle, and sets the sequence.
  /// Takes all memory before it asks the others, so that a rank without memory keeps no one waiting, and frees it after the last message.
  template <class P>
  void learn(const P& policy, agreement& agreed, std::size_t slot, const sequence& now, view_of<std::uint32_t, 1> nonfinite) {
    const middle_range middle = now.middle(rule_);
    const std::size_t first = middle.begin, h = params_.kv_heads;
    if (now.prefilling != 0 || now.n < first + index_.shape().least_rows()) return this->commit(policy, {slot, now, false, {}, nonfinite});
    using T = copied_element<value_type>;
    const stratified_sample sample = training_rows(params_.selector.train, now.n - first, index_.shape().coarse().centroids());
    const middle_range own = this->local(middle);
    struct copies {
      view_of<T, 3> keys, ordered, run;
    } made{};
    agreed.attempt([&] {
      this->wait(policy);
      made = this->take_memory(policy, training_, [&](arena& memory) -> copies {
        const auto rows = [&](std::size_t count) {
          return make_view<space_type>(memory.take<T>(h * count * params_.head_dim), h, count, params_.head_dim);
        };
        return {rows(sample.count), rows(sample.count), rows(std::min<std::size_t>(own.size(), index_.most_copied))};
      });
    });
    this->ask_all(policy, agreed);
    run<op::gather_share>(policy, rows_.view(), slot * h, sample, first, this->share(), made.keys);
    ranks_.all_reduce(policy, reinterpret_cast<std::uint64_t*>(made.keys.data), made.keys.size() * sizeof(T) / sizeof(std::uint64_t),
                      reduction::sum);
    this->wait(policy);
    kmeans_params settings = params_.selector.train;
    settings.rows_per_centroid = 0;
    index_.train_in(this->working(policy), slot, sampled_keys<T, space_type>{made.keys, slot * h}, made.ordered, settings,
                    work_.ranking.outcomes);
    index_.encode_in(policy, slot, rows_.view(), own.begin, own.end, made.run);
    index_.recount(this->working(policy), slot, own.begin, own.end);
    merged_[slot] = own.end;
    this->commit(policy, {slot, now, true, as_const(work_.ranking.outcomes), nonfinite, params_.selector.outgrown_at(now.n)});
    this->wait(policy);
    training_ = {};
  }
  enum class messages { of_lists, of_lists_and_outputs };
  /// How many query tokens gathered messages have room for: where they carry votes, as many on every rank, whatever its input is.
  std::size_t sent_tokens(std::size_t tokens) const { return this->carries_votes() ? params_.queries_at_once() : tokens; }
  /// Takes part in a step's messages where this rank has nothing to send but its vote: it refuses the step, or there are no queries. Only
  /// enqueues; a rank that refuses then waits for the first pass's messages, which say how many passes the others make.
  template <class P>
  void only_vote(const P& policy, const agreement& agreed, messages which) {
    this->keep_reason(agreed);
    if constexpr (state::travels_in_kernels) {
      if constexpr (requires { ranks_.refuse(policy); })
        if (agreed.refuses()) ranks_.refuse(policy);
    } else {
      const std::size_t words = send_vote(policy, agreed, which);
      const std::size_t passes = agreed.refuses() && words != 0 ? passes_of_others(policy, words) : 1;
      for (std::size_t pass = 1; pass < passes; ++pass) send_vote(policy, agreed, which);
    }
    agreed.conclude_alone();
  }
  /// Sends this rank's vote in the messages of a pass, and zeros. @return the words of the last message's body; 0: none was sent
  template <class P>
  std::size_t send_vote(const P& policy, const agreement& agreed, messages which) {
    const std::size_t hq = work_.normalisers.extent(0);
    const bool is_exact = params_.selection_over_ranks == selection_mode::exact;
    std::size_t last = 0;
    zero_bytes(policy, exchange_.mail.own, exchange_.mail.room * sizeof *exchange_.mail.own);
    run<op::plan_share>(policy, planned(agreed, work_.plan.of(1), {}, 0));  // writes the vote
    const auto send = [&](std::size_t words) { this->gather(policy, last = words); };
    if (is_exact && needs_normalisers(params_.selector.reduction))
      send(ranked_share<space_type>::sum_words(hq)), send(ranked_share<space_type>::centred_words(hq));
    if (is_exact) send(ranked_share<space_type>::candidate_words(work_.plan.counts.extent(0), this->most_retrieved()));
    if (which == messages::of_lists_and_outputs) send(merged_shares<space_type>::words(hq, params_.head_dim));
    return last;
  }
  /// How many passes the other ranks make, from the votes in the last message; 1 where that cannot be waited for, as in a capture.
  template <class P>
  std::size_t passes_of_others(const P& policy, std::size_t words) {
    std::size_t most = 1;
#if PQKV_HAS_EXCEPTIONS
    try {
      this->wait(policy);
      for (std::size_t rank = 0; rank < layout_.ranks; ++rank)
        copy_bytes(policy, &votes_[rank], exchange_.mail.all + rank * (1 + words), sizeof votes_[rank]);
      this->wait(policy);
      for (std::size_t rank = 0; rank < layout_.ranks; ++rank) most = std::max<std::size_t>(most, votes_[rank].passes);
    } catch (...) {
      return 1;  // this rank's own exception says more
    }
#endif
    return most;
  }
  planned_share<space_type> planned(const agreement& agreed, const step_plan<space_type>& plan, const step_type& step,
                                    std::size_t first) const {
    return {this->queries_of(step, first),
            plan,
            work_.own_ranges.slice(0, 0, plan.ranges.extent(0)),
            this->share(),
            params_.selection_over_ranks,
            __builtin_bit_cast(std::uint64_t, agreed.own()),
            state::travels_in_kernels ? nullptr : exchange_.mail.own};
  }

  /// Plans a pass of queries over the whole sequences, and fills this rank's part of their lists.
  template <class P>
  step_plan<space_type> select(const P& policy, const agreement& agreed, view_of<const float, 2> query, const step_type& step,
                               std::size_t first) {
    const std::size_t hq = query.extent(0);
    const step_plan<space_type> plan = work_.plan.of(hq / params_.query_heads);
    const auto planning = planned(agreed, plan, step, first);
    const head_map<space_type> map = plan.map(step, first, params_.batch);
    const pq_index_view<space_type> index = index_.view();
    const retrieve_params how = this->how_to_retrieve();
    const std::size_t lists = plan.counts.extent(0), k = this->most_retrieved();
    const ranked_share<space_type> call{work_.ranking.table_of(hq),
                                        as_const(index.codes),
                                        index.index,
                                        map,
                                        as_const(plan.ranges),
                                        as_const(planning.own),
                                        this->found(plan),
                                        work_.scores.slice(0, 0, lists),
                                        work_.normalisers.slice(0, 0, hq),
                                        how,
                                        this->share(),
                                        k};
    const P working = this->working(policy);
    const bool is_exact = params_.selection_over_ranks == selection_mode::exact;
    const std::size_t sent = sent_tokens(plan.slots.extent(0)), sent_heads = sent * params_.query_heads;
    bool is_ranked = false;
    if constexpr (state::travels_in_kernels)
      is_ranked = pqkv::detail::run_operation<op::rank_share>(working, planning, call, index, query, this->rank_share_mail());
    if (!is_ranked) {
      run<op::plan_share>(policy, planning);
      index_.tabulate(policy, query, map, work_.ranking);
      if (is_exact && needs_normalisers(how.reduction))
        this->template do_stages<op::agree_normalisers>(working, call, std::tuple(mails_.sums, mails_.centred),
                                                        ranked_share<space_type>::sum_words(sent_heads),
                                                        ranked_share<space_type>::centred_words(sent_heads));
      if (is_exact)
        run<op::retrieve_share>(working, call);
      else
        pqkv::retrieve(working, call.table, call.codes, call.index, call.own, call.found.indices, plan.counts, how, {}, map);
      if (is_exact)
        this->template do_stages<op::choose_tokens>(working, call, std::tuple(mails_.candidates),
                                                    ranked_share<space_type>::candidate_words(sent * this->lists(), k));
    }
    if (params_.selection == draft_selection::first_query && step.has_counts())
      run<op::share_lists>(policy, planning.queries, plan, call.found.indices);
    return plan;
  }

  template <class P, class O, class Space>
  void attend_planned(const P& policy, const agreement& agreed, view_of<const float, 2> query, const step_plan<space_type>& plan,
                      const head_map<space_type>& map, view<O, 3, Space> out, view_of<float, 2> lse) {
    const std::size_t tokens = plan.slots.extent(0), rows = query.extent(0), d = params_.head_dim;
    const mapped_store<decltype(rows_.view())> store{rows_.view(), map, tokens * params_.kv_heads};
    const token_set<space_type> attended{as_const(plan.spans), as_const(this->found(plan).indices), as_const(plan.counts)};
    view_of<float, 3> results = work_.out.slice(0, 0, tokens);
    view_of<float, 2> sums = work_.lse.slice(0, 0, tokens);
    bool is_copied = true;
    if constexpr (std::is_same_v<O, float> && std::is_same_v<Space, space_type>)
      if (is_flat(out)) results = out, is_copied = false;
    const bool copies_sums = lse.data != nullptr && !is_flat(lse);
    if (lse.data != nullptr && !copies_sums) sums = lse;
    const merged_shares<space_type> call{flatten(results), flatten(sums), __builtin_bit_cast(std::uint64_t, agreed.own()), work_.disagreed};
    if constexpr (state::travels_in_kernels) {
      run<op::attend_share>(this->working(policy), query, store, attended, params_.softmax_scale, call, mails_.partial);
    } else {
      float* const body = exchange_.mail.template body<float>();
      const auto own_lse = make_view<space_type>(body, rows);
      const auto own_out = make_view<space_type>(body + rows, rows, d);
      attention(this->working(policy), query, store, attended, own_out, own_lse, params_.softmax_scale);
      const std::size_t words = merged_shares<space_type>::words(sent_tokens(tokens) * params_.query_heads, d);
      this->gather(policy, words);
      run<op::merge_shares>(policy, call, this->gathered(words));
    }
    if (is_copied) store_rows(policy, results, out);
    if (copies_sums) store_rows(policy, insert_axis<1>(sums), insert_axis<1>(lse));
  }
};

}  // namespace pqkv::scale
