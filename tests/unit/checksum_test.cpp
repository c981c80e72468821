// SPDX-License-Identifier: Apache-2.0
// CRC-32 against the published check value and a plain bit-by-bit formulation, in pieces of any size.
#include <doctest/doctest.h>

#include <pqkv/core/checksum.hpp>

#include <cstdint>
#include <vector>

#include "cases/inputs.hpp"

namespace {
std::uint32_t plain_crc32(const std::vector<unsigned char>& bytes) {
  std::uint32_t state = 0xffffffffu;
  for (const unsigned char byte : bytes) {
    state ^= byte;
    for (int bit = 0; bit < 8; ++bit) state = (state & 1u) != 0 ? state >> 1 ^ 0xedb88320u : state >> 1;
  }
  return ~state;
}
}  // namespace

TEST_CASE("crc32: the check value of the standard, and of nothing") {
  pqkv::crc32 sum;
  CHECK(sum.value() == 0);
  sum.add("123456789", 9);
  CHECK(sum.value() == 0xcbf43926u);
}

TEST_CASE("crc32: random bytes in random pieces equal the plain formulation") {
  pqkv_cases::random_source random(0xc4c);
  for (int round = 0; round < 50; ++round) {
    std::vector<unsigned char> bytes(random.below(300));
    for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random.below(256));
    pqkv::crc32 sum;
    for (std::size_t done = 0; done < bytes.size();) {
      const std::size_t count = std::min<std::size_t>(1 + random.below(13), bytes.size() - done);
      sum.add(bytes.data() + done, count);
      done += count;
    }
    REQUIRE(sum.value() == plain_crc32(bytes));
    if (bytes.empty()) continue;
    bytes[random.below(bytes.size())] ^= static_cast<unsigned char>(1u << random.below(8));  // any one bit shows
    CHECK(sum.value() != plain_crc32(bytes));
  }
}
