// SPDX-License-Identifier: Apache-2.0
// A CTA's dynamic shared memory, handed out front to back.
#pragma once

#include <cstddef>
#include <cstdint>

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

/// The address that PTX has for shared memory.
__device__ inline std::uint32_t shared_address(const void* shared) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared)); }
__device__ inline void store_shared_byte(std::uint32_t address, unsigned value) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
/// Without a branch.
__device__ inline void store_shared_if(bool holds, std::uint32_t address, uint2 value) {
  asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %0, 0;\n @p st.shared.v2.u32 [%1], {%2, %3};\n}" ::"r"(holds ? 1 : 0), "r"(address),
               "r"(value.x), "r"(value.y)
               : "memory");
}
__device__ inline std::uint32_t load_shared_word(std::uint32_t address) {
  std::uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ inline uint2 load_shared_pair(std::uint32_t address) {
  uint2 pair;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "r"(address) : "memory");
  return pair;
}
__device__ inline void set_shared_bits(std::uint32_t address, std::uint32_t bits) {
  asm volatile("red.shared.or.b32 [%0], %1;" ::"r"(address), "r"(bits) : "memory");
}
/// To global memory, without a branch. @param to  aligned to 16 bytes
__device__ inline void store_if(bool holds, std::uint32_t* to, uint4 value) {
  asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %0, 0;\n @p st.global.cg.v4.u32 [%1], {%2, %3, %4, %5};\n}" ::"r"(holds ? 1 : 0),
               "l"(__cvta_generic_to_global(to)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}
/// @return what was there before
__device__ inline std::uint32_t add_shared(std::uint32_t address, std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(address), "r"(value) : "memory");
  return before;
}

}  // namespace pqkv::detail::block
