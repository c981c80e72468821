// SPDX-License-Identifier: Apache-2.0
// Ranks of several devices for tests and benchmarks: a process for each, and its communicator, NCCL's or that of peers.
#pragma once

#include <pqkv/adapt/nccl.cuh>
#include <pqkv/adapt/peer.cuh>
#include <pqkv/device_context_parallel.cuh>

#include <cstdio>
#include <exception>

#include "cases/forked_ranks.hpp"

namespace pqkv_cases {

/// Counts devices in a process of its own, since a process that has seen a device must not be forked.
inline std::size_t count_devices() {
  const forked_group one(1, sizeof(int));
  one.run([&](std::size_t) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    std::memcpy(one.result(0), &count, sizeof count);
    return 0;
  });
  int count = 0;
  std::memcpy(&count, one.result(0), sizeof count);
  return static_cast<std::size_t>(count);
}

/// Makes device `rank` current, with a stream of its own. Where there are fewer devices, ranks share them.
class rank_device {
 public:
  explicit rank_device(std::size_t rank) {
    int count = 1;
    pqkv::detail::check_cuda(cudaGetDeviceCount(&count), "rank_device", "cudaGetDeviceCount");
    pqkv::detail::check_cuda(cudaSetDevice(static_cast<int>(rank) % count), "rank_device", "cudaSetDevice");
    pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "rank_device", "cudaStreamCreateWithFlags");
  }
  rank_device(const rank_device&) = delete;
  rank_device& operator=(const rank_device&) = delete;
  ~rank_device() { cudaStreamDestroy(stream_); }
  pqkv::exec::cuda policy() const { return {stream_, {}}; }
  cudaStream_t stream() const { return stream_; }

 private:
  cudaStream_t stream_{};
};

/// What makes a rank's communicator.
struct with_nccl {
  using ranks = pqkv::scale::nccl_ranks;
  static constexpr const char* name = "nccl";
  ncclComm_t comm{};
  std::chrono::milliseconds limit;

  explicit with_nccl(const forked_ranks& meeting, std::chrono::milliseconds waits = std::chrono::seconds(20)) : limit(waits) {
    ncclUniqueId id{}, all[pqkv::scale::most_peers];
    if (meeting.rank() == 0) ncclGetUniqueId(&id);
    meeting.all_gather(0, reinterpret_cast<const std::byte*>(&id), reinterpret_cast<std::byte*>(all), sizeof id);
    const ncclResult_t result = ncclCommInitRank(&comm, static_cast<int>(meeting.size()), all[0], static_cast<int>(meeting.rank()));
    if (result != ncclSuccess) throw pqkv::scale::communication_error(ncclGetErrorString(result));
  }
  with_nccl(const with_nccl&) = delete;
  with_nccl& operator=(const with_nccl&) = delete;
  ~with_nccl() {
    if (comm != nullptr) ncclCommDestroy(comm);
  }
  ranks communicator() const { return ranks(comm, limit); }
  /// After an exchange that failed: what is on the stream ends, and the communicator with it.
  void abandon() {
    ncclCommAbort(comm);
    comm = nullptr;
  }
};
struct with_peers {
  using ranks = pqkv::scale::peer_ranks;
  static constexpr const char* name = "peer";
  ranks& all;  // never freed: memory that another process has opened must not be

  explicit with_peers(const forked_ranks& meeting, std::chrono::milliseconds waits = std::chrono::seconds(20))
      : all(*new ranks(meeting, std::size_t{512} << 20, waits)) {}
  ranks communicator() const { return all; }
  void abandon() {}  // its kernels have given up by themselves
};

/// Runs task(rank's device, its communicator, rank), and prints what it throws.
template <class With, class Task>
int as_rank(const forked_group& group, std::size_t rank, const Task& task) {
  try {
    const rank_device gpu(rank);
    const forked_ranks meeting(group, rank);
    const With with(meeting);
    const int code = task(gpu, with.communicator());
    cudaDeviceSynchronize();
    group.meet();  // nobody's memory ends before all are done
    return code;
  } catch (const std::exception& error) {
    std::printf("rank %zu: %s\n", rank, error.what());
    std::fflush(stdout);
    return 1;
  }
}

}  // namespace pqkv_cases
