// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: Philox4x32-10. A number is a pure function of (key, counter), so draws are the same on every
// backend, in any order, from any thread. Not for cryptography.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE {

/// Counter and output of Philox: 128 bits.
struct philox_block {
  std::uint32_t word[4];
};

/// Ten rounds of Philox4x32.
PQKV_HD constexpr philox_block philox4x32(std::uint64_t key, philox_block counter) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xd2511f53u} * counter.word[0], b = std::uint64_t{0xcd9e8d57u} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(b >> 32) ^ counter.word[1] ^ k0, static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ counter.word[3] ^ k1, static_cast<std::uint32_t>(a)}};
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return counter;
}

/// A stream of draws named by (seed, stream): draw i is word i mod 4 of the block with counter {i / 4, stream}.
struct random_stream {
  std::uint64_t seed{};
  std::uint64_t stream{};

  PQKV_HD constexpr std::uint32_t operator()(std::uint64_t i) const {
    const std::uint64_t block = i / 4;
    return philox4x32(seed, {{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                              static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)}})
        .word[i % 4];
  }
  /// Draw i in [0, bound) by multiply and shift; the bias is below bound / 2^32.
  PQKV_HD constexpr std::uint32_t below(std::uint64_t i, std::uint32_t bound) const {
    return static_cast<std::uint32_t>((std::uint64_t{(*this)(i)} * bound) >> 32);
  }
};

/// Draws `count` of `population` rows, one from each of `count` equal strata: distinct, ascending, and row i can be computed without a
/// list.
struct stratified_sample {
  std::uint64_t population{};
  std::uint64_t count{};
  random_stream draws{};

  PQKV_HD constexpr std::size_t operator()(std::uint64_t i) const {
    if (count == population) return i;
    const std::uint64_t first = i * population / count, next = (i + 1) * population / count;
    return first + draws.below(i, static_cast<std::uint32_t>(next - first));
  }
};

}  // namespace pqkv
