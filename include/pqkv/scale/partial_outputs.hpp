// SPDX-License-Identifier: Apache-2.0
// Merges the partial attention of all ranks, by log-sum-exp and in the order of ranks: every rank gets the same bits. With few ranks each
// sends its whole result to all. With many, each rank merges a part of the query heads for all others: one exchange more, and bytes that
// do not grow with the number of ranks as long as there are more query heads than ranks.
#pragma once

#include <algorithm>

#include "../merge.hpp"
#include "agreement.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The partial results of T * hq query heads, as messages carry them.
struct partial_outputs {
  std::size_t heads = 0;  // T * hq
  std::size_t d = 0;
  std::size_t ranks = 1;
  std::size_t most = heads;  // query heads that messages have room for: in a first message, which carries votes, the same on all ranks

  /// Results of `rows` query heads in memory: sums, then outputs.
  template <class T>
  struct rows_of {
    view<T, 1> lse;  // [rows]
    view<T, 2> out;  // [rows, d]
  };
  template <class T>
  rows_of<T> at(T* data, std::size_t rows) const {
    return {make_view(data, rows), make_view(data + rows, rows, d)};
  }

  /// Above this many bytes that a rank would receive, ranks share the merging. A guess that was not measured: what a link of 25 GB/s
  /// carries in about 10 us, the time of one exchange more.
  static constexpr std::size_t most_gathered_bytes = std::size_t{1} << 18;
  /// Query heads that a rank merges for all.
  constexpr std::size_t share() const { return (most + ranks - 1) / ranks; }
  /// Words of a message of `rows` query heads.
  constexpr std::size_t words(std::size_t rows) const { return (rows * (d + 1) + 1) / 2; }
  constexpr bool shares_merging() const { return ranks * words(most) * 8 > most_gathered_bytes; }
  /// Words of a mailbox that merge_all() needs.
  constexpr std::size_t room() const { return 1 + std::max(words(most), ranks * (1 + words(share()))); }

  /// Where this rank writes its own results.
  rows_of<float> own(const mailbox& mail) const { return at(mail.body<float>(), heads); }

  /// Merges own() of all ranks. What merging throws on this rank goes to `agreed`: the next message tells it to the others.
  /// @param result  written, the same on every rank
  /// @throws as mailbox::exchange()
  template <class P, class Communicator>
  void merge_all(const P& policy, Communicator& all, agreement& agreed, const mailbox& mail, const rows_of<float>& result) const {
    if (shares_merging()) return merge_share(policy, all, agreed, mail, result);
    mail.exchange(policy, all, agreed, words(most));
    agreed.attempt(
        [&] { merge_parts(policy, result, [&](std::size_t rank) { return at(mail.body_of<float>(rank, words(most)), heads); }); });
  }

 private:
  template <class P, class Part>
  void merge_parts(const P& policy, const rows_of<float>& result, const Part& part) const {
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const auto other = part(rank);
      if (rank == 0)
        std::copy_n(other.out.data, result.out.size(), result.out.data), std::copy_n(other.lse.data, result.lse.size(), result.lse.data);
      else
        merge(policy, result.out, result.lse, other.out, other.lse);
    }
  }
  /// Rank r merges query heads [r * share, r * share + rows_of_rank(r)).
  std::size_t rows_of_rank(std::size_t rank) const { return std::min(share(), heads - std::min(heads, rank * share())); }

  template <class P, class Communicator>
  void merge_share(const P& policy, Communicator& all, agreement& agreed, const mailbox& mail, const rows_of<float>& result) const {
    const std::size_t piece = 1 + words(share());
    const rows_of<float> mine = own(mail);
    std::copy_n(mine.out.data, mine.out.size(), result.out.data), std::copy_n(mine.lse.data, heads, result.lse.data);
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const std::size_t rows = rows_of_rank(rank), first = std::min(heads, rank * share());
      mail.own[rank * piece] = __builtin_bit_cast(std::uint64_t, agreed.own());
      const rows_of<float> to = at(reinterpret_cast<float*>(mail.own + rank * piece + 1), rows);
      std::copy_n(result.lse.data + first, rows, to.lse.data), std::copy_n(result.out.data + first * d, rows * d, to.out.data);
    }
    all.all_to_all(policy, reinterpret_cast<const std::byte*>(mail.own), reinterpret_cast<std::byte*>(mail.all), piece * sizeof *mail.own);
    agreed.conclude(policy, all, [&](std::size_t rank) { return __builtin_bit_cast(vote, mail.all[rank * piece]); });
    const std::size_t rows = rows_of_rank(all.rank());
    agreed.attempt([&] {
      merge_parts(policy, at(mail.body<float>(), rows),
                  [&](std::size_t rank) { return at(reinterpret_cast<const float*>(mail.all + rank * piece + 1), rows); });
    });
    mail.exchange(policy, all, agreed, piece - 1);
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const std::size_t merged = rows_of_rank(rank), first = std::min(heads, rank * share());
      const auto from = at(mail.body_of<float>(rank, piece - 1), merged);
      std::copy_n(from.lse.data, merged, result.lse.data + first), std::copy_n(from.out.data, merged * d, result.out.data + first * d);
    }
  }
};

}  // namespace pqkv::scale
