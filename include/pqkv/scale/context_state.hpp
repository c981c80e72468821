// SPDX-License-Identifier: Apache-2.0
// The part of a context-parallel cache in host memory that its verbs work on: the states of the whole sequences, and memory for what the
// ranks exchange. The verbs are in context_parallel.hpp, the only file that includes this one, by way of context_training.hpp.
#pragma once

#include <algorithm>

#include "../attention.hpp"
#include "../cache/dense_rows.hpp"
#include "context_calls.hpp"
#include "exact_selection.hpp"
#include "partial_outputs.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The part of a context-parallel cache in host memory that its verbs work on. Template parameters as in context_parallel.
template <class Rows, class Communicator>
class context_state : public context_calls<Rows, Communicator> {
  using base = context_calls<Rows, Communicator>;
  static_assert(base::is_on_host, "pqkv: context_parallel works in host memory");

 public:
  using base::at, base::size, base::middle, base::lists, base::retrieve_capacity;
  using typename base::params;
  using typename base::value_type;

  /// The state of a slot's whole sequence; the same on every rank. @pre slot < batch
  /// @{
  const sequence& at(std::size_t slot) const { return work_.slots.sequences(slot); }
  std::size_t size(std::size_t slot) const { return at(slot).n; }
  middle_range middle(std::size_t slot) const { return at(slot).middle(rule_); }
  /// @}
  /// Tokens of a slot that this rank holds.
  std::size_t held(std::size_t slot) const { return layout_.held(ranks_.rank(), at(slot).n); }
  /// The most tokens that a list of this rank's retrieve() can hold now.
  std::size_t retrieve_capacity(std::size_t slot) const { return retrieve_capacity(at(slot)); }

 protected:
  using base::layout_, base::params_, base::ranks_, base::rule_, base::work_;

  template <exec::policy P>
  context_state(const P& policy, const Communicator& ranks, const params& p)
      : base(policy, ranks, p), exchange_(this->take_memory(policy, exchange_memory_, [&](arena& memory) { return place(memory); })) {
    const std::size_t bytes = exchange_.mail.room * sizeof *exchange_.mail.own;
    this->reserve_messages(bytes, layout_.ranks * bytes);
  }

  bool is_local() const { return params_.selection_over_ranks == selection_mode::local; }
  /// How many query heads a pass's first message has room for if it carries the votes, the same whatever the input is; 0 if it does not.
  std::size_t voting_heads(std::size_t first_query) const {
    return this->carries_votes() && first_query == 0 ? work_.normalisers.extent(0) : 0;
  }
  /// A pass's partial outputs, and the room for them in its messages.
  partial_outputs partial_of(std::size_t heads, std::size_t first_query) const {
    const std::size_t voting = is_local() ? voting_heads(first_query) : 0;
    return {heads, params_.head_dim, layout_.ranks, voting != 0 ? voting : heads};
  }
  /// Sends a step's first message where this rank has nothing to select: it refuses, there are no queries, or no list is to be ranked.
  /// @pre carries_votes()
  template <class P>
  void only_vote(const P& policy, agreement& agreed) const {
    if (is_local())
      partial_of(0, 0).merge_all(policy, ranks_, agreed, exchange_.mail,
                                 {flatten(work_.lse.slice(0, 0, 0)), flatten(work_.out.slice(0, 0, 0))});
    else
      exchange_.mail.combine_first(policy, ranks_, agreed, 0, voting_heads(0));
    agreed.conclude_alone();
  }

  /// Memory for messages, and for what selects from them.
  struct exchange_of {
    view<std::uint64_t, 1> thresholds;  // [tokens * lists]
    view<std::uint8_t, 1> is_open;      // the same
    view<std::uint64_t, 1> candidates;  // [ranks * room]
    mailbox mail;
  };
  exchange_of place(arena& memory) const {
    const std::size_t hq = work_.normalisers.extent(0), most = work_.plan.counts.extent(0), k = this->most_retrieved(),
                      partial = partial_outputs{hq, params_.head_dim, layout_.ranks}.room(),
                      first = exact_selection::words(most, first_candidates(k, layout_.ranks));
    exchange_of all{};
    all.thresholds = make_view(memory.take<std::uint64_t>(most), most);
    all.is_open = make_view(memory.take<std::uint8_t>(most), most);
    all.candidates = make_view(memory.take<std::uint64_t>(layout_.ranks * (k + 64)), layout_.ranks * (k + 64));
    all.mail.room = std::max({partial, 1 + hq + vote_sums::count, 1 + first, 1 + exact_selection::words(1, k), refusal_reason::count});
    all.mail.own = memory.take<std::uint64_t>(all.mail.room);
    all.mail.all = memory.take<std::uint64_t>(layout_.ranks * all.mail.room);
    return all;
  }

  owner<std::byte, space::host> exchange_memory_;
  exchange_of exchange_;
};

}  // namespace pqkv::scale
