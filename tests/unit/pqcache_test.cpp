// SPDX-License-Identifier: Apache-2.0
// The life of a pqcache: chunks, slots, forks, resets, a codebook that comes late, tokens that leave the window and are found again.
// Random lives against a plain model are property/pqcache_test.cpp.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::search_path;
using pqkv::exec::host;
using cache_type = pqkv::pqcache<>;
const host<> cpu;

bool holds(const std::vector<std::int32_t>& list, std::size_t t) {
  return std::find(list.begin(), list.end(), static_cast<std::int32_t>(t)) != list.end();
}

/// The part of a reply that belongs to a slot.
std::vector<float> out_of(const reply& r, const cache_type& cache, std::size_t slot) {
  const std::size_t size = cache.parameters().query_heads * cache.parameters().head_dim;
  return {r.out.begin() + static_cast<std::ptrdiff_t>(slot * size), r.out.begin() + static_cast<std::ptrdiff_t>((slot + 1) * size)};
}

/// One token for slot 0 of a batch of one: the same row in every head.
void append_row(cache_type& cache, const std::vector<float>& key, const std::vector<float>& value) {
  const std::size_t h = cache.parameters().kv_heads, d = key.size();
  const pqkv::view<const float, 3> keys{key.data(), {1, h, d}, {0, 0, 1}}, values{value.data(), {1, h, d}, {0, 0, 1}};
  cache.append(cpu, keys, values);
}
}  // namespace

TEST_CASE("pqcache: a prompt in chunks gives the bits of a whole one") {
  for (const std::size_t chunk_tokens : {1u, 7u, 64u, 199u, 200u}) {
    cache_type whole(pq_params(1, 2, 4, 32, 300, 4, 16, 20)), chunked(whole.parameters());
    prompt given(2, 200, 32, 5);
    prefill(cpu, whole, 0, given);
    for (std::size_t first = 0; first < 200; first += chunk_tokens) {
      const std::size_t count = std::min(chunk_tokens, 200 - first);
      chunked.prefill(cpu, 0, given.keys.view().slice(1, first, count), given.values.view().slice(1, first, count),
                      first + count == 200 ? pqkv::chunk::last : pqkv::chunk::more);
      CHECK(chunked.size(0) == first + count);
    }
    for (std::uint64_t step = 0; step < 30; ++step) {
      append_random(cpu, whole, step);
      append_random(cpu, chunked, step);
      const std::vector<float> query = random_query(whole, step);
      REQUIRE((ask(cpu, whole, query) == ask(cpu, chunked, query)));
    }
  }
}

TEST_CASE("pqcache: a prompt ended by an empty chunk, and an empty prompt") {
  cache_type cache(pq_params(1, 1, 1, 16, 100, 2, 4, 8)), whole(cache.parameters());
  prompt given(1, 60, 16, 5);
  prefill(cpu, whole, 0, given);
  cache.prefill(cpu, 0, given.keys.view(), given.values.view(), pqkv::chunk::more);
  cache.prefill(cpu, 0, given.keys.view().slice(1, 0, 0), given.values.view().slice(1, 0, 0), pqkv::chunk::last);
  const std::vector<float> query = random_query(cache, 1);
  CHECK((ask(cpu, cache, query) == ask(cpu, whole, query)));

  cache_type empty(cache.parameters());
  empty.prefill(cpu, 0, given.keys.view().slice(1, 0, 0), given.values.view().slice(1, 0, 0));
  CHECK(empty.size(0) == 0);
  const reply nothing = ask(cpu, empty, query);
  for (const float x : nothing.out) CHECK(x == 0.0f);
  CHECK(nothing.lse[0] == -INFINITY);
  prefill(cpu, empty, 0, given);  // still an empty slot
  CHECK((ask(cpu, empty, query) == ask(cpu, whole, query)));
}

