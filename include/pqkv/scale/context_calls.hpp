// SPDX-License-Identifier: Apache-2.0
// How every verb of a context-parallel cache begins, in host memory and on devices: its checks, what the ranks compare, and their votes.
// Also the verbs that are the same in host and device memory: saving and loading this rank's share of a slot. Only context_state.hpp and
// device_context_state.hpp include this file.
#pragma once

#include <utility>

#include "../cache/cache_checks.hpp"
#include "../exec/sync.hpp"
#include "context_base.hpp"
#include "share_file.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The part of a context-parallel cache that asks the other ranks. Template parameters as in context_parallel.
template <class Rows, class Communicator>
class context_calls : public context_base<Rows, Communicator> {
  using base = context_base<Rows, Communicator>;

 public:
  using base::is_on_host;
  using base::lists;
  using typename base::params;
  using typename base::space_type;
  using typename base::step_type;
  using typename base::value_type;
  template <class T, std::size_t Rank>
  using view_of = typename base::template view_of<T, Rank>;

  /// The state of a slot's whole sequence; the same on every rank. On a device these wait for the stream. @pre slot < batch
  /// @throws cuda_error, communication_error on a device
  /// @{
  template <exec::policy P>
  sequence at(const P& policy, std::size_t slot) const {
    return read(policy, &work_.slots.sequences.data[slot]);
  }
  template <exec::policy P>
  std::size_t size(const P& policy, std::size_t slot) const {
    return at(policy, slot).n;
  }
  template <exec::policy P>
  middle_range middle(const P& policy, std::size_t slot) const {
    return at(policy, slot).middle(rule_);
  }
  /// @}
  /// The most tokens that a list of this rank's retrieve() can hold when a slot is in this state.
  std::size_t retrieve_capacity(const sequence& now) const {
    const middle_range ranked = now.middle(rule_), own = local(ranked);
    return now.coverage(ranked, covers()) == selector::coverage::listed ? std::min<std::size_t>(own.size(), ranked.retrieve) : own.size();
  }

  /// Writes this rank's share of a slot: its codes, the codebooks and, on request, its rows. Every rank writes a file of its own and sends
  /// no messages. Waits on a device; not in a captured step.
  ///
  /// @param sink  sink(const std::byte*, std::size_t), called for one piece after the other; what it throws ends the call
  /// @throws value_error when `slot` is not below batch or is being prefilled, or on a device when the ranks' calls of an earlier step
  ///         differed; std::bad_alloc; on a device cuda_error, communication_error
  /// @cost   reads what it writes once, through 1 MiB of host memory
  /// @source share_file.hpp has the layout
  template <exec::policy P, class Sink>
  void save(const P& policy, std::size_t slot, Sink&& sink, slot_contents contents = slot_contents::index_and_rows) const {
    require_ok(admission().slot("save", "slot", slot));
    const sequence now = at(policy, slot);
    if constexpr (!is_on_host) refuse_if(read(policy, work_.disagreed) != 0);
    require_ok(pqkv::detail::checks("save").that(now.prefilling == 0, status::code::value, "slot", relation::required,
                                                 "past its prompt: send chunk::last first", 0, 1));
    const share_file_header header = header_of(now, contents);
    write_share(policy, sink, header, saved_parts(header.slot), slot);
  }

  /// Fills an empty slot from the files of save(), on all ranks together. Ranks in host memory and ranks on devices read each other's
  /// files. Waits on a device; not in a captured step. A rank that has no file must make the call too, with no source: the others wait for
  /// it.
  ///
  /// @param sources   either one source, for the file that this rank saved in a cache of as many ranks with the same `block` and `run`; or
  ///                  one source for each file of a cache of any number of ranks, in the order of the ranks: this rank then keeps the
  ///                  tokens that it holds. A source is source(std::byte*, std::size_t) -> std::size_t: how many bytes it gave, 0 at the
  ///                  end
  /// @param contents  what the files must hold
  /// @throws value_error, capacity_error when a file is truncated, altered, or from another cache or another save than the others;
  ///         rank_error, communication_error; std::bad_alloc; on a device cuda_error. The slot then stays empty
  /// @cost   one pass over the files, through 1 MiB of host memory, and a counting sort that rebuilds the id lists. On a device one copy
  ///         for each run of tokens that are consecutive both in a file and in this rank's memory: about one for each block, head and part
  ///         if the layouts differ
  template <exec::policy P, class Sources>
  void load(const P& policy, std::size_t slot, Sources&& sources, slot_contents contents = slot_contents::index_and_rows) {
    agreement agreed = this->call("load");
    sequence loaded;
    middle_range own{};
    agreed.attempt([&] {
      require_ok(admission().slot("load", "slot", slot));
      require_ok(pqkv::detail::checks("load").that(at(policy, slot).n == 0, status::code::value, "slot", relation::required,
                                                   "empty: reset() it first", 0, 1));
      const share_reader reader{layout_, ranks_.rank(), header_of({}, contents), rule_, params_.capacity};
      crc32 books;
      loaded = reader
                   .read(
                       policy, sources, [&](const slot_file_header& file) { return saved_parts(file); }, slot, books)
                   .slot.at;
      agreed.same_number(slot), agreed.same_number(static_cast<std::uint64_t>(contents));
      agreed.same_number(books.value()), agreed.same(&loaded, sizeof loaded);
      own = local(loaded.middle(rule_));
      if (loaded.learned != 0) index_.recount(this->working(policy), slot, own.begin, own.end);
    });
    ask_all(policy, agreed);
    loaded.longest = loaded.n;
    merged_[slot] = own.end;
    commit(policy, {slot, loaded, false, {}, {}});
  }

