// SPDX-License-Identifier: Apache-2.0
// Block caches against plain models of the rules over random lives, for every policy, block size and capacity; steps worked out by hand;
// what is refused; no allocation.
#include <doctest/doctest.h>

#include <pqkv/detail/host/block_cache.hpp>
#include <pqkv/detail/host/memory.hpp>
#include <pqkv/detail/host/sync.hpp>

#include "cases/allocation_count.hpp"
#include "cases/block_cache_life.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using u32 = std::uint32_t;
using host = pqkv::exec::host<>;

/// One cache, and a step of one list: what is found, then what is let in.
template <class E>
struct one_cache {
  pqkv::block_cache_shape shape;
  pqkv::block_cache<E> owner{host{}, shape};

  std::vector<std::int32_t> lookup(const std::vector<std::int32_t>& tokens) const {
    std::vector<std::int32_t> places(tokens.size());
    const std::vector<u32> count{static_cast<u32>(tokens.size())};
    pqkv::lookup_blocks(host{}, owner.view(), {pqkv::make_view(tokens.data(), 1, tokens.size()), pqkv::make_view(count.data(), 1), {}},
                        pqkv::make_view(places.data(), 1, places.size()));
    return places;
  }
  void admit(u32 final_tokens) const { pqkv::admit_blocks(host{}, owner.view(), pqkv::make_view(&final_tokens, 1)); }
  void fill() const { pqkv::fill_blocks(host{}, owner.view()); }
  void truncate(u32 length) const { pqkv::truncate_blocks(host{}, owner.view(), pqkv::make_view(&length, 1)); }
  /// A whole step in which all rows are final.
  void step(const std::vector<std::int32_t>& tokens) const {
    lookup(tokens);
    admit(static_cast<u32>(shape.tokens));
    fill();
  }
  /// Blocks that are found, ascending.
  std::vector<u32> held() const {
    std::vector<u32> all;
    const auto one = owner.view().one(0);
    for (u32 block = 0; block < one.blocks; ++block)
      if (one.found(block) >= 0) all.push_back(block);
    return all;
  }
};
using blocks = std::vector<u32>;
using places = std::vector<std::int32_t>;

template <class E>
void live(std::uint64_t seed, std::size_t lives, std::size_t steps) {
  random_source random(seed);
  std::uint64_t hits = 0, evictions = 0;
  for (std::size_t i = 0; i < lives; ++i) {
    const block_life settings = random_block_life(random);
    block_cache_life<E, host> life({}, settings, random.bits());
    const std::string wrong = life.run(steps);
    INFO("B ", settings.shape.block_tokens, " capacity ", settings.shape.capacity_blocks, " tokens ", settings.shape.tokens, " caches ",
         settings.shape.caches);
    REQUIRE(wrong == "");
    hits += life.hits();
    evictions += life.evictions();
  }
  CHECK(hits > 100 * lives);
  CHECK(evictions > 4 * lives);
}
}  // namespace

TEST_CASE("block_cache: random lives are the model's, by LFU") { live<pqkv::eviction::lfu>(0xb10c0, 60, 120); }
TEST_CASE("block_cache: random lives are the model's, by LRU") { live<pqkv::eviction::lru>(0xb10c1, 60, 120); }
TEST_CASE("block_cache: random lives are the model's, by TinyLFU") { live<pqkv::eviction::tiny_lfu>(0xb10c2, 60, 120); }

TEST_CASE("block_cache: LFU, a few steps worked out by hand") {
  const one_cache<pqkv::eviction::lfu> cache{{.caches = 1, .tokens = 40, .block_tokens = 4, .capacity_blocks = 3, .admit_blocks = 3}};
  // Two tokens of block 4, two of 1, one of 2, one of 7; three are offered: 1 before 4, which ties, then 2 before 7.
  CHECK(cache.lookup({4, 6, 9, 16, 17, 28}) == places{-1, -1, -1, -1, -1, -1});
  cache.admit(40);
  const auto one = cache.owner.view().one(0);
  REQUIRE(one.progress->admitted == 3);
  CHECK((one.admitted[0].block == 1 && one.admitted[0].slot == 0 && one.admitted[0].evicted == -1));
  CHECK((one.admitted[1].block == 4 && one.admitted[1].slot == 1));
  CHECK((one.admitted[2].block == 2 && one.admitted[2].slot == 2));
  CHECK(cache.held() == blocks{});  // their rows are not there yet
  cache.fill();
  CHECK(cache.held() == blocks{1, 2, 4});
  // 2 rises; 8 enters: 1 and 4 were offered once, in one step, and 4 ranked behind 1 there.
  CHECK(cache.lookup({8, 11, 32, 33, 34}) == places{8, 11, -1, -1, -1});
  cache.admit(40);
  REQUIRE(one.progress->admitted == 1);
  CHECK((one.admitted[0].block == 8 && one.admitted[0].slot == 1 && one.admitted[0].evicted == 4));
  cache.fill();
  CHECK(cache.held() == blocks{1, 2, 8});
  // 5 enters where 1 was: of the two that were offered once, 8 came later.
  cache.step({20});
  CHECK(cache.held() == blocks{2, 5, 8});
  // Four new ones and three slots: the best three take all, and none of the step leaves for the fourth, which is not even offered.
  cache.step({0, 1, 12, 13, 24, 25, 36});
  CHECK(cache.held() == blocks{0, 3, 6});
  CHECK(one.statistics->hits == 2);
  CHECK(one.statistics->misses == 17);
  CHECK(one.statistics->admissions == 8);
  CHECK(one.statistics->evictions == 5);
}

