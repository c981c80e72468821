// SPDX-License-Identifier: Apache-2.0
// Round to nearest, subnormals on, for the length of a scope; then whatever the engine had. Engines do run their threads with
// flush-to-zero, and a flushed product would change which tokens are selected. Each task opens one, since tasks may run on any
// thread.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "../../../config.hpp"

namespace pqkv::inline PQKV_MODE::detail {

class float_environment {
 public:
#if defined(__x86_64__)
  float_environment() : saved_(_mm_getcsr()) {
    _mm_setcsr((saved_ & ~0xe040u) | 0x1f80u);  // rounding 00, FTZ and DAZ off, all exceptions masked
    fence();
  }
  ~float_environment() {
    fence();
    _mm_setcsr(saved_);
  }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  float_environment() {
    asm volatile("mrs %0, fpcr" : "=r"(control_));
    asm volatile("mrs %0, fpsr" : "=r"(flags_));
    asm volatile("msr fpcr, %0" ::"r"(control_ & ~unwanted));
    fence();
  }
  ~float_environment() {
    fence();
    asm volatile("msr fpcr, %0" ::"r"(control_));
    asm volatile("msr fpsr, %0" ::"r"(flags_));
  }

 private:
  // FIZ, AH, NEP (Armv8.7: inputs flushed, other rules for tiny results); traps of exceptions; FZ16; rounding; FZ; AHP (halves
  // without infinities).
  static constexpr std::uint64_t unwanted = 0x05c89f07;
  std::uint64_t control_{}, flags_{};
#else
  float_environment() {}
  ~float_environment() {}

 private:
#endif
  // Inputs are loaded after the first and results stored before the second, so no arithmetic crosses them.
  static void fence() { asm volatile("" ::: "memory"); }

 public:
  float_environment(const float_environment&) = delete;
  float_environment& operator=(const float_environment&) = delete;
};

}  // namespace pqkv::detail
