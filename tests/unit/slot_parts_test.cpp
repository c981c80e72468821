// SPDX-License-Identifier: Apache-2.0
// What a slot owns as runs of bytes: where a run begins and how long it is, for arrays that grow with the sequence and that do not; that
// copying every run copies the slot, all of it and nothing else.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include <pqkv/core/slot_parts.hpp>

#include "cases/inputs.hpp"

namespace {
using pqkv::slot_part;
using pqkv::slot_parts;
}  // namespace

TEST_CASE("slot parts: an array that does not grow has runs of its own size") {
  float data[3 * 2 * 5];  // [slots, segments, size]
  slot_parts all;
  all.add_fixed(data, 2, 5);
  REQUIRE(all.count == 1);
  const slot_part& part = all.part[0];
  CHECK(part.segments == 2);
  CHECK(part.bytes(0) == 20);
  CHECK(part.bytes(1000) == 20);
  CHECK(part.limit == 0);
  CHECK(part.segment(0, 0) == reinterpret_cast<std::byte*>(data));
  CHECK(part.segment(0, 1) == reinterpret_cast<std::byte*>(data + 5));
  CHECK(part.segment(2, 1) == reinterpret_cast<std::byte*>(data + 25));
  CHECK(all.bytes(77) == 40);
}

TEST_CASE("slot parts: an array of tokens has runs as long as the sequence") {
  std::uint16_t data[2 * 3 * 10 * 4];  // [slots, segments, capacity, size]
  slot_parts all;
  all.add_tokens(data, 3, 10, 4, 16);
  const slot_part& part = all.part[0];
  CHECK(part.bytes(0) == 0);
  CHECK(part.bytes(7) == 7 * 4 * 2);
  CHECK(part.limit == 16);
  CHECK(part.segment(1, 2) == reinterpret_cast<std::byte*>(data + (1 * 3 + 2) * 40));
  CHECK(all.bytes(7) == 3 * 7 * 8);
}

TEST_CASE("slot parts: what is not there is no part") {
  float one = 0;
  slot_parts all;
  all.add_fixed(static_cast<float*>(nullptr), 2, 5);
  all.add_tokens(static_cast<float*>(nullptr), 2, 5, 1);
  all.add_fixed(&one, 0, 5);
  CHECK(all.count == 0);
  CHECK(all.bytes(10) == 0);
  slot_parts more;
  more.add_fixed(&one, 1, 1);
  all.add(more);
  all.add(slot_parts{});
  all.add(more);
  CHECK(all.count == 2);
  CHECK(all.bytes(10) == 8);
}

TEST_CASE("slot parts: copying every run copies a slot, and no byte of another") {
  pqkv_cases::random_source random(0x5107);
  for (int round = 0; round < 200; ++round) {
    const std::size_t slots = 1 + random.below(4), capacity = 1 + random.below(20), n = random.below(capacity + 1);
    struct array {
      std::size_t segments, size;
      bool grows;
      std::vector<std::uint32_t> data;
    };
    std::vector<array> arrays;
    slot_parts parts;
    for (std::size_t i = 1 + random.below(5); i-- > 0;) {
      array one{1 + random.below(4), 1 + random.below(6), random.below(2) == 0, {}};
      one.data.resize(slots * one.segments * one.size * (one.grows ? capacity : 1));
      for (std::uint32_t& x : one.data) x = static_cast<std::uint32_t>(random.bits());
      arrays.push_back(std::move(one));
    }
    for (array& one : arrays)
      if (one.grows)
        parts.add_tokens(one.data.data(), one.segments, capacity, one.size);
      else
        parts.add_fixed(one.data.data(), one.segments, one.size);
    std::vector<std::vector<std::uint32_t>> wanted;
    const std::size_t from = random.below(slots), to = random.below(slots);
    std::size_t bytes = 0;
    for (const array& one : arrays) {
      std::vector<std::uint32_t> copy = one.data;
      const std::size_t run = one.size * (one.grows ? capacity : 1), used = one.size * (one.grows ? n : 1);
      for (std::size_t segment = 0; segment < one.segments; ++segment)
        for (std::size_t i = 0; i < used; ++i)
          copy[(to * one.segments + segment) * run + i] = one.data[(from * one.segments + segment) * run + i];
      bytes += one.segments * used * 4;
      wanted.push_back(copy);
    }
    CHECK(parts.bytes(n) == bytes);
    for (std::size_t i = 0; i < parts.count; ++i)
      for (std::size_t segment = 0; segment < parts.part[i].segments; ++segment)
        std::memmove(parts.part[i].segment(to, segment), parts.part[i].segment(from, segment), parts.part[i].bytes(n));
    for (std::size_t i = 0; i < arrays.size(); ++i) REQUIRE(arrays[i].data == wanted[i]);
  }
}
