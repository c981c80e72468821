// SPDX-License-Identifier: Apache-2.0
// The engine's memory: one slab taken at start, handed out front to back and never grown. The pages of keys and values, codebooks,
// codes, activations and pqkv's scratch all lie in it.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "pqkv_setup.hpp"

namespace engine {

class slab {
 public:
  explicit slab(std::size_t bytes)
      : size_((bytes + line - 1) / line * line), base_(static_cast<std::byte*>(std::aligned_alloc(line, size_))) {
    if (base_ == nullptr) fail("engine: no memory for the slab");
    std::memset(base_, 0, size_);
  }
  slab(const slab&) = delete;
  slab& operator=(const slab&) = delete;
  ~slab() { std::free(base_); }

  /// `count` zeroed elements on a cache line.
  template <class T>
  T* take(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + line - 1) / line * line;
    if (bytes > size_ - used_) fail("engine: the slab is too small");
    T* piece = reinterpret_cast<T*>(base_ + used_);
    used_ += bytes;
    return piece;
  }
  std::size_t used_bytes() const { return used_; }

 private:
  static constexpr std::size_t line = 64;
  std::size_t size_;
  std::byte* base_;
  std::size_t used_ = 0;
};

}  // namespace engine
