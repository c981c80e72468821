// SPDX-License-Identifier: Apache-2.0
// The operations of a step whose sequences are shared by several ranks, for caches in device memory (device_context_parallel.hpp): each one
// reads where a whole sequence stands and does this rank's part. None waits, and none has a shape that depends on a sequence's length, so a
// step can be captured. Operations that need the other ranks come in stages: between two stages the ranks exchange one message.
#pragma once

#include <algorithm>
#include <cmath>

#include "../cache/sequence_steps.hpp"
#include "../search/partial_ranking.hpp"
#include "../search/pq_index_view.hpp"
#include "context_base.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct plan_share {};      // run(policy, planned_share)
struct append_share {};    // run(policy, rows, index, appended_tokens, token_share, K, V): op::append_tokens of a share
struct truncate_share {};  // run(policy, index, truncated_tokens, token_share): op::truncate_tokens of a share
struct gather_share {};    // run(policy, rows, first head, sample, first token, token_share, out [h, n, d]): zeros for others' keys
struct retrieve_share {};  // run(policy, ranked_share): the best of the share, by the normalisers of all ranks
/// run(policy, planned_share, ranked_share, index, query, rank_share_mails) -> bool: all from the plan to the chosen tokens in one launch,
/// where messages travel in kernels. By cells, the ranks exchange how many tokens each cell has, which gives every rank the normalisers and
/// the threshold of all, and then the tokens at the threshold. By tokens, they exchange what token_message has. False, and nothing is
/// enqueued, where one launch is not enough.
struct rank_share {};
struct write_share_lists {};  // run(policy, planned_share, found, indices, counts): the results of retrieve()
/// run(policy, ranked_share, mail, mail, first stage, last stage): normalisers over the tokens of all ranks. Stage 0 writes each query
/// head's sum, and its largest sum of u where the sum has too few bits; stage 1 reads them, and writes those sums around the centre of all
/// ranks; stage 2 reads these.
struct agree_normalisers {
  static constexpr unsigned exchanges = 2;
};
/// run(policy, ranked_share, mail, first stage, last stage): keeps those listed tokens that all ranks select. Stage 0 writes the list's
/// candidates; stage 1 reads those of all ranks.
struct choose_tokens {
  static constexpr unsigned exchanges = 1;
};
struct merge_shares {};  // run(policy, merged_shares, mail): merges the gathered partial outputs of all ranks
/// run(policy, query, store, token_set, scale, merged_shares, mail): attention whose last kernel exchanges and merges the partial outputs,
/// where messages travel in kernels.
struct attend_share {};
}  // namespace op
}  // namespace pqkv

namespace pqkv::inline PQKV_MODE::scale {

inline constexpr unsigned rank_share_parts = 8;  // CTAs of a list, at most, that count op::rank_share's exchanges

/// One exchange's messages in memory, where a communicator's all_gather() carries them between two stages. A message is a vote, which stays
/// from exchange to exchange, and a body. A communicator whose messages travel inside kernels has a type of its own (adapt/peer.cuh).
struct gathered_mail {
  static constexpr bool travels_in_kernels = false;
  using message = gathered_mail;

  std::uint64_t* own = nullptr;        // [words]
  const std::uint64_t* all = nullptr;  // [ranks, words]
  std::size_t words = 0;               // of a message, the vote included
  unsigned ranks = 1, rank = 0;

  /// What a CTA uses for its part of the message, once the kernels before this one have ended.
  PQKV_HD constexpr gathered_mail open(unsigned) const { return *this; }
  /// A word of what rank r sent, or a float of what follows the vote there.
  PQKV_HD constexpr std::uint64_t word(unsigned r, std::size_t i) const { return all[r * words + i]; }
  PQKV_HD float value(unsigned r, std::size_t i) const { return reinterpret_cast<const float*>(all + r * words + 1)[i]; }
};

/// The arguments of op::plan_share.
template <class Space>
struct planned_share {
  planned_queries<Space> queries;
  step_plan<Space> plan;             // written: spans by their places in the share, ranges of the whole sequences, counts 0
  view<middle_range, 1, Space> own;  // [T * h] written: the ranges by their places in the share, and how many tokens are listed
  token_share share;
  selection_mode mode;
  std::uint64_t vote = 0;            // of this rank
  std::uint64_t* vote_to = nullptr;  // written if given
};

/// The ranking of T query tokens, as a rank sees it.
template <class Space>
struct ranked_share {
  distance_table_view<Space> table;  // [T * hq, m, c]
  codes_view<Space> codes;           // of this rank's tokens, by their place in its share
  cell_index_view<Space> index;      // or empty
  head_map<Space> map;
  view<const middle_range, 1, Space> whole, own;  // [T * h] of planned_share
  token_lists<Space> found;                       // [lists, k_max]
  view<float, 2, Space> scores;                   // [lists, k_max] scratch of backends that keep the scores
  view<normaliser, 1, Space> normalisers;         // [T * hq]
  retrieve_params how;
  token_share share;
  std::size_t k;  // room for candidates of a list in a message

