// SPDX-License-Identifier: Apache-2.0
// A thread's floating-point modes as one word, and a thread whose engine flushes subnormals and rounds upwards for the length of a
// scope: canonical results must not change, and the engine must find its modes as it left them.
#pragma once

#include <cfenv>
#include <cstdint>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pqkv_cases {

/// The calling thread's modes, with the flags that operations raise.
struct float_modes {
#if defined(__x86_64__)
  static constexpr std::uint64_t usual = 0x1f80;     // MXCSR: all exceptions masked
  static constexpr std::uint64_t flushing = 0x8040;  // FTZ and DAZ
  static constexpr std::uint64_t downwards = 0x2000, upwards = 0x4000, towards_zero = 0x6000;
  static constexpr std::uint64_t flags = 0x3f;
  static std::uint64_t get() { return _mm_getcsr(); }
  static void set(std::uint64_t modes) { _mm_setcsr(static_cast<unsigned>(modes)); }
#elif defined(__aarch64__)
  static constexpr std::uint64_t usual = 0;             // FPCR, and above it FPSR
  static constexpr std::uint64_t flushing = 0x5080001;  // AHP, FZ, FZ16, FIZ: those that the CPU has
  static constexpr std::uint64_t upwards = 0x400000, downwards = 0x800000, towards_zero = 0xc00000;
  static constexpr std::uint64_t flags = std::uint64_t{0x0800009f} << 32;  // QC too
  static std::uint64_t get() {
    std::uint64_t control, status;
    asm volatile("mrs %0, fpcr\n mrs %1, fpsr" : "=r"(control), "=r"(status)::"memory");
    return control | status << 32;
  }
  static void set(std::uint64_t modes) {
    asm volatile("msr fpcr, %0\n msr fpsr, %1" ::"r"(modes & 0xffffffffu), "r"(modes >> 32) : "memory");
  }
#else
  static constexpr std::uint64_t usual = FE_TONEAREST, flushing = 0, flags = 0;
  static constexpr std::uint64_t downwards = FE_DOWNWARD, upwards = FE_UPWARD, towards_zero = FE_TOWARDZERO;
  static std::uint64_t get() { return static_cast<std::uint64_t>(std::fegetround()); }
  static void set(std::uint64_t modes) { std::fesetround(static_cast<int>(modes)); }
#endif
};

class foreign_float_modes {
 public:
  foreign_float_modes() : saved_(float_modes::get()) {
    float_modes::set(float_modes::usual | float_modes::flushing | float_modes::upwards);
    held_ = float_modes::get();  // a CPU need not have all of them
  }
  ~foreign_float_modes() { float_modes::set(saved_); }
  /// Nothing changed them since; flags aside.
  bool intact() const { return ((float_modes::get() ^ held_) & ~float_modes::flags) == 0; }

  foreign_float_modes(const foreign_float_modes&) = delete;
  foreign_float_modes& operator=(const foreign_float_modes&) = delete;

 private:
  std::uint64_t saved_, held_;
};

}  // namespace pqkv_cases
