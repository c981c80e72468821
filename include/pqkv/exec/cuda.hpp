// SPDX-License-Identifier: Apache-2.0
// The CUDA policy. It needs no CUDA header, so an engine can name it anywhere. Calls need <pqkv/cuda.cuh> in a file that nvcc compiles, or
// <pqkv/cuda_extern.hpp> in plain C++; without either they do not compile and say so. A call checks shapes and enqueues on the stream;
// sync(policy) waits. Nothing is allocated, so every call can be captured from a stream.
#pragma once

#include "../core/arena.hpp"
#include "policy.hpp"

namespace pqkv::inline PQKV_MODE::exec {
/// Policy for CUDA devices: a stream, and device memory for scratch.
struct cuda {
  using backend_type = backend::cuda;
  using space_type = space::device;

  void* stream{};   // a cudaStream_t
  arena scratch{};  // device memory
};
}  // namespace pqkv::exec
