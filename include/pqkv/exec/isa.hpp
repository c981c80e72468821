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
struct scalar {};                // plain C++
struct avx2 : scalar {};         // AVX2, FMA, F16C
struct avx512 : avx2 {};         // F, BW, DQ, VL
struct avx512_vbmi : avx512 {};  // VBMI, VBMI2
struct best {};                  // found at run time

/// What a CPU has.
enum class level { scalar, avx2, avx512, avx512_vbmi };

/// Asks the CPU; detected() remembers the answer.
#if defined(__x86_64__)
inline level detect() noexcept {
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;  // F16C is bit 29 of ECX: clang 14's __builtin_cpu_supports does not know its name
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1u) != 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !f16c) return level::scalar;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl"))
    return level::avx2;
  const bool vbmi = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  return vbmi ? level::avx512_vbmi : level::avx512;
}
#else
inline level detect() noexcept { return level::scalar; }
#endif

/// The running CPU's level; looked up once.
inline level detected() noexcept {
  static const level found = detect();
  return found;
}

/// Calls body(Isa{}), with the best that the CPU has in the place of isa::best.
template <class Isa, class Body>
decltype(auto) with(Body&& body) {
  if constexpr (!std::is_same_v<Isa, best>)
    return std::forward<Body>(body)(Isa{});
  else if (detected() >= level::avx512_vbmi)
    return std::forward<Body>(body)(avx512_vbmi{});
  else if (detected() >= level::avx512)
    return std::forward<Body>(body)(avx512{});
  else if (detected() >= level::avx2)
    return std::forward<Body>(body)(avx2{});
  else
    return std::forward<Body>(body)(scalar{});
}
}  // namespace pqkv::isa
