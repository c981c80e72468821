// SPDX-License-Identifier: Apache-2.0
// The part of a context-parallel cache in device memory that its verbs work on: memory for messages, and how these travel. The verbs are in
// device_context_parallel.hpp, the only file that includes this one.
#pragma once

#include <algorithm>
#include <tuple>

#include "../attention.hpp"
#include "../cache/dense_rows.hpp"
#include "context_calls.hpp"
#include "share_steps.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// A communicator whose messages travel inside kernels, over memory that every rank's device reaches (adapt/peer.cuh):
///
///   typename kernel_mail                   as gathered_mail
///   mail(words, channels) -> kernel_mail   takes memory for one exchange of a step, whose message has so many words and is split into
///                                          parts, one for each CTA; the same calls on every rank
///   kernel_mail::before(later)             the same, numbered by an exchange that follows it in every step
template <class C>
concept carries_mail_in_kernels = requires {
  typename C::kernel_mail;
};

/// Template parameters as in context_parallel; Rows are in device memory.
template <class Rows, class Communicator>
class device_context_state : public context_calls<Rows, Communicator> {
  using base = context_calls<Rows, Communicator>;
  static_assert(!base::is_on_host, "pqkv: these are the rows of a context_parallel in host memory");

 public:
  using typename base::params;
  using typename base::space_type;
  using typename base::value_type;

 protected:
  using base::layout_, base::local_shape, base::params_, base::ranks_, base::work_;
  static constexpr bool travels_in_kernels = carries_mail_in_kernels<Communicator>;

  template <exec::policy P>
  device_context_state(const P& policy, const Communicator& ranks, const params& p)
      : base(policy, ranks, p), exchange_(this->take_memory(policy, exchange_memory_, [&](arena& memory) { return place(memory); })) {
    // A smaller share than those of the others may have no index: what can be ranked in one launch must be the same on all ranks.
    cache_shape least = local_shape(params_, layout_, 0);
    longest_ = least.capacity;
    for (std::size_t rank = 1; rank < layout_.ranks; ++rank) {
      const std::size_t capacity = local_shape(params_, layout_, rank).capacity;
      least.capacity = std::min(least.capacity, capacity), longest_ = std::max(longest_, capacity);
    }
    ranks_in_one_ = params_.selector.index_of(least).cells();
    if constexpr (travels_in_kernels) {
      const std::size_t hq = work_.normalisers.extent(0), all = work_.plan.counts.extent(0), k = this->most_retrieved();
      mails_.candidates = ranks_.mail(ranked_share<space_type>::candidate_words(all, 2 * k), all);
      if (ranks_by_tokens()) {
        message_ = token_message::of(params_.query_heads / params_.kv_heads, params_.capacity, k);
        mails_.tokens = ranks_.mail(all * message_.words(), all);
      }
      if (ranks_in_one_ != 0) mails_.counts = ranks_.mail(ranked_share<space_type>::count_words(all, ranks_in_one_), all);
      mails_.sums = ranks_.mail(2 * ranked_share<space_type>::sum_words(hq), all).before(mails_.candidates);
      mails_.centred = ranks_.mail(2 * ranked_share<space_type>::centred_words(hq), all).before(mails_.candidates);
      mails_.partial = ranks_.mail(1 + merged_shares<space_type>::kernel_words(hq, params_.head_dim), hq);
    }
  }

  /// Whether op::rank_share may select over all ranks token by token.
  bool ranks_by_tokens() const {
    return params_.selection_over_ranks == selection_mode::exact && ranks_in_one_ == 0 && needs_normalisers(params_.selector.reduction) &&
           params_.query_heads > params_.kv_heads;
  }
  auto rank_share_mail() const {
    return rank_share_mails<decltype(mails_.candidates)>{mails_.counts, mails_.candidates, mails_.tokens, exchange_.numbers,
                                                         ranks_in_one_, message_,          longest_};
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
    return {exchange_.mail.own, exchange_.mail.all, 1 + words, static_cast<unsigned>(layout_.ranks), static_cast<unsigned>(ranks_.rank())};
  }
  template <class P>
  void gather(const P& policy, std::size_t words) const {
    ranks_.all_gather(policy, reinterpret_cast<const std::byte*>(exchange_.mail.own), reinterpret_cast<std::byte*>(exchange_.mail.all),
                      (1 + words) * sizeof *exchange_.mail.own);
  }

  /// Memory for messages, and for what selects from them.
  struct exchange_of {
    std::uint32_t* numbers;  // [tokens * lists, rank_share_parts] of op::rank_share
    mailbox mail;            // where messages do not travel in kernels
  };
  exchange_of place(arena& memory) const {
    const std::size_t hq = work_.normalisers.extent(0), most = work_.plan.counts.extent(0);
    exchange_of all{};
    all.numbers = memory.take<std::uint32_t>(most * rank_share_parts);
    if constexpr (!travels_in_kernels) {
      using ranking = ranked_share<space_type>;
      all.mail.room = 1 + std::max({ranking::sum_words(hq), ranking::candidate_words(most, this->most_retrieved()),
                                    merged_shares<space_type>::words(hq, params_.head_dim)});
      all.mail.own = memory.take<std::uint64_t>(all.mail.room);
      all.mail.all = memory.take<std::uint64_t>(layout_.ranks * all.mail.room);
    }
    return all;
  }

  /// The mails of a step's operations, if they travel in kernels.
  template <class C>
  struct kernel_mails {
    typename C::kernel_mail counts, tokens, sums, centred, candidates, partial;
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

  owner<std::byte, space_type> exchange_memory_;
  exchange_of exchange_;
  decltype(mails_of<Communicator>()) mails_{};
  std::size_t longest_ = 0;       // tokens of a rank's share, at most
  token_message message_;         // of a list that op::rank_share ranks by tokens
  std::size_t ranks_in_one_ = 0;  // cells of every rank's index if op::rank_share can select over all ranks
};

}  // namespace pqkv::scale
