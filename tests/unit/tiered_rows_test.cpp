// SPDX-License-Identifier: Apache-2.0
// A cache whose rows are in two memories selects and attends as one with all rows in memory, to the bit: every policy, block size and cache
// size, over random lives with cuts, forks, prompts in chunks, saved slots and calls that fail. What it counts, and that steps allocate
// nothing. Files that fail are tiered_file_test.cpp's.
#include <doctest/doctest.h>

#include "cases/allocation_count.hpp"
#include "cases/refusals.hpp"
#include "cases/sanitized.hpp"
#include "cases/tiered_twins.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::dense_rows, pqkv::file_rows, pqkv::tiered_rows;
using host = pqkv::space::host;
const pqkv::exec::host<> cpu;

template <class Twins>
void live(Twins& twins, std::size_t batch, std::size_t capacity, std::size_t events, random_source& random) {
  for (std::size_t slot = 0; slot < batch; ++slot) twins.prefill(slot, 1 + random.below(capacity - 30));
  for (std::size_t event = 0; event < events; ++event) {
    CAPTURE(event);
    const std::size_t slot = random.below(batch), n = twins.size(slot);
    switch (random.below(14)) {
      case 0:
        twins.fork(slot, random.below(batch));
        break;
      case 1:
        twins.maintain();
        break;
      case 2:
        if (n + 20 > capacity || n == 0) twins.prefill(slot, 1 + random.below(capacity - 1));
        break;
      case 3:
        twins.truncate(slot, n - random.below(1 + n / (1 + random.below(6))));
        break;
      case 4:
        if (random.below(3) == 0) twins.reset(slot);
        break;
      case 5:
        twins.exchange(slot);
        break;
      default:
        twins.step(random.below(2) == 0 ? 1 : 7);
    }
  }
}

/// What is counted of half of the lives may be a tenth.
constexpr std::size_t few = quick_step == 1 ? 1 : 10;

/// Lives in caches of many sizes, half of them in a quick run under a sanitizer. @return hits and evictions of all of them
template <class Rows>
std::pair<std::uint64_t, std::uint64_t> live(std::uint64_t seed, std::size_t lives) {
  if (quick_step > 1) lives /= 2;
  random_source random(seed);
  std::uint64_t hits = 0, evictions = 0;
  std::size_t ranked = 0, failed = 0;
  constexpr std::size_t block_tokens[] = {1, 2, 5, 16, 128, 256}, admits[] = {1, 4, 32};
  for (std::size_t i = 0; i < lives; ++i) {
    typename tiered_twins<Rows, pqkv::selector::pq>::dense_cache::params p;
    p.batch = 3, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 100 + random.below(300);
    p.step_queries = random.below(2) == 0 ? 0 : 5;
    p.selection = static_cast<pqkv::draft_selection>(random.below(4) == 0);
    p.budget.sinks = random.below(6), p.budget.window = 4 + random.below(12), p.budget.retrieve = 5 + random.below(20);
    p.selector.bits = 4;
    p.selector.train.iterations = 2;
    p.selector.reduction = random.below(3) == 0 ? pqkv::group_reduction::none : pqkv::group_reduction::probability_sum;
    typename Rows::params rows;
    rows.block_tokens = block_tokens[random.below(6)];
    const std::size_t sizes[] = {0, rows.block_tokens, 4 * rows.block_tokens, 60, p.capacity, p.capacity + 300};
    rows.cache_tokens = sizes[random.below(6)];
    rows.sink_tokens = random.below(12);
    rows.recent_tokens = 1 + random.below(40);
    rows.admit_blocks = admits[random.below(3)];
    if constexpr (requires { rows.slow.folder; }) rows.slow.folder = "/tmp";
    rows.missing = static_cast<pqkv::missing_rows>(i % 3);
    rows.scope = static_cast<pqkv::block_scope>(i / 2 % 2);
    CAPTURE(rows.block_tokens);
    CAPTURE(rows.cache_tokens);
    tiered_twins<Rows, pqkv::selector::pq> twins(p, rows, random.bits());
    live(twins, p.batch, p.capacity, 60, random);
    hits += twins.hits, evictions += twins.evictions, ranked += twins.ranked, failed += twins.failed;
  }
  CHECK(failed > lives);
  CHECK(ranked > 10 * lives);
  return {hits, evictions};
}
}  // namespace

