// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 against the known answers published with Random123, streams against the block function, and samples that are
// distinct, ascending and even.
#include <pqkv/core/random.hpp>

#include <doctest/doctest.h>

#include <vector>

#include "cases/plain_quantize.hpp"

using pqkv::philox4x32;
using pqkv::philox_block;
using pqkv::random_stream;
using pqkv::stratified_sample;

namespace {
constexpr bool equal(philox_block a, philox_block b) {
  return a.word[0] == b.word[0] && a.word[1] == b.word[1] && a.word[2] == b.word[2] && a.word[3] == b.word[3];
}
}  // namespace

TEST_CASE("Philox4x32-10 gives Random123's known answers") {
  CHECK(equal(philox4x32(0, {{0, 0, 0, 0}}), {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}}));
  CHECK(equal(philox4x32(0xffffffffffffffffu, {{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}}),
              {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}}));
  CHECK(equal(philox4x32(0x299f31d0a4093822u, {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}),
              {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}}));
}

TEST_CASE("numbers can be drawn at compile time") {
  static_assert(equal(philox4x32(0, {{0, 0, 0, 0}}), {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}}));
  static_assert(random_stream{0, 0}(2) == 0xbc57ac4cu);
  CHECK(random_stream{0, 0}(3) == 0x9b00dbd8u);
}

TEST_CASE("draw i of a stream is word i mod 4 of block i / 4 under the stream's number") {
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{7}, std::uint64_t{0xfedcba9876543210u}})
    for (const std::uint64_t stream : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{0x100000002u}})
      for (const std::uint64_t i : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{6}, std::uint64_t{0x7fffffffffu}})
        CHECK(random_stream{seed, stream}(i) == pqkv_cases::plain_draw(seed, stream, i));
  CHECK(random_stream{1, 0}(0) != random_stream{0, 0}(0));
  CHECK(random_stream{0, 1}(0) != random_stream{0, 0}(0));
  CHECK(random_stream{0, std::uint64_t{1} << 32}(0) != random_stream{0, 0}(0));
}

TEST_CASE("bounded draws stay below the bound and are even") {
  const random_stream draws{11, 3};
  for (const std::uint32_t bound : {1u, 2u, 3u, 10u, 4294967295u})
    for (std::uint64_t i = 0; i < 1000; ++i) REQUIRE(draws.below(i, bound) < bound);
  std::vector<int> seen(10);
  for (std::uint64_t i = 0; i < 100000; ++i) ++seen[draws.below(i, 10)];
  double chi_squared = 0;
  for (const int times : seen) chi_squared += (times - 10000.0) * (times - 10000.0) / 10000.0;
  CHECK(chi_squared < 27.9);  // 9 degrees of freedom, 1 in 1000
}

TEST_CASE("a stratified sample is distinct, ascending, in range, and one of each stratum") {
  for (const std::uint64_t population : {1u, 2u, 17u, 100u, 4097u, 70001u})
    for (const std::uint64_t count : {1u, 2u, 16u, 99u, 4096u, 16384u}) {
      if (count > population) continue;
      const stratified_sample sample{population, count, {5, 9}};
      std::size_t wrong = 0;
      for (std::uint64_t i = 0; i < count; ++i) {
        wrong += sample(i) < i * population / count || sample(i) >= (i + 1) * population / count;
        wrong += i > 0 && sample(i) <= sample(i - 1);
      }
      CHECK(wrong == 0);
      CHECK(sample(count - 1) < population);
    }
}

TEST_CASE("a sample of everything is everything") {
  const stratified_sample all{1000, 1000, {1, 2}};
  for (std::uint64_t i = 0; i < 1000; ++i) REQUIRE(all(i) == i);
}

TEST_CASE("a sample of the largest population does not overflow") {
  const stratified_sample sample{4294967295u, 65536, {1, 2}};
  CHECK(sample(65535) < 4294967295u);
  CHECK(sample(65535) >= 4294967295u - 65536u);
}

TEST_CASE("over many seeds a sample takes every row equally often") {
  std::vector<int> taken(1000);
  constexpr int seeds = 4000;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const stratified_sample sample{1000, 90, {seed, 0}};  // strata of 11 and 12 rows
    for (std::uint64_t i = 0; i < 90; ++i) ++taken[sample(i)];
  }
  double chi_squared = 0;
  for (std::uint64_t i = 0; i < 90; ++i) {
    const std::size_t first = i * 1000 / 90, next = (i + 1) * 1000 / 90;
    const double expected = static_cast<double>(seeds) / static_cast<double>(next - first);
    for (std::size_t t = first; t < next; ++t) chi_squared += (taken[t] - expected) * (taken[t] - expected) / expected;
  }
  CHECK(chi_squared > 780);  // 910 degrees of freedom: 3 standard deviations are 128
  CHECK(chi_squared < 1040);
}