 protected:
  using base::covers, base::has_compared_, base::known_, base::refused_step_, base::layout_, base::local, base::params_, base::ranks_,
      base::rule_;
  using base::index_, base::merged_, base::rows_, base::votes_, base::work_;

  template <exec::policy P>
  context_calls(const P& policy, const Communicator& ranks, const params& p) : base(policy, ranks, p) {}

  /// The state of a slot's sequence, as far as the host knows it: on a device after the last call that waited for it.
  const sequence& known(std::size_t slot) const noexcept {
    if constexpr (is_on_host)
      return work_.slots.sequences(slot);
    else
      return known_[slot];
  }
  /// Reads a slot's state from the device, if there is one. Call it before the host relies on known(): it does not see what steps change.
  template <class P>
  void look_at(const P& policy, std::size_t slot) {
    if constexpr (!is_on_host)
      if (slot < params_.batch && known(slot).prefilling == 0) known_[slot] = at(policy, slot);
  }
  pqkv::detail::cache_checks<space_type> admission() const noexcept {
    return {params_, is_on_host ? work_.slots.sequences.data : known_.data(), lists()};
  }

  /// Lets the communicator reserve memory for messages of up to `sent` and `received` bytes, if it has memory of its own.
  void reserve_messages(std::size_t sent, std::size_t received) const {
    if constexpr (requires { ranks_.reserve(sent, received); }) ranks_.reserve(sent, received);
  }
  /// Asks all ranks whether they go on. Waits on a device, and tells all ranks of a step that one refused, or that differed, since the last
  /// call.
  template <class P>
  void ask_all(const P& policy, const agreement& agreed) const {
    static_assert(communicator_for<Communicator, P>,
                  "pqkv: Communicator must model pqkv::scale::communicator_for (scale/communicator.hpp)");
    if constexpr (is_on_host)
      agreed.commit(policy, ranks_, work_.votes);
    else
      ask_devices(policy, agreed);
    has_compared_ = true;
  }
  /// Whether the votes of attend() travel with its first message, whose length then depends on the parameters alone. On the host the ranks
  /// must have compared these, and the exact mode must begin with a sum.
  bool carries_votes() const {
    if (params_.agreement == agreement_mode::each_call) return false;
    return !is_on_host ||
           (has_compared_ && (params_.selection_over_ranks == selection_mode::local || needs_normalisers(params_.selector.reduction)));
  }
  /// The vote of append(): none under agreement_mode::with_exchange once the ranks have compared their parameters.
  template <class P>
  void begin_append(const P& policy, const agreement& agreed) const {
    if (params_.agreement == agreement_mode::each_call || (is_on_host && !has_compared_)) return ask_all(policy, agreed);
    if constexpr (!is_on_host) keep_reason(agreed);
    agreed.conclude_alone();
  }
  /// Passes of a step in whose messages a vote travels: one even if there are no queries.
  std::size_t passes_of(std::size_t tokens) const {
    std::size_t passes = 0;
    pqkv::detail::for_passes(std::max<std::size_t>(tokens, 1), params_.queries_at_once(), [&](std::size_t, std::size_t) { ++passes; });
    return passes;
  }
  /// On a device, a rank that refused a step refuses the next ones too, until all ranks know.
  void refuse_after_refusal() const {
    require_ok(pqkv::detail::checks("attend").that(is_on_host || refused_step_.empty(), status::code::value, "step", relation::required,
                                                   "after a call that waits: this rank refused an earlier step", 0, 1));
  }
  /// Keeps why this rank refused a step whose votes travel with its messages: the next call that waits tells the others.
  void keep_reason(const agreement& agreed) const {
    if (agreed.refuses() && refused_step_.empty()) refused_step_ = agreed.reason().text();
  }
  /// Waits for the stream, by the communicator's finish() if it has one, which has a time limit. Call it before a copy from or to host
  /// memory and before device memory is taken or freed: there CUDA may itself wait for the stream, and for ever if a rank stays away.
  template <class P>
  void wait(const P& policy) const {
    if constexpr (requires { ranks_.finish(policy); })
      ranks_.finish(policy);
    else
      sync(policy);
  }

