// SPDX-License-Identifier: Apache-2.0
// The cache of one layer, with `batch` slots; each slot holds one sequence of its own length. Attention reads three kinds of tokens: sinks,
// window, and the middle tokens that a selector chooses, by default product quantization. The verbs are those of serving engines: prefill,
// append, attend (or retrieve, for engines that attend themselves), truncate, fork, reset, maintain. The same class serves host and device
// memory: the memory of its rows decides which policies the verbs take.
//
// All memory is taken at construction; no step allocates. Only training allocates, on the host, between steps. Every verb computes first
// and commits last: a call that throws leaves every slot as it was and can be repeated. On a device, steps only enqueue work and read each
// sequence's length from device memory, so one captured step can be replayed while the sequences grow.
//
// Make one call at a time: every verb changes the cache, attend() included. Caches of different layers are independent.
#pragma once

#include "pqcache_state.hpp"

namespace pqkv::inline PQKV_MODE {

/// The KV cache of one layer, for `batch` sequences, with attention over sinks, window and the middle tokens that a selector chooses.
///
/// @tparam Rows      where keys and values are: dense_rows or paged_rows, in host or device memory; file_rows; tiered_rows in two memories
/// @tparam Selector  selector::basic_pq, full, streaming, oracle, snapkv, h2o, sparq, quest, infllm, or one's own (selector/concept.hpp)
template <class Rows = dense_rows<float>, class Selector = selector::basic_pq<typename Rows::space_type>>
class pqcache : public pqcache_state<Rows, Selector> {
  using state = pqcache_state<Rows, Selector>;

 public:
  using state::at;
  using state::is_on_host;
  using typename state::params;
  /// Type of the elements of a stored row.
  using value_type = typename Rows::value_type;
  /// The memory space of rows, index and steps.
  using space_type = typename Rows::space_type;
  /// Says which slots a call is for, and how many tokens each gets.
  using step_type = basic_step<space_type>;
  /// A view of the cache's memory.
  template <class T, std::size_t Rank>
  using view_of = view<T, Rank, space_type>;

  /// @param policy  of the cache's memory space; on a device its stream clears the memory
  /// @throws as plan(); std::bad_alloc; on a device cuda_error
  template <exec::policy P>
  requires std::same_as<typename P::space_type, space_type> pqcache(const P& policy, const params& p) : state(policy, p) {}
  /// The same in host memory.
  explicit pqcache(const params& p) requires is_on_host : state(exec::host<isa::scalar>{}, p) {}

  /// Stores a prompt's keys and values in an empty slot, whole or in chunks. After the last chunk the selector builds its index. Tokens
  /// after the prompt, for example those of a second turn, go through append().
  ///
  /// @param slot    below batch; empty, or in the middle of a chunked prefill
  /// @param keys    [h, n, d] float, half or bfloat16, any strides, after rotary embedding
  /// @param values  [h, n, d]
  /// @throws shape_error, value_error, capacity_error; std::bad_alloc; on a device cuda_error
  /// @cost   one copy of the rows; the last chunk also pays for the selector's training. Cannot be part of a captured step, since its
  ///         shapes depend on the prompt; on a device the first chunk waits for the stream to learn whether the slot is empty
  template <exec::policy P, class K, class V, class Space>
  requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, P>
  void prefill(const P& policy, std::size_t slot, view<K, 3, Space> keys, view<V, 3, Space> values, chunk which = chunk::last) {
    begin<P>("prefill");
    this->look_at(policy, slot);
    require_ok(this->can_prefill(slot, keys, values));
    zero_bytes(policy, work_.prompt_nonfinite.data, 2 * sizeof(std::uint32_t));
    run<op::store_tokens>(policy, rows_.view(), stored_tokens<space_type>{slot * params_.kv_heads, known(slot).n, work_.prompt_nonfinite},
                          keys, values);
    end_prefill(policy, slot, keys.extent(1), which);
  }
  /// The same for n tokens whose rows the engine has already written into its pages.
  template <exec::policy P>
  void prefill(const P& policy, std::size_t slot, std::size_t n, chunk which = chunk::last) {
    begin<P>("prefill");
    this->look_at(policy, slot);
    const auto there = nothing(params_.kv_heads, n);
    require_ok(this->can_prefill(slot, there, there));
    zero_bytes(policy, work_.prompt_nonfinite.data, 2 * sizeof(std::uint32_t));
    end_prefill(policy, slot, n, which);
  }

