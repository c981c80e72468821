// SPDX-License-Identifier: Apache-2.0
// Product quantization as a selector: which paths and indexes it keeps, that joint and scan list the same tokens through growth, forks
// and merges, that every reduction can be asked for, and that training parameters reach the trainer.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/policies.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;
using pqkv::selector::pq;
const pqkv::exec::host<> cpu;
const pqkv::cache_shape shape{.batch = 2, .kv_heads = 2, .query_heads = 4, .head_dim = 32, .capacity = 600};

pqkv::pqcache<>::params params_of(std::size_t m, unsigned bits, search_path path,
                                  group_reduction reduction = group_reduction::probability_sum) {
  auto p = pq_params(2, 2, 4, 32, 600, 4, 16, 40, m, bits);
  p.selector.path = path;
  p.selector.reduction = reduction;
  p.selector.tail_tokens = 10;
  return p;
}
}  // namespace

TEST_CASE("selector pq: joint and scan list the same tokens through growth, forks and merges") {
  for (const group_reduction reduction : every_reduction)
    for (const std::size_t m : {1u, 2u, 4u}) {
      pqkv::pqcache<> joint(params_of(m, m == 4 ? 4 : 5, search_path::joint, reduction)),
          scan(params_of(m, m == 4 ? 4 : 5, search_path::scan, reduction));
      const auto both = [&](auto change) { change(joint), change(scan); };
      both([](auto& cache) { prefill(cpu, cache, 0, prompt(2, 300, 32, 1, content::clustered)); });
      both([](auto& cache) { cache.fork(cpu, 0, 1); });
      for (std::uint64_t step = 0; step < 40; ++step) {
        both([&](auto& cache) { append_random(cpu, cache, step, {static_cast<std::uint8_t>(step % 3 != 0), 1}); });
        if (step % 17 == 16) both([](auto& cache) { cache.maintain(cpu); });
        if (step == 30) both([](auto& cache) { cache.fork(cpu, 1, 0); });
        const std::vector<float> query = random_query(joint, step);
        REQUIRE((ask(cpu, joint, query) == ask(cpu, scan, query)));
      }
    }
}

TEST_CASE("selector pq: keeps an index where it can be of use") {
  const auto bytes = [](std::size_t m, unsigned bits, search_path path, std::size_t capacity) {
    pqkv::cache_shape larger = shape;
    larger.capacity = capacity;
    return pq::index_bytes(larger, {.subspaces = m, .bits = bits, .path = path});
  };
  // 256 cells pay from 256 tokens on; asked for outright, always.
  CHECK(bytes(2, 4, search_path::automatic, 255) == bytes(2, 4, search_path::scan, 255));
  CHECK(bytes(2, 4, search_path::automatic, 256) == bytes(2, 4, search_path::joint, 256));
  CHECK(bytes(2, 4, search_path::joint, 200) > bytes(2, 4, search_path::scan, 200));
  CHECK(bytes(8, 4, search_path::automatic, 100000) == bytes(8, 4, search_path::scan, 100000));
}

TEST_CASE("selector pq: one list per query head under `none`, one per KV head otherwise") {
  CHECK(pq(cpu, shape, {.subspaces = 2, .bits = 4}).lists() == 2);
  CHECK(pq(cpu, shape, {.subspaces = 2, .bits = 4, .reduction = group_reduction::none}).lists() == 4);
}

