// SPDX-License-Identifier: Apache-2.0
// CRC-32, the check of saved slots: finds altered and truncated files, not forged ones. The polynomial of IEEE 802.3 and zlib, reflected.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The remainder of every byte, alone and followed by one, two or three bytes of zeros.
struct crc32_tables {
  std::array<std::array<std::uint32_t, 256>, 4> of{};

  constexpr crc32_tables() {
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t x = i;
      for (int bit = 0; bit < 8; ++bit) x = (x & 1u) != 0 ? x >> 1 ^ 0xedb88320u : x >> 1;
      of[0][i] = x;
    }
    for (std::uint32_t i = 0; i < 256; ++i)
      for (std::size_t t = 1; t < 4; ++t) of[t][i] = of[t - 1][i] >> 8 ^ of[0][of[t - 1][i] & 0xffu];
  }
};
inline constexpr crc32_tables crc32_remainders{};

}  // namespace detail

/// A checksum over bytes that come in pieces.
class crc32 {
 public:
  /// Takes more bytes. Cost: about a byte a cycle, four tables of 1 KiB.
  void add(const void* data, std::size_t bytes) noexcept {
    const auto& tables = detail::crc32_remainders.of;
    const auto* at = static_cast<const unsigned char*>(data);
    for (; bytes >= 4; bytes -= 4, at += 4) {
      const std::uint32_t next = std::uint32_t{at[0]} | std::uint32_t{at[1]} << 8 | std::uint32_t{at[2]} << 16 | std::uint32_t{at[3]} << 24;
      const std::uint32_t word = state_ ^ next;
      state_ = tables[3][word & 0xffu] ^ tables[2][word >> 8 & 0xffu] ^ tables[1][word >> 16 & 0xffu] ^ tables[0][word >> 24];
    }
    for (; bytes > 0; --bytes, ++at) state_ = state_ >> 8 ^ tables[0][(state_ ^ *at) & 0xffu];
  }
  /// The checksum of all bytes so far.
  std::uint32_t value() const noexcept { return ~state_; }

 private:
  std::uint32_t state_ = 0xffffffffu;
};

}  // namespace pqkv
