// SPDX-License-Identifier: Apache-2.0
// What the library asks of those who carry bytes between ranks: three collectives over small buffers. An engine's own communicator models
// the concept in a few lines; adapt/mpi.hpp and adapt/nccl.cuh do it for MPI and NCCL, adapt/peer.cuh for GPUs that reach each other's
// memory, in_process.hpp for threads of one process. The library starts no process and opens no socket.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../core/error.hpp"
#include "../exec/policy.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// How all_reduce() combines numbers. Both are exact on integers, so the result does not depend on the order of ranks.
enum class reduction : std::uint8_t { sum, maximum };

/// An exchange failed: another rank did not come before the time limit, made another call, or the transport reported an error. What the
/// ranks hold may differ afterwards; a communicator that says so once must not be used again.
struct communication_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// This rank had nothing to object to, but another one refused the call. Every rank's slots are as they were.
struct rank_error : std::runtime_error {
  rank_error(std::size_t which, const std::string& message) : std::runtime_error(message), rank(which) {}

  std::size_t rank;  // the lowest that refused; its own exception says why
};

/// A communicator of P's memory space. Every rank makes the same calls in the same order; buffers are contiguous, and on a device policy
/// the call only enqueues on its stream.
///
///   rank(), size()                            this process's number, and how many there are; fixed
///   all_gather(policy, own, all, bytes)       all [size, bytes] becomes every rank's own [bytes], in the order of ranks
///   all_reduce(policy, numbers, count, how)   numbers [count] uint64 become their sum (modulo 2^64) or maximum over the ranks
///   all_to_all(policy, to, from, bytes)       piece r of `to` [size, bytes] goes to rank r; piece r of `from` [size, bytes] comes from it
///
/// Every call throws communication_error when it cannot end. It must have a time limit: a rank that died must not stop the others for ever.
///
/// Three more are called where a communicator has them:
///
///   finish(policy)            waits for the stream with the time limit, in place of sync(). On a device a cache calls it before whatever
///                             else may wait for an exchange: copies from and to host memory, allocations
///   reserve(sent, received)   takes memory for calls that send and receive up to so many bytes on this rank, which then throw no
///                             std::bad_alloc: a cache calls it where all ranks can still refuse together
///   refuse(policy)            where messages travel in kernels: ends the waiting of the other ranks' kernels; finish() then throws
///                             rank_error. A cache calls it when this rank refuses a step of which it cannot tell them otherwise
template <class C, class P>
concept communicator_for = exec::policy<P> &&
    requires(C& all, const P& policy, const std::byte* own, std::byte* received, std::uint64_t* numbers, std::size_t count) {
  { all.rank() } -> std::convertible_to<std::size_t>;
  { all.size() } -> std::convertible_to<std::size_t>;
  all.all_gather(policy, own, received, count);
  all.all_reduce(policy, numbers, count, reduction::sum);
  all.all_to_all(policy, own, received, count);
};

namespace detail {
/// Reports a failed exchange. @param call  e.g. "all_gather"
[[noreturn]] inline void raise_communication(const char* communicator, const char* call, const std::string& what) {
  const std::string text = std::string("pqkv::") + communicator + ": " + call + ": " + what;
#if PQKV_HAS_EXCEPTIONS
  throw communication_error(text);
#else
  PQKV_ON_ERROR(text.c_str());
  std::abort();
#endif
}
/// Reports another rank's refusal, as rank_error.
/// @param function  or communicator that it is reported by
/// @param what      follows "rank 1 refused"
[[noreturn]] inline void raise_refusal(const char* function, std::size_t rank, const std::string& what) {
  const std::string text = std::string("pqkv::") + function + ": rank " + std::to_string(rank) + " refused" + what;
#if PQKV_HAS_EXCEPTIONS
  throw rank_error(rank, text);
#else
  PQKV_ON_ERROR(text.c_str());
  std::abort();
#endif
}
}  // namespace detail

}  // namespace pqkv::scale
