// SPDX-License-Identifier: Apache-2.0
// One cache over several ranks. A rank is a process, machine or thread that holds a share of every sequence's tokens (token_layout.hpp),
// with their rows, codes and index. All ranks make the same calls. A step's queries attend to sinks, retrieved middle and window of the
// whole sequence: each rank attends to its share, and the partial outputs are merged by their log-sum-exps. With selection_mode::exact the
// ranks attend to exactly the tokens that one pqcache with all tokens would attend to.
//
// Opt-in: include it after pqkv.hpp. Not for a sequence that fits on one rank: every layer of a step costs messages (docs/scale.md). Host
// memory here, device memory in device_context_parallel.hpp; one call at a time on each rank. A second stage, normalisation over attended
// tokens and weighted axes are refused. Sources: partial outputs: FlashDecoding, FlashInfer attention/state.cuh; shares of one sequence:
// ring attention, Liu, Zaharia, Abbeel 2023.
#pragma once

#include "context_training.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The cache of one layer over several ranks, each with a share of every sequence's tokens in host memory.
///
/// If one rank refuses a verb, all do: that rank throws the error, the others throw rank_error, and no slot changes. If a rank never makes
/// the call, the others' call ends at the communicator's time limit with communication_error.
///
/// @tparam Rows          where this rank's keys and values are: dense_rows in host memory
/// @tparam Communicator  models communicator_for the policies of all calls; copied
template <class Rows, class Communicator>
class context_parallel : public context_training<Rows, Communicator> {
  using state = context_training<Rows, Communicator>;

 public:
  using state::at;
  using typename state::params;
  using typename state::value_type;

  /// Takes all memory of this rank. Sends no messages: the ranks compare their parameters in the vote that begins every later call.
  /// @throws shape_error, value_error; std::bad_alloc
  template <exec::policy P>
  context_parallel(const P& policy, const Communicator& ranks, const params& p) : state(policy, ranks, p) {}

  /// Stores a prompt, whole or in chunks; after the last chunk all ranks train one codebook together.
  ///
  /// @param slot    below batch; empty, or in the middle of a chunked prefill
  /// @param keys    [h, own, d] those tokens of the chunk that this rank holds, in order: own = layout().held(rank, length after) -
  ///                held(rank, length before)
  /// @param values  [h, own, d]
  /// @param n       tokens of the chunk on all ranks
  /// @throws shape_error, value_error, capacity_error, rank_error, communication_error; std::bad_alloc
  /// @cost   as pqcache::prefill() for the share; the whole training sample is sent to every rank, and each rank trains on it
  template <exec::policy P, class K, class V>
  requires storage_scalar<K> && storage_scalar<V>
  void prefill(const P& policy, std::size_t slot, view<K, 3> keys, view<V, 3> values, std::size_t n, chunk which = chunk::last) {
    agreement agreed = this->begin_prefill(policy, slot, keys, values, n, which);
    agreed.attempt([&] { this->store(policy, slot, at(slot).n, keys, values); });
    this->commit(policy, this->learn(policy, agreed, slot, at(slot).prefilled(static_cast<std::uint32_t>(n), which)));
  }

