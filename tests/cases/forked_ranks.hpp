// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes of one program, for tests and benchmarks of several devices: forked before anything touches a device, and with
// shared memory in which they meet and leave their results. No MPI is needed.
#pragma once

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include <pqkv/scale/communicator.hpp>

namespace pqkv_cases {

/// Shared memory of the ranks: a barrier, a message of each, and room for the results of each.
class forked_group {
 public:
  static constexpr std::size_t message_bytes = 4096;

  forked_group(std::size_t ranks, std::size_t result_bytes) : ranks_(ranks), result_bytes_(result_bytes) {
    const std::size_t bytes = sizeof(meeting_place) + ranks * (message_bytes + result_bytes);
    void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    place_ = ::new (memory) meeting_place;
    messages_ = static_cast<std::byte*>(memory) + sizeof(meeting_place);
  }
  std::size_t size() const { return ranks_; }
  std::byte* message(std::size_t rank) const { return messages_ + rank * message_bytes; }
  std::byte* result(std::size_t rank) const { return messages_ + ranks_ * message_bytes + rank * result_bytes_; }
  std::size_t result_bytes() const { return result_bytes_; }

  /// Waits until all ranks have come. @throws communication_error after a minute
  void meet() const {
    const unsigned turn = place_->turn.load();
    if (place_->come.fetch_add(1) + 1 == ranks_) {
      place_->come.store(0);
      place_->turn.store(turn + 1);
      return;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (place_->turn.load() == turn)
      if (std::chrono::steady_clock::now() > end) throw pqkv::scale::communication_error("forked_group: a rank did not come");
  }
  /// Runs task(rank) -> exit code in a process for each rank. @return the first exit code that is not 0
  template <class Task>
  int run(const Task& task) const {
    std::vector<pid_t> started;
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      const pid_t child = ::fork();
      if (child == 0) ::_exit(task(rank));
      started.push_back(child);
    }
    int code = 0;
    for (const pid_t child : started) {
      int status = 0;
      ::waitpid(child, &status, 0);
      const int own = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
      if (code == 0) code = own;
    }
    return code;
  }

 private:
  struct alignas(64) meeting_place {
    std::atomic<std::size_t> come = 0;
    std::atomic<unsigned> turn = 0;
  };
  std::size_t ranks_, result_bytes_;
  meeting_place* place_;
  std::byte* messages_;
};

/// One process's communicator of host memory, for what devices need to know before they can exchange anything.
class forked_ranks {
 public:
  forked_ranks(const forked_group& group, std::size_t rank) : group_(&group), rank_(rank) {}
  std::size_t rank() const { return rank_; }
  std::size_t size() const { return group_->size(); }

  /// @pre bytes <= message_bytes
  template <class P>
  void all_gather(const P&, const std::byte* own, std::byte* all, std::size_t bytes) const {
    std::memcpy(group_->message(rank_), own, bytes);
    group_->meet();
    for (std::size_t from = 0; from < size(); ++from) std::memcpy(all + from * bytes, group_->message(from), bytes);
    group_->meet();
  }

 private:
  const forked_group* group_;
  std::size_t rank_;
};

}  // namespace pqkv_cases
