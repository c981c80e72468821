// SPDX-License-Identifier: Apache-2.0
// Device memory for the operations of exec/memory.hpp, and an owner for engines without an allocator of their own. Allocating and freeing
// may wait for the device, so neither belongs in a decode step; zeroing and copying are enqueued.
#pragma once

#include "../../exec/cuda.hpp"
#include "../../exec/memory.hpp"
#include "error.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Allocates device memory and zeroes it in the stream's order.
/// @param function  the public function, named in errors
/// @throws cuda_error
inline memory_block device_memory(std::size_t bytes, void* stream, const char* function) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes), function, "cudaMalloc");
  const cudaError_t error = cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) cudaFree(memory);
  check_cuda(error, function, "cudaMemsetAsync");
  return {memory, [](void* block) noexcept { cudaFree(block); }};
}

}  // namespace detail

template <>
struct kernel<op::allocate, backend::cuda> {
  template <class P>
  static memory_block run(const P& policy, std::size_t bytes) {
    return detail::device_memory(bytes, policy.stream, "allocate");
  }
};

template <>
struct kernel<op::allocate_pinned, backend::cuda> {
  template <class P>
  static memory_block run(const P& policy, std::size_t bytes) {
    void* memory = nullptr;
    detail::check_cuda(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "allocate", "cudaHostAlloc");
    const cudaError_t error = cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(policy.stream));
    if (error != cudaSuccess) cudaFreeHost(memory);
    detail::check_cuda(error, "allocate", "cudaMemsetAsync");
    return {memory, [](void* block) noexcept { cudaFreeHost(block); }};
  }
};

template <>
struct kernel<op::copy_bytes, backend::cuda> {
  template <class P>
  static void run(const P& policy, void* to, const void* from, std::size_t bytes) {
    detail::check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(policy.stream)), "copy_bytes",
                       "cudaMemcpyAsync");
  }
};

template <>
struct kernel<op::zero_bytes, backend::cuda> {
  template <class P>
  static void run(const P& policy, void* to, std::size_t bytes) {
    detail::check_cuda(cudaMemsetAsync(to, 0, bytes, static_cast<cudaStream_t>(policy.stream)), "zero_bytes", "cudaMemsetAsync");
  }
};

/// An owner of device memory that is filled from host memory and read back.
template <class T>
class device_buffer : public owner<T, space::device> {
  using base = owner<T, space::device>;

 public:
  device_buffer() = default;
  /// Zeroed, in the stream's order.
  /// @param stream  a cudaStream_t, as in exec::cuda
  /// @throws cuda_error
  device_buffer(std::size_t size, void* stream) : base(taken(size, stream)) {}

  /// Enqueues a copy of size() elements from host memory, which must stay valid until the stream has done it.
  /// @throws cuda_error
  void upload(const T* from, void* stream) const { copy_bytes(exec::cuda{stream, {}}, this->data(), from, this->size_bytes()); }
  /// The same to host memory.
  void download(T* to, void* stream) const { copy_bytes(exec::cuda{stream, {}}, to, this->data(), this->size_bytes()); }

 private:
  static base taken(std::size_t size, void* stream) {
    if (size == 0) return {};
    if (size > static_cast<std::size_t>(-1) / sizeof(T)) detail::out_of_memory();
    return {detail::device_memory(size * sizeof(T), stream, "device_buffer"), size};
  }
};

}  // namespace pqkv
