// SPDX-License-Identifier: Apache-2.0
// MPI as a communicator of scale/: the program initialises MPI and owns the communicator; this only makes calls on it. Every call waits for
// its own end, and gives up after a time limit. Opt-in: needs an MPI 3 library. Host memory; one thread calls at a time
// (MPI_THREAD_FUNNELED is enough).
#pragma once

#include <mpi.h>

#include <chrono>
#include <climits>
#include <thread>

#include "../core/space.hpp"
#include "../scale/communicator.hpp"

namespace pqkv::inline PQKV_MODE::adapt {

/// The ranks of an MPI communicator. Copyable; the communicator must outlive it.
///
///   MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);  // so that MPI's errors become communication_error; by default MPI ends the program
///   pqkv::scale::context_parallel<Rows, pqkv::adapt::mpi> cache(cpu, pqkv::adapt::mpi(comm), params);
class mpi {
 public:
  /// @param comm   an intracommunicator that nobody else uses meanwhile; MPI_Comm_dup() makes one
  /// @param limit  how long a call waits for the other ranks. After communication_error the communicator must not be used: MPI cannot
  ///               take back a collective that has begun
  /// @throws communication_error
  explicit mpi(MPI_Comm comm, std::chrono::milliseconds limit = std::chrono::seconds(60)) : comm_(comm), limit_(limit) {
    int rank = 0, size = 0;
    check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
    check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
    rank_ = static_cast<std::size_t>(rank);
    size_ = static_cast<std::size_t>(size);
  }
  std::size_t rank() const { return rank_; }
  std::size_t size() const { return size_; }

  /// @throws communication_error, here and below; value_error when a message has 2 GiB or more
  template <class P>
  void all_gather(const P&, const std::byte* own, std::byte* all, std::size_t bytes) const {
    check_space<P>();
    MPI_Request request;
    const int count = count_of(bytes, "all_gather");
    check(MPI_Iallgather(own, count, MPI_BYTE, all, count, MPI_BYTE, comm_, &request), "MPI_Iallgather");
    wait(request, "MPI_Iallgather");
  }
  template <class P>
  void all_to_all(const P&, const std::byte* to, std::byte* from, std::size_t bytes) const {
    check_space<P>();
    MPI_Request request;
    const int count = count_of(bytes, "all_to_all");
    check(MPI_Ialltoall(to, count, MPI_BYTE, from, count, MPI_BYTE, comm_, &request), "MPI_Ialltoall");
    wait(request, "MPI_Ialltoall");
  }
  template <class P>
  void all_reduce(const P&, std::uint64_t* numbers, std::size_t count, scale::reduction how) const {
    check_space<P>();
    MPI_Request request;
    const MPI_Op combine = how == scale::reduction::sum ? MPI_SUM : MPI_MAX;
    check(MPI_Iallreduce(MPI_IN_PLACE, numbers, count_of(count, "all_reduce"), MPI_UINT64_T, combine, comm_, &request), "MPI_Iallreduce");
    wait(request, "MPI_Iallreduce");
  }

 private:
  template <class P>
  static constexpr void check_space() {
    static_assert(space::usable_from<typename P::space_type, space::host>, "pqkv: adapt::mpi carries host memory; for devices see adapt/nccl.cuh");
  }
  static int count_of(std::size_t count, const char* call) {
    require_ok(detail::checks(call).at_most("bytes", count, INT_MAX, "elements of a message"));
    return static_cast<int>(count);
  }
  static void check(int error, const char* call) {
    if (error == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(error, text, &length);
    scale::detail::raise_communication("adapt::mpi", call, std::string(text, static_cast<std::size_t>(length)));
  }
  /// Asks again and again, and lets other threads and processes run meanwhile: ranks may share a core.
  void wait(MPI_Request& request, const char* call) const {
    const auto end = std::chrono::steady_clock::now() + limit_;
    for (int done = 0;;) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), call);
      if (done != 0) return;
      if (std::chrono::steady_clock::now() > end)
        scale::detail::raise_communication("adapt::mpi", call, "a rank did not come within " + std::to_string(limit_.count()) + " ms");
      std::this_thread::yield();
    }
  }

  MPI_Comm comm_;
  std::chrono::milliseconds limit_;
  std::size_t rank_ = 0, size_ = 1;
};

}  // namespace pqkv::adapt
