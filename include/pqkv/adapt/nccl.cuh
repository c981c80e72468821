// SPDX-License-Identifier: Apache-2.0
// NCCL as a communicator of scale/: the program makes the ncclComm_t and owns it; this only enqueues collectives on the policy's stream.
// Opt-in: needs nccl.h (NCCL 2.7 or later) and libnccl. The collectives can be captured in a CUDA graph. GPUs of one host that reach each
// other's memory exchange faster with adapt/peer.cuh (docs/scale.md).
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <thread>

#include "../exec/cuda.hpp"
#include "../scale/communicator.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The ranks of an NCCL communicator. Copyable; the communicator must outlive it.
class nccl_ranks {
 public:
  /// @param comm   no other stream may use it while this object does
  /// @param limit  how long finish() waits
  /// @throws communication_error
  explicit nccl_ranks(ncclComm_t comm, std::chrono::milliseconds limit = std::chrono::seconds(60)) : comm_(comm), limit_(limit) {
    int rank = 0, size = 0;
    check(ncclCommUserRank(comm, &rank), "ncclCommUserRank");
    check(ncclCommCount(comm, &size), "ncclCommCount");
    rank_ = static_cast<std::size_t>(rank);
    size_ = static_cast<std::size_t>(size);
  }
  std::size_t rank() const { return rank_; }
  std::size_t size() const { return size_; }

  /// Enqueued on the policy's stream, here and below; buffers in device memory, or in pinned memory that the device reaches.
  /// @throws communication_error
  void all_gather(const exec::cuda& policy, const std::byte* own, std::byte* all, std::size_t bytes) const {
    check(ncclAllGather(own, all, bytes, ncclUint8, comm_, stream_of(policy)), "ncclAllGather");
  }
  void all_reduce(const exec::cuda& policy, std::uint64_t* numbers, std::size_t count, reduction how) const {
    check(ncclAllReduce(numbers, numbers, count, ncclUint64, how == reduction::sum ? ncclSum : ncclMax, comm_, stream_of(policy)),
          "ncclAllReduce");
  }
  void all_to_all(const exec::cuda& policy, const std::byte* to, std::byte* from, std::size_t bytes) const {
    check(ncclGroupStart(), "ncclGroupStart");
    for (std::size_t other = 0; other < size_; ++other) {
      check(ncclSend(to + other * bytes, bytes, ncclUint8, static_cast<int>(other), comm_, stream_of(policy)), "ncclSend");
      check(ncclRecv(from + other * bytes, bytes, ncclUint8, static_cast<int>(other), comm_, stream_of(policy)), "ncclRecv");
    }
    check(ncclGroupEnd(), "ncclGroupEnd");
  }

  /// Waits for the stream, in place of sync(): also for errors of other ranks, and only so long. After communication_error the program
  /// calls ncclCommAbort(), before it frees device memory; what is on the stream ends with it.
  void finish(const exec::cuda& policy) const {
    const auto end = std::chrono::steady_clock::now() + limit_;
    for (;;) {
      ncclResult_t found = ncclSuccess;
      check(ncclCommGetAsyncError(comm_, &found), "ncclCommGetAsyncError");
      check(found, "an earlier collective");
      const cudaError_t state = cudaStreamQuery(stream_of(policy));
      if (state == cudaSuccess) return;
      if (state != cudaErrorNotReady) detail::raise_communication("nccl_ranks", "cudaStreamQuery", cudaGetErrorString(state));
      if (std::chrono::steady_clock::now() > end)
        detail::raise_communication("nccl_ranks", "finish", "a rank did not come within " + std::to_string(limit_.count()) + " ms");
      std::this_thread::yield();
    }
  }

 private:
  static cudaStream_t stream_of(const exec::cuda& policy) { return static_cast<cudaStream_t>(policy.stream); }
  static void check(ncclResult_t result, const char* call) {
    if (result != ncclSuccess && result != ncclInProgress) detail::raise_communication("nccl_ranks", call, ncclGetErrorString(result));
  }

  ncclComm_t comm_;
  std::chrono::milliseconds limit_;
  std::size_t rank_ = 0, size_ = 1;
};
static_assert(communicator_for<nccl_ranks, exec::cuda>);

}  // namespace pqkv::scale
