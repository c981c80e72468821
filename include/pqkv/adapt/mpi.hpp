// SPDX-License-Identifier: Apache-2.0
// MPI as a communicator of scale/: the program initialises MPI and owns the communicator; this only makes calls on it. Every call waits for
// its own end, and gives up after a time limit. Opt-in: needs an MPI 3 library. Host memory; one thread calls at a time
// (MPI_THREAD_FUNNELED is enough).
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstring>
#include <memory>
#include <thread>

#include "../core/owner.hpp"
#include "../core/space.hpp"
#include "../scale/communicator.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The ranks of an MPI communicator. Copies share their memory for messages; the communicator must outlive them.
///
///   MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);  // so that MPI's errors become communication_error; by default MPI ends the program
///   pqkv::scale::context_parallel<Rows, pqkv::scale::mpi_ranks> cache(cpu, pqkv::scale::mpi_ranks(comm), params);
///
/// Messages pass through memory of its own, which grows with the longest: MPI cannot take back a collective that has begun, so a call that
/// gives up must leave nothing of the caller's behind. That memory is then never freed, and all later calls fail at once.
class mpi_ranks {
 public:
  /// @param comm   an intracommunicator that nobody else uses meanwhile; MPI_Comm_dup() makes one
  /// @param limit  how long a call waits for the other ranks
  /// @throws communication_error
  explicit mpi_ranks(MPI_Comm comm, std::chrono::milliseconds limit = std::chrono::seconds(60))
      : comm_(comm), limit_(limit), memory_(std::make_shared<messages>()) {
    int rank = 0, size = 0;
    check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
    check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
    rank_ = static_cast<std::size_t>(rank);
    size_ = static_cast<std::size_t>(size);
  }
  std::size_t rank() const { return rank_; }
  std::size_t size() const { return size_; }
  /// Takes memory for calls that send and receive up to so many bytes. @throws std::bad_alloc
  void reserve(std::size_t sent, std::size_t received) const {
    if (memory_->sent.size() < sent) memory_->sent = buffer<std::byte>(sent);
    if (memory_->received.size() < received) memory_->received = buffer<std::byte>(received);
  }

  /// @throws communication_error, here and below; value_error when a message has 2 GiB or more; std::bad_alloc where it is the longest yet
  template <class P>
  void all_gather(const P&, const std::byte* own, std::byte* all, std::size_t bytes) const {
    const int count = count_of(bytes);
    exchange<P>("MPI_Iallgather", own, bytes, all, size_ * bytes, [&](MPI_Request& request) {
      return MPI_Iallgather(memory_->sent.data(), count, MPI_BYTE, memory_->received.data(), count, MPI_BYTE, comm_, &request);
    });
  }
  template <class P>
  void all_to_all(const P&, const std::byte* to, std::byte* from, std::size_t bytes) const {
    const int count = count_of(bytes);
    exchange<P>("MPI_Ialltoall", to, size_ * bytes, from, size_ * bytes, [&](MPI_Request& request) {
      return MPI_Ialltoall(memory_->sent.data(), count, MPI_BYTE, memory_->received.data(), count, MPI_BYTE, comm_, &request);
    });
  }
  template <class P>
  void all_reduce(const P&, std::uint64_t* numbers, std::size_t count, reduction how) const {
    const MPI_Op combine = how == reduction::sum ? MPI_SUM : MPI_MAX;
    const int elements = count_of(count);
    const std::size_t bytes = count * sizeof *numbers;
    exchange<P>("MPI_Iallreduce", numbers, bytes, numbers, bytes, [&](MPI_Request& request) {
      return MPI_Iallreduce(memory_->sent.data(), memory_->received.data(), elements, MPI_UINT64_T, combine, comm_, &request);
    });
  }

 private:
  struct messages {
    buffer<std::byte> sent, received;
    std::atomic<int> gave_up = 0;
  };

  static int count_of(std::size_t count) {
    require_ok(pqkv::detail::checks("mpi_ranks").at_most("bytes", count, INT_MAX, "elements of a message"));
    return static_cast<int>(count);
  }
  static void check(int error, const char* call) {
    if (error == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(error, text, &length);
    detail::raise_communication("mpi_ranks", call, std::string(text, static_cast<std::size_t>(length)));
  }

  /// @param begin  begin(request) -> MPI's error: sends `sent` and receives `received`
  template <class P, class Begin>
  void exchange(const char* call, const void* from, std::size_t sent, void* to, std::size_t received, const Begin& begin) const {
    static_assert(space::usable_from<typename P::space_type, space::host>,
                  "pqkv: mpi_ranks carries host memory; for devices see adapt/nccl.cuh");
    if (memory_->gave_up != 0) detail::raise_communication("mpi_ranks", call, "an earlier call gave up");
    reserve(sent, received);
    if (sent != 0) std::memcpy(memory_->sent.data(), from, sent);
    MPI_Request request;
    check(begin(request), call);
    wait(request, call);
    if (received != 0) std::memcpy(to, memory_->received.data(), received);
  }
  /// Asks again and again, and lets other threads and processes run meanwhile: ranks may share a core.
  void wait(MPI_Request& request, const char* call) const {
    const auto end = std::chrono::steady_clock::now() + limit_;
    int error = MPI_SUCCESS;
    for (int done = 0;;) {
      error = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      if (error == MPI_SUCCESS && done != 0) return;
      if (error != MPI_SUCCESS || std::chrono::steady_clock::now() > end) break;
      std::this_thread::yield();
    }
    memory_->gave_up = 1;
    new std::shared_ptr<messages>(memory_);  // MPI may still write there
    check(error, call);
    detail::raise_communication("mpi_ranks", call, "a rank did not come within " + std::to_string(limit_.count()) + " ms");
  }

  MPI_Comm comm_;
  std::chrono::milliseconds limit_;
  std::shared_ptr<messages> memory_;
  std::size_t rank_ = 0, size_ = 1;
};

}  // namespace pqkv::scale