  /// Adds a step's tokens. When a new token finds the window full, the window's oldest token is first encoded and moved to the middle.
  /// Several tokens of a row have the same effect as appending them one by one.
  ///
  /// @param keys    [tokens, h, d] float, half or bfloat16, any strides, in the order of the step's rows
  /// @param values  [tokens, h, d]
  /// @param step    which slots, and how many tokens each; default: one token for every slot
  /// @throws shape_error, value_error, capacity_error; what the runner throws. A device cache knows the lengths only on the device, so
  ///         tokens that do not fit are refused there and counted in the statistics
  /// @cost   one row copied for each token and, per token that leaves the window, h * d * c distance terms
  template <exec::policy P, class K, class V, class Space>
  requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, P>
  void append(const P& policy, view<K, 3, Space> keys, view<V, 3, Space> values, const step_type& step = {}) {
    begin<P>("append");
    require_ok(this->can_append(keys, values, step));
    run<op::append_tokens>(working(policy), this->appended_rows(), selector_.index(),
                           appended_tokens<space_type>{work_.slots, step, keys.extent(0), rows_.room(0)}, keys, values);
  }
  /// The same for `tokens` tokens, those of the whole step, whose rows the engine has already written into its pages.
  template <exec::policy P>
  void append(const P& policy, std::size_t tokens, const step_type& step) {
    begin<P>("append");
    const auto there = nothing(tokens, params_.kv_heads);
    require_ok(this->can_append(there, there, step));
    run<op::append_tokens>(working(policy), this->appended_rows(), selector_.index(),
                           appended_tokens<space_type>{work_.slots, step, tokens, rows_.room(0)}, there, there);
  }

  /// Attention of a step's queries over sinks, retrieved middle and window. A row's queries belong to its newest tokens, so append() those
  /// first; each query attends to the tokens up to its own. Each query has its own selection, unless params.selection says that a row's
  /// queries share that of the first.
  ///
  /// @param query  [tokens, hq, d] float, half or bfloat16, after rotary embedding, any strides
  /// @param out    [tokens, hq, d] float, half or bfloat16, any strides, written; zeros for a row with more queries than tokens
  /// @param lse    [tokens, hq] float, written if given: log-sum-exp over the tokens attended
  /// @param step   as in append()
  /// @throws shape_error, value_error; capacity_error when the policy's own scratch is too small. `out` is then unspecified
  /// @cost   selection plus (s + w + k) rows of K and V per list; no allocation; queries_at_once() tokens at a time
  template <exec::policy P, class Q, class O, class Space>
  requires storage_scalar<Q> && writable_scalar<O> && reachable_from<Space, P>
  void attend(const P& policy, view<Q, 3, Space> query, view<O, 3, Space> out, view_of<float, 2> lse = {}, const step_type& step = {}) {
    begin<P>("attend");
    require_ok(this->can_attend(query, out, lse, step));
    detail::tier_step<Rows, P> tiers(policy, rows_);
    this->for_passes(query.extent(0), [&](std::size_t first, std::size_t count, const slot_table<space_type>& counted) {
      const auto asked = detail::as_floats(policy, query.slice(0, first, count), work_.query);
      const step_plan<space_type> plan = select(policy, asked, step, first);
      const fetched_tokens<space_type> wanted{plan, as_const(found(plan))};
      tiers.fetch(wanted);
      attend_planned(policy, asked, plan, plan.map(step, first, params_.batch), out.slice(0, first, count),
                     lse.data == nullptr ? lse : lse.slice(0, first, count));
      tiers.look_up(wanted);
      count_attended(policy, counted, asked, plan, step, first, true);
    });
    tiers.admit(as_const(work_.slots.sequences));
  }

