// SPDX-License-Identifier: Apache-2.0
// The owning array: aligned, zeroed, movable, in the memory of any space, given back once; a failed allocation is std::bad_alloc before
// anything else happens.
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

using pqkv::owner;
static_assert(std::is_same_v<buffer<int>, owner<int, pqkv::space::host>> && std::is_same_v<owner<int>, buffer<int>>);

/// What only memory that the host can reach offers.
template <class Owner>
concept host_readable = requires(const Owner& o) {
  o[0];
  o.begin();
  o.end();
};
static_assert(host_readable<buffer<int>> && host_readable<owner<int, pqkv::space::pinned>> &&
              host_readable<owner<int, pqkv::space::managed>>);
static_assert(!host_readable<owner<int, pqkv::space::device>>);
static_assert(std::is_constructible_v<buffer<int>, std::size_t> && !std::is_constructible_v<owner<int, pqkv::space::device>, std::size_t>,
              "only host memory is taken without a policy");
static_assert(!std::is_copy_constructible_v<owner<int, pqkv::space::device>>);

namespace {
/// Memory that remembers how often it was given back.
struct counted_memory {
  alignas(pqkv::cache_line_bytes) int elements[16] = {};
  static inline int released = 0;
  static inline std::uintptr_t last = 0;

  pqkv::memory_block block() {
    return {elements, [](void* memory) noexcept {
              ++released;
              last = reinterpret_cast<std::uintptr_t>(memory);
            }};
  }
};
}  // namespace

TEST_CASE("owner: a block that holds large pages is zeroed and writable from end to end") {
  const buffer<std::uint32_t> block((std::size_t{5} << 18) + 33);
  std::uint32_t any = 0;
  for (const std::uint32_t x : block) any |= x;
  CHECK(any == 0);
  for (std::uint32_t& x : block) x = 7;
  CHECK((block[0] == 7 && block[block.size() - 1] == 7));
}

TEST_CASE("a block of any space is given back once, by whoever owns it last") {
  counted_memory first, second;
  counted_memory::released = 0;
  {
    owner<int, pqkv::space::device> a(first.block(), 16);
    CHECK(a.data() == first.elements);
    CHECK(a.size() == 16);
    CHECK(a.size_bytes() == 64);
    owner<int, pqkv::space::device> b = std::move(a);
    CHECK(a.data() == nullptr);
    CHECK(a.size() == 0);
    CHECK(b.data() == first.elements);
    {
      owner<int, pqkv::space::device> c(second.block(), 3);
      c = std::move(b);  // swaps: the other block lives as long as b
      CHECK(c.data() == first.elements);
      CHECK(c.size() == 16);
      CHECK(counted_memory::released == 0);
    }
    CHECK(counted_memory::released == 1);
    CHECK(counted_memory::last == reinterpret_cast<std::uintptr_t>(first.elements));
    CHECK(b.data() == second.elements);
    CHECK(b.size() == 3);
  }
  CHECK(counted_memory::released == 2);
  CHECK(counted_memory::last == reinterpret_cast<std::uintptr_t>(second.elements));
  { owner<int, pqkv::space::device> none; }
  { owner<int, pqkv::space::pinned> moved_from(first.block(), 1), into = std::move(moved_from); }
  CHECK(counted_memory::released == 3);
}

TEST_CASE("pinned and managed memory is read like the host's") {
  counted_memory memory;
  const owner<int, pqkv::space::managed> a(memory.block(), 16);
  a[3] = 9;
  int sum = 0;
  for (const int x : a) sum += x;
  CHECK(sum == 9);
  CHECK(memory.elements[3] == 9);
}

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