TEST_CASE("selector pq: covers everything until it is trained, and again after a reset") {
  static_assert(pq::covers().before == pqkv::selector::coverage::everything && pq::covers().after == pqkv::selector::coverage::listed);
  pqkv::pqcache<> cache(params_of(2, 4, search_path::automatic));
  const auto given = make_rows<float>(content::gaussian, 2, 200, 32, 1);
  const auto take = [&](std::size_t n) { cache.prefill(cpu, 0, given.view().slice(1, 0, n), given.view().slice(1, 0, n)); };
  const auto listed = [&](std::size_t slot) { return cache.at(slot).learned != 0; };
  CHECK_FALSE(listed(0));
  CHECK(cache.selection().iterations(0) == 0);
  take(200);
  CHECK(listed(0));
  CHECK_FALSE(listed(1));
  CHECK(cache.selection().iterations(0) == 3);
  cache.fork(cpu, 0, 1);
  CHECK(listed(1));
  CHECK(cache.selection().iterations(1) == 3);
  cache.reset(0);
  CHECK_FALSE(listed(0));
  CHECK(cache.selection().iterations(0) == 0);
  CHECK(cache.selection().least_rows() == 16);
  take(19);  // 15 rows for 16 centroids
  CHECK_FALSE(listed(0));
  cache.reset(0);
  take(20);
  CHECK(listed(0));
  // Cut to nothing it covers everything again; cut to less than it trained on, its codebook stays.
  cache.truncate(cpu, 0, 1);
  CHECK(listed(0));
  cache.truncate(cpu, 0, 0);
  CHECK_FALSE(listed(0));
}

TEST_CASE("selector pq: seed and iterations decide the codebook, threads and slots do not") {
  const auto list_of = [&](std::uint64_t seed, std::size_t iterations, std::size_t slot, const auto& policy) {
    auto p = params_of(4, 4, search_path::scan);
    p.selector.train.seed = seed;
    p.selector.train.iterations = iterations;
    pqkv::pqcache<> cache(p);
    prefill(policy, cache, slot, prompt(2, 500, 32, 3));
    std::vector<float> query = random_query(cache, 5);
    std::copy_n(query.begin(), 128, query.begin() + 128);  // both slots are asked the same
    const reply r = ask(policy, cache, query);
    return r.list(2 * slot);
  };
  const auto base = list_of(1, 3, 0, cpu);
  CHECK(base.size() == 40);
  CHECK(list_of(1, 3, 0, cpu) == base);
  CHECK(list_of(1, 3, 1, cpu) == base);
  CHECK(list_of(1, 3, 0, pqkv::exec::host<pqkv::isa::scalar, threaded_runner>{}) == base);
  CHECK(list_of(2, 3, 0, cpu) != base);
  CHECK(list_of(1, 1, 0, cpu) != base);
}

TEST_CASE("selector pq: the inner-product metric lists by other codes, the same ones by joint and scan") {
  std::size_t differ = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    auto flat = params_of(2, 5, search_path::joint), joint = flat, scan = params_of(2, 5, search_path::scan);
    joint.selector.metric = scan.selector.metric = pqkv::key_metric::inner_product;
    pqkv::pqcache<> caches[] = {pqkv::pqcache<>(flat), pqkv::pqcache<>(joint), pqkv::pqcache<>(scan)};
    for (auto& cache : caches) prefill(cpu, cache, 0, prompt(2, 400, 32, seed));
    for (auto& cache : caches) cache.fork(cpu, 0, 1);
    for (auto& cache : caches) append_random(cpu, cache, seed);
    const std::vector<float> query = random_query(caches[0], seed);
    const auto lists = ask(cpu, caches[1], query);
    REQUIRE((lists == ask(cpu, caches[2], query)));
    differ += !(lists == ask(cpu, caches[0], query));
  }
  CHECK(differ == 10);
}

TEST_CASE("selector pq: finds clustered keys that the query points at") {
  auto p = params_of(2, 5, search_path::automatic);
  pqkv::pqcache<> cache(p);
  prompt given(2, 500, 32, 4);
  std::vector<std::int32_t> planted;
  for (std::int32_t t = 60; t < 460; t += 20) planted.push_back(t);  // 20 of 480, well inside the list of 40
  random_source random(9);
  for (const std::int32_t t : planted)
    for (std::size_t head = 0; head < 2; ++head)
      for (std::size_t i = 0; i < 32; ++i) given.keys(head, static_cast<std::size_t>(t), i) = 2.5f + 0.1f * random.gaussian();
  prefill(cpu, cache, 0, given);
  const reply r = ask(cpu, cache, std::vector<float>(2 * 4 * 32, 1.0f), {1, 0});
  for (const std::size_t head : {0u, 1u}) {
    const auto list = r.list(head);
    CHECK(std::includes(list.begin(), list.end(), planted.begin(), planted.end()));
  }
}

