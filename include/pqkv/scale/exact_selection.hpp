// SPDX-License-Identifier: Apache-2.0
// The k best tokens of all ranks, to the token those that one rank with all tokens would select. Scores are canonical and normalised over
// all ranks' tokens, so they can be compared; equal scores go to the lower position in the sequence.
//
//   1. normalisers (probabilities only): one all_reduce of hq integers, which can carry the ranks' votes; two more where a sum has to be
//      centred anew
//   2. candidates: each rank sends its best 2 k / ranks + 64 of a list. If all candidates of a rank are among the k best, that rank may
//      have more of these: then such lists are sent again with up to k
//   3. every rank keeps its own candidates up to the threshold that all of them find
//
// Source: canonical arithmetic: docs/numerics.md; the bounded list with a check is the usual top-k of distributed search.
#pragma once

#include <algorithm>

#include "../search/partial_ranking.hpp"
#include "agreement.hpp"
#include "token_layout.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// A candidate as an integer: smaller is better. The upper half is the inverted order of the score, the lower half the position.
constexpr std::uint64_t candidate_of(float score, std::size_t position) {
  return std::uint64_t{~canonical::order_key(score)} << 32 | static_cast<std::uint32_t>(position);
}

/// How many candidates of a list each rank sends first. Dealt tokens give each rank about k / ranks of the best; a list that turns out too
/// short is sent again.
constexpr std::size_t first_candidates(std::size_t k, std::size_t ranks) {
  const std::size_t some = 2 * k / ranks + 64;
  return ranks == 1 || some > k ? k : some;
}

/// One selection of T query tokens, as a rank sees it.
struct exact_selection {
  distance_table_view<> table;  // [T * hq, m, c]
  codes_view<> codes;           // of this rank's tokens, by their place in its share
  cell_index_view<> index;      // or empty
  head_map<> map;
  view<const middle_range, 1> whole;  // [T * h] ranges of the sequence, and k
  view<middle_range, 1> own;          // [T * h] the same tokens by their places in the share; `retrieve` is overwritten
  token_lists<> found;                // [lists, k_max] written: places in the share
  view<float, 2> scores;              // [lists, k_max] scratch
  view<normaliser, 1> normalisers;    // [T * hq] scratch
  view<std::uint64_t, 1> thresholds;  // [lists] scratch
  view<std::uint64_t, 1> candidates;  // [ranks * mailbox::room] scratch
  view<std::uint8_t, 1> is_open;      // [lists] scratch: still to be decided
  retrieve_params params;
  token_layout layout;
  std::size_t voting = 0;  // if the first all_reduce carries the votes: how many query heads it has room for

  /// Words of a message of `lists` lists with up to `bound` candidates each.
  static constexpr std::size_t words(std::size_t lists, std::size_t bound) { return lists * (bound + 1); }

  /// Selects on all ranks together. @throws what the ranks' work throws, rank_error, communication_error
  template <exec::policy P, class Communicator>
  void run(const P& policy, Communicator& ranks, agreement& agreed, const mailbox& mail) const {
    for (std::size_t q = 0; q < normalisers.extent(0); ++q) normalisers(q) = {};
    if (needs_normalisers(params.reduction)) normalise(policy, ranks, agreed, mail);
    const std::size_t lists = found.counts.extent(0);
    std::size_t longest = 0, bound = 0, open = 0;
    for (std::size_t list = 0; list < lists; ++list) {
      is_open(list) = whole(head_of(list)).size() != 0 ? 1 : 0;
      thresholds(list) = 0;
      if (is_open(list) == 0) continue;
      ++open;
      longest = std::max<std::size_t>(longest, whole(head_of(list)).selected());
      bound = std::max(bound, first_candidates(whole(head_of(list)).selected(), layout.ranks));
    }
    open = decide(policy, ranks, agreed, mail, open, bound);
    if (open != 0) open = decide(policy, ranks, agreed, mail, open, longest);
    PQKV_ASSERT(open == 0);
    for (std::size_t list = 0; list < lists; ++list) keep(list, ranks.rank());
  }

 private:
  std::size_t head_of(std::size_t list) const { return list * whole.extent(0) / found.counts.extent(0); }

  template <class P, class Communicator>
  void normalise(const P& policy, Communicator& ranks, agreement& agreed, const mailbox& mail) const {
    const std::size_t hq = normalisers.extent(0), group = hq / whole.extent(0);
    const auto add_up = [&](std::size_t votes_beside) {
      agreed.attempt([&] { sum_part(policy, table, codes, index, as_const(own), normalisers, params, map); });
      for (std::size_t q = 0; q < hq; ++q) mail.body()[q] = normalisers(q).sum;
      if (votes_beside != 0)
        mail.combine_first(policy, ranks, agreed, hq, votes_beside);
      else
        mail.combine(policy, ranks, agreed, hq, reduction::sum);
      for (std::size_t q = 0; q < hq; ++q) normalisers(q).sum = mail.body()[q];
    };
    const auto is_short = [&](std::size_t q) { return needs_centre(normalisers(q), whole(q / group).size()); };
    add_up(voting);
    bool any = false;
    for (std::size_t q = 0; q < hq; ++q) any |= is_short(q);
    if (!any) return;
    agreed.attempt([&] { largest_part(policy, table, codes, index, as_const(own), normalisers, params, map); });
    for (std::size_t q = 0; q < hq; ++q) mail.body()[q] = canonical::order_key(normalisers(q).largest);
    mail.combine(policy, ranks, agreed, hq, reduction::maximum);
    for (std::size_t q = 0; q < hq; ++q) {
      normalisers(q).largest = canonical::from_order_key(static_cast<std::uint32_t>(mail.body()[q]));
      if (is_short(q)) normalisers(q) = centred(normalisers(q), params);
    }
    add_up(0);
  }

