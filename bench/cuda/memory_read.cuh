// SPDX-License-Identifier: Apache-2.0
// A kernel that reads memory as fast as it can: the ceiling of bandwidth, and what empties the L2 cache before a cold call.
#pragma once

#include <pqkv/detail/cuda/memory.cuh>

#include <cstddef>
#include <cstdint>

namespace bench {

/// Reads [count] Words `rounds` times past the L1 cache. A CTA begins each round where its neighbour began the last.
/// @param sink  written if all words fold to one number, which no random data do: keeps the loads alive
template <class Word>
__global__ void __launch_bounds__(512) read_kernel(const Word* from, std::size_t count, unsigned rounds, std::uint32_t* sink) {
  constexpr unsigned at_once = 8;  // loads in flight of a thread
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  std::uint32_t folded = 0;
  for (unsigned round = 0; round < rounds; ++round) {
    std::size_t at = std::size_t{(blockIdx.x + round) % gridDim.x} * blockDim.x + threadIdx.x;
    for (; at + (at_once - 1) * step < count; at += at_once * step) {
      Word words[at_once];
#pragma unroll
      for (unsigned i = 0; i < at_once; ++i) words[i] = __ldcg(from + at + i * step);
#pragma unroll
      for (unsigned i = 0; i < at_once; ++i) folded ^= words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
    }
    for (; at < count; at += step) {
      const Word word = __ldcg(from + at);
      folded ^= word.x ^ word.y ^ word.z ^ word.w;
    }
  }
  if (folded == 0x9d2c5681u) *sink = folded;
}

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  pqkv::detail::check_cuda(cudaGetDevice(&device), "bench", "cudaGetDevice");
  pqkv::detail::check_cuda(cudaDeviceGetAttribute(&value, which, device), "bench", "cudaDeviceGetAttribute");
  return value;
}
inline std::size_t l2_bytes() { return static_cast<std::size_t>(attribute(cudaDevAttrL2CacheSize)); }
inline unsigned multiprocessors() { return static_cast<unsigned>(attribute(cudaDevAttrMultiProcessorCount)); }

/// Enqueues a read of eight times the cache: replacement is not strictly by age, so twice would leave some lines.
class l2_flush {
 public:
  explicit l2_flush(std::size_t cache_bytes) : block_(8 * cache_bytes, nullptr), sink_(1, nullptr) {}
  void operator()(cudaStream_t stream) const {
    read_kernel<uint4><<<4 * multiprocessors(), 512, 0, stream>>>(reinterpret_cast<const uint4*>(block_.data()),
                                                                  block_.size() / sizeof(uint4), 1, sink_.data());
    pqkv::detail::check_cuda(cudaGetLastError(), "bench", "read_kernel");
  }

 private:
  pqkv::device_buffer<std::byte> block_;
  pqkv::device_buffer<std::uint32_t> sink_;
};

}  // namespace bench
