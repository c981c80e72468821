// SPDX-License-Identifier: Apache-2.0
// Which copies of sinks and newest tokens fast memory has, and what it must copy next, against sets of tokens; a token's row of every type;
// what is counted.
#include <doctest/doctest.h>

#include <set>
#include <vector>

#include <pqkv/cache/tiered_store.hpp>

#include "cases/inputs.hpp"

namespace {
using pqkv::resident_tokens;
using pqkv::resident_update;

/// The tokens that have a copy.
std::set<std::uint32_t> tokens_of(const resident_tokens& now, std::uint32_t length) {
  std::set<std::uint32_t> all;
  for (std::uint32_t t = 0; t < length; ++t)
    if (now.has(t)) all.insert(t);
  return all;
}
}  // namespace

TEST_CASE("tiered_store: copies of sinks and newest tokens, against sets of tokens") {
  pqkv_cases::random_source random(91);
  for (std::size_t life = 0; life < 200; ++life) {
    const auto sink_room = static_cast<std::uint32_t>(random.below(6)), room = static_cast<std::uint32_t>(1 + random.below(12));
    resident_tokens now;
    std::vector<std::int64_t> row(room, -1);  // the token in each row of the newest ones
    std::set<std::uint32_t> sinks;
    std::uint32_t length = 0;
    for (std::size_t event = 0; event < 60; ++event) {
      CAPTURE(life);
      CAPTURE(event);
      if (random.below(4) == 0) {  // a cut: what is written behind it replaces what stood there
        length -= static_cast<std::uint32_t>(random.below(length + 1));
        now.truncate(length);
        for (std::int64_t& held : row) held = held >= length ? -1 : held;
        std::erase_if(sinks, [&](std::uint32_t t) { return t >= length; });
        continue;
      }
      length += static_cast<std::uint32_t>(random.below(20));
      const resident_update update = resident_update::of(now, length, sink_room, room);
      for (std::uint32_t i = 0; i < update.count(); ++i) {
        const std::uint32_t t = update.token(i);
        REQUIRE(t < length);
        if (update.is_sink(i)) {
          REQUIRE(sinks.insert(t).second);  // nothing is copied twice
        } else {
          REQUIRE(row[t % room] != t);
          row[t % room] = t;
        }
      }
      now = update.after;
      for (std::uint32_t t = 0; t < length; ++t) {
        const bool newest = t + room >= length, first = t < sink_room;
        REQUIRE(now.has(t) == (newest || first));
        if (newest) REQUIRE(row[t % room] == t);
        if (first) REQUIRE(sinks.contains(t));
      }
      const std::set<std::uint32_t> copies = tokens_of(now, length);
      for (std::size_t i = 0; i < 10; ++i) {
        const auto begin = static_cast<std::uint32_t>(random.below(length + 1)),
                   end = begin + static_cast<std::uint32_t>(random.below(length - begin + 1));
        std::uint32_t missing = 0;
        for (std::uint32_t t = begin; t < end; ++t) missing += copies.contains(t) ? 0 : 1;
        REQUIRE(now.missing(begin, end) == missing);
      }
    }
  }
}

TEST_CASE("tiered_store: a token's row has key, value and scales side by side") {
  using wide = pqkv::token_row<pqkv::bfloat16>;
  using narrow = pqkv::token_row<pqkv::scaled_int8>;
  for (const std::size_t d : {8u, 24u, 64u, 128u, 256u}) {
    CHECK(wide::elements(d) * sizeof(pqkv::bfloat16) % pqkv::cache_line_bytes == 0);
    CHECK(wide::elements(d) >= 2 * d);
    CHECK(wide::bytes(d) == 4 * d);
    CHECK(narrow::bytes(d) == 2 * d + 16);
    CHECK(narrow::elements(d) == narrow::bytes(d));
    std::vector<pqkv::bfloat16> w(wide::elements(d));
    CHECK(wide::key(w.data(), d).data == w.data());
    CHECK(wide::value(w.data(), d).data == w.data() + d);
    CHECK(wide::value_slot(w.data(), d).data == w.data() + d);
    alignas(16) std::byte n[2 * 256 + 16];
    CHECK(static_cast<const void*>(narrow::key(n, d).data) == n);
    CHECK(static_cast<const void*>(narrow::value(n, d).data) == n + d);
    CHECK(static_cast<const void*>(narrow::key(n, d).scale) == n + 2 * d);
    CHECK(static_cast<const void*>(narrow::value(n, d).scale) == n + 2 * d + 4);
    CHECK(narrow::key_slot(n, d).scale == narrow::key(n, d).scale);
    CHECK(narrow::value_slot(n, d).data == narrow::value(n, d).data);
  }
}

TEST_CASE("tiered_store: what is counted") {
  pqkv::block_statistics blocks{.hits = 10, .misses = 7, .admissions = 3, .evictions = 2, .kept_out = 1};
  resident_tokens resident;
  resident.slow_rows = 100, resident.near_misses = 4;
  const pqkv::tier_statistics one = pqkv::tier_statistics::of(blocks, resident, 32);
  CHECK(one.hits == 14);
  CHECK(one.misses == 3);
  CHECK(one.slow_bytes == (100 + 3) * 32);
  CHECK(one.admissions == 3);
  CHECK(one.evictions == 2);
  CHECK(one.kept_out == 1);
  blocks += pqkv::block_statistics{.hits = 1, .misses = 2, .admissions = 4, .evictions = 8, .kept_out = 16};
  CHECK(blocks.hits == 11);
  CHECK(blocks.misses == 9);
  CHECK(blocks.admissions == 7);
  CHECK(blocks.evictions == 10);
  CHECK(blocks.kept_out == 17);
}
