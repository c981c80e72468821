// SPDX-License-Identifier: Apache-2.0
// Owner of an array in device memory, the sibling of `buffer`. Engines with allocators of their own never need it; taking and
// giving back memory may wait for the device, so neither belongs in a decode step.
#pragma once

#include <utility>

#include "../../core/arena.hpp"
#include "../../core/owner.hpp"
#include "error.cuh"

namespace pqkv {

template <class T>
class device_buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  device_buffer() = default;
  /// Zeroed, in the stream's order.
  /// @param stream  a cudaStream_t, as in exec::cuda
  /// @throws cuda_error
  device_buffer(std::size_t size, void* stream) : size_(size) {
    if (size == 0) return;
    void* memory = nullptr;
    detail::check_cuda(cudaMalloc(&memory, size * sizeof(T)), "device_buffer", "cudaMalloc");
    data_ = static_cast<T*>(memory);
    const cudaError_t error = cudaMemsetAsync(data_, 0, size * sizeof(T), static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) cudaFree(std::exchange(data_, nullptr));
    detail::check_cuda(error, "device_buffer", "cudaMemsetAsync");
  }
  device_buffer(device_buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  device_buffer& operator=(device_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  device_buffer(const device_buffer&) = delete;
  device_buffer& operator=(const device_buffer&) = delete;
  ~device_buffer() { cudaFree(data_); }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }

  /// Enqueues the copy of size() elements from host memory, which must last until the stream has done it.
  /// @throws cuda_error
  void upload(const T* from, void* stream) const { copy(data_, from, stream); }
  /// The same to host memory.
  void download(T* to, void* stream) const { copy(to, data_, stream); }

 private:
  void copy(void* to, const void* from, void* stream) const {
    if (size_ == 0) return;
    detail::check_cuda(cudaMemcpyAsync(to, from, size_bytes(), cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
                       "device_buffer", "cudaMemcpyAsync");
  }

  T* data_{};
  std::size_t size_{};
};

/// Scratch over all of a buffer.
inline arena device_arena(const device_buffer<std::byte>& block) { return arena(block.data(), block.size()); }

}  // namespace pqkv