  /// The middle tokens that attend() would read, for engines that fetch and attend themselves.
  ///
  /// @param query    [tokens, hq, d] float, half or bfloat16, any strides
  /// @param indices  [tokens, h, k_max] int32 ([tokens, hq, k_max] under `none`), written: absolute positions, ascending, then -1. k_max is
  ///                 at least retrieve_capacity(slot); a device cuts longer lists. A slot without a codebook lists its whole middle
  /// @param counts   [tokens, h] uint32 ([tokens, hq] under `none`), written
  /// @throws shape_error, value_error; capacity_error also when the policy's own scratch is too small
  /// @cost   as the selection in attend()
  template <exec::policy P, class Q, class Space>
  requires storage_scalar<Q> && reachable_from<Space, P>
  void retrieve(const P& policy, view<Q, 3, Space> query, view_of<std::int32_t, 3> indices, view_of<std::uint32_t, 2> counts,
                const step_type& step = {}) {
    begin<P>("retrieve");
    require_ok(this->can_retrieve(query, indices, counts, step));
    this->for_passes(query.extent(0), [&](std::size_t first, std::size_t count, const slot_table<space_type>& counted) {
      const auto asked = detail::as_floats(policy, query.slice(0, first, count), work_.query);
      const step_plan<space_type> plan = select(policy, asked, step, first);
      run<op::write_lists>(policy, queries_of(step, first), plan, as_const(found(plan)), indices.slice(0, first, count),
                           counts.slice(0, first, count));
      count_attended(policy, counted, asked, plan, step, first, false);
    });
  }

  /// Forgets all but the first n tokens of a slot, for example a rejected draft. Later selections have the same bits as if the other tokens
  /// had never come, except that a codebook trained with them stays. A slot cut to 0 keeps its statistics.
  /// @throws value_error
  /// @cost   grows with the tokens that leave the middle; id lists are not touched
  template <exec::policy P>
  void truncate(const P& policy, std::size_t slot, std::size_t n) {
    check_policy<P>();
    require_ok(this->can_truncate(slot, n));
    const truncated_tokens<space_type> cut{work_.slots, {}, {}, static_cast<std::uint32_t>(slot), static_cast<std::uint32_t>(n)};
    run<op::truncate_tokens>(policy, selector_.index(), cut);
    if constexpr (rows_of_tiers<Rows>) rows_.truncated(policy, cut);
    if constexpr (!is_on_host)
      if (n < known_[slot].n) known_[slot] = known_[slot].truncated(static_cast<std::uint32_t>(n));
  }
  /// The same for several slots, with lengths in the policy's memory. On a device it can be part of a captured step; a length above the
  /// slot's is refused and counted there.
  ///
  /// @param lengths  [rows] uint32
  /// @param slots    [rows] uint32, none twice; empty: every slot in order
  /// @throws shape_error, value_error
  template <exec::policy P>
  void truncate(const P& policy, view_of<const std::uint32_t, 1> lengths, view_of<const std::uint32_t, 1> slots = {}) {
    check_policy<P>();
    require_ok(this->can_truncate(lengths, slots));
    if (lengths.extent(0) == 0) return;  // nothing to cut
    const truncated_tokens<space_type> cut{work_.slots, slots, lengths};
    run<op::truncate_tokens>(policy, selector_.index(), cut);
    if constexpr (rows_of_tiers<Rows>) rows_.truncated(policy, cut);
  }