TEST_CASE("tiered_rows: random lives over a file are those of memory, by LFU") {
  const auto [hits, evictions] = live<tiered_rows<file_rows<pqkv::bfloat16>, host, pqkv::eviction::lfu>>(0x71e0, 10);
  CHECK(hits > 10000 / few);
  CHECK(evictions > 15 / few);
}
TEST_CASE("tiered_rows: random lives over a file are those of memory, by LRU") {
  const auto [hits, evictions] = live<tiered_rows<file_rows<pqkv::bfloat16>, host, pqkv::eviction::lru>>(0x71e1, 10);
  CHECK(hits > 10000 / few);
  CHECK(evictions > 15 / few);
}
TEST_CASE("tiered_rows: random lives over memory are those of memory, by TinyLFU") {
  const auto [hits, evictions] = live<tiered_rows<dense_rows<pqkv::bfloat16>, host, pqkv::eviction::tiny_lfu>>(0x71e2, 10);
  CHECK(hits > 10000 / few);
  CHECK(evictions > 2 / few);
}
TEST_CASE("tiered_rows: random lives of 8-bit rows over a file are those of 8-bit rows in memory, by LFU") {
  const auto [hits, evictions] = live<tiered_rows<file_rows<pqkv::scaled_int8>, host, pqkv::eviction::lfu>>(0x71e3, 20);
  CHECK(hits > 10000 / few);
  CHECK(evictions > 15 / few);
}
TEST_CASE("tiered_rows: random lives of 8-bit rows over memory are those of 8-bit rows in one memory, by LRU") {
  const auto [hits, evictions] = live<tiered_rows<pqkv::quantized_rows<>, host, pqkv::eviction::lru>>(0x71e4, 10);
  CHECK(hits > 10000 / few);
  CHECK((evictions > 15 || few > 1));  // the first five have none
}
TEST_CASE("tiered_rows: random lives of 8-bit rows over a file are those of 8-bit rows in memory, by TinyLFU") {
  const auto [hits, evictions] = live<tiered_rows<file_rows<pqkv::scaled_int8>, host, pqkv::eviction::tiny_lfu>>(0x71e5, 20);
  CHECK(hits > 10000 / few);
  CHECK(evictions > 2 / few);
}

/// A cache of one slot and head, small enough to count rows by hand. Rows are of 16 floats, K and V together.
struct counted_cache {
  using cache_type = pqkv::pqcache<tiered_rows<dense_rows<float>>, pqkv::selector::streaming>;
  static constexpr std::size_t row_bytes = 2 * 8 * sizeof(float);

  cache_type cache;
  rows<float> given = make_rows<float>(content::gaussian, 1, 64, 8, 5);
  std::vector<float> query = std::vector<float>(8, 0.5f), out = std::vector<float>(8);

  explicit counted_cache(std::size_t recent_tokens) : cache(params(recent_tokens)) {}
  static cache_type::params params(std::size_t recent_tokens) {
    cache_type::params p;
    p.kv_heads = p.query_heads = 1, p.head_dim = 8, p.capacity = 64;
    p.budget.sinks = 2, p.budget.window = 4, p.budget.retrieve = 0;
    p.rows.sink_tokens = 2, p.rows.recent_tokens = recent_tokens, p.rows.block_tokens = 4, p.rows.cache_tokens = 8;
    return p;
  }
  void prefill(std::size_t n) { cache.prefill(cpu, 0, given.view().slice(1, 0, n), given.view().slice(1, 0, n)); }
  void append() { cache.append(cpu, given.view().slice(1, 0, 1), given.view().slice(1, 0, 1)); }
  /// Rows that came from slow memory for one more question.
  std::uint64_t attend() {
    const std::uint64_t before = cache.rows().statistics(0).slow_bytes;
    cache.attend(cpu, pqkv::make_view(std::as_const(query).data(), 1, 1, 8), pqkv::make_view(out.data(), 1, 1, 8));
    const std::uint64_t bytes = cache.rows().statistics(0).slow_bytes - before;
    CHECK(bytes % row_bytes == 0);
    return bytes / row_bytes;
  }
};