TEST_CASE("selector pq: with a second stage joint and scan list the same tokens through growth, forks and merges, others than without") {
  std::size_t differ = 0;
  for (const group_reduction reduction : every_reduction) {
    auto two = params_of(2, 5, search_path::joint, reduction), scanned = params_of(2, 5, search_path::scan, reduction);
    two.selector.residual = scanned.selector.residual = {.subspaces = 4, .bits = 4, .shortlist = 3};
    pqkv::pqcache<> joint(two), scan(scanned), one(params_of(2, 5, search_path::joint, reduction));
    const auto all = [&](auto change) { change(joint), change(scan), change(one); };
    all([](auto& cache) { prefill(cpu, cache, 0, prompt(2, 300, 32, 1)); });
    all([](auto& cache) { cache.fork(cpu, 0, 1); });
    for (std::uint64_t step = 0; step < 30; ++step) {
      all([&](auto& cache) { append_random(cpu, cache, step, {static_cast<std::uint8_t>(step % 3 != 0), 1}); });
      if (step % 17 == 16) all([](auto& cache) { cache.maintain(cpu); });
      const std::vector<float> query = random_query(joint, step);
      const reply lists = ask(cpu, joint, query);
      REQUIRE((lists == ask(cpu, scan, query)));
      differ += !(lists == ask(cpu, one, query));
    }
  }
  CHECK(differ == 150);
}

TEST_CASE("selector pq: normalised over sinks and window too, it lists what the public parts select") {
  std::size_t differ = 0;
  for (const search_path path : {search_path::joint, search_path::scan}) {
    auto p = params_of(2, 5, path);
    p.softmax_scale = 0.4f;
    p.selector.axes = pqkv::axis_order::contiguous;
    p.selector.over = pqkv::selector::normalisation::middle;
    pqkv::pqcache<> middle(p);
    p.selector.over = pqkv::selector::normalisation::attended;
    pqkv::pqcache<> cache(p);
    const prompt given(2, 300, 32, 1);
    for (auto* one : {&middle, &cache}) prefill(cpu, *one, 1, given);
    for (std::uint64_t step = 0; step < 10; ++step) {
      for (auto* one : {&middle, &cache}) append_random(cpu, *one, step, {0, 1});
      const std::uint32_t n = static_cast<std::uint32_t>(cache.size(1)), end = n - 16;
      const std::vector<float> query = random_query(cache, step);
      const auto asked = pqkv::make_view(query.data() + 4 * 32, 4, 32);
      const auto index = cache.selection().index().sequence(1);
      pqkv::distance_table table(4, {2, 32, 2, 5});
      pqkv::inner_product_table(cpu, asked, index.book, table.mutable_view());
      std::vector<pqkv::attended_sum> sums(4);
      const std::vector<pqkv::token_span> spans(2, {4, end, n});
      const std::vector<pqkv::middle_range> ranges(2, {4, end, 40});
      std::vector<std::uint32_t> slots = {1};
      const auto keys = cache.rows().view();
      pqkv::sum_attended(cpu, asked, pqkv::mapped_store<decltype(keys)>{keys, {pqkv::make_view(std::as_const(slots).data(), 1), 2}, 2},
                         pqkv::make_view(spans.data(), 2), pqkv::make_view(sums.data(), 4), 0.4f);
      std::vector<std::int32_t> wanted(2 * 40);
      std::vector<std::uint32_t> counts(2);
      std::vector<std::uint8_t> skipped(4);
      pqkv::retrieve(cpu, table.view(), pqkv::as_const(index.codes), {}, pqkv::make_view(ranges.data(), 2),
                     pqkv::make_view(wanted.data(), 2, 40), pqkv::make_view(counts.data(), 2), {.head_dim = 32, .scale = 0.4f},
                     pqkv::make_view(skipped.data(), 4), {}, pqkv::make_view(std::as_const(sums).data(), 4));
      const reply got = ask(cpu, cache, query, {0, 1}), without = ask(cpu, middle, query, {0, 1});
      for (std::size_t head = 0; head < 2; ++head) {
        CHECK(got.list(2 + head) == std::vector<std::int32_t>(wanted.begin() + static_cast<std::ptrdiff_t>(40 * head),
                                                              wanted.begin() + static_cast<std::ptrdiff_t>(40 * (head + 1))));
        differ += got.list(2 + head) != without.list(2 + head) ? 1 : 0;
      }
    }
    p.selector.residual = {.subspaces = 4, .bits = 4, .shortlist = 3};
    CHECK(std::string(pqkv::pqcache<>::can_construct(p).parameter) == "selector.over");
  }
  CHECK(differ > 20);  // of 40
}

