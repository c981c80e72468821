// SPDX-License-Identifier: Apache-2.0
// The CUDA policy, complete without any CUDA header, so that an engine can name it anywhere. Calls need <pqkv/cuda.cuh>, which
// this version does not have yet: a call that reaches the missing backend does not compile and says so.
#pragma once

#include "../core/arena.hpp"
#include "policy.hpp"

namespace pqkv::exec {
/// Policy for CUDA devices: a stream, and device memory for scratch. No backend comes with this version.
struct cuda {
  using backend_type = backend::cuda;
  using space_type = space::device;

  void* stream{};   // a cudaStream_t
  arena scratch{};  // device memory
};
}  // namespace pqkv::exec
