// SPDX-License-Identifier: Apache-2.0
// How ranks agree that a call is made. Each does what can fail, keeps what it threw, and tells the others by a vote that travels with a
// message. If one refuses, all do, with typed errors that say which rank and why; nobody waits for a rank that has left.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

#include "../core/checksum.hpp"
#include "communicator.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// What a rank says about a call, 8 bytes.
struct vote {
  static constexpr std::uint16_t now = 1, earlier = 2, differed = 3;

  std::uint16_t refuses = 0;  // now: this rank's exception says why. On devices also, of a step whose votes travelled with its messages:
                              // earlier: this rank refused it; differed: this rank found that they differed
  std::uint16_t passes = 0;   // of a device's step whose votes travel with its messages: how many passes this rank makes
  std::uint32_t call = 0;     // checksum of what must be the same on all ranks
};
static_assert(sizeof(vote) == 8);

/// Why a rank refuses, as ranks exchange it after a refusal: the other ranks add zeros.
struct refusal_reason {
  static constexpr std::size_t count = 24;
  std::uint64_t words[count] = {};

  refusal_reason() = default;
  /// Keeps as much of the text as there is room for.
  explicit refusal_reason(const char* text) { std::memcpy(words, text, std::min(std::strlen(text), sizeof words - 1)); }
  std::string text() const {
    const char* const begin = reinterpret_cast<const char*>(words);
    return {begin, std::find(begin, begin + sizeof words, '\0')};
  }
};

/// The votes of all ranks as sums, for a call whose first message is a reduction: whether a rank refuses, and whether all calls are alike.
struct vote_sums {
  static constexpr std::size_t count = 3;

  /// Writes a rank's own [count].
  static void write(const vote& own, std::uint64_t* to) {
    to[0] = own.refuses != 0 ? 1 : 0;
    to[1] = own.call;
    to[2] = mixed(own.call);
  }
  /// Whether no rank refuses and all calls are the same. The same answer on every rank, since only sums are looked at.
  static bool agree(const std::uint64_t* sums, std::size_t ranks) {
    return sums[0] == 0 && sums[1] % ranks == 0 && sums[2] == ranks * mixed(sums[1] / ranks);
  }

 private:
  // The last steps of SplitMix64 (Steele, Lea, Flood 2014): sums of different numbers have the sum of equal ones only by chance.
  static std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
};

/// One call, from its checks to its commit. Lives in one verb.
class agreement {
 public:
  /// @param function  the verb, e.g. "attend"
  explicit agreement(const char* function) : function_(function) { same(function, std::strlen(function)); }

  /// Adds bytes that must be the same on all ranks.
  void same(const void* data, std::size_t bytes) { sum_.add(data, bytes); }
  void same_number(std::uint64_t number) { sum_.add(&number, sizeof number); }

  /// Does work of this rank that may throw. After a failure further work is left out; the vote then says so. A communication_error leaves
  /// at once, since the others can no longer be asked.
  template <class Work>
  void attempt(Work&& work) {
    if (refusal_ != nullptr) return;
#if PQKV_HAS_EXCEPTIONS
    try {
      work();
    } catch (const communication_error&) {
      throw;
    } catch (...) {
      refusal_ = std::current_exception();
    }
#else
    work();
#endif
  }
  /// Says how many passes a step takes. A rank that refuses the step does not know, and learns it from the others.
  void takes_passes(std::size_t passes) { passes_ = static_cast<std::uint16_t>(std::min<std::size_t>(passes, 0xffff)); }
  vote own() const { return {refuses() ? vote::now : std::uint16_t{0}, refuses() ? std::uint16_t{0} : passes_, sum_.value()}; }
  bool refuses() const { return refusal_ != nullptr; }

  /// Throws this rank's exception, if there is one: where no message tells the others.
  void conclude_alone() const {
#if PQKV_HAS_EXCEPTIONS
    if (refusal_ != nullptr) std::rethrow_exception(refusal_);
#endif
  }

