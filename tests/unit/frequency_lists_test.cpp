// SPDX-License-Identifier: Apache-2.0
// Slots by frequency and recency: the order in which they are given away, free ones first, none of the present step; buckets come and
// go and are never more than slots.
#include <doctest/doctest.h>

#include <pqkv/cache/frequency_lists.hpp>
#include <vector>

namespace {
struct fixture {
  explicit fixture(std::size_t capacity, std::uint32_t max_frequency = 100) : memory(needed(capacity)) {
    pqkv::arena arena(memory);
    lists.carve(arena, capacity, max_frequency);
    lists.clear();
  }
  static std::size_t needed(std::size_t capacity) {
    pqkv::arena counter;
    pqkv::frequency_lists<int>().carve(counter, capacity, 2);
    return counter.used_bytes();
  }
  /// A slot that enters with the next offer.
  int enter() {
    auto search = lists.begin_search();
    const int slot = lists.take(search, offers);
    lists.enter(slot, offers++);
    return slot;
  }
  void rise(int slot) { lists.rise(slot, offers++); }
  /// Every slot in the order in which they would leave, which empties the lists.
  std::vector<int> leaving(std::uint64_t step) {
    std::vector<int> order;
    auto search = lists.begin_search();
    for (int slot = lists.take(search, step); slot != lists.none; slot = lists.take(search, step)) order.push_back(slot);
    return order;
  }

  pqkv::buffer<std::byte> memory;
  pqkv::frequency_lists<int> lists;
  std::uint64_t offers = 0;
};
}  // namespace

TEST_CASE("frequency_lists: free slots first, the lowest first; released ones before them") {
  fixture f(4);
  CHECK(f.enter() == 0);
  CHECK(f.enter() == 1);
  CHECK(f.lists.size() == 2);
  f.lists.release(0);
  CHECK(f.lists.size() == 1);
  CHECK(f.enter() == 0);
  CHECK(f.leaving(f.offers) == std::vector<int>{2, 3, 1, 0});
  CHECK(f.lists.size() == 0);
  CHECK(f.lists.capacity() == 4);
}

TEST_CASE("frequency_lists: the lowest frequency leaves, then the oldest offer; the step's own stay") {
  fixture f(5);
  for (int i = 0; i < 5; ++i) f.enter();
  f.rise(1);
  f.rise(0);
  f.rise(1);
  const std::uint64_t step = f.offers;
  f.rise(3);
  CHECK(f.lists.frequency(1) == 3);
  CHECK(f.lists.frequency(3) == 2);
  CHECK(f.lists.offer(3) == step);
  CHECK(f.leaving(step) == std::vector<int>{2, 4, 0, 1});
  CHECK(f.lists.size() == 1);
  CHECK(f.leaving(f.offers) == std::vector<int>{3});
}

TEST_CASE("frequency_lists: at the highest frequency a rise is a matter of recency") {
  fixture f(3, 2);
  for (int i = 0; i < 3; ++i) f.enter();
  for (const int slot : {0, 1, 2, 2, 0}) f.rise(slot);
  CHECK(f.lists.frequency(0) == 2);
  CHECK(f.leaving(f.offers) == std::vector<int>{1, 2, 0});
}

TEST_CASE("frequency_lists: halving joins neighbours in the order of their offers") {
  fixture f(6);
  for (int i = 0; i < 6; ++i) f.enter();
  // Frequencies 1 2 3 4 7 2, latest offers in the order 0 5 2 3 1 4.
  f.rise(5);
  for (const int slot : {2, 2, 3, 3, 3, 1}) f.rise(slot);
  for (int i = 0; i < 6; ++i) f.rise(4);
  f.lists.age();
  const std::uint32_t expected[] = {1, 1, 2, 2, 4, 1};
  for (int slot = 0; slot < 6; ++slot) CHECK(f.lists.frequency(slot) == expected[slot]);
  for (int i = 0; i < 4; ++i) f.lists.age();
  for (int slot = 0; slot < 6; ++slot) CHECK(f.lists.frequency(slot) == 1);
  CHECK(f.leaving(f.offers) == std::vector<int>{0, 5, 2, 3, 1, 4});
  fixture empty(0);
  empty.lists.age();
  CHECK(empty.leaving(0).empty());
}
