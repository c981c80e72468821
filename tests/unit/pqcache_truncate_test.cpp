// SPDX-License-Identifier: Apache-2.0
// A slot that is cut goes on as one that never had the tokens, to the bit: on either path, with and without merges between, one slot or
// several; below its prompt it is the plain model's with the codebook it had; to nothing it is a fresh one.
#include <doctest/doctest.h>

#include <utility>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::search_path;
using cache_type = pqkv::pqcache<>;
const pqkv::exec::host<> cpu;

cache_type::params params_of(search_path path, std::size_t fine = 0) {
  auto p = pq_params(1, 2, 4, 32, 500, 4, 12, 20);
  p.selector.path = path;
  p.selector.tail_tokens = 7;
  p.selector.refresh = 0;  // a training in between is another matter
  if (fine != 0) p.selector.residual = {.subspaces = fine, .bits = 4, .shortlist = 3};
  return p;
}

/// Several tokens for slot 0 at once.
template <class Cache>
void append_many(Cache& cache, std::uint32_t count, std::uint64_t seed) {
  const auto& p = cache.parameters();
  const auto keys = make_rows<float>(content::clustered, count, p.kv_heads, p.head_dim, seed),
             values = make_rows<float>(content::gaussian, count, p.kv_heads, p.head_dim, seed + 1000);
  const std::uint32_t slot = 0;
  cache.append(cpu, keys.view(), values.view(), {.slots = pqkv::make_view(&slot, 1), .counts = pqkv::make_view(&std::as_const(count), 1)});
}
}  // namespace

TEST_CASE("truncate: a draft that is rejected leaves no trace, whatever was merged between") {
  random_source random(0x79c);
  for (const search_path path : {search_path::scan, search_path::joint})
    for (const std::size_t fine : {0u, 4u})
      for (std::size_t budget = 0; budget < 3; ++budget) {
        auto p = params_of(path, fine);
        if (budget == 1) p.budget = {.ratio = 0.3, .min_tokens = 20, .sinks = 3, .window_share = 0.5};
        if (budget == 2) p.budget = {.ratio = 0.3, .min_tokens = 20, .sinks = 3, .growth = pqkv::budget_growth::frozen_at_prompt};
        cache_type cut(p), never(p);
        const prompt given(2, 150, 32, random.bits(), content::clustered);
        prefill(cpu, cut, 0, given), prefill(cpu, never, 0, given);
        std::size_t cuts = 0;
        while (never.size(0) < 400) {
          const auto kept = static_cast<std::uint32_t>(1 + random.below(12));
          const std::size_t rejected = random.below(3) == 0 ? random.below(90) : random.below(9);
          const std::uint64_t seed = random.bits();
          append_many(cut, kept, seed);
          if (random.below(3) == 0) cut.maintain(cpu);
          if (rejected != 0) append_many(cut, static_cast<std::uint32_t>(rejected), seed + 1);
          if (random.below(3) == 0) cut.maintain(cpu);  // ids of rejected tokens may be in the lists
          if (random.below(2) == 0) ask(cpu, cut, random_query(cut, seed));
          append_many(never, kept, seed);
          cut.truncate(cpu, 0, never.size(0));
          if (random.below(4) == 0) cut.maintain(cpu);
          if (random.below(4) == 0) never.maintain(cpu);
          cuts += rejected != 0 ? 1 : 0;
          REQUIRE(cut.size(0) == never.size(0));
          REQUIRE(cut.middle(0).end == never.middle(0).end);
          const std::vector<float> query = random_query(cut, seed);
          REQUIRE((ask(cpu, cut, query) == ask(cpu, never, query)));
        }
        CHECK(cuts > 5);
      }
}

TEST_CASE("truncate: a slot that is copied and cut is one that was copied when it was shorter") {
  auto p = params_of(search_path::joint);
  p.batch = 3;
  cache_type cache(p);
  const prompt given(2, 150, 32, 3);
  prefill(cpu, cache, 0, given);
  append_many(cache, 30, 5);
  cache.fork(cpu, 0, 1);
  append_many(cache, 80, 6);
  cache.maintain(cpu);
  cache.truncate(cpu, 0, 180);
  cache.fork(cpu, 0, 2);  // a copy of lists that hold ids of tokens that were cut off
  for (std::uint64_t step = 0; step < 60; ++step) {
    std::vector<float> query = random_query(cache, step);
    for (const std::size_t slot : {1u, 2u}) std::copy_n(query.begin(), 128, query.begin() + static_cast<std::ptrdiff_t>(slot * 128));
    const reply r = ask(cpu, cache, query);
    for (const std::size_t slot : {1u, 2u}) {
      CHECK(r.list(2 * slot) == r.list(0));
      CHECK(r.list(2 * slot + 1) == r.list(1));
      REQUIRE(std::equal(r.out.begin(), r.out.begin() + 128, r.out.begin() + static_cast<std::ptrdiff_t>(slot * 128)));
    }
    const auto keys = make_rows<float>(content::gaussian, 1, 2, 32, step);
    const pqkv::view<const float, 3> same{keys.view().data, {3, 2, 32}, {0, 32, 1}};
    cache.append(cpu, same, same);
    if (step == 40) cache.maintain(cpu);
  }
}

