// SPDX-License-Identifier: Apache-2.0
// Merges the partial outputs of all ranks on the device, in the order of ranks: every rank gets the same bits.
#pragma once

#include "merge.cuh"
#include "share_steps_agreement.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// One CTA for each query head. Gathered messages are in memory; others are sent and taken here, an element by each thread.
template <class Call, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(128) merge_shares_kernel(Call call, const __grid_constant__ Mail given) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const auto mail = given.open(blockIdx.x);
  const std::size_t q = blockIdx.x, rows = call.out.extent(0), d = call.out.extent(1), first = 1 + q * (d + 1);
  if constexpr (Mail::travels_in_kernels) {
    if (threadIdx.x == 0) mail.give(first, float_bits(call.own_lse(q)));
    for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) mail.give(first + 1 + i, float_bits(call.own_out(q, i)));
    if (q == 0 && threadIdx.x == 0) mail.give(0, static_cast<std::uint32_t>(call.vote >> 32));
  }
  const auto lse_of = [&](unsigned rank) {
    if constexpr (Mail::travels_in_kernels)
      return rank == mail.rank ? call.own_lse(q) : float_from_bits(mail.take(rank, first));
    else
      return mail.value(rank, q);
  };
  const auto element_of = [&](unsigned rank, std::size_t i) {
    if constexpr (Mail::travels_in_kernels)
      return rank == mail.rank ? call.own_out(q, i) : float_from_bits(mail.take(rank, first + 1 + i));
    else
      return mail.value(rank, rows + q * d + i);
  };
  float lse = 0;
  for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = element_of(0, i);
    lse = lse_of(0);
    for (unsigned rank = 1; rank < mail.ranks; ++rank) {
      const merge_weights weights = merge_weights::of(lse, lse_of(rank));
      sum = weights(sum, element_of(rank, i));
      lse = weights.lse;
    }
    call.out(q, i) = sum;
  }
  if (q == 0 && threadIdx.x == 0)
    for (unsigned rank = 0; rank < mail.ranks; ++rank) {
      bool is_same = true;
      if constexpr (Mail::travels_in_kernels)
        is_same = rank == mail.rank || mail.take(rank, 0) == static_cast<std::uint32_t>(call.vote >> 32);
      else
        is_same = mail.word(rank, 0) == call.vote;
      if (!is_same) *call.disagreed = 1;
    }
  __syncthreads();  // own_lse may be where lse is written
  if (threadIdx.x == 0) call.lse(q) = lse;
  if constexpr (Mail::travels_in_kernels) mail.taken();
}

}  // namespace detail

template <>
struct kernel<op::merge_shares, backend::cuda> {
  template <class P, class Mail>
  static void run(const P& policy, const scale::merged_shares<space::device>& call, const Mail& mail, unsigned first, unsigned last) {
    if (last == 0) return;  // gathered, and attention has written the message
    const detail::launcher launch(policy, "merge_shares");
    const auto kernel = detail::merge_shares_kernel<scale::merged_shares<space::device>, Mail>;
    launch("merge_shares_kernel", kernel,
           {.grid = dim3(static_cast<unsigned>(call.out.extent(0))),
            .threads = 128,
            .early = launch.is_built_for_hopper(kernel) && detail::follows_kernel<Mail>({first, last})},
           call, mail);
  }
};

}  // namespace pqkv
