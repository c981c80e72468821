// SPDX-License-Identifier: Apache-2.0
// The part of a context-parallel cache in device memory that its verbs work on: this rank's share of rows and codes, the states of the
// whole sequences, memory for messages, and votes. The verbs are in device_context_parallel.hpp, the only file that includes this one.
#pragma once

#include <algorithm>
#include <tuple>

#include "../attention.hpp"
#include "../cache/cache_checks.hpp"
#include "../cache/dense_rows.hpp"
#include "../exec/sync.hpp"
#include "../pqcache.hpp"
#include "share_steps.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// A communicator whose messages travel inside kernels, over memory that every rank's device reaches (adapt/peer.cuh):
///
///   typename kernel_mail                   as gathered_mail
///   mail(words, channels) -> kernel_mail   takes memory for one exchange of a step, whose message has so many words, and so many parts
///   with
///                                          a CTA each; the same calls on every rank
///   kernel_mail::before(later)             the same, numbered by an exchange that follows it in every step
template <class C>
concept carries_mail_in_kernels = requires {
  typename C::kernel_mail;
};

/// Template parameters as in context_parallel; Rows are in device memory.
template <class Rows, class Communicator>
class device_context_state : public context_base<Rows, Communicator> {
  using base = context_base<Rows, Communicator>;

 public:
  using typename base::params;
  using typename base::value_type;
  using space_type = typename Rows::space_type;
  using step_type = basic_step<space_type>;
  template <class T, std::size_t Rank>
  using view_of = view<T, Rank, space_type>;
  static_assert(std::is_same_v<space_type, space::device>, "pqkv: the rows of a context_parallel are in host or in device memory");

  const Rows& rows() const { return rows_; }
  Rows& rows() { return rows_; }
  /// This rank's codebooks, codes and cells.
  const pq_index<space_type>& index() const { return index_; }