TEST_CASE("pqcache: a list of none is streaming attention, one that holds the middle is dense") {
  const prompt given(2, 150, 32, 6);
  const auto reply_of = [&](auto& cache) {
    cache.prefill(cpu, 0, given.keys.view(), given.values.view());
    for (std::uint64_t step = 0; step < 5; ++step) append_random(cpu, cache, step);
    return ask(cpu, cache, random_query(cache, 9));
  };
  cache_type none(pq_params(1, 2, 4, 32, 200, 4, 16, 0)), all(pq_params(1, 2, 4, 32, 200, 4, 16, 135)),
      most(pq_params(1, 2, 4, 32, 200, 4, 16, 134));
  pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::streaming> streaming(
      cache_params<pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::streaming>>(1, 2, 4, 32, 200, 4, 16, 50));
  pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::full> full(
      cache_params<pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::full>>(1, 2, 4, 32, 200, 4, 16, 50));
  CHECK((reply_of(none) == reply_of(streaming)));
  const reply dense = reply_of(full);
  CHECK((reply_of(all) == dense));
  CHECK(reply_of(most).out != dense.out);
}

TEST_CASE("pqcache: every token is in exactly one class at every step, and what left the window can be retrieved") {
  for (const search_path path : {search_path::scan, search_path::joint}) {
    auto p = pq_params(1, 2, 2, 16, 400, 4, 10, 6);
    p.selector.path = path;
    p.selector.tail_tokens = 20;
    cache_type cache(p);
    prefill(cpu, cache, 0, prompt(2, 90, 16, 7));
    std::size_t planted = 0, found = 0, looked = 0;
    const std::vector<float> value(16, 1.0f);
    for (std::size_t step = 0; step < 250; ++step) {
      const std::size_t t = cache.size(0);
      if (step == 40) {
        planted = t;
        append_row(cache, std::vector<float>(16, 3.0f), value);
      } else {
        append_random(cpu, cache, step);
      }
      if (step % 30 == 29) cache.maintain(cpu);
      REQUIRE(cache.size(0) == t + 1);
      const pqkv::middle_range middle = cache.middle(0);
      REQUIRE(middle.begin == 4);
      REQUIRE(middle.end == t + 1 - 10);
      if (planted == 0 || planted >= middle.end) continue;
      ++looked;  // from its first step outside the window on
      const std::vector<float> query(32, 2.0f);
      const reply r = ask(cpu, cache, query);
      found += holds(r.list(0), planted) && holds(r.list(1), planted) ? 1 : 0;
    }
    CHECK(looked == 250 - 40 - 10);
    CHECK(found == looked);
  }
}

TEST_CASE("pqcache: two forks go their own ways, and the original is not touched") {
  cache_type cache(pq_params(3, 2, 4, 32, 300, 4, 16, 20)), alone(pq_params(1, 2, 4, 32, 300, 4, 16, 20));
  prompt given(2, 200, 32, 5);
  prefill(cpu, cache, 0, given);
  prefill(cpu, alone, 0, given);
  const std::vector<float> query = random_query(alone, 3);
  std::vector<float> three;
  for (int i = 0; i < 3; ++i) three.insert(three.end(), query.begin(), query.end());
  cache.fork(cpu, 0, 1);
  cache.fork(cpu, 1, 2);
  const reply before = ask(cpu, cache, three);
  CHECK(out_of(before, cache, 1) == out_of(before, cache, 0));
  CHECK(out_of(before, cache, 2) == out_of(before, cache, 0));
  CHECK(cache.statistics(1).steps == 1);  // statistics are copied, then count for themselves
  for (std::uint64_t step = 0; step < 40; ++step) append_random(cpu, cache, step, {0, 1, 0});
  for (std::uint64_t step = 0; step < 20; ++step) append_random(cpu, cache, 100 + step, {0, 0, 1});
  cache.reset(1);
  const reply after = ask(cpu, cache, three);
  CHECK(out_of(after, cache, 0) == out_of(before, cache, 0));
  CHECK(out_of(after, cache, 2) != out_of(before, cache, 2));
  CHECK(cache.size(0) == 200);
  CHECK(cache.size(1) == 0);
  CHECK(cache.size(2) == 220);
  CHECK(out_of(ask(cpu, alone, query), alone, 0) == out_of(after, cache, 0));
  cache.fork(cpu, 0, 0);
  CHECK(cache.size(0) == 200);
  cache.fork(cpu, 1, 2);  // an empty one over a full one
  CHECK(cache.size(2) == 0);
}

