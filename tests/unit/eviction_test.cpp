// SPDX-License-Identifier: Apache-2.0
// Eviction policies as numbers: the order in which blocks leave, frequencies that stop rising, frequencies that fade.
#include <doctest/doctest.h>

#include <initializer_list>

#include <pqkv/cache/eviction.hpp>

namespace {
namespace order = pqkv::eviction_order;
using pqkv::remembered_frequency;
static_assert(pqkv::eviction_policy<pqkv::eviction::lfu> && pqkv::eviction_policy<pqkv::eviction::lru>);
static_assert(pqkv::eviction_policy<pqkv::eviction::tiny_lfu> && !pqkv::eviction_policy<int>);
}  // namespace

TEST_CASE("eviction: the lower frequency leaves first, then the older stamp") {
  CHECK(order::of(1, 1000) < order::of(2, 3));
  CHECK(order::of(2, 3) < order::of(2, 4));
  CHECK(order::frequency(order::of(77, 12345)) == 77);
  CHECK(order::stamp(order::of(77, 12345)) == 12345);
  CHECK(order::halved(order::of(7, 12)) == order::of(3, 12));
  CHECK(order::halved(order::of(1, 12)) == order::of(0, 12));
  // The last stamp stays the last, and does not run into the frequency.
  CHECK(order::of(3, order::last_stamp + 5) == order::of(3, order::last_stamp));
  CHECK(order::frequency(order::of(order::highest_frequency, order::last_stamp)) == order::highest_frequency);
}

TEST_CASE("eviction: frequencies rise by one and stop at the highest") {
  CHECK(pqkv::eviction::lfu::offered(0) == 1);
  CHECK(pqkv::eviction::lfu::offered(41) == 42);
  CHECK(pqkv::eviction::lfu::offered(order::highest_frequency) == order::highest_frequency);
  CHECK(pqkv::eviction::lru::offered(0) == 1);
  CHECK(pqkv::eviction::lru::offered(1) == 1);
  CHECK(pqkv::eviction::tiny_lfu::offered(254) == 255);
  CHECK(pqkv::eviction::tiny_lfu::offered(255) == 255);
}

TEST_CASE("eviction: who may enter, and when an age ends") {
  CHECK(pqkv::eviction::lfu::may_enter(1, 100));
  CHECK(pqkv::eviction::lru::may_enter(1, 1));
  CHECK(pqkv::eviction::tiny_lfu::may_enter(3, 2));
  CHECK_FALSE(pqkv::eviction::tiny_lfu::may_enter(2, 2));
  CHECK_FALSE(pqkv::eviction::lfu::is_age_over(1u << 30, 1));
  CHECK_FALSE(pqkv::eviction::lru::is_age_over(1u << 30, 1));
  CHECK_FALSE(pqkv::eviction::tiny_lfu::is_age_over(639, 0));
  CHECK(pqkv::eviction::tiny_lfu::is_age_over(640, 64));
  CHECK_FALSE(pqkv::eviction::tiny_lfu::is_age_over(9999, 1000));
  CHECK(pqkv::eviction::tiny_lfu::is_age_over(10000, 1000));
}

TEST_CASE("eviction: a remembered frequency halves with every age since it was written, as if all were visited") {
  for (const std::uint32_t written : {0u, 1u, 100u, remembered_frequency::last_age - 20})
    for (std::uint32_t frequency = 0; frequency <= remembered_frequency::highest; ++frequency) {
      const remembered_frequency one = remembered_frequency::of(frequency, written);
      std::uint32_t wanted = frequency;
      for (std::uint32_t age = written; age < written + 20; ++age, wanted /= 2) REQUIRE(one.at(age) == wanted);
    }
  CHECK(remembered_frequency{}.at(remembered_frequency::last_age) == 0);
}
