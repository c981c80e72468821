// SPDX-License-Identifier: Apache-2.0
// Owner of an array in the memory of one space, aligned to a cache line and zeroed. The library's owners (codebook, codes, cell_index,
// pqcache) are made of these. Every algorithm takes views, so an engine with its own allocator never needs one. Memory of spaces other than
// the host's comes from exec/memory.hpp. Not thread-safe; views of an owner end with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "view.hpp"

namespace pqkv::inline PQKV_MODE {

/// Alignment of every block that the library allocates or hands out.
inline constexpr std::size_t cache_line_bytes = 64;

/// A block of memory and the function that frees it.
struct memory_block {
  void* data = nullptr;
  void (*release)(void*) noexcept = nullptr;
};

namespace detail {
[[noreturn]] inline void out_of_memory() {
#if PQKV_HAS_EXCEPTIONS
  throw std::bad_alloc();
#else
  std::abort();
#endif
}

/// Asks Linux for pages of 2 MiB. Rows of selected tokens lie far apart, and with pages of 4 KiB nearly each of them misses the TLB. A
/// block that holds no such page stays as it is.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<std::uintptr_t>(data), first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

/// Zeroed host memory on a cache line. @throws std::bad_alloc
inline memory_block host_memory(std::size_t bytes) {
  void* const data = ::operator new (bytes, std::align_val_t{cache_line_bytes});
  ask_for_huge_pages(data, bytes);
  std::memset(data, 0, bytes);
  return {data, [](void* memory) noexcept { ::operator delete (memory, std::align_val_t{cache_line_bytes}); }};
}
}  // namespace detail

/// Owns `size` elements; moves, never copies.
///
/// @tparam Space  where the elements are; only host, pinned and managed memory may be read through operator[]
template <class T, class Space = space::host>
class owner {
  static_assert(std::is_trivially_copyable_v<T> && space::is_space<Space>);

 public:
  owner() = default;
  /// Zeroed host memory. @throws std::bad_alloc
  explicit owner(std::size_t size) requires std::is_same_v<Space, space::host> : size_(size) {
    if (size == 0) return;
    if (size > static_cast<std::size_t>(-1) / sizeof(T)) detail::out_of_memory();
    block_ = detail::host_memory(size * sizeof(T));
  }
  /// Takes a block that holds `size` elements.
  owner(memory_block block, std::size_t size) noexcept : block_(block), size_(size) {}
  owner(owner&& other) noexcept : block_(std::exchange(other.block_, {})), size_(std::exchange(other.size_, 0)) {}
  owner& operator=(owner&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(size_, other.size_);
    return *this;
  }
  owner(const owner&) = delete;
  owner& operator=(const owner&) = delete;
  ~owner() {
    if (block_.data != nullptr) block_.release(block_.data);
  }

  T* data() const noexcept { return static_cast<T*>(block_.data); }
  std::size_t size() const noexcept { return size_; }
  std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
  T* begin() const noexcept requires space::usable_from<Space, space::host> { return data(); }
  T* end() const noexcept requires space::usable_from<Space, space::host> { return data() + size_; }
  T& operator[](std::size_t index) const noexcept requires space::usable_from<Space, space::host> { return data()[index]; }

 private:
  memory_block block_{};
  std::size_t size_{};
};

/// Owner of host memory.
template <class T>
using buffer = owner<T, space::host>;

}  // namespace pqkv
