// SPDX-License-Identifier: Apache-2.0
// A thread whose engine flushes subnormals and rounds upwards, for the length of a scope: canonical results must not change, and
// the engine must find its modes as it left them.
#pragma once

#include <cfenv>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pqkv_cases {

class foreign_float_modes {
 public:
#if defined(__x86_64__)
  foreign_float_modes() : saved_(_mm_getcsr()) { _mm_setcsr(wanted); }
  ~foreign_float_modes() { _mm_setcsr(saved_); }
  /// Nothing changed them since; sticky exception flags aside.
  bool intact() const { return (_mm_getcsr() & ~0x3fu) == wanted; }

 private:
  static constexpr unsigned wanted = 0x1f80u | 0x8040u | 0x4000u;  // all masked, FTZ and DAZ, upwards
  unsigned saved_;
#else
  foreign_float_modes() : saved_(std::fegetround()) { std::fesetround(FE_UPWARD); }
  ~foreign_float_modes() { std::fesetround(saved_); }
  bool intact() const { return std::fegetround() == FE_UPWARD; }

 private:
  int saved_;
#endif
  foreign_float_modes(const foreign_float_modes&) = delete;
  foreign_float_modes& operator=(const foreign_float_modes&) = delete;
};

}  // namespace pqkv_cases
