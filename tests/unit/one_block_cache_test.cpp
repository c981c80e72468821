// SPDX-License-Identifier: Apache-2.0
// The decisions of one block cache, one at a time, on memory of a few blocks.
#include <doctest/doctest.h>

#include <vector>

#include <pqkv/cache/one_block_cache.hpp>
#include <pqkv/core/owner.hpp>

namespace {
using cache_type = pqkv::one_block_cache<pqkv::eviction::tiny_lfu>;
using pqkv::block_state;
namespace order = pqkv::eviction_order;

/// Six blocks of four tokens, three slots.
struct small_cache {
  pqkv::buffer<std::byte> memory{4096};
  cache_type of;
  small_cache() {
    of.blocks = 6, of.capacity = 3, of.admit = 2, of.block_tokens = 4;
    pqkv::arena all(memory);
    of.carve(all);
  }
};
}  // namespace

TEST_CASE("one_block_cache: memory that is zero is an empty cache") {
  const small_cache cache;
  for (std::uint32_t block = 0; block < 6; ++block) CHECK(cache.of.found(block) == -1);
  for (std::uint32_t slot = 0; slot < 3; ++slot) {
    CHECK(cache.of.leave_order(slot, cache.of.first_stamp()) == slot);
    CHECK(cache.of.leaving_frequency(slot) == cache_type::nobody);
  }
  CHECK(cache.of.first_stamp() == 3);
}

TEST_CASE("one_block_cache: a block is final when its last token is") {
  const small_cache cache;
  CHECK_FALSE(cache.of.is_final(0, 3));
  CHECK(cache.of.is_final(0, 4));
  CHECK_FALSE(cache.of.is_final(5, 23));
  CHECK(cache.of.is_final(5, 24));
}

TEST_CASE("one_block_cache: the higher count is offered first, then the lower block") {
  const small_cache cache;
  cache.of.counts[1] = 3, cache.of.counts[2] = 4, cache.of.counts[5] = 3;
  CHECK(cache.of.offer_order(2) < cache.of.offer_order(1));
  CHECK(cache.of.offer_order(1) < cache.of.offer_order(5));
}

TEST_CASE("one_block_cache: a slot is filling until its rows are there, and belongs to the next block when it is taken") {
  const small_cache cache;
  cache.of.offer(4, 3);
  CHECK(cache.of.newcomer_frequency(4) == 1);
  CHECK_FALSE(cache.of.enter(0, 4, 1, 3));
  CHECK(cache.of.states[1] == block_state::filling);
  CHECK(cache.of.found(4) == -1);
  CHECK(cache.of.leave_order(1, 4) == cache_type::never);
  cache.of.fill(0);
  CHECK(cache.of.found(4) == 1);
  CHECK(cache.of.leave_order(1, 3) == cache_type::never);  // offered in this step
  CHECK(cache.of.leave_order(1, 4) == order::of(1, 3));
  cache.of.offer(4, 9);
  CHECK(cache.of.order[1] == order::of(2, 9));
  CHECK_FALSE(cache_type::may_enter(2, cache.of.leaving_frequency(1)));
  CHECK(cache_type::may_enter(3, cache.of.leaving_frequency(1)));
  CHECK(cache_type::may_enter(0, cache_type::nobody));
  CHECK(cache.of.enter(1, 0, 1, 10));  // block 0 in place of block 4
  CHECK(cache.of.admitted[1].block == 0);
  CHECK(cache.of.admitted[1].evicted == 4);
  CHECK(cache.of.slots[4] == 0);
  cache.of.fill(0);  // what 4 waited for came too late
  CHECK(cache.of.found(0) == -1);
  cache.of.fill(1);
  CHECK(cache.of.found(0) == 1);
  cache.of.release(1);
  CHECK(cache.of.found(0) == -1);
  CHECK(cache.of.states[1] == block_state::empty);
  cache.of.release(1);  // once more does nothing
  CHECK(cache.of.leave_order(1, 99) == 1);
}

TEST_CASE("one_block_cache: a step's end counts it, and ends an age after ten offers for each slot, 640 at least") {
  const small_cache cache;
  cache.of.progress->touched = 5;
  CHECK_FALSE(cache.of.end_step({.offered = 639, .waited = 7, .admitted = 4, .evicted = 3}));
  CHECK(cache.of.progress->touched == 0);
  CHECK(cache.of.progress->admitted == 4);
  CHECK(cache.of.first_stamp() == 642);
  CHECK(cache.of.statistics->admissions == 4);
  CHECK(cache.of.statistics->evictions == 3);
  CHECK(cache.of.statistics->kept_out == 3);
  CHECK(cache.of.end_step({.offered = 1, .waited = 0, .admitted = 0, .evicted = 0}));
  CHECK(cache.of.progress->age == 1);
  CHECK_FALSE(cache.of.end_step({.offered = 639, .waited = 0, .admitted = 0, .evicted = 0}));
}

TEST_CASE("one_block_cache: caches stand one behind the other") {
  const small_cache cache;
  const cache_type next = cache.of.moved(128);
  CHECK(reinterpret_cast<std::byte*>(next.slots) - reinterpret_cast<std::byte*>(cache.of.slots) == 128);
  CHECK(reinterpret_cast<std::byte*>(next.remembered) - reinterpret_cast<std::byte*>(cache.of.remembered) == 128);
  CHECK(reinterpret_cast<std::byte*>(next.statistics) - reinterpret_cast<std::byte*>(cache.of.statistics) == 128);
  CHECK(next.blocks == 6);
}