TEST_CASE("tiered_rows: rows from slow memory, counted by hand") {
  counted_cache one(8);
  one.prefill(20);
  CHECK(one.attend() == 10);  // two sinks, and the newest eight
  CHECK(one.attend() == 0);
  one.append();
  one.append();
  CHECK(one.attend() == 2);
  one.cache.truncate(cpu, 0, 17);
  CHECK(one.attend() == 5);  // tokens 9 to 13, whose places 17 to 21 had taken
  one.append();
  CHECK(one.attend() == 1);
  one.cache.truncate(cpu, 0, 9);  // behind everything that is there
  CHECK(one.attend() == 8);       // tokens 1 to 8
  one.cache.reset(0);
  CHECK(one.cache.rows().statistics(0).slow_bytes == 0);
  one.prefill(1);
  CHECK(one.attend() == 2);  // it is a sink, and one of the newest
  // A window of four where two of the newest are kept: the older half is read where it is, each time.
  counted_cache narrow(2);
  narrow.prefill(20);
  CHECK(narrow.attend() == 4 + 2);
  CHECK(narrow.attend() == 2);
  CHECK(narrow.cache.rows().statistics(0).hits == 0);
  CHECK(narrow.cache.rows().statistics(0).misses == 0);
}

TEST_CASE("tiered_rows: selected tokens are hits or misses, blocks that entered are read once, and a full cache hits always") {
  using cache_type = pqkv::pqcache<tiered_rows<dense_rows<pqkv::bfloat16>, host, pqkv::eviction::tiny_lfu>, pqkv::selector::pq>;
  cache_type::params p;
  p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 400;
  p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 30;
  p.selector.bits = 4, p.selector.train.iterations = 2;
  p.rows.sink_tokens = 4, p.rows.recent_tokens = 16, p.rows.block_tokens = 1, p.rows.cache_tokens = 400, p.rows.admit_blocks = 100;
  fault_plan plan;
  const failing_host policy{{&plan}, {}};
  cache_type cache(p);
  const auto given = make_rows<float>(content::clustered, 2, 300, 16, 3);
  cache.prefill(policy, 0, given.view(), given.view());
  std::vector<float> query(4 * 16, 0.25f), out(query.size());
  const auto q = pqkv::make_view(std::as_const(query).data(), 1, 4, 16);
  const auto attend = [&] { cache.attend(policy, q, pqkv::make_view(out.data(), 1, 4, 16)); };
  attend();
  const pqkv::tier_statistics first = cache.rows().statistics(0);
  CHECK(first.hits == 0);
  CHECK(first.misses == 60);  // two lists of thirty
  CHECK(first.admissions >= 30);
  CHECK(first.admissions <= 60);
  CHECK(first.evictions == 0);
  const std::size_t row_bytes = 2 * 16 * sizeof(pqkv::bfloat16);
  CHECK(first.slow_bytes == row_bytes * (2 * (4 + 16) + 60 + 2 * first.admissions));
  const std::size_t before = allocations();
  attend();
  CHECK(allocations() == before);
  const pqkv::tier_statistics second = cache.rows().statistics(0);
  CHECK(second.hits == 60);
  CHECK(second.misses == 60);
  CHECK(second.slow_bytes == first.slow_bytes);
  const pqkv::tier_statistics since = second.since(first);
  CHECK(since.hits == 60);
  CHECK(since.misses == 0);
  CHECK(since.slow_bytes == 0);
  CHECK(since.admissions == 0);
  CHECK(since.evictions == 0);
  CHECK(since.kept_out == 0);
  CHECK(second.hit_rate() == 0.5);
  CHECK(pqkv::tier_statistics{}.hit_rate() == 0);
  pqkv::tier_statistics sum = first;
  sum += since;
  CHECK(sum.hits == second.hits);
  CHECK(sum.misses == second.misses);
  CHECK(sum.slow_bytes == second.slow_bytes);
  CHECK(sum.admissions == second.admissions);
  cache.reset(0);
  CHECK(cache.rows().statistics(0).misses == 0);
}