  /// Adds a step's tokens, as pqcache::append(). Every rank is given all of them and stores those that it holds: usually every rank has
  /// computed the keys and values of a step's few tokens anyway.
  ///
  /// @param keys    [tokens, h, d], the same on all ranks
  /// @param values  [tokens, h, d]
  /// @param step    which slots, and how many tokens each
  /// @throws shape_error, value_error, capacity_error, rank_error, communication_error
  /// @cost   on the rank that stores the token, as pqcache::append(); one exchange of 8 bytes, or none (agreement_mode)
  template <exec::policy P, class K, class V>
  requires storage_scalar<K> && storage_scalar<V>
  void append(const P& policy, view<K, 3> keys, view<V, 3> values, const cache_step& step = {}) {
    agreement agreed = this->call("append");
    agreed.attempt([&] {
      require_ok(this->admission().append(keys, values, step, [&](std::size_t) { return params_.capacity; }));
      this->same_step(agreed, step, keys.extent(0));
      std::size_t first = 0;
      for (std::size_t row = 0; row < step.rows(params_.batch); first += step.count(row), ++row) {
        const std::uint32_t slot = step.slot(row);
        this->store_own(policy, slot, as_const(keys.slice(0, first, step.count(row))), as_const(values.slice(0, first, step.count(row))));
        const sequence after = at(slot).grown(at(slot).learned != 0 ? step.count(row) : 0);
        work_.slots.leaving(row) = this->local(leaving_between(slot, at(slot), after, rule_));
      }
      index_.view().encode(policy, rows_.view(), as_const(work_.slots.leaving.slice(0, 0, step.rows(params_.batch))));
    });
    this->begin_append(policy, agreed);
    for (std::size_t row = 0; row < step.rows(params_.batch); ++row) {
      index_.view().commit(work_.slots.leaving(row));
      sequence& now = work_.slots.sequences(step.slot(row));
      now = now.grown(step.count(row));
    }
  }

  /// Attention of a step's queries over sinks, retrieved middle and window of all ranks, as pqcache::attend().
  ///
  /// @param query  [tokens, hq, d] float, half or bfloat16, the same on all ranks
  /// @param out    [tokens, hq, d] written, the same on all ranks
  /// @param lse    [tokens, hq] float, written if given
  /// @throws shape_error, value_error, rank_error, communication_error; what the runner throws. `out` is then unspecified. If the runner
  ///         throws after the last message, which merges and stores the last outputs, the other ranks' call succeeds
  /// @cost   selection and attention of the share; the messages that docs/scale.md lists; the library allocates nothing
  template <exec::policy P, class Q, class O>
  requires storage_scalar<Q> && writable_scalar<O>
  void attend(const P& policy, view<Q, 3> query, view<O, 3> out, view<float, 2> lse = {}, const cache_step& step = {}) {
    agreement agreed = this->begin_attend(policy, query, out, lse, step);
    if (this->carries_votes() && (agreed.refuses() || query.extent(0) == 0)) return this->only_vote(policy, agreed);
    pqkv::detail::for_passes(query.extent(0), params_.queries_at_once(), [&](std::size_t first, std::size_t count) {
      const auto asked = as_floats(policy, agreed, query.slice(0, first, count));
      const step_plan<space::host> plan = select(policy, agreed, asked, step, first);
      const partial_outputs partial = this->partial_of(asked.extent(0), first);
      agreed.attempt([&] {
        const token_set<> tokens{as_const(plan.spans), as_const(this->found(plan).indices), as_const(plan.counts)};
        const mapped_store<decltype(rows_.view())> store{rows_.view(), plan.map(step, first, params_.batch), count * params_.kv_heads};
        const auto own = partial.own(exchange_.mail);
        attention(this->working(policy), asked, store, tokens, own.out, own.lse, params_.softmax_scale);
      });
      partial.merge_all(policy, ranks_, agreed, exchange_.mail,
                        {flatten(work_.lse.slice(0, 0, count)), flatten(work_.out.slice(0, 0, count))});
      agreed.attempt([&] {
        store_rows(policy, work_.out.slice(0, 0, count), out.slice(0, first, count));
        if (lse.data != nullptr)
          store_rows(policy, insert_axis<1>(work_.lse.slice(0, 0, count)), insert_axis<1>(lse.slice(0, first, count)));
      });
    });
    agreed.conclude_alone();
  }