  /// The beginning of each verb, with the verb's arguments: makes the verb's checks, adds what must be the same on all ranks to the
  /// agreement, and asks the ranks, unless carries_votes(). The verb goes on with the agreement that is returned.
  /// @{
  template <class P, class K, class V>
  agreement begin_prefill(const P& policy, std::size_t slot, const K& keys, const V& values, std::size_t n, chunk which) {
    agreement agreed = this->call("prefill");
    agreed.attempt([&] {
      look_at(policy, slot);
      require_ok(can_prefill(slot, keys, values, n));
      agreed.same_number(slot), agreed.same_number(n), agreed.same_number(static_cast<std::uint64_t>(which));
      agreed.same(&known(slot), sizeof(sequence));
    });
    ask_all(policy, agreed);
    return agreed;
  }
  template <class P, class Q, class O>
  agreement begin_attend(const P& policy, const Q& query, const O& out, const view_of<float, 2>& lse, const step_type& step) const {
    agreement agreed = this->call("attend");
    agreed.attempt([&] {
      refuse_after_refusal();
      require_ok(admission().attend(query, out, lse, step));
      same_step(agreed, step, query.extent(0));
    });
    if constexpr (!is_on_host) agreed.takes_passes(passes_of(query.extent(0)));
    if (!carries_votes()) ask_all(policy, agreed);
    return agreed;
  }
  template <class P, class Q, class I, class C>
  agreement begin_retrieve(const P& policy, const Q& query, const I& indices, const C& counts, const step_type& step) const {
    agreement agreed = this->call("retrieve");
    agreed.attempt([&] {
      refuse_after_refusal();
      require_ok(admission().retrieve(query, indices, counts, step, [&](std::size_t slot) { return retrieve_capacity(known(slot)); }));
      same_step(agreed, step, query.extent(0));
    });
    if constexpr (!is_on_host) agreed.takes_passes(passes_of(query.extent(0)));
    if (!carries_votes()) ask_all(policy, agreed);
    return agreed;
  }
  template <class P>
  agreement begin_truncate(const P& policy, std::size_t slot, std::size_t n) {
    agreement agreed = this->call("truncate");
    agreed.attempt([&] {
      look_at(policy, slot);
      require_ok(admission().truncate(slot, n));
      require_ok(pqkv::detail::checks("truncate").at_most("n", n, known(slot).n, "tokens of the slot"));
      agreed.same_number(slot), agreed.same_number(n), agreed.same(&known(slot), sizeof(sequence));
    });
    ask_all(policy, agreed);
    return agreed;
  }
  template <class P>
  agreement begin_fork(const P& policy, std::size_t from, std::size_t to) {
    agreement agreed = this->call("fork");
    agreed.attempt([&] {
      require_ok(admission().slot("fork", "from", from));
      require_ok(admission().slot("fork", "to", to));
      look_at(policy, from);
      agreed.same_number(from), agreed.same_number(to), agreed.same(&known(from), sizeof(sequence));
      if constexpr (is_on_host) agreed.same(&known(to), sizeof(sequence));
    });
    ask_all(policy, agreed);
    return agreed;
  }
  template <class P>
  agreement begin_reset(const P& policy, std::size_t slot) const {
    agreement agreed = this->call("reset");
    agreed.attempt([&] {
      require_ok(admission().slot("reset", "slot", slot));
      agreed.same_number(slot);
    });
    ask_all(policy, agreed);
    return agreed;
  }
  template <class P>
  agreement begin_maintain(const P& policy) {
    agreement agreed = this->call("maintain");
    agreed.attempt([&] {
      if constexpr (!is_on_host) {
        wait(policy);
        copy_bytes(policy, known_.data(), work_.slots.sequences.data, known_.size_bytes());
        wait(policy);
      }
      agreed.same(&known(0), params_.batch * sizeof(sequence));
    });
    ask_all(policy, agreed);
    return agreed;
  }
  /// @}