TEST_CASE("tiered_rows: a head's own block cache is that of a cache which has this head alone") {
  using cache_type = pqkv::pqcache<tiered_rows<dense_rows<float>, host, pqkv::eviction::lfu>, pqkv::selector::oracle>;
  const auto params = [](std::size_t kv_heads, pqkv::block_scope scope) {
    cache_type::params p;
    p.kv_heads = kv_heads, p.query_heads = 2 * kv_heads, p.head_dim = 16, p.capacity = 400;
    p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 30;
    p.rows.sink_tokens = 4, p.rows.recent_tokens = 16, p.rows.block_tokens = 2, p.rows.cache_tokens = 60, p.rows.admit_blocks = 8;
    p.rows.scope = scope;
    return p;
  };
  cache_type both(params(2, pqkv::block_scope::head)), together(params(2, pqkv::block_scope::layer)),
      first(params(1, pqkv::block_scope::layer)), second(params(1, pqkv::block_scope::head));
  CHECK(both.rows().tiers().cache.caches() == 2);
  CHECK(together.rows().tiers().cache.caches() == 1);
  const auto of_head = [](const auto& rows, std::size_t axis, std::size_t head) { return rows.slice(axis, head, 1); };
  const auto prompt = make_rows<float>(content::clustered, 2, 300, 16, 3);
  for (cache_type* cache : {&both, &together}) cache->prefill(cpu, 0, prompt.view(), prompt.view());
  first.prefill(cpu, 0, of_head(prompt.view(), 0, 0), of_head(prompt.view(), 0, 0));
  second.prefill(cpu, 0, of_head(prompt.view(), 0, 1), of_head(prompt.view(), 0, 1));
  random_source random(7);
  std::vector<float> out(4 * 16);
  for (std::size_t step = 0; step < 60; ++step) {
    CAPTURE(step);
    const auto token = make_rows<float>(content::clustered, 1, 2, 16, random.bits()),
               query = make_rows<float>(content::gaussian, 1, 4, 16, step / 3);
    const auto answer = [&](cache_type& cache, pqkv::view<const float, 3> k, pqkv::view<const float, 3> q) {
      cache.append(cpu, k, k);
      cache.attend(cpu, q, pqkv::make_view(out.data(), 1, q.extent(1), 16));
    };
    for (cache_type* cache : {&both, &together}) answer(*cache, token.view(), query.view());
    answer(first, of_head(token.view(), 1, 0), query.view().slice(1, 0, 2));
    answer(second, of_head(token.view(), 1, 1), query.view().slice(1, 2, 2));
    if (step % 20 == 19)
      for (cache_type* cache : {&both, &together, &first, &second}) cache->truncate(cpu, 0, cache->size(0) - 40);
    pqkv::tier_statistics sum = first.rows().statistics(0);
    sum += second.rows().statistics(0);
    const pqkv::tier_statistics got = both.rows().statistics(0);
    REQUIRE(got.hits == sum.hits);
    REQUIRE(got.misses == sum.misses);
    REQUIRE(got.slow_bytes == sum.slow_bytes);
    REQUIRE(got.admissions == sum.admissions);
    REQUIRE(got.evictions == sum.evictions);
    REQUIRE(got.kept_out == sum.kept_out);
    for (std::size_t i = 0; i < 30; ++i) {
      REQUIRE(both.rows().tiers().cache_of_head(0).held[i] == first.rows().tiers().cache.one(0).held[i]);
      REQUIRE(both.rows().tiers().cache_of_head(1).held[i] == second.rows().tiers().cache.one(0).held[i]);
    }
  }
  CHECK(both.rows().statistics(0).evictions > 50);
  CHECK(both.rows().statistics(0).hits != together.rows().statistics(0).hits);
}

TEST_CASE("tiered_rows: a selector that reads sinks and window reads their copies in fast memory") {
  using cache_type = pqkv::pqcache<tiered_rows<dense_rows<float>>, pqkv::selector::pq>;
  cache_type::params p;
  p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 400;
  p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 30;
  p.selector.bits = 4, p.selector.train.iterations = 2;
  p.rows.sink_tokens = 4, p.rows.recent_tokens = 16;
  cache_type cache(p);
  const auto given = make_rows<float>(content::clustered, 2, 300, 16, 3), queries = make_rows<float>(content::gaussian, 1, 4, 16, 4);
  cache.prefill(cpu, 0, given.view(), given.view());
  std::vector<float> out(4 * 16);
  cache.attend(cpu, queries.view(), pqkv::make_view(out.data(), 1, 4, 16));  // makes the copies
  const auto selected = [&] {
    std::vector<std::int32_t> indices(2 * 300);
    std::vector<std::uint32_t> counts(2);
    cache.retrieve(cpu, queries.view(), pqkv::make_view(indices.data(), 1, 2, 300), pqkv::make_view(counts.data(), 1, 2));
    return indices;
  };
  const auto wanted = selected();
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t t = 0; t < 300; ++t)
      if (t < 4 || t >= 284)
        for (std::size_t i = 0; i < 16; ++i)
          cache.rows().view().keys(head, t, i) += static_cast<float>(100 * head) * queries.view()(0, 2, i);
  CHECK(selected() == wanted);
}