  /// This rank's part of the middle tokens that attend() would read. The lists of all ranks together are the whole selection.
  ///
  /// @param query    as in attend()
  /// @param indices  [tokens, lists, k_max] int32, written: positions in the whole sequence, ascending, then -1; layout().held(rank,
  ///                 position) is the row of this rank's store. k_max is at least retrieve_capacity(slot)
  /// @param counts   [tokens, lists] uint32, written
  /// @throws as attend(); capacity_error
  template <exec::policy P, class Q>
  requires storage_scalar<Q>
  void retrieve(const P& policy, view<Q, 3> query, view<std::int32_t, 3> indices, view<std::uint32_t, 2> counts,
                const cache_step& step = {}) {
    agreement agreed = this->begin_retrieve(policy, query, indices, counts, step);
    if (this->carries_votes() && this->is_local()) agreed.conclude_alone();  // nothing is sent
    if (this->carries_votes() && !this->is_local() && (agreed.refuses() || query.extent(0) == 0)) return this->only_vote(policy, agreed);
    pqkv::detail::for_passes(query.extent(0), params_.queries_at_once(), [&](std::size_t first, std::size_t count) {
      const auto asked = as_floats(policy, agreed, query.slice(0, first, count));
      const step_plan<space::host> plan = select(policy, agreed, asked, step, first);
      for (std::size_t i = 0; i < count; ++i) {
        const step_token token = locate(step, params_.batch, first + i);
        const middle_range whole =
            this->local(whole_middle(at(token.slot), this->queries_of(step, first).query(token), rule_, this->covers()));
        for (std::size_t list = 0; list < indices.extent(1); ++list) {
          const std::size_t row = i * indices.extent(1) + list, listed = whole.size() != 0 ? whole.size() : plan.counts(row);
          counts(first + i, list) = static_cast<std::uint32_t>(listed);
          for (std::size_t k = 0; k < indices.extent(2); ++k) {
            const std::size_t place = k >= listed         ? 0
                                      : whole.size() != 0 ? whole.begin + k
                                                          : static_cast<std::size_t>(this->found(plan).indices(row, k));
            indices(first + i, list, k) = k < listed ? static_cast<std::int32_t>(layout_.position(ranks_.rank(), place)) : -1;
          }
        }
      }
    });
    agreed.conclude_alone();
  }

  /// Forgets all but the first n tokens of a slot, as pqcache::truncate(). @throws value_error, rank_error, communication_error
  template <exec::policy P>
  void truncate(const P& policy, std::size_t slot, std::size_t n) {
    this->begin_truncate(policy, slot, n);
    sequence& now = work_.slots.sequences(slot);
    const sequence after = now.truncated(static_cast<std::uint32_t>(n));
    if (now.learned != 0) index_.view().forget(this->local(leaving_between(static_cast<std::uint32_t>(slot), after, now, rule_)), after);
    merged_[slot] = std::min(merged_[slot], this->local(after.middle(rule_).end));
    now = after;
  }

  /// Makes slot `to` a copy of slot `from` on every rank. @throws value_error, rank_error, communication_error; what the runner throws
  template <exec::policy P>
  void fork(const P& policy, std::size_t from, std::size_t to) {
    agreement agreed = this->begin_fork(policy, from, to);
    if (from == to) return;
    agreed.attempt([&] {
      slot_parts parts = rows_.parts();
      parts.add(index_.view().parts());
      work_.shares.sequences(from).longest = this->local(at(from).longest);
      work_.shares.sequences(to).n = at(to).n;
      pqkv::detail::run_operation<op::copy_slot>(policy, parts, work_.shares, from, to);
    });
    if (at(to).n == 0) this->ask_all(policy, agreed);  // a copy into a slot that holds a sequence cannot fail
    work_.slots.sequences(to) = at(from);
    merged_[to] = merged_[from];
  }

  /// Empties a slot. @throws value_error, rank_error, communication_error
  template <exec::policy P>
  void reset(const P& policy, std::size_t slot) {
    this->begin_reset(policy, slot);
    work_.slots.sequences(slot) = {};
    index_.clear(policy, slot);
    merged_[slot] = 0;
  }