  /// Makes slot `to` a copy of slot `from`: rows, index, statistics. Rows in an engine's pages are not copied: the engine lets both slots'
  /// tables name the same pages.
  /// @throws value_error; if `to` is empty, what the runner throws; on a device cuda_error
  /// @cost   grows with the tokens of `from`. The runner copies into an empty slot; into any other the calling thread does, because a copy
  ///         that failed halfway would destroy the slot
  template <exec::policy P>
  void fork(const P& policy, std::size_t from, std::size_t to) {
    begin<P>("fork");
    require_ok(this->can_fork(from, to));
    if (from == to) return;
    slot_parts parts = rows_.parts();
    parts.add(selector_.index().parts());
    run<op::copy_slot>(policy, parts, work_.slots, from, to);
    if constexpr (requires { selector_.copied(from, to); }) selector_.copied(from, to);
    if constexpr (rows_of_tiers<Rows>) rows_.copied(policy, from, to);
    if constexpr (!is_on_host) known_[to] = known_[from];
  }

  /// Empties a slot. @throws value_error; on a device cuda_error
  template <exec::policy P>
  void reset(const P& policy, std::size_t slot) {
    check_policy<P>();
    require_ok(this->can_reset(slot));
    zero_bytes(policy, &work_.slots.sequences.data[slot], sizeof(sequence));
    zero_bytes(policy, &work_.slots.statistics.data[slot], sizeof(slot_statistics));
    selector_.clear(policy, slot);
    if constexpr (rows_of_tiers<Rows>) rows_.cleared(policy, slot);
    if constexpr (!is_on_host) known_[slot] = {};
  }
  /// The same on the host. @throws value_error
  void reset(std::size_t slot) requires is_on_host { reset(exec::host<isa::scalar>{}, slot); }

  /// Writes a slot's codebooks and codes to a sink and, on request, its keys and values.
  ///
  /// @param sink  sink(const std::byte*, std::size_t), called for one piece after the other; what it throws ends the call
  /// @throws value_error when `slot` is not below batch or is being prefilled, or for rows in an engine's pages; std::bad_alloc
  /// @cost   reads what it writes once, through 1 MiB of host memory
  /// @source cache/slot_file.hpp has the layout
  template <exec::policy P, class Sink>
  void save(const P& policy, std::size_t slot, Sink&& sink, slot_contents contents = slot_contents::index_and_rows) const {
    begin<P>("save");
    require_ok(admission().slot("save", "slot", slot));
    const slot_file_header header = this->header_of(at(policy, slot), contents);
    require_ok(detail::checks("save")
                   .that(header.at.prefilling == 0, status::code::value, "slot", relation::required,
                         "past its prompt: send chunk::last first", 0, 1)
                   .that(contents == slot_contents::index || rows_.parts().count != 0, status::code::value, "contents", relation::required,
                         "slot_contents::index: the rows are the engine's pages", 0, 1));
    detail::slot_writer<std::remove_reference_t<Sink>> file(sink);
    file.write(&header, sizeof header);
    const buffer<std::byte> piece(detail::slot_file_piece);
    this->for_runs(slot, header, [&](std::byte* run, std::size_t bytes, std::size_t) { file.write_run(policy, run, bytes, piece); });
    file.finish();
  }

