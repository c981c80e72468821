// SPDX-License-Identifier: Apache-2.0
// A CTA's dynamic shared memory, handed out front to back.
#pragma once

#include <cstddef>

#include "../../../config.hpp"

namespace pqkv::inline PQKV_MODE::detail::block {

class shared_memory {
 public:
  __device__ shared_memory() {
    extern __shared__ __align__(16) unsigned char pqkv_dynamic_shared[];
    next_ = pqkv_dynamic_shared;
  }
  /// `count` elements, aligned to 16 bytes; bytes() says what they need.
  template <class T>
  __device__ T* take(std::size_t count) {
    unsigned char* first = next_;
    next_ += bytes<T>(count);
    return reinterpret_cast<T*>(first);
  }
  template <class T>
  __host__ __device__ static constexpr std::size_t bytes(std::size_t count) {
    return (count * sizeof(T) + 15) / 16 * 16;
  }

 private:
  unsigned char* next_;
};

}  // namespace pqkv::detail::block
