// SPDX-License-Identifier: Apache-2.0
// Memory through the seam, on the host: taken zeroed and on a cache line, counted by the arena that carves it, copied where ranges
// overlap too, zeroed where it is asked for and nowhere else.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <numeric>
#include <vector>

#include <pqkv/detail/host/memory.hpp>

#include "cases/allocation_count.hpp"
#include "cases/inputs.hpp"

namespace {
const pqkv::exec::host<pqkv::isa::scalar> cpu;
}

TEST_CASE("memory: an owner by policy is zeroed, on a cache line, and as long as asked for") {
  for (const std::size_t size : {1u, 15u, 64u, 1000u})
    for (int round = 0; round < 3; ++round) {  // the allocator hands used memory out again
      const auto memory = pqkv::make_owner<std::uint16_t>(cpu, size);
      static_assert(std::is_same_v<decltype(memory), const pqkv::buffer<std::uint16_t>>);
      CHECK(memory.size() == size);
      CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % pqkv::cache_line_bytes == 0);
      std::size_t dirty = 0;
      for (std::uint16_t& x : memory) {
        dirty += x != 0 ? 1 : 0;
        x = 7;
      }
      CHECK(dirty == 0);
    }
  const std::size_t before = pqkv_cases::allocations();
  const auto none = pqkv::make_owner<float>(cpu, 0);
  CHECK(none.data() == nullptr);
  CHECK(pqkv_cases::allocations() == before);
  const std::size_t bytes = pqkv_cases::allocated_bytes();
  const auto some = pqkv::make_owner<float>(cpu, 100);
  CHECK(pqkv_cases::allocated_bytes() == bytes + 400);
}

TEST_CASE("memory: a size whose bytes do not fit, and memory that there is not, are std::bad_alloc") {
  CHECK_THROWS_AS(pqkv::make_owner<float>(cpu, static_cast<std::size_t>(-1) / 4 + 1), std::bad_alloc);
  CHECK_THROWS_AS(pqkv::make_owner<float>(cpu, static_cast<std::size_t>(-1) / 8), std::bad_alloc);
  const volatile std::size_t most = static_cast<std::size_t>(-1);  // the compiler need not know
  CHECK_THROWS_AS(pqkv::make_owner<std::byte>(cpu, most), std::bad_alloc);
  pqkv_cases::fail_allocation(1);
  CHECK_THROWS_AS(pqkv::make_owner<float>(cpu, 8), std::bad_alloc);
  pqkv_cases::fail_allocation(0);
  CHECK_NOTHROW(pqkv::make_owner<float>(cpu, 8));
}

TEST_CASE("memory: copies of any length, and of ranges that overlap, as if through another place") {
  pqkv_cases::random_source random(0x3e3);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::uint8_t> memory(256);
    for (std::uint8_t& x : memory) x = static_cast<std::uint8_t>(random.below(256));
    const std::size_t size = random.below(120), from = random.below(256 - size), to = random.below(256 - size);
    std::vector<std::uint8_t> wanted = memory;
    const std::vector<std::uint8_t> part(memory.begin() + static_cast<std::ptrdiff_t>(from),
                                         memory.begin() + static_cast<std::ptrdiff_t>(from + size));
    std::copy(part.begin(), part.end(), wanted.begin() + static_cast<std::ptrdiff_t>(to));
    pqkv::copy_bytes(cpu, memory.data() + to, memory.data() + from, size);
    REQUIRE(memory == wanted);
  }
  pqkv::copy_bytes(cpu, nullptr, nullptr, 0);  // nothing to copy needs no memory
}

TEST_CASE("memory: zeroes what it is given and no byte more") {
  for (const std::size_t size : {0u, 1u, 7u, 64u, 100u})
    for (const std::size_t first : {0u, 1u, 5u}) {
      std::vector<std::uint8_t> memory(128, 0xab);
      pqkv::zero_bytes(cpu, memory.data() + first, size);
      for (std::size_t i = 0; i < memory.size(); ++i) CHECK(memory[i] == (i >= first && i < first + size ? 0 : 0xab));
    }
  pqkv::zero_bytes(cpu, nullptr, 0);
}
