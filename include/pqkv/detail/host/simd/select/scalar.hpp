// SPDX-License-Identifier: Apache-2.0
// Kernels of selection in plain C++: the reference for what each computes. A score is "at least" a bound as the machine compares floats: -0
// equals +0, and a NaN is at least nothing. All are exact, so every ISA gives the same.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// How many items are at or above an interval (the sum of their weights if they have any), and how many inside it were kept.
struct interval_counts {
  std::uint64_t above = 0;
  std::size_t kept = 0;
};

/// Vectors are stored whole, so the output needs room for this many elements after those that a kernel keeps.
inline constexpr std::size_t select_slack = 64;

template <class Isa>
struct select_kernels : select_kernels<typename Isa::fallback> {};

template <>
struct select_kernels<isa::scalar> {
  /// How many scores are at least the bound.
  /// @{
  static std::size_t count_at_least(const float* x, std::size_t n, float bound) { return plain_count(x, n, bound); }
  static std::size_t count_at_least(const std::uint16_t* x, std::size_t n, std::uint16_t bound) { return plain_count(x, n, bound); }
  /// @}

  /// Copies the scores in [low, high) to `kept`, in order. kept has room for n + select_slack
  /// @{
  static interval_counts keep_between(const float* x, std::size_t n, float low, float high, float* kept) {
    return plain_keep(x, n, low, high, kept);
  }
  static interval_counts keep_between(const std::uint16_t* x, std::size_t n, std::uint16_t low, std::uint16_t high, std::uint16_t* kept) {
    return plain_keep(x, n, low, high, kept);
  }
  /// @}

  /// Writes first + i, ascending, for every score at least the bound; returns how many, at most `room`.
  /// @{
  static std::size_t emit_at_least(const float* x, std::size_t n, float bound, std::int32_t first, std::int32_t* out, std::size_t room) {
    return plain_emit(x, n, bound, first, out, room);
  }
  static std::size_t emit_at_least(const std::uint16_t* x, std::size_t n, std::uint16_t bound, std::int32_t first, std::int32_t* out,
                                   std::size_t room) {
    return plain_emit(x, n, bound, first, out, room);
  }
  /// @}

  /// The sum of the weights whose scores are at least the bound. All weights together fit in 32 bits.
  static std::uint64_t weight_at_least(const float* x, const std::uint32_t* weights, std::size_t n, float bound) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += x[i] >= bound ? weights[i] : 0;
    return sum;
  }

  /// Copies the scores in [low, high) and their weights, in order. `above` is a sum of weights. Both have room for n + select_slack
  static interval_counts keep_between(const float* x, const std::uint32_t* weights, std::size_t n, float low, float high, float* kept,
                                      std::uint32_t* kept_weights) {
    interval_counts counts;
    for (std::size_t i = 0; i < n; ++i) {
      kept[counts.kept] = x[i];
      kept_weights[counts.kept] = weights[i];
      counts.above += x[i] >= high ? weights[i] : 0;
      counts.kept += x[i] >= low && !(x[i] >= high) ? 1 : 0;
    }
    return counts;
  }

  /// Writes i and weights[i], ascending, for every weight that is not 0; returns how many. Both have room for n + select_slack
  static std::size_t keep_occupied(const std::uint32_t* weights, std::size_t n, std::int32_t* places, std::uint32_t* kept) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) {
      places[count] = static_cast<std::int32_t>(i);
      kept[count] = weights[i];
      count += weights[i] != 0 ? 1 : 0;
    }
    return count;
  }

  /// Writes first + i, ascending, for every set bit i of n words; returns how many, at most `room`.
  static std::size_t emit_bits(const std::uint64_t* bits, std::size_t n, std::int32_t first, std::int32_t* out, std::size_t room) {
    std::size_t count = 0;
    for (std::size_t word = 0; word < n; ++word)
      for (std::uint64_t left = bits[word]; left != 0 && count < room; left &= left - 1)
        out[count++] = first + static_cast<std::int32_t>(word * 64) + std::countr_zero(left);
    return count;
  }

  /// The same for the n words bits[which[i]].
  static std::size_t emit_words(const std::uint64_t* bits, const std::int32_t* which, std::size_t n, std::int32_t first, std::int32_t* out,
                                std::size_t room) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) count += emit_bits(bits + which[i], 1, first + which[i] * 64, out + count, room - count);
    return count;
  }

 private:
  template <class T>
  static std::size_t plain_count(const T* x, std::size_t n, T bound) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) count += x[i] >= bound ? 1 : 0;
    return count;
  }
  template <class T>
  static interval_counts plain_keep(const T* x, std::size_t n, T low, T high, T* kept) {
    interval_counts counts;
    for (std::size_t i = 0; i < n; ++i) {
      kept[counts.kept] = x[i];
      counts.above += x[i] >= high ? 1 : 0;
      counts.kept += x[i] >= low && !(x[i] >= high) ? 1 : 0;
    }
    return counts;
  }
  template <class T>
  static std::size_t plain_emit(const T* x, std::size_t n, T bound, std::int32_t first, std::int32_t* out, std::size_t room) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n && count < room; ++i) {
      out[count] = first + static_cast<std::int32_t>(i);
      count += x[i] >= bound ? 1 : 0;
    }
    return count;
  }
};

}  // namespace pqkv::detail
