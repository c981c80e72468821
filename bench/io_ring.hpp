// SPDX-License-Identifier: Apache-2.0
// Reads many pieces of a file with io_uring, by its three system calls: what a library without other libraries could do. For comparison
// only: file_tier.cpp measures what it would gain over asking the system for the pages. Source: io_uring(7).
#pragma once

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bench {

/// A ring of up to `entries` reads under way. Where the system forbids rings, is_open() is false.
class io_ring {
 public:
  explicit io_ring(unsigned entries) {
    file_ = static_cast<int>(::syscall(SYS_io_uring_setup, entries, &with_));
    if (file_ < 0 || (with_.features & IORING_FEAT_SINGLE_MMAP) == 0) return;
    const std::size_t submitted = with_.sq_off.array + with_.sq_entries * sizeof(unsigned),
                      completed = with_.cq_off.cqes + with_.cq_entries * sizeof(io_uring_cqe);
    ring_bytes_ = std::max(submitted, completed), entry_bytes_ = with_.sq_entries * sizeof(io_uring_sqe);
    ring_ = map(ring_bytes_, IORING_OFF_SQ_RING), entries_ = map(entry_bytes_, IORING_OFF_SQES);
  }
  io_ring(const io_ring&) = delete;
  io_ring& operator=(const io_ring&) = delete;
  ~io_ring() {
    if (ring_ != nullptr) ::munmap(ring_, ring_bytes_);
    if (entries_ != nullptr) ::munmap(entries_, entry_bytes_);
    if (file_ >= 0) ::close(file_);
  }
  bool is_open() const { return ring_ != nullptr && entries_ != nullptr; }

  /// Reads `bytes` at each offset, to to[i * bytes]. @return whether all were read
  bool read(int file, const std::vector<std::size_t>& offsets, std::size_t bytes, std::byte* to) {
    bool all = true;
    for (std::size_t asked = 0, done = 0; done < offsets.size();) {
      unsigned added = 0;
      for (; asked < offsets.size() && asked - done < with_.sq_entries; ++asked, ++added) {
        const unsigned at = (number(with_.sq_off.tail) + added) & number(with_.sq_off.ring_mask);
        io_uring_sqe& one = reinterpret_cast<io_uring_sqe*>(entries_)[at];
        one = {};
        one.opcode = IORING_OP_READ, one.fd = file, one.off = offsets[asked];
        one.addr = reinterpret_cast<std::uintptr_t>(to + asked * bytes), one.len = static_cast<unsigned>(bytes);
        (&number(with_.sq_off.array))[at] = at;
      }
      __atomic_store_n(&number(with_.sq_off.tail), number(with_.sq_off.tail) + added, __ATOMIC_RELEASE);
      if (::syscall(SYS_io_uring_enter, file_, added, 1u, IORING_ENTER_GETEVENTS, nullptr, std::size_t{0}) < 0) return false;
      unsigned head = number(with_.cq_off.head);
      for (; head != __atomic_load_n(&number(with_.cq_off.tail), __ATOMIC_ACQUIRE); ++head, ++done) {
        const auto* const results = reinterpret_cast<const io_uring_cqe*>(ring_ + with_.cq_off.cqes);
        all = all && results[head & number(with_.cq_off.ring_mask)].res == static_cast<int>(bytes);
      }
      __atomic_store_n(&number(with_.cq_off.head), head, __ATOMIC_RELEASE);
    }
    return all;
  }

 private:
  std::byte* map(std::size_t bytes, std::uint64_t what) const {
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file_, static_cast<off_t>(what));
    return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
  }
  unsigned& number(unsigned offset) const { return *reinterpret_cast<unsigned*>(ring_ + offset); }

  io_uring_params with_{};
  int file_ = -1;
  std::byte *ring_ = nullptr, *entries_ = nullptr;
  std::size_t ring_bytes_ = 0, entry_bytes_ = 0;
};

}  // namespace bench