  /// Adds the number of a step's tokens to what the ranks compare and, where the host reads them, slots, counts and states of sequences.
  void same_step(agreement& agreed, const step_type& step, std::size_t tokens) const {
    agreed.same_number(tokens);
    if constexpr (is_on_host)
      for (std::size_t row = 0; row < step.rows(params_.batch); ++row) {
        agreed.same_number(std::uint64_t{step.slot(row)} << 32 | step.count(row));
        agreed.same(&known(step.slot(row)), sizeof(sequence));
      }
  }
  /// Sets a slot's sequence.
  template <class P>
  void commit(const P& policy, const committed_prompt<space_type>& call) {
    pqkv::detail::run_operation<op::commit_prompt>(policy, work_.slots, call);
    if constexpr (!is_on_host) known_[call.slot] = call.after;
  }

 private:
  template <class P, class T>
  T read(const P& policy, const T* from) const {
    static_assert(
        std::is_same_v<typename P::space_type, space_type>,
        "pqkv: the policy's memory is not the cache's: a cache of host rows takes a host policy, one of device rows a device policy");
    T found;
    if constexpr (!is_on_host) wait(policy);
    copy_bytes(policy, &found, from, sizeof found);
    wait(policy);
    return found;
  }
  /// @param disagreed  whether votes that travelled with a step's messages differed
  static void refuse_if(bool disagreed) {
    require_ok(pqkv::detail::checks("attend").that(!disagreed, status::code::value, "calls", relation::required,
                                                   "the same on all ranks: those of an earlier step were not", 0, 0));
  }
  /// ask_all() of devices. A rank votes, too, that it refused an earlier step, or that it found an earlier step's votes to differ.
  template <class P>
  void ask_devices(const P& policy, const agreement& agreed) const {
    const std::size_t ranks = layout_.ranks;
    std::uint32_t disagreed = 0;
    wait(policy);
    copy_bytes(policy, &disagreed, work_.disagreed, sizeof disagreed);
    wait(policy);
    vote own = agreed.own();
    const bool refused_before = !refused_step_.empty();
    if (refused_before)
      own.refuses = vote::earlier;
    else if (own.refuses == 0 && disagreed != 0)
      own.refuses = vote::differed;
    copy_bytes(policy, work_.votes + ranks, &own, sizeof own);
    ranks_.all_gather(policy, reinterpret_cast<const std::byte*>(work_.votes + ranks), reinterpret_cast<std::byte*>(work_.votes),
                      sizeof own);
    wait(policy);
    copy_bytes(policy, votes_.data(), work_.votes, votes_.size_bytes());
    wait(policy);
    if (disagreed != 0) zero_bytes(policy, work_.disagreed, sizeof disagreed);
    const std::string earlier = std::exchange(refused_step_, {});
    const auto votes = [&](std::size_t rank) { return votes_[rank]; };
    const auto refusals = [&](std::size_t rank) { return votes_[rank].refuses == vote::differed ? vote{} : votes_[rank]; };
    const std::size_t refused = agreement::refusing(ranks, refusals);
    if (refused != ranks) {
      refusal_reason why;
      if (refused == ranks_.rank()) why = refused_before ? refusal_reason(earlier.c_str()) : agreed.reason();
      copy_bytes(policy, work_.reason, why.words, sizeof why.words);
      ranks_.all_reduce(policy, work_.reason, refusal_reason::count, reduction::sum);
      wait(policy);
      copy_bytes(policy, why.words, work_.reason, sizeof why.words);
      wait(policy);
      agreed.conclude_alone();
      agreed.raise_refusal(refused, why);
    }
    refuse_if(agreement::refusing(ranks, votes) != ranks);
    agreed.require_same(ranks, votes);
  }

  /// A rank must be given as many rows as it holds of the chunk's tokens.
  template <class K, class V>
  status can_prefill(std::size_t slot, const K& keys, const V& values, std::size_t n) const {
    if (const status s = admission().prefill(slot, keys, values, params_.capacity); !s.ok()) return s;
    const std::size_t before = known(slot).n, left = params_.capacity - before;
    return pqkv::detail::checks("prefill")
        .that(n <= left, status::code::capacity, "n", relation::at_most, "free tokens of the slot", left, n)
        .extent("keys.extent(1)", keys.extent(1),
                n <= left ? layout_.held(ranks_.rank(), before + n) - layout_.held(ranks_.rank(), before) : 0,
                "this rank's tokens of the chunk, from layout()");
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
};

}  // namespace pqkv::scale