  /// Fills an empty slot from a file that save() of this or another backend wrote. The slot then selects the same tokens.
  ///
  /// @param source    source(std::byte*, std::size_t) -> std::size_t: how many bytes it gave, 0 at the end
  /// @param contents  what the file must hold; `index` when the rows are in the store already, as an engine's pages are
  /// @throws value_error, capacity_error: the file is truncated, altered or from a cache with other parameters (the message names what does
  ///         not fit); std::bad_alloc. The slot then stays empty
  /// @cost   one pass over the file, and a counting sort that rebuilds the id lists
  template <exec::policy P, class Source>
  void load(const P& policy, std::size_t slot, Source&& source, slot_contents contents = slot_contents::index_and_rows) {
    begin<P>("load");
    require_ok(admission().slot("load", "slot", slot));
    require_ok(detail::checks("load").that(at(policy, slot).n == 0, status::code::value, "slot", relation::required,
                                           "empty: reset() it first", 0, 1));
    detail::slot_reader<std::remove_reference_t<Source>> file(source);
    slot_file_header header;
    file.read(&header, sizeof header);
    require_ok(detail::can_load_header(header, this->header_of({}, contents), rule_, rows_.room(slot)));
    require_ok(rows_.can_hold("load", slot, 0, header.at.n));
    const buffer<std::byte> piece(detail::slot_file_piece);
    require_ok(detail::checks("load").that(header.payload_bytes == this->payload_bytes(header), status::code::value, "file.payload_bytes",
                                           relation::equal, "bytes of such a slot", this->payload_bytes(header), header.payload_bytes));
    this->for_runs(slot, header,
                   [&](std::byte* run, std::size_t bytes, std::size_t limit) { file.read_run(policy, run, bytes, piece, limit); });
    file.finish();
    if constexpr (requires { selector_.rebuild(working(policy), slot, middle_range{}); })
      if (header.at.learned != 0) selector_.rebuild(working(policy), slot, header.at.middle(rule_));
    header.at.longest = header.at.n;
    commit(policy, {slot, header.at, false, {}, {}});
  }

  /// Does the work that must not happen inside a step: trains a codebook that now has enough keys, renews one that the sequence has
  /// outgrown (selector::pq_params::refresh), and merges new tokens into id lists. Call it between steps. On a device it waits for the
  /// stream.
  /// @throws std::bad_alloc; what the runner throws; on a device cuda_error. Call it again after an error. Until then each slot is either
  ///         done or unchanged, except that a slot in the middle of a renewal has no index and attends to all its tokens
  template <exec::policy P>
  void maintain(const P& policy) {
    begin<P>("maintain");
    if constexpr (!is_on_host) {
      copy_bytes(policy, known_.data(), work_.slots.sequences.data, known_.size_bytes());
      sync(policy);
    }
    for (std::size_t slot = 0; slot < params_.batch; ++slot) {
      const sequence now = known(slot);
      if (is_learning_due(now, rule_, selector_.least_rows()))
        learn(policy, slot, now, {});
      else if (now.n != 0 && now.prefilling == 0)
        selector_.maintain(working(policy), slot, now, now.middle(rule_));
    }
  }

 private:
  using state::admission, state::known, state::known_, state::params_, state::rows_, state::rule_, state::selector_, state::work_;
  using state::found, state::queries_of;

  template <class P>
  static constexpr void check_policy() {
    static_assert(
        std::is_same_v<typename P::space_type, space_type>,
        "pqkv: the policy's memory is not the cache's: a cache of host rows takes a host policy, one of device rows a device policy");
    if constexpr (requires { typename P::runner_type; })
      static_assert(exec::runs_whole_call<typename P::runner_type>,
                    "pqkv: pqcache changes state once per call; give it a runner of whole calls, not exec::slice");
    static_assert(selector_for<Selector, P>, "pqkv: Selector must model pqkv::selector_for (selector/concept.hpp)");
  }
  /// Every verb that touches rows calls this first.
  template <class P>
  void begin(const char* function) const {
    check_policy<P>();
    if constexpr (requires { rows_.ensure_readable(function); }) rows_.ensure_readable(function);
  }
  template <class Op, class P, class... Argument>
  static decltype(auto) run(const P& policy, const Argument&... argument) {
    return detail::run_operation<Op>(policy, argument...);
  }
  /// The policy with its runner's type erased, and with the cache's own scratch unless the caller brought some.
  template <class P>
  auto working(const P& policy) const {
    auto own = detail::erased(policy);
    if (own.scratch.counting() && state::scratch_bytes_ != 0) own.scratch = arena(work_.scratch, state::scratch_bytes_);
    return own;
  }
  /// Stands for rows that are already in the store: a view without data.
  view_of<const float, 3> nothing(std::size_t first, std::size_t second) const {
    return make_view<space_type>(static_cast<const float*>(nullptr), first, second, params_.head_dim);
  }

