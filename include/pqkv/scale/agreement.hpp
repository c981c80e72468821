// SPDX-License-Identifier: Apache-2.0
// How ranks agree that a call is made. Each does what can fail, keeps what it threw, and tells the others by a vote that travels at the
// head of a message. If one refuses, all do, with typed errors; nobody waits for a rank that has left.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

#include "../core/checksum.hpp"
#include "communicator.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// What a rank says about a call, 8 bytes.
struct vote {
  std::uint32_t refuses = 0;  // 1: this rank's exception says why
  std::uint32_t call = 0;     // checksum of what must be the same on all ranks
};
static_assert(sizeof(vote) == 8);

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
  vote own() const { return {refusal_ != nullptr ? 1u : 0u, sum_.value()}; }

  /// Throws this rank's exception, if there is one: where no message tells the others.
  void conclude_alone() const {
#if PQKV_HAS_EXCEPTIONS
    if (refusal_ != nullptr) std::rethrow_exception(refusal_);
#endif
  }

  /// Throws this rank's exception, or rank_error for another's, or value_error when the ranks' calls differ; the votes are all ranks'.
  /// @param votes  votes(rank) -> vote
  template <class Votes>
  void conclude(std::size_t ranks, const Votes& votes) const {
    conclude_alone();
    for (std::size_t rank = 0; rank < ranks; ++rank)
      if (votes(rank).refuses != 0) raise_refusal(rank);
    const vote first = votes(0);
    for (std::size_t rank = 1; rank < ranks; ++rank)
      if (votes(rank).call != first.call) raise_difference(rank);
  }

  /// Exchanges only the votes, and concludes.
  template <class P, class Communicator>
  void commit(const P& policy, Communicator& all, vote* votes) const {
    const vote mine = own();
    all.all_gather(policy, reinterpret_cast<const std::byte*>(&mine), reinterpret_cast<std::byte*>(votes), sizeof mine);
    conclude(all.size(), [&](std::size_t rank) { return votes[rank]; });
  }

 private:
  [[noreturn]] void raise_refusal(std::size_t rank) const {
    const std::string text = std::string("pqkv::") + function_ + ": rank " + std::to_string(rank) + " refused";
#if PQKV_HAS_EXCEPTIONS
    throw rank_error(rank, text);
#else
    PQKV_ON_ERROR(text.c_str());
    std::abort();
#endif
  }
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
    agreed.conclude(ranks.size(), [&](std::size_t rank) { return __builtin_bit_cast(vote, all[rank * (words + 1)]); });
  }
  /// Adds the ranks' numbers, or takes their maxima; body() has them before and after. If a rank refuses, all learn which one by another
  /// exchange.
  template <class P, class Communicator>
  void combine(const P& policy, Communicator& ranks, const agreement& agreed, std::size_t numbers, reduction how) const {
    own[0] = agreed.own().refuses;
    ranks.all_reduce(policy, own, numbers + 1, how);
    if (own[0] != 0) exchange(policy, ranks, agreed, 0);
  }
};

}  // namespace pqkv::scale
