// SPDX-License-Identifier: Apache-2.0
// The consumer's one file for nvcc: instantiates what its plain C++ calls.
#include <pqkv/cuda.cuh>

#include "memory.hpp"

namespace {
using device = pqkv::space::device;
using pqkv::view;
using pqkv::backend::cuda;
}  // namespace

template void pqkv::kernel<pqkv::op::top_k, cuda>::run(const pqkv::exec::cuda&, view<const float, 2, device>,
                                                       view<std::int32_t, 2, device>);
template void pqkv::kernel<pqkv::op::sync, cuda>::run(const pqkv::exec::cuda&);

bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}
void* to_device(const void* from, std::size_t bytes) {
  void* there = nullptr;
  if (cudaMalloc(&there, bytes) != cudaSuccess || cudaMemcpy(there, from, bytes, cudaMemcpyDefault) != cudaSuccess) return nullptr;
  return there;
}
bool to_host(void* to, const void* from, std::size_t bytes) { return cudaMemcpy(to, from, bytes, cudaMemcpyDefault) == cudaSuccess; }
