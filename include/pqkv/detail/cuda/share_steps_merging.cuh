// SPDX-License-Identifier: Apache-2.0
// Merges the partial outputs of all ranks on the device, in the order of ranks: every rank gets the same bits. Where messages travel in
// kernels, attention's own last kernel does it.
#pragma once

#include "attention.cuh"
#include "share_steps_agreement.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Merges one query head of all ranks, and stores it. By a CTA; each thread has some of the dimensions.
/// @param lse_of, value_of  lse_of(rank); value_of(rank, i)
template <class Call, class LseOf, class ValueOf>
__device__ void merge_ranks(const Call& call, unsigned ranks, std::size_t q, LseOf lse_of, ValueOf value_of) {
  float lse = 0;
  for (std::size_t i = threadIdx.x; i < call.out.extent(1); i += blockDim.x) {
    float sum = value_of(0, i);
    lse = lse_of(0);
    for (unsigned rank = 1; rank < ranks; ++rank) {
      const merge_weights weights = merge_weights::of(lse, lse_of(rank));
      sum = weights(sum, value_of(rank, i));
      lse = weights.lse;
    }
    call.out(q, i) = sum;
  }
  if (threadIdx.x == 0) call.lse(q) = lse;
}

/// Output of attention that is merged with that of the other ranks before it is stored.
template <class Mail>
struct merged_output {
  scale::merged_shares<space::device> call;
  Mail given;

  struct opened {
    const scale::merged_shares<space::device>& call;
    typename Mail::message mail;

    template <class Value, class Sum>
    __device__ void write(std::size_t q, std::size_t d, Value value, Sum sum) const {
      const std::size_t first = 1 + q * (d + 1);
      const std::uint32_t vote = static_cast<std::uint32_t>(call.vote >> 32);
      const float own_lse = sum();
      if (threadIdx.x == 0) mail.give(first, float_bits(own_lse));
      for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) mail.give(first + 1 + i, float_bits(value(i)));
      if (q == 0 && threadIdx.x == 0) mail.give(0, vote);
      merge_ranks(
          call, mail.ranks, q, [&](unsigned rank) { return rank == mail.rank ? own_lse : float_from_bits(mail.take(rank, first)); },
          [&](unsigned rank, std::size_t i) { return rank == mail.rank ? value(i) : float_from_bits(mail.take(rank, first + 1 + i)); });
      for (unsigned rank = 0; q == 0 && threadIdx.x == 0 && rank < mail.ranks; ++rank)
        if (rank != mail.rank && mail.take(rank, 0) != vote) *call.disagreed = 1;
      __syncthreads();
      mail.taken();
    }
  };
  __device__ opened open(std::size_t q) const { return {call, given.open(static_cast<unsigned>(q))}; }
};

/// One CTA for each query head, whose messages are in memory.
template <class Call, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(128) merge_shares_kernel(Call call, Mail mail) {
  const std::size_t q = blockIdx.x, rows = call.out.extent(0), d = call.out.extent(1);
  if (q == 0 && threadIdx.x == 0)
    for (unsigned rank = 0; rank < mail.ranks; ++rank)
      if (mail.word(rank, 0) != call.vote) *call.disagreed = 1;
  merge_ranks(
      call, mail.ranks, q, [&](unsigned rank) { return mail.value(rank, q); },
      [&](unsigned rank, std::size_t i) { return mail.value(rank, rows + q * d + i); });
}

}  // namespace detail

template <>
struct kernel<op::merge_shares, backend::cuda> {
  template <class P, class Mail>
  static void run(const P& policy, const scale::merged_shares<space::device>& call, const Mail& mail) {
    detail::launcher(policy, "merge_shares")("merge_shares_kernel", detail::merge_shares_kernel<scale::merged_shares<space::device>, Mail>,
                                             {dim3(static_cast<unsigned>(call.out.extent(0))), 128}, call, mail);
  }
};

template <>
struct kernel<op::attend_share, backend::cuda> {
  template <class P, class Store, class Mail>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store, const token_set<space::device>& tokens,
                  float scale, const scale::merged_shares<space::device>& call, const Mail& mail) {
    kernel<op::attention, backend::cuda>::run_into(policy, query, store, tokens, scale, detail::merged_output<Mail>{call, mail});
  }
};

}  // namespace pqkv