TEST_CASE("pqcache: a reset slot is as good as new") {
  cache_type cache(pq_params(1, 2, 4, 32, 300, 4, 16, 20)), fresh(cache.parameters());
  prefill(cpu, cache, 0, prompt(2, 250, 32, 8));
  for (std::uint64_t step = 0; step < 20; ++step) append_random(cpu, cache, step);
  ask(cpu, cache, random_query(cache, 1));
  cache.reset(0);
  CHECK(cache.statistics(0).steps == 0);
  const prompt given(2, 120, 32, 9);
  prefill(cpu, cache, 0, given);
  prefill(cpu, fresh, 0, given);
  for (std::uint64_t step = 0; step < 30; ++step) {
    append_random(cpu, cache, step);
    append_random(cpu, fresh, step);
    REQUIRE((ask(cpu, cache, random_query(cache, step)) == ask(cpu, fresh, random_query(fresh, step))));
  }
}

TEST_CASE("pqcache: below c rows attention is dense; maintain() trains once there are enough") {
  const auto p = pq_params(1, 2, 2, 16, 400, 4, 10, 12);  // c = 16
  cache_type cache(p);
  pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::full> full(
      cache_params<pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::full>>(1, 2, 2, 16, 400, 4, 10, 12));
  const prompt given(2, 19, 16, 1);  // 15 behind the sinks
  prefill(cpu, cache, 0, given);
  prefill(cpu, full, 0, given);
  for (std::uint64_t step = 0; step < 120; ++step) {
    append_random(cpu, cache, step);
    append_random(cpu, full, step);
    REQUIRE(cache.retrieve_capacity(0) == cache.middle(0).size());
    REQUIRE((ask(cpu, cache, random_query(cache, step)) == ask(cpu, full, random_query(full, step))));
  }
  cache.maintain(cpu);
  CHECK(cache.retrieve_capacity(0) == 12);
  slot_model<float> model(2, 16, p.budget);
  const auto stored = cache.store();
  model.add(stored.keys.slice(1, 0, 139), stored.values.slice(1, 0, 139));
  model.commit();
  model.train(p.selector);
  const std::vector<float> query = random_query(cache, 77);
  const reply r = ask(cpu, cache, query);
  const auto wanted = model.lists(query, p.selector);
  CHECK(r.list(0) == wanted[0]);
  CHECK(r.list(1) == wanted[1]);

  // One dead head, as padding or pruning leaves it, holds nobody back: the others' lists are those of a cache without it.
  prompt some(2, 100, 16, 3);
  for (std::size_t t = 0; t < 100; ++t)
    for (std::size_t i = 0; i < 16; ++i) some.keys(1, t, i) = 0;
  cache_type dead(p), alive(p);
  prefill(cpu, alive, 0, prompt(2, 100, 16, 3));
  prefill(cpu, dead, 0, some);
  REQUIRE(dead.statistics(0).trainings == 1);
  CHECK(dead.retrieve_capacity(0) == 12);
  for (std::uint64_t step = 0; step < 5; ++step) {
    const std::vector<float> asked = random_query(dead, step);
    CHECK(ask(cpu, dead, asked).list(0) == ask(cpu, alive, asked).list(0));
    CHECK(ask(cpu, dead, asked).list(1).size() == 12);
  }
  dead.maintain(cpu);
  CHECK(dead.statistics(0).trainings == 1);  // not again and again

  // A sequence that begins with single tokens gets there as well.
  cache_type grown(p);
  for (std::uint64_t step = 0; step < 100; ++step) {
    append_random(cpu, grown, step);
    grown.maintain(cpu);
  }
  CHECK(grown.retrieve_capacity(0) == 12);
}