  template <class P>
  void end_prefill(const P& policy, std::size_t slot, std::size_t n, chunk which) {
    const sequence after = known(slot).prefilled(static_cast<std::uint32_t>(n), which);
    if (after.prefilling != 0 || after.n == 0)
      commit(policy, {slot, after, false, {}, work_.prompt_nonfinite});
    else
      learn(policy, slot, after, work_.prompt_nonfinite);
  }
  /// Trains a slot on its rows, then sets its sequence to `now`. No query may use the old index meanwhile: it is overwritten.
  template <class P>
  void learn(const P& policy, std::size_t slot, const sequence& now, view_of<std::uint32_t, 1> nonfinite) {
    if (now.learned != 0) commit(policy, {slot, now.without_index(), false, {}, {}});
    const selector::learning<space_type> outcome = selector_.learn(working(policy), slot, rows_.view(), now, now.middle(rule_));
    commit(policy, {slot, now, outcome.tried, outcome.outcomes, nonfinite, outcome.due_again, outcome.codes});
  }
  template <class P>
  void commit(const P& policy, const committed_prompt<space_type>& call) {
    run<op::commit_prompt>(policy, work_.slots, call);
    if constexpr (!is_on_host) known_[call.slot] = call.after;
  }

  /// Plans a pass and fills its lists of selected tokens.
  template <class P>
  step_plan<space_type> select(const P& policy, view_of<const float, 2> query, const step_type& step, std::size_t first) {
    const step_plan<space_type> plan = work_.plan.of(query.extent(0) / params_.query_heads);
    const auto planned = queries_of(step, first);
    const bool listed = detail::plan_and_select(selector_, policy, working(policy), query, this->ranked_rows(policy),
                                                plan.map(step, first, params_.batch), planned, plan, found(plan));
    if (listed && params_.selection == draft_selection::first_query && step.has_counts())
      run<op::share_lists>(policy, planned, plan, found(plan));
    return plan;
  }

  template <class P, class O, class Space>
  void attend_planned(const P& policy, view_of<const float, 2> query, const step_plan<space_type>& plan, const head_map<space_type>& map,
                      view<O, 3, Space> out, view_of<float, 2> lse) {
    const std::size_t tokens = plan.slots.extent(0);
    const mapped_store<decltype(this->attended_rows())> store{this->attended_rows(), map, tokens * params_.kv_heads};
    const token_set<space_type> attended{as_const(plan.spans), as_const(found(plan)), as_const(plan.counts)};
    view_of<float, 3> results = work_.out.slice(0, 0, tokens);
    view_of<float, 2> sums = work_.lse.slice(0, 0, tokens);
    bool is_copied = true;
    if constexpr (std::is_same_v<O, float> && std::is_same_v<Space, space_type>)
      if (is_flat(out)) results = out, is_copied = false;
    const bool copies_sums = lse.data != nullptr && !is_flat(lse);
    if (lse.data != nullptr && !copies_sums) sums = lse;
    attention(working(policy), query, store, attended, flatten(results), flatten(sums), params_.softmax_scale);
    if (is_copied) store_rows(policy, results, out);
    if (copies_sums) store_rows(policy, insert_axis<1>(sums), insert_axis<1>(lse));
  }

  template <class P>
  void count_attended(const P& policy, const slot_table<space_type>& counted, view_of<const float, 2> query,
                      const step_plan<space_type>& plan, const step_type& step, std::size_t first, bool attends) {
    const std::size_t row_bytes = state::token_bytes(params_.head_dim);
    run<op::count_attended>(policy, counted, attended_queries<space_type>{plan, first, step, query, selector_.lists(), row_bytes, attends},
                            selector_.traffic_of(sizeof(value_type)));
  }
};

/// The cache of one layer with everything in device memory.
template <storage_scalar T = bfloat16, class Selector = selector::basic_pq<space::device>>
using device_pqcache = pqcache<dense_rows<T, space::device>, Selector>;

}  // namespace pqkv