  /// Words of the bodies of gathered messages: sums, sums around a centre, and candidates, where a list has how many and each. Messages
  /// that travel in kernels have two for each of these numbers.
  static constexpr std::size_t sum_words(std::size_t query_heads) { return 2 * query_heads; }
  static constexpr std::size_t centred_words(std::size_t query_heads) { return query_heads; }
  static constexpr std::size_t candidate_words(std::size_t lists, std::size_t k) { return lists * (k + 1); }
  /// Of op::rank_share's first message: the counts of cells.
  static constexpr std::size_t count_words(std::size_t lists, std::size_t cells) { return lists * cells; }
};

/// What the ranks exchange of one list that op::rank_share ranks token by token: the totals of each query head, from which come the
/// normalisers, up to three times; the keys of a sample of all ranks' tokens, which gives a bracket around the threshold; how many tokens
/// are above the bracket, inside it and at its ends; and the keys of those inside. Sizes and places are in words of a message that travels
/// in kernels.
struct token_message {
  static constexpr std::uint32_t parts = 16, sampled = 4096, most_kept = 24576, counted = 5, rounds = 3;
  std::uint32_t group = 0;    // query heads of a list
  std::uint32_t samples = 0;  // keys of the sample; 0 if no list is longer than a sample
  std::uint32_t kept = 0;     // room for keys of tokens inside the bracket; 0: lists are not ranked in this way

  /// @param capacity, k  tokens of a sequence, and the most that a list retrieves, on all ranks
  static token_message of(std::size_t query_heads, std::size_t capacity, std::size_t k) {
    token_message made;
    made.group = static_cast<std::uint32_t>(query_heads);
    made.samples = capacity > sampled ? sampled : 0;
    // The bracket is to be four deviations of the sample wide on each side; by tokens, it may use 0.4 of the room for each.
    const double n = static_cast<double>(capacity), part = std::min(0.5, static_cast<double>(k) / n),
                 half = 4 * std::sqrt(sampled * part * (1 - part)) + 2, room = half * n / sampled / 0.4;
    made.kept = static_cast<std::uint32_t>(std::min(n, std::clamp<double>(room, sampled, most_kept)));
    return made;
  }
  /// How many words a list's message has, and the first word of each of its parts.
  /// @{
  PQKV_HD constexpr std::uint32_t words() const { return keys() + kept; }
  PQKV_HD constexpr std::uint32_t totals(unsigned round) const { return round * parts * group * 2; }
  PQKV_HD constexpr std::uint32_t sample() const { return totals(rounds); }
  PQKV_HD constexpr std::uint32_t counts() const { return sample() + samples; }
  PQKV_HD constexpr std::uint32_t keys() const { return counts() + counted; }
  /// @}
};

/// The messages of op::rank_share.
template <class Mail>
struct rank_share_mails {
  Mail counts, candidates, tokens;
  std::uint32_t* numbers;  // [lists, rank_share_parts] by cells: messages exchanged so far
  std::size_t cells;       // of every rank's index; 0: by tokens
  token_message message;   // of a list in `tokens`
  std::size_t longest;     // the most tokens of any rank's share
};

/// The arguments of op::merge_shares. A message has the log-sum-exps [rows], then the outputs [rows, d], as floats.
template <class Space>
struct merged_shares {
  view<float, 2, Space> out;  // [rows, d] written, the same on every rank
  view<float, 1, Space> lse;  // [rows] written
  std::uint64_t vote = 0;
  std::uint32_t* disagreed = nullptr;  // set to 1 if the ranks' votes differ

  /// Words of a gathered message's body; of a message that travels in kernels, an element in each.
  static constexpr std::size_t words(std::size_t rows, std::size_t d) { return (rows * (d + 1) + 1) / 2; }
  static constexpr std::size_t kernel_words(std::size_t rows, std::size_t d) { return rows * (d + 1); }
};

}  // namespace pqkv::scale
