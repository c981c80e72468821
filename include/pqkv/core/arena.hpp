// SPDX-License-Identifier: Apache-2.0
// Scratch memory that the caller brings. An `arena` hands out aligned pieces of one block, front to back. Copying it by value and dropping
// the copy gives everything back. An arena without a block only counts, so the same code that takes scratch also says how much it needs.
// `workspace` is what an algorithm works in: the policy's arena if there is one, else the heap.
#pragma once

#include <cstddef>

#include "owner.hpp"
#include "error.hpp"

namespace pqkv::inline PQKV_MODE {

/// Hands out parts of the caller's memory, each beginning on a cache line, and never frees one. For one thread. The memory must outlast
/// what was taken from it.
class arena {
 public:
  /// Counts only: take() returns null.
  constexpr arena() = default;
  /// @param base  aligned to cache_line_bytes, `bytes` long, the caller's
  constexpr arena(void* base, std::size_t bytes) : base_(static_cast<std::byte*>(base)), capacity_(bytes) {}
  /// An arena over all of an owner's memory, in any space.
  template <class Space>
  explicit arena(const owner<std::byte, Space>& block) : arena(block.data(), block.size()) {}

  /// `count` uninitialised elements, aligned to a cache line; null when counting. The caller of take() must check the size first. A count
  /// that no memory could hold makes used_bytes() the largest number there is.
  template <class T>
  constexpr T* take(std::size_t count) {
    constexpr std::size_t most = static_cast<std::size_t>(-1) / cache_line_bytes * cache_line_bytes;
    const std::size_t first = used_;
    const bool fits = count <= (most - cache_line_bytes) / sizeof(T);
    const std::size_t bytes = fits ? (count * sizeof(T) + cache_line_bytes - 1) / cache_line_bytes * cache_line_bytes : most;
    used_ = bytes <= most - first ? first + bytes : most;
    if (counting()) return nullptr;
    PQKV_ASSERT(used_ <= capacity_);
    return reinterpret_cast<T*>(base_ + first);
  }

  constexpr bool counting() const { return base_ == nullptr; }
  constexpr std::size_t used_bytes() const { return used_; }
  constexpr std::size_t capacity_bytes() const { return capacity_; }
  constexpr std::size_t free_bytes() const { return capacity_ - used_; }

 private:
  std::byte* base_{};
  std::size_t capacity_{};
  std::size_t used_{};
};

/// Scratch for one call, in one thread.
class workspace {
 public:
  /// @param scratch  the policy's arena; a counting one stands for "take it from the heap"
  /// @throws capacity_error when the arena has less than `bytes` left
  workspace(const arena& scratch, std::size_t bytes, const char* function) : carve_(scratch) {
    if (scratch.counting()) {
      owned_ = buffer<std::byte>(bytes);
      carve_ = arena(owned_);
    } else if (scratch.free_bytes() < bytes) {
      raise({status::code::capacity, function, "policy.scratch", "bytes, from scratch_bytes()", bytes, scratch.free_bytes(),
             relation::at_least});
    }
  }
  template <class T>
  T* take(std::size_t count) {
    return carve_.take<T>(count);
  }

 private:
  buffer<std::byte> owned_;
  arena carve_;
};

}  // namespace pqkv
