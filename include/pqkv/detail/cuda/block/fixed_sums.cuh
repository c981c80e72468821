// SPDX-License-Identifier: Apache-2.0
// Fixed-point numbers and their sums by one CTA, which do not depend on the order of the terms.
#pragma once

#include <cstdint>

#include "../../../core/canonical.hpp"
#include "shared.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Like canonical::fixed_point(). Its product with a power of two is exact in float too, or rounds to 0 in both.
__device__ inline int fixed_point(float x, float scale) {
  int term;
  asm("cvt.rni.s32.f32 %0, %1;" : "=r"(term) : "f"(canonical::mul(x, scale)));
  return term;
}

/// Sums of rows of Width fixed-point numbers by one CTA, each sum in two halves of 32 bits, since shared memory adds 32 bits natively. At
/// most 2^15 terms for each sum.
template <unsigned Width>
class shared_sums {
 public:
  static constexpr std::uint32_t most_terms = 1u << 15;
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t rows) { return shared_memory::bytes<int>(2 * rows * Width); }

  __device__ shared_sums(shared_memory& memory, unsigned rows) : halves_(memory.take<int>(2 * rows * Width)) {}
  /// Where sum e of a row is; that of e + i is i places after it.
  __device__ int* at(unsigned row, unsigned e) const { return halves_ + row * 2 * Width + e; }
  __device__ static void clear(int* at) { at[0] = at[Width] = 0; }
  /// |term| < 2^30
  __device__ static void add(int* at, int term) {
    atomicAdd(at, term & 0x7fff);
    atomicAdd(at + Width, term >> 15);
  }
  /// The sum, which begins again at 0.
  __device__ static std::int64_t take(int* at) {
    const std::int64_t sum = static_cast<std::int64_t>(at[Width]) * 32768 + at[0];
    clear(at);
    return sum;
  }

 private:
  int* halves_;  // [rows, lower and upper, Width]
};

}  // namespace pqkv::detail::block
