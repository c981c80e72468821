// SPDX-License-Identifier: Apache-2.0
// The owning array: aligned, zeroed, movable, and a failed allocation is std::bad_alloc before anything else happens.
#include <pqkv/core/owner.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

using pqkv::buffer;

static_assert(!std::is_copy_constructible_v<buffer<int>> && !std::is_copy_assignable_v<buffer<int>>);
static_assert(std::is_nothrow_move_constructible_v<buffer<int>> && std::is_nothrow_move_assignable_v<buffer<int>>);
static_assert(!std::is_convertible_v<std::size_t, buffer<int>>, "a size is not an array");

TEST_CASE("memory is aligned to a cache line and zeroed") {
  for (const std::size_t size : {1u, 7u, 64u, 1000u}) {
    for (int round = 0; round < 3; ++round) {  // the allocator hands used memory out again
      buffer<float> b(size);
      CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % pqkv::cache_line_bytes == 0);
      std::size_t dirty = 0;
      for (const float x : b) dirty += x != 0;
      CHECK(dirty == 0);
      for (float& x : b) x = 1;
    }
  }
}

TEST_CASE("size in elements and in bytes") {
  const buffer<std::uint16_t> b(5);
  CHECK(b.size() == 5);
  CHECK(b.size_bytes() == 10);
  CHECK(b.end() - b.begin() == 5);
  b[4] = 3;
  CHECK(b.data()[4] == 3);
}

TEST_CASE("an empty buffer holds nothing") {
  const buffer<int> none, zero(0);
  CHECK(none.data() == nullptr);
  CHECK(zero.data() == nullptr);
  CHECK(zero.size_bytes() == 0);
  CHECK(zero.begin() == zero.end());
}

TEST_CASE("moving hands the memory over") {
  buffer<int> a(3);
  a[1] = 7;
  int* const memory = a.data();
  buffer<int> b = std::move(a);
  CHECK(b.data() == memory);
  CHECK(a.data() == nullptr);
  CHECK(a.size() == 0);
  buffer<int> c(10);
  c = std::move(b);
  CHECK(c.data() == memory);
  CHECK(c.size() == 3);
  CHECK(c[1] == 7);
  buffer<int>& same = c;
  c = std::move(same);
  CHECK(c.data() == memory);
}

TEST_CASE("a size whose bytes do not fit is refused") {
  CHECK_THROWS_AS(buffer<float>(static_cast<std::size_t>(-1) / 2), std::bad_alloc);
  CHECK_THROWS_AS(buffer<float>(static_cast<std::size_t>(-1) / 4 + 2), std::bad_alloc);  // 4 bytes each would wrap round to 4
}