TEST_CASE("block_cache: LRU lets the block go that was offered the longest ago, however often") {
  const one_cache<pqkv::eviction::lru> cache{{.caches = 1, .tokens = 9, .block_tokens = 1, .capacity_blocks = 2, .admit_blocks = 2}};
  for (int i = 0; i < 5; ++i) cache.step({3});
  cache.step({4});
  cache.step({5});
  CHECK(cache.held() == blocks{4, 5});
  cache.step({4});
  cache.step({6});
  CHECK(cache.held() == blocks{4, 6});
}

TEST_CASE("block_cache: TinyLFU keeps out what is wanted once, and lets in what is wanted more often than its victim") {
  const one_cache<pqkv::eviction::tiny_lfu> cache{
      {.caches = 1, .tokens = 2000, .block_tokens = 1, .capacity_blocks = 2, .admit_blocks = 2}};
  for (int i = 0; i < 3; ++i) cache.step({3, 4});
  for (int t = 100; t < 400; ++t) cache.step({t});  // a scan moves nothing
  CHECK(cache.held() == blocks{3, 4});
  CHECK(cache.owner.view().one(0).statistics->kept_out == 300);
  for (int i = 0; i < 3; ++i) cache.step({5});
  CHECK(cache.held() == blocks{3, 4});
  cache.step({5});  // four offers against three; 4 ranked behind 3 in every step
  CHECK(cache.held() == blocks{3, 5});
  // An age ends, which halves three to one and four to two; a scan does not pass one, but two offers do.
  for (int t = 400; t < 740; ++t) cache.step({t});
  CHECK(cache.held() == blocks{3, 5});
  cache.step({7});
  cache.step({7});
  CHECK(cache.held() == blocks{5, 7});
}

TEST_CASE("block_cache: a half-filled block is never served, nor what a cut took") {
  const one_cache<pqkv::eviction::lfu> cache{{.caches = 1, .tokens = 64, .block_tokens = 8, .capacity_blocks = 4}};
  cache.lookup({8, 9, 16, 17});
  cache.admit(23);  // block 2 has 7 of its 8 tokens
  cache.fill();
  CHECK(cache.held() == blocks{1});
  cache.lookup({16});
  cache.admit(24);
  CHECK(cache.lookup({16, 17}) == places{-1, -1});  // its rows are on the way
  cache.fill();
  CHECK(cache.lookup({16, 17}) == places{8, 9});
  cache.truncate(23);
  CHECK(cache.held() == blocks{1});
  cache.truncate(16);
  CHECK(cache.held() == blocks{1});
  cache.truncate(15);
  CHECK(cache.held() == blocks{});
}

TEST_CASE("block_cache: lookups before an admission belong to one step, and a step that fails leaves nothing") {
  const one_cache<pqkv::eviction::lfu> cache{{.caches = 1, .tokens = 64, .block_tokens = 1, .capacity_blocks = 4, .admit_blocks = 1}};
  cache.lookup({1, 2});
  cache.lookup({2, 3});
  cache.admit(64);
  pqkv::abandon_blocks(host{}, cache.owner.view());
  CHECK(cache.held() == blocks{});
  cache.lookup({5});
  pqkv::abandon_blocks(host{}, cache.owner.view());
  cache.lookup({1, 2});
  cache.lookup({2, 3});
  cache.admit(64);
  cache.fill();
  CHECK(cache.held() == blocks{2});
}