  /// Throws this rank's exception, or rank_error for another's, or value_error when the ranks' calls differ; the votes are all ranks'.
  /// After a refusal it makes one exchange more, which tells every rank why.
  /// @param policy  of host memory
  /// @param all     the communicator
  /// @param votes   votes(rank) -> vote
  template <class P, class Communicator, class Votes>
  void conclude(const P& policy, Communicator& all, const Votes& votes) const {
    const std::size_t ranks = all.size(), refused = refusing(ranks, votes);
    if (refused != ranks) {
      refusal_reason why = refused == all.rank() ? reason() : refusal_reason();
      all.all_reduce(policy, why.words, refusal_reason::count, reduction::sum);
      conclude_alone();
      raise_refusal(refused, why);
    }
    require_same(ranks, votes);
  }
  /// The lowest rank that refuses, or how many ranks there are.
  template <class Votes>
  static std::size_t refusing(std::size_t ranks, const Votes& votes) {
    std::size_t rank = 0;
    while (rank < ranks && votes(rank).refuses == 0) ++rank;
    return rank;
  }
  /// Throws value_error when the ranks' calls differ.
  template <class Votes>
  void require_same(std::size_t ranks, const Votes& votes) const {
    const vote first = votes(0);
    for (std::size_t rank = 1; rank < ranks; ++rank)
      if (votes(rank).call != first.call) raise_difference(rank);
  }
  /// Why this rank refuses.
  refusal_reason reason() const {
#if PQKV_HAS_EXCEPTIONS
    try {
      conclude_alone();
    } catch (const std::exception& error) {
      return refusal_reason(error.what());
    } catch (...) {
      return refusal_reason("an exception that is no std::exception");
    }
#endif
    return {};
  }
  /// Throws rank_error for another rank's refusal.
  [[noreturn]] void raise_refusal(std::size_t rank, const refusal_reason& why) const {
    detail::raise_refusal(function_, rank, std::string(": ") + why.text());
  }

  /// Exchanges only the votes, and concludes.
  template <class P, class Communicator>
  void commit(const P& policy, Communicator& all, vote* votes) const {
    const vote mine = own();
    all.all_gather(policy, reinterpret_cast<const std::byte*>(&mine), reinterpret_cast<std::byte*>(votes), sizeof mine);
    conclude(policy, all, [&](std::size_t rank) { return votes[rank]; });
  }

 private:
  [[noreturn]] void raise_difference(std::size_t rank) const {
    const std::string text = std::string("pqkv::") + function_ + ": the call must be the same on all ranks, that of rank " +
                             std::to_string(rank) + " differs from that of rank 0";
#if PQKV_HAS_EXCEPTIONS
    throw value_error(text);
#else
    PQKV_ON_ERROR(text.c_str());
    std::abort();
#endif
  }

  const char* function_;
  std::uint16_t passes_ = 0;
  std::exception_ptr refusal_;
  crc32 sum_;
};

/// Memory for one message of every rank. A message is a vote and a body of 8-byte words.
struct mailbox {
  std::uint64_t* own = nullptr;  // [room]
  std::uint64_t* all = nullptr;  // [ranks, room]
  std::size_t room = 0;          // words of a message, the vote included

  /// Where this rank writes its body, [words].
  template <class T = std::uint64_t>
  T* body() const {
    return reinterpret_cast<T*>(own + 1);
  }
  /// What a rank sent in an exchange of `words` words.
  template <class T = std::uint64_t>
  const T* body_of(std::size_t rank, std::size_t words) const {
    return reinterpret_cast<const T*>(all + rank * (words + 1) + 1);
  }
  /// Sends every rank's vote and body to all ranks, and concludes the votes. @throws as agreement::conclude(), communication_error
  template <class P, class Communicator>
  void exchange(const P& policy, Communicator& ranks, const agreement& agreed, std::size_t words) const {
    *own = __builtin_bit_cast(std::uint64_t, agreed.own());
    ranks.all_gather(policy, reinterpret_cast<const std::byte*>(own), reinterpret_cast<std::byte*>(all), (words + 1) * sizeof *own);
    agreed.conclude(policy, ranks, [&](std::size_t rank) { return __builtin_bit_cast(vote, all[rank * (words + 1)]); });
  }
  /// Adds the ranks' numbers, or takes their maxima; body() has them before and after. If a rank refuses, all learn which one by another
  /// exchange.
  template <class P, class Communicator>
  void combine(const P& policy, Communicator& ranks, const agreement& agreed, std::size_t numbers, reduction how) const {
    own[0] = agreed.own().refuses;
    ranks.all_reduce(policy, own, numbers + 1, how);
    if (own[0] != 0) exchange(policy, ranks, agreed, 0);
  }
  /// Adds the ranks' numbers in the first message of a call, and concludes. The message carries the votes, and is as long whatever a rank
  /// thinks of its input. If the votes differ, another exchange says whose.
  ///
  /// @param policy   of host memory
  /// @param ranks    the communicator
  /// @param agreed   this rank's vote
  /// @param numbers  how many this rank gives in body()
  /// @param most     how many the message has room for, the same on all ranks; this rank's others are zeros
  /// @pre   numbers <= most; room >= 1 + most + vote_sums::count
  template <class P, class Communicator>
  void combine_first(const P& policy, Communicator& ranks, const agreement& agreed, std::size_t numbers, std::size_t most) const {
    std::fill(body() + numbers, body() + most, std::uint64_t{0});
    std::uint64_t* const votes = body() + most;
    vote_sums::write(agreed.own(), votes);
    ranks.all_reduce(policy, body(), most + vote_sums::count, reduction::sum);
    if (!vote_sums::agree(votes, ranks.size())) exchange(policy, ranks, agreed, 0);
  }
};

}  // namespace pqkv::scale
