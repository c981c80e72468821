// SPDX-License-Identifier: Apache-2.0
// Waiting for a stream.
#pragma once

#include "../../exec/cuda.hpp"
#include "../../exec/sync.hpp"
#include "error.cuh"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::sync, backend::cuda> {
  template <class P>
  static void run(const P& policy) {
    detail::check_cuda(cudaStreamSynchronize(static_cast<cudaStream_t>(policy.stream)), "sync", "cudaStreamSynchronize");
  }
};

}  // namespace pqkv