TEST_CASE("block_cache: shapes and views that do not fit are refused by name") {
  const auto made = [](pqkv::block_cache_shape shape) { pqkv::block_cache<>(host{}, shape); };
  using pqkv::value_error, pqkv::shape_error;
  CHECK(unless_refused<value_error>([&] { made({.caches = 0, .tokens = 1}); }, "block_cache: caches", 1, 0) == "");
  CHECK(unless_refused<value_error>([&] { made({}); }, "block_cache: tokens", 1, 0) == "");
  CHECK(unless_refused<value_error>([&] { made({.tokens = 9, .block_tokens = 0}); }, "block_cache: block_tokens", 1, 0) == "");
  CHECK(unless_refused<value_error>([&] { made({.tokens = 9, .block_tokens = 257}); }, "block_cache: block_tokens", 256, 257) == "");
  CHECK(unless_refused<value_error>([&] { made({.tokens = 9, .admit_blocks = 0}); }, "block_cache: admit_blocks", 1, 0) == "");
  CHECK(unless_refused<value_error>([&] { made({.tokens = 9, .admit_blocks = 1025}); }, "block_cache: admit_blocks", 1024, 1025) == "");
  CHECK(unless_refused<value_error>([&] { made({.tokens = 9, .block_tokens = 256, .capacity_blocks = 8388608}); },
                                    "block_cache: capacity_blocks", 8388607, 8388608) == "");
  const pqkv::block_cache<> owner(host{}, {.caches = 4, .tokens = 100, .capacity_blocks = 3});
  std::vector<std::int32_t> indices(60), found(60);
  std::vector<u32> counts(6), lengths(5);
  const auto tokens = [&](std::size_t lists, std::size_t rows, std::size_t each) {
    return pqkv::block_lookup<pqkv::space::host>{
        pqkv::make_view(std::as_const(indices).data(), rows, 10), pqkv::make_view(std::as_const(counts).data(), lists), {}, each};
  };
  const auto look = [&](const auto& lookup, std::size_t rows, std::size_t k) {
    pqkv::lookup_blocks(host{}, owner.view(), lookup, pqkv::make_view(found.data(), rows, k));
  };
  CHECK(unless_refused<shape_error>([&] { look(tokens(6, 6, 1), 6, 10); }, "lookup_blocks: tokens.counts.extent(0)", 4, 6) == "");
  CHECK(unless_refused<shape_error>([&] { look(tokens(4, 6, 1), 4, 10); }, "lookup_blocks: tokens.indices.extent(0)", 4, 6) == "");
  CHECK(unless_refused<shape_error>([&] { look(tokens(4, 4, 3), 4, 10); }, "lookup_blocks: cache.caches()", 3, 4) == "");
  CHECK(unless_refused<value_error>([&] { look(tokens(4, 4, 0), 4, 10); }, "lookup_blocks: tokens.caches_of_sequence", 1, 0) == "");
  CHECK(unless_refused<shape_error>([&] { look(tokens(4, 4, 1), 5, 10); }, "lookup_blocks: places.extent(0)", 4, 5) == "");
  CHECK(unless_refused<shape_error>([&] { look(tokens(4, 4, 1), 4, 9); }, "lookup_blocks: places.extent(1)", 10, 9) == "");
  const auto five = pqkv::make_view(std::as_const(lengths).data(), 5);
  CHECK(unless_refused<shape_error>([&] { pqkv::admit_blocks(host{}, owner.view(), five); }, "admit_blocks: lengths.extent(0)", 4, 5) ==
        "");
  CHECK(unless_refused<shape_error>([&] { pqkv::truncate_blocks(host{}, owner.view(), five); }, "truncate_blocks: lengths.extent(0)", 4,
                                    5) == "");
}

TEST_CASE("block_cache: nothing allocates after construction") {
  random_source random(0xb10c3);
  const one_cache<pqkv::eviction::tiny_lfu> cache{{.caches = 1, .tokens = 5000, .block_tokens = 8, .capacity_blocks = 40}};
  const auto view = cache.owner.view();
  std::vector<std::int32_t> tokens(200), found(200);
  const u32 count = 200, all = 5000;
  const std::size_t before = allocations();
  for (int step = 0; step < 300; ++step) {
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(25 * i + random.below(1 + random.below(25)));
    pqkv::lookup_blocks(host{}, view, {pqkv::make_view(std::as_const(tokens).data(), 1, 200), pqkv::make_view(&count, 1), {}},
                        pqkv::make_view(found.data(), 1, 200));
    pqkv::admit_blocks(host{}, view, pqkv::make_view(&all, 1));
    pqkv::fill_blocks(host{}, view);
  }
  CHECK(allocations() == before);
  CHECK(view.one(0).statistics->evictions > 100);
}