TEST_CASE("pqcache: the same lists on every instruction set, path and runner, and the same attention to 1e-5") {
  auto p = pq_params(2, 2, 8, 64, 1500, 4, 16, 60, 2, 5);
  std::vector<reply> replies;
  const auto live = [&](const auto& policy, search_path path) {
    p.selector.path = path;
    cache_type cache(p);
    prefill(policy, cache, 0, prompt(2, 1400, 64, 5, content::clustered));
    prefill(policy, cache, 1, prompt(2, 300, 64, 6, content::offset));
    for (std::uint64_t step = 0; step < 20; ++step) append_random(policy, cache, step);
    replies.push_back(ask(policy, cache, random_query(cache, 4)));
  };
  for_each_isa([&](auto isa) {
    live(host<decltype(isa)>{}, search_path::scan);
    live(host<decltype(isa)>{}, search_path::joint);
  });
  live(host<pqkv::isa::best, threaded_runner>{}, search_path::automatic);
  live(host<pqkv::isa::best, threaded_runner>{}, search_path::joint);
  for (const reply& r : replies) {
    CHECK(r.indices == replies[0].indices);
    CHECK(r.counts == replies[0].counts);
    for (std::size_t i = 0; i < r.out.size(); i += 64) {
      const std::vector<double> wanted(replies[0].out.begin() + static_cast<std::ptrdiff_t>(i),
                                       replies[0].out.begin() + static_cast<std::ptrdiff_t>(i + 64));
      CHECK(relative_error(r.out.data() + i, wanted) < (i < 8 * 64 ? 1e-5 : 1e-3));  // large offsets in slot 1's keys
    }
  }
}

TEST_CASE("pqcache: inactive slots are neither read nor written") {
  cache_type cache(pq_params(3, 1, 2, 16, 100, 2, 4, 8));
  for (const std::size_t slot : {0u, 1u, 2u}) prefill(cpu, cache, slot, prompt(1, 50 + slot, 16, slot));
  std::vector<float> query = random_query(cache, 1);
  for (std::size_t i = 32; i < 64; ++i) query[i] = std::numeric_limits<float>::quiet_NaN();
  const reply r = ask(cpu, cache, query, {1, 0, 1});
  for (std::size_t i = 0; i < 32; ++i) {
    CHECK(std::isfinite(r.out[i]));
    CHECK(r.out[32 + i] == 77.0f);
    CHECK(std::isfinite(r.out[64 + i]));
  }
  CHECK(r.lse[2] == 77.0f);
  for (std::size_t i = 0; i < r.k_max; ++i) CHECK(r.indices[r.k_max + i] == -7);
  CHECK(cache.statistics(1).steps == 0);
  CHECK(cache.statistics(1).nonfinite_queries == 0);
  append_random(cpu, cache, 5, {0, 1, 0});
  CHECK(cache.size(0) == 50);
  CHECK(cache.size(1) == 52);
  CHECK(cache.size(2) == 52);
}

TEST_CASE("pqcache: every step of a batch equals the steps of its slots alone") {
  const std::size_t lengths[] = {40, 200, 7};
  cache_type batch(pq_params(3, 2, 6, 24, 260, 3, 9, 15));
  std::vector<cache_type> alone;
  for (std::size_t slot = 0; slot < 3; ++slot) {
    alone.emplace_back(pq_params(1, 2, 6, 24, 260, 3, 9, 15));
    prefill(cpu, batch, slot, prompt(2, lengths[slot], 24, slot));
    prefill(cpu, alone[slot], 0, prompt(2, lengths[slot], 24, slot));
  }
  for (std::uint64_t step = 0; step < 25; ++step) {
    const auto keys = make_rows<float>(content::gaussian, 3, 2, 24, step),
               values = make_rows<float>(content::gaussian, 3, 2, 24, step + 1000);
    batch.append(cpu, keys.view(), values.view());
    const std::vector<float> query = random_query(batch, step);
    const reply all = ask(cpu, batch, query);
    for (std::size_t slot = 0; slot < 3; ++slot) {
      alone[slot].append(cpu, keys.view().slice(0, slot, 1), values.view().slice(0, slot, 1));
      const std::vector<float> own(query.begin() + static_cast<std::ptrdiff_t>(slot * 144),
                                   query.begin() + static_cast<std::ptrdiff_t>((slot + 1) * 144));
      const reply one = ask(cpu, alone[slot], own);
      REQUIRE(out_of(one, alone[slot], 0) == out_of(all, batch, slot));
      REQUIRE(one.list(1) == all.list(2 * slot + 1));
    }
  }
}
