// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies from device memory into shared memory. From compute capability 8.0 on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../../../config.hpp"
#include "shared.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Copies 16 bytes from device memory. If `wanted` is 0 instead of 16, nothing is read and zeros are written.
__device__ inline void copy_async(std::uint32_t shared, const void* from, std::uint32_t wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(__cvta_generic_to_global(from)), "r"(wanted) : "memory");
}
/// Reads 16 bytes that are read once: they pass by the L1 cache, and the L2 cache fetches the 256 bytes around them.
__device__ inline uint4 read_once(const void* from) {
  uint4 words;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(__cvta_generic_to_global(from)));
  return words;
}
/// Reads all of an object at once. Read field by field, each may wait for the one before, if there are branches between them.
template <class T>
__device__ T read_whole(const T& from) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(std::uint32_t) == 0);
  struct words {
    std::uint32_t of[sizeof(T) / sizeof(std::uint32_t)];
  } read;
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / sizeof(std::uint32_t); ++i)
    asm volatile("ld.global.u32 %0, [%1];"
                 : "=r"(read.of[i])
                 : "l"(__cvta_generic_to_global(reinterpret_cast<const std::uint32_t*>(&from) + i))
                 : "memory");
  return __builtin_bit_cast(T, read);
}
/// Copies 4 bytes.
__device__ inline void copy_word_async(std::uint32_t shared, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(__cvta_generic_to_global(from)) : "memory");
}
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most Groups of this thread's groups of copies are unfinished; with 0 for all of its copies, also those in no group yet.
template <unsigned Groups>
__device__ void wait_copies() {
  if constexpr (Groups == 0)
    asm volatile("cp.async.wait_all;" ::: "memory");
  else
    asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

/// Calls take(i, from[i * stride]) for i < count, ascending. Ahead loads are issued together: one after the other they would each wait for
/// the L2 cache.
template <unsigned Ahead, class Take>
__device__ void for_strided(const float* from, std::size_t stride, std::size_t count, Take take) {
  std::size_t i = 0;
#pragma unroll 1
  for (; i + Ahead <= count; i += Ahead) {
    float next[Ahead];
#pragma unroll
    for (unsigned a = 0; a < Ahead; ++a) next[a] = from[(i + a) * stride];
#pragma unroll
    for (unsigned a = 0; a < Ahead; ++a) take(i + a, next[a]);
  }
#pragma unroll 1
  for (; i < count; ++i) take(i, from[i * stride]);
}

}  // namespace pqkv::detail::block