TEST_CASE("tiered_rows: a key that leaves the window is encoded from its copy in fast memory") {
  using cache_type = pqkv::pqcache<tiered_rows<dense_rows<float>>, pqkv::selector::pq>;
  std::vector<std::int32_t> selected[2];
  for (int altered = 0; altered < 2; ++altered) {
    cache_type::params p;
    p.kv_heads = 1, p.query_heads = 1, p.head_dim = 16, p.capacity = 400;
    p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 60;  // more than the best centroids' tokens
    p.selector.bits = 4, p.selector.train.iterations = 2;
    p.rows.sink_tokens = 4, p.rows.recent_tokens = 16;
    cache_type cache(p);
    const auto given = make_rows<float>(content::clustered, 1, 300, 16, 3), queries = make_rows<float>(content::gaussian, 1, 1, 16, 4),
               row = make_rows<float>(content::gaussian, 1, 1, 16, 5);
    cache.prefill(cpu, 0, given.view(), given.view());
    std::vector<float> out(16);
    cache.attend(cpu, queries.view(), pqkv::make_view(out.data(), 1, 1, 16));  // makes the copies
    for (std::size_t t = 284; altered == 1 && t < 300; ++t)  // in slow memory, where nothing reads them
      for (std::size_t i = 0; i < 16; ++i) cache.rows().view().keys(0, t, i) = 9 * queries.view()(0, 0, i);
    for (int i = 0; i < 16; ++i) cache.append(cpu, row.view(), row.view());
    selected[altered].resize(300);
    std::uint32_t count = 0;
    cache.retrieve(cpu, queries.view(), pqkv::make_view(selected[altered].data(), 1, 1, 300), pqkv::make_view(&count, 1, 1));
  }
  CHECK(selected[0] == selected[1]);
}

TEST_CASE("tiered_rows: blocks that are wanted and find no place are counted") {
  using cache_type = pqkv::pqcache<tiered_rows<dense_rows<float>>, pqkv::selector::pq>;
  cache_type::params p;
  p.kv_heads = 1, p.query_heads = 1, p.head_dim = 16, p.capacity = 200;
  p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 30;
  p.selector.bits = 4, p.selector.train.iterations = 2;
  p.rows.sink_tokens = 4, p.rows.recent_tokens = 16, p.rows.block_tokens = 1, p.rows.cache_tokens = 10;
  cache_type cache(p);
  const auto given = make_rows<float>(content::clustered, 1, 150, 16, 3);
  cache.prefill(cpu, 0, given.view(), given.view());
  std::vector<float> query(16, 0.25f), out(16);
  cache.attend(cpu, pqkv::make_view(std::as_const(query).data(), 1, 1, 16), pqkv::make_view(out.data(), 1, 1, 16));
  CHECK(cache.rows().statistics(0).admissions == 10);
  CHECK(cache.rows().statistics(0).evictions == 0);
  CHECK(cache.rows().statistics(0).kept_out == 20);  // of thirty tokens, each a block
}

TEST_CASE("tiered_rows: sizes that do not fit are refused by name") {
  using cache_type = counted_cache::cache_type;
  auto p = counted_cache::params(8);
  using pqkv::value_error;
  p.rows.recent_tokens = 0;
  CHECK(unless_refused<value_error>([&] { cache_type cache(p); }, "pqcache: rows.recent_tokens", 1, 0) == "");
  p.rows.recent_tokens = 8, p.rows.block_tokens = 0;
  CHECK(unless_refused<value_error>([&] { cache_type cache(p); }, "block_cache: block_tokens", 1, 0) == "");
  p.rows.block_tokens = 300;
  CHECK(unless_refused<value_error>([&] { cache_type cache(p); }, "block_cache: block_tokens", 256, 300) == "");
  p.rows.block_tokens = 4, p.rows.admit_blocks = 0;
  CHECK(unless_refused<value_error>([&] { cache_type cache(p); }, "block_cache: admit_blocks", 1, 0) == "");
  p.rows.admit_blocks = 1;
  CHECK(unless_refused<value_error>([&] { cache_type cache(p); }, "", 0, 0) == "accepted");
}
