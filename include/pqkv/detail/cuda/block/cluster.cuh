// SPDX-License-Identifier: Apache-2.0
// The CTAs that work on one row or problem together: a cluster, whose members read each other's shared memory, or one CTA alone.
// Below compute capability 9.0 there are no clusters and a team is always one CTA.
#pragma once

#include <cstdint>
#include <nv/target>

#include "../../../config.hpp"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Lets the next kernel start while this one runs, if that kernel waits for this one. Memory is complete after its wait. Kernels that write
/// codebooks or axes never call it: planned_lists reads these before its wait.
__device__ inline void release_dependents() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("griddepcontrol.launch_dependents;" ::: "memory");))
}
__device__ inline void wait_for_last_kernel() { NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("griddepcontrol.wait;" ::: "memory");)) }

/// Adds to a counter in device memory. Whoever reads it by read_acquired() and finds this, also finds what this thread wrote before, and
/// what its CTA and cluster wrote before their last barrier.
__device__ inline void add_released(std::uint32_t* counter, std::uint32_t more) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(counter)), "r"(more) : "memory");
}
__device__ inline std::uint32_t read_acquired(const std::uint32_t* counter) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(counter)) : "memory");
  return value;
}

class cluster_team {
 public:
  /// @param size  CTAs along grid.x that share a row; the launch's cluster dimension
  __device__ explicit cluster_team(unsigned size) : size_(size), rank_(size == 1 ? 0 : cluster_rank()) {}

  __device__ unsigned size() const { return size_; }
  __device__ unsigned rank() const { return rank_; }

  /// Barrier of all threads of the team. What they wrote before it, to shared or global memory, can be read after it.
  __device__ void sync() const {
    if (size_ == 1) {
      __syncthreads();
      return;
    }
    NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("barrier.cluster.arrive.release.aligned;\n"
                                                  "barrier.cluster.wait.acquire.aligned;" ::
                                                      : "memory");))
  }

  /// sync() in two steps, with other work between them, for a team of more than one.
  __device__ void arrive() const {
    NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");))
  }
  __device__ void wait() const { NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");)) }

  /// The same variable in the shared memory of another member.
  template <class T>
  __device__ T* remote(T* own, unsigned rank) const {
    if (rank == rank_) return own;
    std::uint64_t address = reinterpret_cast<std::uint64_t>(own);
    NV_IF_TARGET(NV_PROVIDES_SM_90, (asm("mapa.u64 %0, %0, %1;" : "+l"(address) : "r"(rank));))
    return reinterpret_cast<T*>(address);
  }

 private:
  __device__ static unsigned cluster_rank() {
    unsigned rank = 0;
    NV_IF_TARGET(NV_PROVIDES_SM_90, (asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));))
    return rank;
  }

  unsigned size_, rank_;
};

/// CTAs anywhere on the device that work on one row together, and meet at a counter in device memory. All of them must be resident at a
/// time: a cooperative launch.
class spread_team {
 public:
  /// @param arrived  [2] zeros, and zeros once all have left
  __device__ spread_team(std::uint32_t* arrived, unsigned size, unsigned rank) : arrived_(arrived), size_(size), rank_(rank) {}

  __device__ unsigned size() const { return size_; }
  __device__ unsigned rank() const { return rank_; }
  /// As of a cluster_team, but by other threads what was written to global memory can be read through the L2 cache only.
  /// @{
  __device__ void arrive() {
    __syncthreads();
    if (threadIdx.x == 0) add_released(arrived_, 1);
    expected_ += size_;
  }
  __device__ void wait() const {
    if (threadIdx.x == 0)
      while (read_acquired(arrived_) < expected_) continue;
    __syncthreads();
  }
  __device__ void sync() {
    arrive();
    wait();
  }
  /// @}
  /// After the last wait(): whether all other CTAs have left. By one thread; the last one then calls reset().
  __device__ bool leave() const { return atomicAdd(arrived_ + 1, 1) == size_ - 1; }
  __device__ void reset() const { arrived_[0] = 0, arrived_[1] = 0; }

 private:
  std::uint32_t* arrived_;
  unsigned size_, rank_;
  std::uint32_t expected_ = 0;
};

}  // namespace pqkv::detail::block