  /// The state of a slot's whole sequence; the same on every rank. Waits for the stream. @pre slot < batch @throws cuda_error
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
    return at(policy, slot).middle(this->rule_);
  }
  /// @}

 protected:
  using base::covers, base::layout_, base::lists, base::local_shape, base::params_, base::ranks_, base::rule_;
  static constexpr bool travels_in_kernels = carries_mail_in_kernels<Communicator>;

  template <exec::policy P>
  device_context_state(const P& policy, const Communicator& ranks, const params& p)
      : base((require_ok(can_enqueue(p)), ranks), p),
        rows_(policy, local_shape(p, layout_, ranks.rank()), p.rows),
        index_(policy, params_.selector.index_of(local_shape(p, layout_, ranks.rank()))),
        known_(p.batch),
        merged_(p.batch) {
    arena count;
    place(count, policy);
    memory_ = make_owner<std::byte>(policy, count.used_bytes());
    arena memory(memory_);
    work_ = place(memory, policy);
    // A smaller share than those of the others may have no index: what can be ranked in one launch must be the same on all ranks.
    cache_shape least = local_shape(params_, layout_, 0);
    for (std::size_t rank = 1; rank < layout_.ranks; ++rank)
      least.capacity = std::min(least.capacity, local_shape(params_, layout_, rank).capacity);
    ranks_in_one_ = params_.selector.index_of(least).cells();
    if constexpr (travels_in_kernels) {
      const std::size_t hq = work_.normalisers.extent(0), all = work_.plan.counts.extent(0);
      mails_.candidates = ranks_.mail(ranked_share<space_type>::candidate_words(all, 2 * work_.k), all);
      if (ranks_in_one_ != 0) mails_.counts = ranks_.mail(ranked_share<space_type>::count_words(all, ranks_in_one_), all);
      mails_.sums = ranks_.mail(2 * ranked_share<space_type>::sum_words(hq), all).before(mails_.candidates);
      mails_.centred = ranks_.mail(2 * ranked_share<space_type>::centred_words(hq), all).before(mails_.candidates);
      mails_.partial = ranks_.mail(1 + merged_shares<space_type>::kernel_words(hq, params_.head_dim), hq);
    }
  }

  /// The second axis of the kernels' grids counts query heads, and CUDA limits that axis to 65535.
  static status can_enqueue(const params& p) noexcept {
    return pqkv::detail::checks("context_parallel")
        .at_most("step_queries", p.queries_at_once(), p.query_heads == 0 ? 0 : 65535 / p.query_heads,
                 "query tokens at once, batch unless given, times hq at most 65535 on a device");
  }
  pqkv::detail::cache_checks<space_type> admission() const noexcept { return {params_, known_.data(), lists()}; }

  /// Asks all ranks whether they go on. Waits.
  template <class P>
  void ask_all(const P& policy, const agreement& agreed) const {
    static_assert(communicator_for<Communicator, P>,
                  "pqkv: Communicator must model pqkv::scale::communicator_for (scale/communicator.hpp)");
    const std::size_t ranks = layout_.ranks;
    const vote own = agreed.own();
    std::uint32_t disagreed = 0;
    buffer<vote> votes(ranks);
    copy_bytes(policy, work_.votes + ranks, &own, sizeof own);
    ranks_.all_gather(policy, reinterpret_cast<const std::byte*>(work_.votes + ranks), reinterpret_cast<std::byte*>(work_.votes),
                      sizeof own);
    copy_bytes(policy, votes.data(), work_.votes, votes.size_bytes());
    copy_bytes(policy, &disagreed, work_.disagreed, sizeof disagreed);
    wait(policy);
    if (disagreed != 0) {
      zero_bytes(policy, work_.disagreed, sizeof disagreed);
      require_ok(pqkv::detail::checks("attend").that(false, status::code::value, "calls", relation::required,
                                                     "the same on all ranks: those of an earlier step were not", 0, 0));
    }
    agreed.conclude(ranks, [&](std::size_t rank) { return votes[rank]; });
  }
  /// The same for the verbs of a step, as agreement_mode says.
  template <class P>
  void begin_step(const P& policy, const agreement& agreed) const {
    if (params_.agreement == agreement_mode::each_call) return ask_all(policy, agreed);
    const vote own = agreed.own();
    agreed.conclude(1, [&](std::size_t) { return own; });
  }
  /// Waits for the stream, as the communicator does it if it has a time limit of its own.
  template <class P>
  void wait(const P& policy) const {
    if constexpr (requires { ranks_.finish(policy); })
      ranks_.finish(policy);
    else
      sync(policy);
  }
  template <class P, class T>
  T read(const P& policy, const T* from) const {
    T found;
    copy_bytes(policy, &found, from, sizeof found);
    wait(policy);
    return found;
  }
  /// Reads a slot's state from the device. Call it before the host relies on known_: it does not see what steps change.
  template <class P>
  void look_at(const P& policy, std::size_t slot) {
    if (slot < params_.batch && known_[slot].prefilling == 0) known_[slot] = at(policy, slot);
  }

  /// Does all stages of an operation, with an exchange after each but the last.
  /// @param mail  of that operation, if messages travel in kernels. @param words  of a message's body in each exchange
  template <class Op, class P, class Call, class Mail, class... Word>
  void do_stages(const P& policy, const Call& call, const Mail& mail, Word... words) const {
    constexpr unsigned exchanges = Op::exchanges;
    static_assert(sizeof...(Word) == exchanges);
    if constexpr (travels_in_kernels) {
      std::apply([&](const auto&... in_kernels) { pqkv::detail::run_operation<Op>(policy, call, in_kernels..., 0u, exchanges); }, mail);
    } else {
      const std::size_t lengths[] = {words...};
      for (unsigned stage = 0; stage <= exchanges; ++stage) {
        if constexpr (exchanges == 2)
          pqkv::detail::run_operation<Op>(policy, call, gathered(lengths[0]), gathered(lengths[1]), stage, stage);
        else
          pqkv::detail::run_operation<Op>(policy, call, gathered(lengths[0]), stage, stage);
        if (stage < exchanges) gather(policy, lengths[stage]);
      }
    }
  }
  /// Messages with a body of so many words, where they do not travel in kernels.
  gathered_mail gathered(std::size_t words) const {
    return {work_.mail.own, work_.mail.all, 1 + words, static_cast<unsigned>(layout_.ranks), static_cast<unsigned>(ranks_.rank())};
  }
  template <class P>
  void gather(const P& policy, std::size_t words) const {
    ranks_.all_gather(policy, reinterpret_cast<const std::byte*>(work_.mail.own), reinterpret_cast<std::byte*>(work_.mail.all),
                      (1 + words) * sizeof *work_.mail.own);
  }

  /// All memory of a rank besides rows and index.
  struct memory_of {
    slot_table<space_type> slots, shares;        // the whole sequences; this rank's shares of them, while a slot is copied
    view_of<std::uint32_t, 1> prompt_nonfinite;  // [2]
    step_plan<space_type> plan;                  // of queries_at_once() query tokens
    view_of<middle_range, 1> own_ranges;         // [tokens * h]
    view_of<std::int32_t, 2> indices;            // [tokens * lists, k_max]
    view_of<float, 2> scores;                    // the same
    view_of<normaliser, 1> normalisers;          // [tokens * hq]
    view_of<float, 3> query, out;                // [tokens, hq, d]
    view_of<float, 2> lse;                       // [tokens, hq]
    pq_workspace<space_type> ranking;
    std::size_t k;  // the most that a list can retrieve: room for candidates in a message
    vote* votes;    // [ranks + 1], this rank's own last
    std::uint32_t* disagreed;
    std::uint32_t *numbers, *tickets;  // [tokens * lists] of op::rank_share
    mailbox mail;                      // where messages do not travel in kernels
    std::byte* scratch;
    std::size_t scratch_bytes;
  };
  template <class P>
  memory_of place(arena& memory, const P& policy) const {
    const cache_shape own = local_shape(params_, layout_, ranks_.rank());
    const std::size_t tokens = params_.queries_at_once(), hq = tokens * params_.query_heads, h = tokens * params_.kv_heads,
                      d = params_.head_dim, most = tokens * lists(), batch = params_.batch;
    memory_of all{};
    all.k = std::clamp<std::size_t>(params_.budget.at(params_.capacity).retrieve, 1, params_.capacity);
    const std::size_t k_max = std::min(all.k, own.capacity);
    const auto of = [&]<class T>(T, std::size_t size) { return make_view<space_type>(memory.take<T>(size), size); };
    for (slot_table<space_type>* slots : {&all.slots, &all.shares})
      *slots = {of(sequence{}, batch),
                of(slot_statistics{}, batch),
                of(std::uint32_t{}, batch),
                of(leaving_tokens{}, batch),
                make_view<space_type>(memory.take<std::uint32_t>(2 * batch), 2, batch),
                rule_};
    all.prompt_nonfinite = of(std::uint32_t{}, 2);
    all.plan = {of(std::uint32_t{}, tokens), of(token_span{}, most), of(middle_range{}, h), of(std::uint32_t{}, most)};
    all.own_ranges = of(middle_range{}, h);
    all.indices = make_view<space_type>(memory.take<std::int32_t>(most * k_max), most, k_max);
    all.scores = make_view<space_type>(memory.take<float>(most * k_max), most, k_max);
    all.normalisers = of(normaliser{}, hq);
    all.query = make_view<space_type>(memory.take<float>(hq * d), tokens, params_.query_heads, d);
    all.out = make_view<space_type>(memory.take<float>(hq * d), tokens, params_.query_heads, d);
    all.lse = make_view<space_type>(memory.take<float>(hq), tokens, params_.query_heads);
    all.ranking =
        pq_workspace<space_type>::place(memory, params_.selector.index_of(own), tokens, params_.query_heads, params_.selector.reduction);
    all.votes = memory.take<vote>(layout_.ranks + 1);
    all.disagreed = memory.take<std::uint32_t>(1);
    all.numbers = memory.take<std::uint32_t>(most);
    all.tickets = memory.take<std::uint32_t>(most);
    if constexpr (!travels_in_kernels) {
      using ranking = ranked_share<space_type>;
      all.mail.room =
          1 + std::max({ranking::sum_words(hq), ranking::candidate_words(most, all.k), merged_shares<space_type>::words(hq, d)});
      all.mail.own = memory.take<std::uint64_t>(all.mail.room);
      all.mail.all = memory.take<std::uint64_t>(layout_.ranks * all.mail.room);
    }
    all.scratch_bytes = std::max(selector::basic_pq<space_type>::scratch_bytes(policy, own, params_.selector),
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

  /// The mails of a step's operations, if they travel in kernels.
  template <class C>
  struct kernel_mails {
    typename C::kernel_mail counts, sums, centred, candidates, partial;
  };
  /// The same if a communicator carries gathered messages.
  struct no_mails {
    gathered_mail sums, centred, candidates, partial;
  };
  template <class C>
  static auto mails_of() {
    if constexpr (carries_mail_in_kernels<C>)
      return kernel_mails<C>{};
    else
      return no_mails{};
  }

  Rows rows_;
  pq_index<space_type> index_;
  owner<std::byte, space_type> memory_;
  memory_of work_{};
  decltype(mails_of<Communicator>()) mails_{};
  std::size_t ranks_in_one_ = 0;  // cells of every rank's index if op::rank_share can select over all ranks
  buffer<sequence> known_;        // the host's copy of the sequences' states
  buffer<std::uint32_t> merged_;  // [batch] after the last merge, the id lists held this rank's tokens below this place
};

}  // namespace pqkv::scale
