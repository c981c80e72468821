// SPDX-License-Identifier: Apache-2.0
// A device without a device, its first half: a queue of work and memory that only the queue may touch. What is pushed waits until sync().
// Memory of a queue is mapped apart from the heap and has no access rights except while the queue runs, so that host code that reads or
// writes it in between is stopped by the kernel, under sanitizers too. A sequence of pushes can be recorded and pushed again, as a CUDA
// graph. The queue takes its own memory at construction: pushing allocates nothing, so that the steps of a cache can be held to that.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <pqkv/exec/memory.hpp>

namespace pqkv_cases {

/// Work as bytes: a call and what it captured by value, one record behind the other.
class work_list {
 public:
  /// @param room  bytes; none are taken later
  explicit work_list(std::size_t room) { bytes_.reserve(room); }

  template <class F>
  void add(const F& work) {
    static_assert(std::is_trivially_copyable_v<F> && alignof(F) <= alignment, "what a kernel captures is copied as bytes");
    const header h{[](const void* f) { (*static_cast<const F*>(f))(); }, round_up(sizeof(F))};
    add_bytes(&h, sizeof h, sizeof(header));
    add_bytes(&work, sizeof work, h.bytes);
  }
  void add(const work_list& others) { add_bytes(others.bytes_.data(), others.bytes_.size(), others.bytes_.size()); }
  void run() const {
    for (std::size_t at = 0; at < bytes_.size();) {
      header h;
      std::memcpy(&h, bytes_.data() + at, sizeof h);
      h.run(bytes_.data() + at + sizeof h);
      at += sizeof h + h.bytes;
    }
  }
  void clear() { bytes_.clear(); }
  bool empty() const { return bytes_.empty(); }

 private:
  static constexpr std::size_t alignment = alignof(std::max_align_t);
  struct alignas(alignment) header {
    void (*run)(const void*);
    std::size_t bytes;  // behind it
  };
  static constexpr std::size_t round_up(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

  void add_bytes(const void* data, std::size_t bytes, std::size_t whole) {
    if (bytes_.capacity() - bytes_.size() < whole) throw std::length_error("queue: no room for more work, call sync()");
    const std::size_t at = bytes_.size();
    bytes_.resize(at + whole);
    if (bytes != 0) std::memcpy(bytes_.data() + at, data, bytes);
  }

  std::vector<std::byte> bytes_;  // operator new aligns it for every header
};

/// A queue, and the owner of its memory's rights. Outlives its memory. One thread.
class queue {
 public:
  static constexpr std::size_t room_bytes = std::size_t{1} << 20;

  queue() : pending_(room_bytes), recorded_(room_bytes) {}
  queue(const queue&) = delete;
  queue& operator=(const queue&) = delete;

  /// Work for the next sync(), or for the graph that is being recorded.
  template <class F>
  void push(const F& work) {
    (capturing_ ? recorded_ : pending_).add(work);
    ++pushed_;
  }
  /// Work that waits for other ranks. As long as it is pending, only finish() may wait for the queue.
  template <class F>
  void push_exchange(const F& work) {
    push(work);
    exchanges_ = true;
  }
  /// Runs what is pending, in order; what comes after something that throws is dropped.
  void sync() {
    note_wait();
    finish();
  }
  /// The same, as a communicator does it, which stops waiting after its time limit.
  void finish() {
    refuse_in_capture("sync");
    ++syncs_;
    exchanges_ = false;
    if (pending_.empty()) return;
    const opened now(*this);
    pending_.run();
  }
  /// To be called where a device may wait for the queue: in a copy from or to host memory, and where memory is taken or given back.
  void note_wait() { waits_for_ranks_ += exchanges_ ? 1 : 0; }
  /// Waits other than finish() that an absent rank would have made endless.
  std::size_t waits_for_ranks() const { return waits_for_ranks_; }
  /// The k-th allocation from now on (1: the next) throws std::bad_alloc, once; 0: none does.
  void fail_allocation(std::size_t k) { until_failure_ = k; }

  void begin_capture() {
    refuse_in_capture("begin_capture");
    recorded_.clear();
    capturing_ = true;
  }
  work_list end_capture() {
    capturing_ = false;
    work_list graph(room_bytes);
    graph.add(recorded_);
    return graph;
  }
  void launch(const work_list& graph) {
    refuse_in_capture("launch");
    pending_.add(graph);
  }

  /// Zeroed memory of whole pages, a page without rights on either side.
  pqkv::memory_block allocate(std::size_t bytes) {
    refuse_in_capture("allocate");
    note_wait();
    if (until_failure_ != 0 && --until_failure_ == 0) throw std::bad_alloc();
    const std::size_t size = (bytes + page() - 1) / page() * page(), mapped = size + 2 * page();
    void* const base = ::mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    // The page before the memory says whose it is; readable always, since release() has a pointer and nothing else.
    ::mprotect(base, page(), PROT_READ | PROT_WRITE);
    ::new (base) tag{this, size};
    std::byte* const data = static_cast<std::byte*>(base) + page();
    blocks_.push_back({data, size});
    ++allocations_;
    return {data, [](void* memory) noexcept { release(static_cast<std::byte*>(memory)); }};
  }
  /// Whether an address is the queue's memory.
  bool holds(const void* address) const {
    const auto* const at = static_cast<const std::byte*>(address);
    for (const block& one : blocks_)
      if (at >= one.data && at < one.data + one.bytes) return true;
    return false;
  }
  void refuse_in_capture(const char* what) const {
    if (capturing_) throw std::logic_error(std::string("queue: ") + what + " while a graph is recorded");
  }

  std::size_t pushed() const { return pushed_; }
  std::size_t syncs() const { return syncs_; }
  std::size_t allocations() const { return allocations_; }
  std::size_t blocks() const { return blocks_.size(); }

 private:
  struct block {
    std::byte* data;
    std::size_t bytes;
  };
  struct tag {
    queue* owner;
    std::size_t bytes;
  };
  /// Rights to all memory while the queue runs.
  class opened {
   public:
    explicit opened(queue& of) : of_(of) { of_.protect(PROT_READ | PROT_WRITE); }
    ~opened() {
      of_.protect(PROT_NONE);
      of_.pending_.clear();
    }
    opened(const opened&) = delete;
    opened& operator=(const opened&) = delete;

   private:
    queue& of_;
  };

  void protect(int rights) const {
    for (const block& one : blocks_)
      if (::mprotect(one.data, one.bytes, rights) != 0) throw std::runtime_error("queue: mprotect failed");
  }
  static std::size_t page() {
    static const auto bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return bytes;
  }
  /// Waits for nothing: work that is pending on memory given back is stopped when it runs.
  static void release(std::byte* data) noexcept {
    const tag of = *reinterpret_cast<const tag*>(data - page());
    of.owner->note_wait();
    auto& blocks = of.owner->blocks_;
    blocks.erase(std::find_if(blocks.begin(), blocks.end(), [&](const block& one) { return one.data == data; }));
    ::munmap(data - page(), of.bytes + 2 * page());
  }

  work_list pending_, recorded_;
  bool capturing_ = false, exchanges_ = false;
  std::vector<block> blocks_;
  std::size_t pushed_ = 0, syncs_ = 0, allocations_ = 0, waits_for_ranks_ = 0, until_failure_ = 0;
};

}  // namespace pqkv_cases