  /// Finds the thresholds of the open lists from up to `bound` candidates of each rank. Returns how many lists stay open.
  template <class P, class Communicator>
  std::size_t decide(const P& policy, Communicator& ranks, agreement& agreed, const mailbox& mail, std::size_t open,
                     std::size_t bound) const {
    for (std::size_t head = 0; head < own.extent(0); ++head) own(head).retrieve = 0;
    const std::size_t lists = found.counts.extent(0), k_max = found.indices.extent(1);
    for (std::size_t list = 0; list < lists; ++list) {
      const std::size_t k = whole(head_of(list)).selected(), most = std::min(k, bound);
      if (whole(head_of(list)).size() != 0) own(head_of(list)).retrieve = static_cast<std::uint32_t>(std::min(most, k_max));
    }
    agreed.attempt([&] { retrieve_part(policy, table, codes, index, as_const(own), found, params, as_const(normalisers), scores, map); });
    const std::size_t at_once = std::max<std::size_t>(1, (mail.room - 1) / (bound + 1));
    std::size_t left = 0;
    for (std::size_t list = 0; open != 0; open -= std::min(open, at_once)) {
      const std::size_t count = std::min(open, at_once), first = list;
      std::uint64_t* to = mail.body();
      for (std::size_t written = 0; written < count; ++list)
        if (is_open(list) != 0) write(list, ranks.rank(), to), to += bound + 1, ++written;
      mail.exchange(policy, ranks, agreed, words(count, bound));
      std::size_t read = 0;
      for (std::size_t at = first; at < list; ++at) {
        if (is_open(at) == 0) continue;
        is_open(at) = has_threshold(at, mail, words(count, bound), read++ * (bound + 1), bound) ? 0 : 1;
        left += is_open(at);
      }
    }
    return left;
  }

  /// A list's candidates of this rank: how many, and each.
  void write(std::size_t list, std::size_t rank, std::uint64_t* to) const {
    const std::size_t count = found.counts(list);
    to[0] = count;
    for (std::size_t i = 0; i < count; ++i)
      to[1 + i] = candidate_of(scores(list, i), layout.position(rank, static_cast<std::size_t>(found.indices(list, i))));
  }

  /// Finds the k-th best of the candidates that came. False if a rank may have better ones than it sent.
  bool has_threshold(std::size_t list, const mailbox& mail, std::size_t words, std::size_t at, std::size_t bound) const {
    const middle_range range = whole(head_of(list));
    const std::size_t k = range.selected();
    const auto sent = [&](std::size_t rank) {
      const std::uint64_t* const from = mail.body_of(rank, words) + at;
      return view<const std::uint64_t, 1>{from + 1, {std::min<std::size_t>(from[0], bound)}, {1}};
    };
    std::size_t total = 0;
    for (std::size_t rank = 0; rank < layout.ranks; ++rank) {
      const auto from = sent(rank);
      std::copy_n(from.data, from.extent(0), &candidates.data[total]);
      total += from.extent(0);
    }
    if (total < k) return false;
    std::nth_element(candidates.data, candidates.data + k - 1, candidates.data + total);
    const std::uint64_t threshold = candidates.data[k - 1];
    for (std::size_t rank = 0; rank < layout.ranks; ++rank) {
      const auto from = sent(rank);
      const std::size_t there = layout.held(rank, range.end) - layout.held(rank, range.begin);
      const bool is_cut = from.extent(0) < std::min(there, k);
      if (is_cut && (from.extent(0) == 0 || *std::max_element(from.data, from.data + from.extent(0)) <= threshold)) return false;
    }
    thresholds(list) = threshold;
    return true;
  }

  /// Keeps a list's own candidates up to the threshold; they stay in ascending order.
  void keep(std::size_t list, std::size_t rank) const {
    std::uint32_t kept = 0;
    if (whole(head_of(list)).size() != 0)
      for (std::size_t i = 0; i < found.counts(list); ++i)
        if (candidate_of(scores(list, i), layout.position(rank, static_cast<std::size_t>(found.indices(list, i)))) <= thresholds(list))
          found.indices(list, kept++) = found.indices(list, i);
    found.counts(list) = kept;
  }
};

}  // namespace pqkv::scale
