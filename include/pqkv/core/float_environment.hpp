// SPDX-License-Identifier: Apache-2.0
// Runs work with rounding to nearest and with subnormal numbers, whatever modes the calling thread has, and then restores the thread's
// modes. Some engines run their threads with flush-to-zero, and a flushed product would change which tokens are selected.
//
// Setting the modes before the work and restoring them after it is not enough. Neither C++ nor the compilers know that arithmetic depends
// on the modes. To them the result of a division depends on its operands alone, so they may do it anywhere between the point where the
// operands are known and the point where the result is needed. An asm statement that clobbers memory does not stop them, since a division
// of two registers touches no memory. g++ 14 at -O2 did move sqrt(d) and the division by it out of a loop over tasks, to a place before the
// instruction that sets the modes. Two means keep the work inside; each is enough by itself for its own kind of operands:
//
// 1. Operands that are not constant: the work gets them through memory that the compiler knows nothing about. An empty asm statement, after
// the modes are set, takes the address of the callable and may have changed everything that it refers to. So no operand is known earlier,
// and nothing that depends on one can be done earlier. Results leave through memory too: a second such statement, before the modes are
// restored, needs them all. 2. Constants: the work is called, not inlined, so what depends only on constants is not computed before that
// call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// Sets the modes that canonical arithmetic needs while it exists, and leaves no upper half of a vector register in use. Only
/// in_float_environment() may use it: see the head of this file.
class float_environment {
 public:
#if defined(__x86_64__)
  float_environment() {
    asm volatile("stmxcsr %0" : "=m"(saved_) : : "memory");
    const std::uint32_t wanted = (saved_ & ~0xe040u) | 0x1f80u;  // rounding 00, FTZ and DAZ off, all exceptions masked
    asm volatile("ldmxcsr %0" : : "m"(wanted) : "memory");
  }
  ~float_environment() {
    asm volatile("ldmxcsr %0" : : "m"(saved_) : "memory");
    clear_upper_halves();
  }

 private:
  // Below -O2, g++ lets AVX functions return with the upper halves of vector registers in use. Until they are cleared, every SSE
  // instruction waits for them, the caller's own too: it ran 40 times as long where this was noticed (docs/tuning.md). Not inlined, so that
  // AVX code stands in a function of its own.
  [[gnu::noinline]] static void clear_upper_halves() {
    if (!__builtin_cpu_supports("avx")) return;
    asm volatile("vzeroupper" : : : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                 "xmm12", "xmm13", "xmm14", "xmm15");
  }

  std::uint32_t saved_;
#elif defined(__aarch64__)
  float_environment() {
    asm volatile("mrs %0, fpcr" : "=r"(control_) : : "memory");
    asm volatile("mrs %0, fpsr" : "=r"(flags_) : : "memory");
    asm volatile("msr fpcr, %0" : : "r"(control_ & ~unwanted) : "memory");
  }
  ~float_environment() {
    asm volatile("msr fpcr, %0" : : "r"(control_) : "memory");
    asm volatile("msr fpsr, %0" : : "r"(flags_) : "memory");
  }

 private:
  // FIZ, AH, NEP (Armv8.7: inputs flushed, other rules for tiny results); traps of exceptions; FZ16; rounding; FZ; AHP (halves
  // without infinities).
  static constexpr std::uint64_t unwanted = 0x05c89f07;
  std::uint64_t control_{}, flags_{};
#else
  float_environment() {}
  ~float_environment() {}
#endif

 public:
  float_environment(const float_environment&) = delete;
  float_environment& operator=(const float_environment&) = delete;
};

/// Calls `body`, and is never inlined.
template <class Body>
[[gnu::noinline]] void call_apart(const Body& body) {
  body();
}

/// Runs body() in the calling thread with rounding to nearest and subnormals on. Afterwards the thread's modes and exception flags are as
/// before, also when body() throws. On x86-64 the upper halves of the vector registers are cleared then.
///
/// @param body  a callable without arguments and result; its operands and results are what it refers to, as in a lambda [&]
/// @cost  reads the modes once, sets them twice, and makes a call: use it once for each task, not for each row
template <class Body>
void in_float_environment(const Body& body) {
  static_assert(std::is_void_v<decltype(body())>, "pqkv: a result leaves through what the body refers to");
  const float_environment modes;
  const Body* operands = &body;
#if !defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(operands) : : "memory");
#endif
  call_apart(*operands);
}

/// Has the policy's runner run tasks [0, count), each in the environment of canonical arithmetic, since a task may run on any thread.
template <class P, class Task>
void run_tasks(const P& policy, std::size_t count, const Task& task) {
  policy.runner.run(count, [&](std::size_t i) { in_float_environment([&] { task(i); }); });
}

}  // namespace pqkv::detail
