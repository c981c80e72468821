// SPDX-License-Identifier: Apache-2.0
// Copies rows into a store on the device; a warp takes one row.
#pragma once

#include "../../cache/kv_store.hpp"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

template <class T, class U, class From, class To>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    store_rows_kernel(view<T, 3, From> from, view<U, 3, To> to, view<std::uint32_t, 1, space::device> nonfinite) {
  const std::size_t row = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32, n = from.extent(1), d = from.extent(2);
  if (row >= from.extent(0) * n) return;
  const std::size_t head = row / n, t = row % n;
  bool finite = true;
  for (std::size_t i = threadIdx.x % 32; i < d; i += 32) {
    const U stored = static_cast<U>(static_cast<float>(from(head, t, i)));
    finite &= is_finite(static_cast<float>(stored));  // a finite float may overflow in half
    to(head, t, i) = stored;
  }
  const bool all = __all_sync(0xffffffffu, finite) != 0;
  if (!all && threadIdx.x % 32 == 0 && nonfinite.data != nullptr) atomicAdd(&nonfinite(head), 1u);
}

}  // namespace detail

template <>
struct kernel<op::store_rows, backend::cuda> {
  template <class P, class T, class U, class From, class To>
  static void run(const P& policy, view<T, 3, From> from, view<U, 3, To> to, view<std::uint32_t, 1, space::device> nonfinite) {
    const detail::launcher launch(policy, "store_rows");
    launch("store_rows_kernel", detail::store_rows_kernel<T, U, From, To>,
           {dim3(detail::ceil_div(from.extent(0) * from.extent(1), 8)), 256}, from, to, nonfinite);
  }
};

}  // namespace pqkv