  /// Trains codebooks that are due, on all ranks together, and merges new tokens into id lists. Call it between steps.
  /// @throws rank_error, communication_error; std::bad_alloc; what the runner throws. A slot that was to be trained then has no index and
  ///         attends to everything
  template <exec::policy P>
  void maintain(const P& policy) {
    agreement agreed = this->begin_maintain(policy);
    for (std::size_t slot = 0; slot < params_.batch; ++slot) {
      const sequence now = at(slot);
      if (is_learning_due(now, rule_, index_.shape().least_rows())) {
        work_.slots.sequences(slot) = now.without_index();
        this->commit(policy, this->learn(policy, agreed, slot, now));
      } else if (now.learned != 0 && this->local(now.middle(rule_).end) - merged_[slot] >= params_.selector.tail_tokens) {
        agreed.attempt([&] {
          index_.merge(this->working(policy), slot);
          merged_[slot] = this->local(now.middle(rule_).end);
        });
      }
    }
    this->ask_all(policy, agreed);
  }

 private:
  using state::exchange_;
  using state::params_, state::layout_, state::ranks_, state::rows_, state::index_, state::rule_, state::work_, state::merged_;

  /// A pass's queries as floats [tokens * hq, d]. If that fails, they are unspecified, but as many.
  template <class P, class Q>
  view<const float, 2> as_floats(const P& policy, agreement& agreed, view<Q, 3> query) const {
    view<const float, 2> asked = as_const(flatten(work_.query.slice(0, 0, query.extent(0))));
    agreed.attempt([&] { asked = pqkv::detail::as_floats(policy, query, work_.query); });
    return asked;
  }

  /// Plans a pass of queries over the whole sequences, and fills this rank's part of their lists. The plan's spans are converted to
  /// positions in this rank's share.
  template <class P>
  step_plan<space::host> select(const P& policy, agreement& agreed, view<const float, 2> query, const cache_step& step, std::size_t first) {
    const step_plan<space::host> plan = work_.plan.of(query.extent(0) / params_.query_heads);
    const std::size_t lists = plan.counts.extent(0), h = plan.ranges.extent(0);
    const auto planned = this->queries_of(step, first);
    const bool listed = plan_step(policy, planned, plan);
    for (std::size_t list = 0; list < lists; ++list) plan.spans(list) = this->local(plan.spans(list));
    const std::size_t voting = this->is_local() ? 0 : this->voting_heads(first);
    if (!listed) {
      if (voting != 0) this->only_vote(policy, agreed);
      return plan;
    }
    const auto own = work_.own_ranges.slice(0, 0, h);
    for (std::size_t head = 0; head < h; ++head) own(head) = this->local(plan.ranges(head));
    const retrieve_params how = this->how_to_retrieve();
    const head_map<> map = plan.map(step, first, params_.batch);
    mutable_distance_table_view<> table{};
    agreed.attempt([&] { table = index_.tabulate(policy, query, map, work_.ranking); });
    const pq_index_view<> index = index_.view();
    if (this->is_local()) {
      const std::size_t rank = ranks_.rank(), ranks = layout_.ranks;
      for (std::size_t head = 0; head < h; ++head) {
        const std::size_t k = plan.ranges(head).retrieve;
        own(head).retrieve = static_cast<std::uint32_t>(k * (rank + 1) / ranks - k * rank / ranks);
      }
      agreed.attempt([&] {
        pqkv::retrieve(this->working(policy), table, as_const(index.codes), index.index, as_const(own), this->found(plan).indices,
                       plan.counts, how, {}, map);
      });
    } else {
      const exact_selection all{table,
                                as_const(index.codes),
                                index.index,
                                map,
                                as_const(plan.ranges),
                                own,
                                this->found(plan),
                                work_.scores.slice(0, 0, lists),
                                work_.normalisers.slice(0, 0, query.extent(0)),
                                exchange_.thresholds.slice(0, 0, lists),
                                exchange_.candidates,
                                exchange_.is_open.slice(0, 0, lists),
                                how,
                                layout_,
                                voting};
      all.run(this->working(policy), ranks_, agreed, exchange_.mail);
    }
    if (params_.selection == draft_selection::first_query && step.has_counts())
      pqkv::detail::run_operation<op::share_lists>(policy, planned, plan, this->found(plan).indices);
    return plan;
  }
};

}  // namespace pqkv::scale
