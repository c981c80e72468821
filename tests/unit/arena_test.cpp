// SPDX-License-Identifier: Apache-2.0
// Scratch memory: counting and carving agree, pieces are aligned and apart, a copy gives everything back, and a workspace that is
// too small says so with both numbers.
#include <pqkv/core/arena.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

using pqkv::arena;
using pqkv::buffer;
using pqkv::workspace;

static_assert(std::is_trivially_copyable_v<arena>, "a policy holds one by value");

namespace {

struct piece {
  void* first;
  std::size_t bytes;
};

/// What an algorithm does: carve pieces of several types and sizes.
std::vector<piece> carve(arena& from, std::size_t n) {
  return {{from.take<float>(n), n * sizeof(float)},
          {from.take<std::uint8_t>(n + 3), n + 3},
          {from.take<std::int64_t>(0), 0},
          {from.take<std::int64_t>(2 * n), 2 * n * sizeof(std::int64_t)},
          {from.take<std::uint16_t>(1), 2}};
}

}  // namespace

TEST_CASE("counting gives the bytes that carving uses") {
  for (const std::size_t n : {1u, 15u, 16u, 17u, 63u, 64u, 65u, 1000u}) {
    arena counter;
    CHECK(counter.counting());
    for (const piece& p : carve(counter, n)) CHECK(p.first == nullptr);
    const buffer<std::byte> block(counter.used_bytes());
    arena real(block);
    CHECK_FALSE(real.counting());
    CHECK(real.capacity_bytes() == block.size());
    carve(real, n);
    CHECK(real.used_bytes() == counter.used_bytes());
    CHECK(real.free_bytes() == 0);
    CHECK(counter.used_bytes() >= n * 4 + n + 3 + 16 * n + 2);
    CHECK(counter.used_bytes() < n * 4 + n + 3 + 16 * n + 2 + 4 * pqkv::cache_line_bytes);
  }
}

TEST_CASE("pieces are aligned, inside the block, and do not overlap") {
  const buffer<std::byte> block(4096);
  arena from(block);
  const auto pieces = carve(from, 37);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    CHECK(reinterpret_cast<std::uintptr_t>(pieces[i].first) % pqkv::cache_line_bytes == 0);
    std::memset(pieces[i].first, static_cast<int>(i + 1), pieces[i].bytes);
    CHECK(static_cast<std::byte*>(pieces[i].first) >= block.begin());
    CHECK(static_cast<std::byte*>(pieces[i].first) + pieces[i].bytes <= block.end());
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    std::size_t overwritten = 0;
    for (std::size_t at = 0; at < pieces[i].bytes; ++at)
      overwritten += static_cast<std::byte*>(pieces[i].first)[at] != static_cast<std::byte>(i + 1);
    CHECK(overwritten == 0);
  }
}

TEST_CASE("a copy carves the same memory again; the original is as it was") {
  const buffer<std::byte> block(1024);
  arena original(block);
  original.take<float>(16);
  arena copy = original;
  float* const first = copy.take<float>(20);
  CHECK(original.used_bytes() == 64);
  CHECK(copy.used_bytes() == 64 + 128);
  arena again = original;
  CHECK(again.take<float>(20) == first);
}

TEST_CASE("a workspace in an arena uses its free part and leaves the arena as it was") {
  const buffer<std::byte> block(1024);
  arena scratch(block);
  float* const kept = scratch.take<float>(16);
  for (int call = 0; call < 2; ++call) {
    workspace work(scratch, 960, "scan");
    CHECK(work.take<float>(16) == kept + 16);
    work.take<float>(224);
  }
  CHECK(scratch.used_bytes() == 64);
}

TEST_CASE("a workspace without an arena takes aligned memory from the heap") {
  workspace work(arena{}, 256, "scan");
  float* const a = work.take<float>(16);
  float* const b = work.take<float>(48);
  REQUIRE(a != nullptr);
  CHECK(b == a + 16);
  CHECK(reinterpret_cast<std::uintptr_t>(a) % pqkv::cache_line_bytes == 0);
  for (std::size_t i = 0; i < 48; ++i) b[i] = 1;
}

TEST_CASE("a workspace too small for its call names policy.scratch and both numbers") {
  const buffer<std::byte> block(1024);
  arena scratch(block);
  scratch.take<std::byte>(512);
  CHECK_THROWS_WITH_AS(workspace(scratch, 513, "scan"),
                       "pqkv::scan: policy.scratch must be at least 513 (bytes, from scratch_bytes()), got 512",
                       pqkv::capacity_error);
  CHECK_NOTHROW(workspace(scratch, 512, "scan"));
  CHECK_THROWS_AS(workspace(arena(block.data(), 0), 1, "scan"), pqkv::capacity_error);
  CHECK_NOTHROW(workspace(arena(block.data(), 0), 0, "scan"));
}
