// SPDX-License-Identifier: Apache-2.0
// Owner of an array in host memory, aligned to a cache line and zeroed. The library's owners (codebook, codes, cell_index,
// pqcache) are built of these; every algorithm takes views, so engines with their own allocators never need it.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "view.hpp"

namespace pqkv {

/// Alignment of every block that the library allocates or hands out.
inline constexpr std::size_t cache_line_bytes = 64;

/// Owner of zeroed host memory on a cache line; moves, never copies.
template <class T>
class buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  buffer() = default;
  /// @throws std::bad_alloc
  explicit buffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    if (size > static_cast<std::size_t>(-1) / sizeof(T)) {
#if PQKV_HAS_EXCEPTIONS
      throw std::bad_alloc();
#else
      std::abort();
#endif
    }
    data_ = static_cast<T*>(::operator new (size * sizeof(T), std::align_val_t{cache_line_bytes}));
    std::memset(static_cast<void*>(data_), 0, size * sizeof(T));
  }
  buffer(buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { ::operator delete (data_, std::align_val_t{cache_line_bytes}); }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
  T* begin() const noexcept { return data_; }
  T* end() const noexcept { return data_ + size_; }
  T& operator[](std::size_t index) const noexcept { return data_[index]; }

 private:
  T* data_{};
  std::size_t size_{};
};

}  // namespace pqkv