TEST_CASE("truncate: below the prompt the lists are the plain model's, by the codebook that is there") {
  random_source random(0x79d);
  for (const search_path path : {search_path::scan, search_path::joint})
    for (const std::size_t length : {0u, 1u, 4u, 16u, 17u, 60u, 199u, 200u}) {
      const auto p = params_of(path);
      cache_type cache(p);
      prompt given(2, 200, 32, random.bits());
      prefill(cpu, cache, 0, given);
      slot_model<float> model(2, 32, p.budget);
      model.add(given.keys.view(), given.values.view());
      model.end_prompt();
      model.commit();
      model.train(p.selector);
      cache.truncate(cpu, 0, length);
      model.truncate(length);
      for (std::uint64_t step = 0; step < 60; ++step) {
        REQUIRE(cache.size(0) == model.size());
        REQUIRE(cache.middle(0).begin == model.first());
        REQUIRE(cache.middle(0).end == model.window_begin());
        const std::vector<float> query = random_query(cache, step);
        const reply r = ask(cpu, cache, query);
        const auto wanted = model.lists(query, p.selector);
        REQUIRE(r.list(0) == wanted[0]);
        REQUIRE(r.list(1) == wanted[1]);
        for (std::size_t q = 0; q < 4; ++q)
          REQUIRE(relative_error(r.out.data() + q * 32, model.attend(query, q, wanted[q / 2]).out) < 1e-5);
        auto keys = make_rows<float>(content::gaussian, 2, 1, 32, step);
        const pqkv::view<const float, 3> token{keys.view().data, {1, 2, 32}, {0, 32, 1}};
        cache.append(cpu, token, token);
        model.add(keys.view(), keys.view());
        model.commit();
      }
    }
}

TEST_CASE("truncate: cut to nothing a slot takes a prompt like a new one, and its statistics go on") {
  for (const search_path path : {search_path::scan, search_path::joint}) {
    cache_type cache(params_of(path)), fresh(params_of(path));
    prefill(cpu, cache, 0, prompt(2, 250, 32, 8));
    append_many(cache, 40, 2);
    cache.maintain(cpu);
    ask(cpu, cache, random_query(cache, 1));
    cache.truncate(cpu, 0, 0);
    CHECK(cache.size(0) == 0);
    CHECK(cache.at(0).learned == 0);
    CHECK(cache.statistics(0).steps == 1);
    CHECK(ask(cpu, cache, random_query(cache, 1)).lse[0] == -INFINITY);
    const prompt given(2, 120, 32, 9);
    prefill(cpu, cache, 0, given), prefill(cpu, fresh, 0, given);
    for (std::uint64_t step = 0; step < 40; ++step) {
      append_random(cpu, cache, step), append_random(cpu, fresh, step);
      if (step == 20) cache.maintain(cpu);
      const std::vector<float> query = random_query(cache, step);
      REQUIRE((ask(cpu, cache, query) == ask(cpu, fresh, query)));
    }
    // One that begins with single tokens instead is trained when it has enough, as a fresh one is.
    cache.truncate(cpu, 0, 0), fresh.reset(0);
    for (std::uint64_t step = 0; step < 60; ++step) {
      append_random(cpu, cache, step), append_random(cpu, fresh, step);
      cache.maintain(cpu), fresh.maintain(cpu);
      const std::vector<float> query = random_query(cache, step);
      REQUIRE(cache.at(0).learned == fresh.at(0).learned);
      REQUIRE((ask(cpu, cache, query) == ask(cpu, fresh, query)));
    }
    CHECK(cache.at(0).learned == 1);
  }
}

TEST_CASE("truncate: several slots by lengths in memory, as one after the other; none where none is named") {
  auto p = params_of(search_path::joint);
  p.batch = 4;
  cache_type together(p), apart(p);
  for (std::size_t slot = 0; slot < 4; ++slot)
    for (cache_type* cache : {&together, &apart}) prefill(cpu, *cache, slot, prompt(2, 60 + 40 * slot, 32, slot));
  const std::vector<std::uint32_t> slots = {3, 0, 2}, lengths = {150, 60, 21}, all = {50, 90, 20, 0};
  together.truncate(cpu, pqkv::make_view(lengths.data(), 3), pqkv::make_view(slots.data(), 3));
  for (std::size_t i = 0; i < 3; ++i) apart.truncate(cpu, slots[i], lengths[i]);
  const std::vector<float> query = random_query(together, 1);
  CHECK((ask(cpu, together, query) == ask(cpu, apart, query)));
  CHECK(together.size(1) == 100);
  together.truncate(cpu, pqkv::make_view(all.data(), 4));
  for (std::size_t slot = 0; slot < 4; ++slot) apart.truncate(cpu, slot, all[slot]);
  CHECK((ask(cpu, together, query) == ask(cpu, apart, query)));
  CHECK(together.size(3) == 0);
  // A step that rejects nothing of nobody: lengths without memory must not stand for slot 0.
  together.truncate(cpu, pqkv::view<const std::uint32_t, 1>{nullptr, {0}, {1}}, pqkv::make_view(slots.data(), 0));
  for (std::size_t slot = 0; slot < 4; ++slot) CHECK(together.size(slot) == all[slot]);
}

TEST_CASE("truncate: dense attention, sinks and window alone, and exact scores are cut too") {
  const auto check = []<class Selector>(Selector*) {
    using of_selector = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>, Selector>;
    const auto p = cache_params<of_selector>(1, 2, 4, 32, 400, 4, 12, 20);
    of_selector cut(p), never(p);
    const prompt given(2, 150, 32, 3);
    prefill(cpu, cut, 0, given), prefill(cpu, never, 0, given);
    for (std::uint64_t step = 0; step < 30; ++step) {
      append_many(cut, 5, step), append_many(never, 5, step);
      append_many(cut, 7, step + 500);
      cut.truncate(cpu, 0, never.size(0));
      const std::vector<float> query = random_query(cut, step);
      REQUIRE((ask(cpu, cut, query) == ask(cpu, never, query)));
    }
  };
  check(static_cast<pqkv::selector::full*>(nullptr));
  check(static_cast<pqkv::selector::streaming*>(nullptr));
  check(static_cast<pqkv::selector::oracle*>(nullptr));
}
