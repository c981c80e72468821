// SPDX-License-Identifier: Apache-2.0
// Round to nearest, subnormals on, for the length of a scope; then whatever the engine had. Engines do run their threads with
// flush-to-zero, and a flushed product would change which tokens are selected. Each task opens one, since tasks may run on any
// thread.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pqkv::detail {

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
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ & ~std::uint64_t{0x01c80000}));  // FZ, rounding 00, FZ16 off
    fence();
  }
  ~float_environment() {
    fence();
    asm volatile("msr fpcr, %0" ::"r"(saved_));
  }

 private:
  std::uint64_t saved_{};
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