TEST_CASE("selector pq: a slot is trained when both stages can be") {
  auto p = params_of(2, 4, search_path::automatic);
  p.selector.residual = {.subspaces = 4, .bits = 6};
  pqkv::pqcache<> cache(p);
  CHECK(cache.selection().least_rows() == 64);
  const auto keys = make_rows<float>(content::gaussian, 2, 200, 32, 1);
  const auto part = [&](std::size_t first, std::size_t n) { return keys.view().slice(1, first, n); };
  cache.prefill(cpu, 0, part(0, 67), part(0, 67));  // 63 rows for 64 fine centroids
  CHECK(cache.at(0).learned == 0);
  pqkv::cache_step more;
  const std::uint32_t slot = 0, count = 73;
  more.slots = pqkv::make_view(&slot, 1);
  more.counts = pqkv::make_view(&count, 1);
  const auto tokens = pqkv::view<const float, 3>{part(67, 73).data, {73, 2, 32}, {32, 200 * 32, 1}};
  cache.append(cpu, tokens, tokens, more);
  cache.maintain(cpu);  // alone in its cell a key has residual 0
  CHECK(cache.at(0).learned == 1);
  auto few = make_rows<float>(content::gaussian, 2, 200, 32, 1);  // 40 finite rows: enough for one stage, too few for the second
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t t = 40; t < 200; ++t)
      for (std::size_t i = 0; i < 32; ++i) few(head, t, i) = nonfinite(t + i);
  cache.reset(0);
  cache.prefill(cpu, 0, few.view(), few.view());
  CHECK(cache.at(0).learned == 0);
}

TEST_CASE("selector pq: what it keeps on the host is counted from") {
  // maintain() merges a tail of at least tail_tokens, also after a cut, a fork and a reset: the lists do not change by it.
  auto p = params_of(2, 4, search_path::joint);
  p.selector.tail_tokens = 5;
  p.selector.refresh = 0;  // a renewal does change them
  pqkv::pqcache<> merged(p), never(p);
  const auto both = [&](auto change) { change(merged), change(never); };
  both([](auto& cache) { prefill(cpu, cache, 0, prompt(2, 200, 32, 1)), prefill(cpu, cache, 1, prompt(2, 150, 32, 2)); });
  random_source random(3);
  std::size_t merges = 0;
  for (std::uint64_t step = 0; step < 120; ++step) {
    const std::size_t what = random.below(8), cut = random.below(12);
    both([&](auto& cache) {
      if (what == 0) cache.truncate(cpu, 0, cache.size(0) - std::min(cut, cache.size(0)));
      if (what == 1) cache.fork(cpu, 0, 1);
      if (what == 2) cache.fork(cpu, 1, 0);
      append_random(cpu, cache, step);
    });
    const auto before = merged.selection().index().index.merged(0);
    merged.maintain(cpu);
    merges += merged.selection().index().index.merged(0) != before ? 1 : 0;
    const std::vector<float> query = random_query(merged, step);
    REQUIRE((ask(cpu, merged, query) == ask(cpu, never, query)));
  }
  CHECK(merges > 10);
}
