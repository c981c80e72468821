// SPDX-License-Identifier: Apache-2.0
// Owners of what the CUDA runtime hands out, and its errors as exceptions. Memory is taken when a prompt or a session begins, never
// while a token is decoded.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <pqkv/core/error.hpp>
#include <string>
#include <utility>

namespace minillama::cuda {

/// @throws pqkv::cuda_error "cuda: <call>: out of memory (cudaErrorMemoryAllocation)"
inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  throw pqkv::cuda_error(static_cast<int>(error),
                         std::string("cuda: ") + call + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

/// A stream of its own, on the current device.
class stream {
 public:
  stream() { check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() { cudaStreamDestroy(handle_); }

  cudaStream_t get() const { return handle_; }
  void wait() const { check(cudaStreamSynchronize(handle_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t handle_{};
};

enum class memory_kind {
  device,
  pinned  // page-locked memory of the host
};

/// Elements that are not initialised.
template <class T, memory_kind Kind = memory_kind::device>
class array {
 public:
  array() = default;
  explicit array(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* memory = nullptr;
    if constexpr (Kind == memory_kind::device)
      check(cudaMalloc(&memory, size * sizeof(T)), "cudaMalloc");
    else
      check(cudaMallocHost(&memory, size * sizeof(T)), "cudaMallocHost");
    data_ = static_cast<T*>(memory);
  }
  array(array&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  array& operator=(array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  array(const array&) = delete;
  array& operator=(const array&) = delete;
  ~array() {
    if constexpr (Kind == memory_kind::device)
      cudaFree(data_);
    else
      cudaFreeHost(data_);
  }

  T* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  T* data_{};
  std::size_t size_{};
};

template <class T>
using pinned_array = array<T, memory_kind::pinned>;

/// Enqueues a copy between host and device, in either direction. Memory of the host lasts until the stream has done it.
template <class T>
void copy(const stream& on, T* to, const T* from, std::size_t count) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDefault, on.get()), "cudaMemcpyAsync");
}

}  // namespace minillama::cuda
