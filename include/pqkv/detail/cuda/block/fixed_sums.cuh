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

/// Sums of fixed-point numbers by one CTA, each in two halves of 32 bits, since shared memory adds 32 bits natively. At most 2^15 terms for
/// each sum.
class shared_sums {
 public:
  static constexpr std::uint32_t most_terms = 1u << 15;
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t count) { return 2 * shared_memory::bytes<int>(count); }

  __device__ shared_sums(shared_memory& memory, unsigned count) : lower_(memory.take<int>(count)), upper_(memory.take<int>(count)) {}
  __device__ void clear(unsigned at) { lower_[at] = upper_[at] = 0; }
  /// |term| < 2^30
  __device__ void add(unsigned at, int term, int sign) {
    atomicAdd(&lower_[at], sign * (term & 0x7fff));
    atomicAdd(&upper_[at], sign * (term >> 15));
  }
  __device__ std::int64_t take(unsigned at) {
    const std::int64_t sum = static_cast<std::int64_t>(upper_[at]) * 32768 + lower_[at];
    clear(at);
    return sum;
  }

 private:
  int *lower_, *upper_;
};

}  // namespace pqkv::detail::block
