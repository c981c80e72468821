// SPDX-License-Identifier: Apache-2.0
// Products of small matrices of half or bfloat16 by a warp, with sums in float: the instruction m16n8k16, and how its operands are packed
// and read from shared memory. From compute capability 8.0 on.
// Lane l holds of A [16, 16]: rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, and those 8 further on; of B [16, 8]: column l / 4,
// rows as A's columns; of C [16, 8]: rows as of A, columns 2 (l % 4) and the next.
// Source: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
#pragma once

#include <cstdint>

#include "../../../core/scalar.hpp"
#include "copy.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Two numbers of T in one word, the first in the lower half, rounded to nearest.
template <class T>
__device__ std::uint32_t pack_pair(float first, float second);
template <>
__device__ inline std::uint32_t pack_pair<bfloat16>(float first, float second) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
template <>
__device__ inline std::uint32_t pack_pair<half>(float first, float second) {
  std::uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

struct float_pair {
  float first, second;
};
template <class T>
__device__ float_pair unpack_pair(std::uint32_t pair);
template <>
__device__ inline float_pair unpack_pair<bfloat16>(std::uint32_t pair) {
  return {float_from_bits(pair << 16), float_from_bits(pair & 0xffff0000u)};
}
template <>
__device__ inline float_pair unpack_pair<half>(std::uint32_t pair) {
  float_pair x;
  asm("{\n .reg .f16 a, b;\n mov.b32 {a, b}, %2;\n cvt.f32.f16 %0, a;\n cvt.f32.f16 %1, b;\n}" : "=f"(x.first), "=f"(x.second) : "r"(pair));
  return x;
}

/// Two floats, each as the sum of two numbers of T: `most` has the nearest number, `rest` the remainder.
template <class T>
struct split_pair {
  std::uint32_t most, rest;

  __device__ split_pair(float first, float second) : most(pack_pair<T>(first, second)) {
    const float_pair x = unpack_pair<T>(most);
    rest = pack_pair<T>(first - x.first, second - x.second);
  }
};

/// c += a * b
template <class T>
__device__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
template <>
__device__ inline void multiply_add<bfloat16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_add<half>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Loads four 8 x 8 matrices, whose rows of 16 bytes begin at the addresses of lanes 0 to 7, 8 to 15 and so on. Each word is an operand B
/// whose columns are these rows; load_transposed(): whose rows are these rows.
__device__ inline void load_matrices(std::uint32_t (&words)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_transposed(std::uint32_t (&words)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

/// 2^x for x <= 128, to about 2^-22; 0 far below. Not canonical: only for attention.
__device__ inline float power_of_two_near(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

}  // namespace pqkv::detail::block
