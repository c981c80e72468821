// SPDX-License-Identifier: Apache-2.0
// The upper halves of x86-64's vector registers, which AVX code uses and SSE code does not know: whether they are in use.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace pqkv_cases {

struct upper_halves {
  static void use() { asm volatile("vcmpps $15, %%ymm0, %%ymm0, %%ymm0" : : : "xmm0"); }  // 15: true, so all bits are set
  static void clear() { asm volatile("vzeroupper"); }
  /// XGETBV with ECX = 1 says which parts of the state are not in their initial state; bit 2 is for the upper halves.
  static bool in_use() {
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return (low & 4u) != 0;
  }
  /// Whether this CPU has AVX and keeps track of the state, and its answer can be believed.
  static bool can_be_seen() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx") || __get_cpuid_count(13, 1, &a, &b, &c, &d) == 0 || (a & 4u) == 0) return false;
    clear();
    const bool before = in_use();
    use();
    const bool between = in_use();
    clear();
    return !before && between;
  }
};

}  // namespace pqkv_cases
#endif
