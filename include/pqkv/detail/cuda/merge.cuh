// SPDX-License-Identifier: Apache-2.0
// Merges partial attention on the device: a CTA takes one query head, a thread some of its dimensions. Agrees with the host within
// rounding.
#pragma once

#include "../../merge.hpp"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    merge_outputs_kernel(view<float, 2, space::device> out, view<float, 1, space::device> lse,
                         view<const float, 2, space::device> other_out, view<const float, 1, space::device> other_lse) {
  const std::size_t q = blockIdx.x;
  const merge_weights weights = merge_weights::of(lse(q), other_lse(q));
  __syncthreads();  // all threads have read lse before it is written
  for (std::size_t i = threadIdx.x; i < out.extent(1); i += Threads) out(q, i) = weights(out(q, i), other_out(q, i));
  if (threadIdx.x == 0) lse(q) = weights.lse;
}

}  // namespace detail

template <>
struct kernel<op::merge, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<float, 2, space::device> out, view<float, 1, space::device> lse,
                  view<const float, 2, space::device> other_out, view<const float, 1, space::device> other_lse) {
    constexpr unsigned threads = 128;  // the usual head dimension
    detail::launcher(policy, "merge")("merge_outputs_kernel", detail::merge_outputs_kernel<threads>,
                                      {dim3(static_cast<unsigned>(out.extent(0))), threads}, out, lse, other_out, other_lse);
  }
};

}  // namespace pqkv
