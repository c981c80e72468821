// SPDX-License-Identifier: Apache-2.0
// Block caches in a device's memory without a device: the same random lives, where lookups and admissions of a step are recorded once and
// replayed over changing selections and lengths. The host cannot touch the caches in between, and no step allocates or waits.
#include <doctest/doctest.h>

#include <memory>

#include "cases/block_cache_life.hpp"
#include "cases/queued_backend.hpp"

namespace {
using namespace pqkv_cases;

/// Records a step the first time, and replays it.
struct replayed {
  queue* stream;
  std::shared_ptr<std::unique_ptr<work_list>> graph = std::make_shared<std::unique_ptr<work_list>>();

  template <class F>
  void operator()(F&& enqueue) const {
    if (*graph == nullptr) {
      const std::size_t allocations = stream->allocations(), syncs = stream->syncs();
      stream->begin_capture();
      enqueue();
      *graph = std::make_unique<work_list>(stream->end_capture());
      REQUIRE(stream->allocations() == allocations);
      REQUIRE(stream->syncs() == syncs);
    }
    stream->launch(**graph);
  }
};

template <class E>
void live(std::uint64_t seed) {
  random_source random(seed);
  std::uint64_t hits = 0;
  for (int i = 0; i < 12; ++i) {
    queue stream;
    const block_life settings = random_block_life(random);
    block_cache_life<E, queued_policy, replayed> life({&stream}, settings, random.bits(), {&stream});
    REQUIRE(life.run(60) == "");
    hits += life.hits();
  }
  CHECK(hits > 1000);
}
}  // namespace

TEST_CASE("queued: block caches live the model's lives, by LFU") { live<pqkv::eviction::lfu>(0xb10c5); }
TEST_CASE("queued: block caches live the model's lives, by LRU") { live<pqkv::eviction::lru>(0xb10c6); }
TEST_CASE("queued: block caches live the model's lives, by TinyLFU") { live<pqkv::eviction::tiny_lfu>(0xb10c7); }
