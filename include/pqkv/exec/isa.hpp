// SPDX-License-Identifier: Apache-2.0
// Instruction sets as types, and the best one that the running CPU has. Never chosen by the translation unit's flags: with
// flags, the linker decides which of two differently compiled copies of one inline function runs.
#pragma once

#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pqkv::isa {
struct scalar {};  // plain C++
struct avx2 : scalar {};  // AVX2, FMA, F16C
struct best {};           // found at run time

/// What a CPU has.
enum class level { scalar, avx2 };

/// Asks the CPU; detected() remembers the answer.
inline level detect() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;  // F16C is bit 29 of ECX: clang 14's __builtin_cpu_supports does not know its name
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1u) != 0;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) return level::avx2;
#endif
  return level::scalar;
}

/// The running CPU's level; looked up once.
inline level detected() noexcept {
  static const level found = detect();
  return found;
}

/// Calls body(Isa{}), with the best that the CPU has in the place of isa::best.
template <class Isa, class Body>
decltype(auto) with(Body&& body) {
  if constexpr (std::is_same_v<Isa, best>) {
#if defined(__x86_64__)
    if (detected() >= level::avx2) return std::forward<Body>(body)(avx2{});
#endif
    return std::forward<Body>(body)(scalar{});
  } else {
    return std::forward<Body>(body)(Isa{});
  }
}
}  // namespace pqkv::isa
