// SPDX-License-Identifier: Apache-2.0
// Instruction sets as types, and the best one that the running CPU has. Never chosen by the translation unit's flags: with
// flags, the linker decides which of two differently compiled copies of one inline function runs.
#pragma once

#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE::isa {
struct scalar {};  // plain C++

/// Armv8-A's 128-bit vectors. `fallback`, here and below: the instruction set whose SIMD kernels it inherits.
struct neon : scalar {
  using fallback = scalar;
};
/// AVX2, FMA, F16C.
struct avx2 : scalar {
  using fallback = scalar;
};
/// AVX-512 F, BW, DQ, VL.
struct avx512 : avx2 {
  using fallback = avx2;
};
/// VBMI, VBMI2 and VNNI besides.
struct avx512_vbmi : avx512 {
  using fallback = avx512;
};
/// BF16 besides: bfloat16 dot products.
struct avx512_bf16 : avx512_vbmi {
  using fallback = avx512_vbmi;
};

struct best {};  // found at run time

/// What a CPU has. Within one architecture, a higher value has more.
enum class level { scalar, neon, avx2, avx512, avx512_vbmi, avx512_bf16 };

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
  const bool vbmi = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
  if (!vbmi) return level::avx512;
  return __builtin_cpu_supports("avx512bf16") ? level::avx512_bf16 : level::avx512_vbmi;
}
#elif defined(__aarch64__)
inline level detect() noexcept { return level::neon; }
#else
inline level detect() noexcept { return level::scalar; }
#endif

/// The running CPU's level; looked up once.
inline level detected() noexcept {
  static const level found = detect();
  return found;
}

namespace detail {
/// The first of Isa and its fallbacks that is not above `Widest`.
template <class Isa, class Widest>
struct at_most {
  using type = Isa;
};
template <class Isa, class Widest>
requires(std::is_base_of_v<Widest, Isa>) struct at_most<Isa, Widest> {
  using type = Widest;
};
}  // namespace detail

/// Calls body(Isa{}), with the best that the CPU has in the place of isa::best.
///
/// @tparam Widest  the highest set of this architecture with SIMD kernels of its own for what body does. Higher sets would only repeat code
template <class Isa, class Widest = avx512_bf16, class Body>
decltype(auto) with(Body&& body) {
  const auto run = [&]<class Found>(Found) -> decltype(auto) {
    return std::forward<Body>(body)(typename detail::at_most<Found, Widest>::type{});
  };
  if constexpr (!std::is_same_v<Isa, best>) return run(Isa{});
#if defined(__x86_64__)
  else if (detected() >= level::avx512_bf16)
    return run(avx512_bf16{});
  else if (detected() >= level::avx512_vbmi)
    return run(avx512_vbmi{});
  else if (detected() >= level::avx512)
    return run(avx512{});
  else if (detected() >= level::avx2)
    return run(avx2{});
#elif defined(__aarch64__)
  else if (detected() == level::neon)
    return run(neon{});
#endif
  else
    return run(scalar{});
}
}  // namespace pqkv::isa
