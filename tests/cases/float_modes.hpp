// SPDX-License-Identifier: Apache-2.0
// A thread's floating-point modes as one word, and a thread whose engine has other modes for the length of a scope, by default flushing of
// subnormals and rounding upwards: canonical results must not change, and the engine must find its modes as it left them.
#pragma once

#include <cfenv>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>
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
  explicit foreign_float_modes(std::uint64_t modes = float_modes::usual | float_modes::flushing | float_modes::upwards)
      : saved_(float_modes::get()) {
    float_modes::set(modes);
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

/// Every rounding, each with subnormals as they are and flushed.
inline constexpr std::uint64_t every_float_mode[] = {float_modes::usual,
                                                     float_modes::usual | float_modes::upwards,
                                                     float_modes::usual | float_modes::downwards,
                                                     float_modes::usual | float_modes::towards_zero,
                                                     float_modes::usual | float_modes::flushing,
                                                     float_modes::usual | float_modes::flushing | float_modes::upwards,
                                                     float_modes::usual | float_modes::flushing | float_modes::downwards,
                                                     float_modes::usual | float_modes::flushing | float_modes::towards_zero};

/// Results as bytes: floats are compared by their bits.
class byte_list {
 public:
  template <class T>
  void add(const T* data, std::size_t count) {
    static_assert(std::has_unique_object_representations_v<T> || std::is_floating_point_v<T>, "no bytes between members");
    const std::size_t at = bytes_.size();
    bytes_.resize(at + count * sizeof(T));
    if (count != 0) std::memcpy(bytes_.data() + at, data, count * sizeof(T));
  }
  template <class T>
  void add(const std::vector<T>& all) {
    add(all.data(), all.size());
  }
  std::size_t size() const { return bytes_.size(); }
  bool operator==(const byte_list&) const = default;

 private:
  std::vector<unsigned char> bytes_;
};

/// Calls `body(byte_list&)` in the calling thread's modes, then under every foreign one. Names the modes under which it wrote other bytes
/// or left the thread's modes changed; "" when there is none. The body draws no inputs: arithmetic of its own would change too.
template <class Body>
std::string modes_that_change(const Body& body) {
  byte_list plain;
  body(plain);
  if (plain.size() == 0) return "nothing was written";
  std::string found;
  for (const std::uint64_t modes : every_float_mode) {
    byte_list other;
    bool intact = false;
    {
      const foreign_float_modes foreign(modes);
      body(other);
      intact = foreign.intact();
    }
    if (other == plain && intact) continue;
    found += (modes & float_modes::flushing) != 0 ? "flushing " : "";
    const std::uint64_t rounding = modes & float_modes::towards_zero;
    found += rounding == float_modes::upwards     ? "upwards"
             : rounding == float_modes::downwards ? "downwards"
             : rounding == 0                      ? "nearest"
                                                  : "towards zero";
    found += intact ? "; " : " (modes changed); ";
  }
  return found;
}

}  // namespace pqkv_cases
