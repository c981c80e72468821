// SPDX-License-Identifier: Apache-2.0
// Steps of several tokens a row equal the same tokens one by one; queries and outputs of every type and layout are the contiguous floats'
// own, rounded once; a scale of the caller's reaches selection and attention alike. Cuts are pqcache_truncate_test.cpp's.
#include <doctest/doctest.h>

#include <utility>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;
using pqkv::exec::host;
const host<> cpu;

/// What retrieve() and attend() answer to the tokens of a step.
struct step_reply {
  std::vector<std::vector<std::int32_t>> lists;  // [tokens * lists]
  std::vector<float> out, lse;

  void add(const step_reply& more) {
    lists.insert(lists.end(), more.lists.begin(), more.lists.end());
    out.insert(out.end(), more.out.begin(), more.out.end());
    lse.insert(lse.end(), more.lse.begin(), more.lse.end());
  }
};
template <class Policy, class Cache>
step_reply ask_step(const Policy& policy, Cache& cache, pqkv::view<const float, 3> query, const pqkv::cache_step& step) {
  const auto& p = cache.parameters();
  const std::size_t tokens = query.extent(0), lists = cache.lists(), k_max = p.capacity;
  std::vector<std::int32_t> indices(tokens * lists * k_max, -7);
  std::vector<std::uint32_t> counts(tokens * lists, 77);
  step_reply r;
  r.out.assign(tokens * p.query_heads * p.head_dim, 77.0f), r.lse.assign(tokens * p.query_heads, 77.0f);
  cache.retrieve(policy, query, pqkv::make_view(indices.data(), tokens, lists, k_max), pqkv::make_view(counts.data(), tokens, lists), step);
  cache.attend(policy, query, pqkv::make_view(r.out.data(), tokens, p.query_heads, p.head_dim),
               pqkv::make_view(r.lse.data(), tokens, p.query_heads), step);
  for (std::size_t list = 0; list < counts.size(); ++list) {
    const auto first = indices.begin() + static_cast<std::ptrdiff_t>(list * k_max);
    r.lists.emplace_back(first, first + static_cast<std::ptrdiff_t>(counts[list]));
  }
  return r;
}

struct row {
  std::uint32_t slot, count;
};

/// One life in ragged steps and its twin in single tokens: the same answers, the same statistics.
template <class Policy, class Rows, class Selector>
std::size_t compare_with_singles(const Policy& policy, const typename pqkv::pqcache<Rows, Selector>::params& p, std::uint64_t seed) {
  random_source random(seed);
  pqkv::pqcache<Rows, Selector> ragged(p), singly(p);
  const std::size_t prompts[] = {0, 200, 60};
  for (std::size_t slot = 0; slot < p.batch; ++slot) {
    const prompt given(p.kv_heads, prompts[slot % 3], p.head_dim, seed + slot, content::clustered);
    prefill(policy, ragged, slot, given), prefill(policy, singly, slot, given);
  }
  std::size_t compared = 0;
  for (int event = 0; event < 25; ++event) {
    std::vector<row> rows;
    for (std::uint32_t slot = 0; slot < p.batch; ++slot)
      if (random.below(4) != 0)
        rows.push_back({slot, static_cast<std::uint32_t>(random.below(3) == 0 ? random.below(17) : random.below(4))});
    for (std::size_t i = rows.size(); i > 1; --i) std::swap(rows[i - 1], rows[random.below(i)]);
    std::vector<std::uint32_t> slots, counts;
    std::size_t tokens = 0;
    for (row& one : rows) {
      one.count = std::min<std::uint32_t>(one.count, static_cast<std::uint32_t>(p.capacity - ragged.size(one.slot)));
      slots.push_back(one.slot), counts.push_back(one.count);
      tokens += one.count;
    }
    const auto keys = make_rows<float>(content::clustered, tokens, p.kv_heads, p.head_dim, random.bits()),
               values = make_rows<float>(content::gaussian, tokens, p.kv_heads, p.head_dim, random.bits());
    std::vector<float> query(tokens * p.query_heads * p.head_dim);
    for (float& x : query) x = 1.5f * random.gaussian();
    const auto queries = pqkv::as_const(pqkv::make_view(query.data(), tokens, p.query_heads, p.head_dim));
    const pqkv::cache_step step{.slots = pqkv::make_view(std::as_const(slots).data(), slots.size()),
                                .counts = pqkv::make_view(std::as_const(counts).data(), counts.size())};
    ragged.append(policy, keys.view(), values.view(), step);
    const step_reply all = ask_step(policy, ragged, queries, step);

    step_reply wanted;
    std::size_t token = 0;
    for (const row& one : rows)
      for (std::uint32_t i = 0; i < one.count; ++i, ++token) {
        pqkv::cache_step single;
        single.slots = pqkv::make_view(&one.slot, 1);
        singly.append(policy, keys.view().slice(0, token, 1), values.view().slice(0, token, 1), single);
        wanted.add(ask_step(policy, singly, queries.slice(0, token, 1), single));
      }
    REQUIRE(all.lists == wanted.lists);
    for (std::size_t q = 0; q < tokens * p.query_heads; ++q) {
      const auto first = wanted.out.begin() + static_cast<std::ptrdiff_t>(q * p.head_dim);
      REQUIRE(relative_error(all.out.data() + q * p.head_dim, {first, first + static_cast<std::ptrdiff_t>(p.head_dim)}) < 1e-5);
      REQUIRE(all.lse[q] == doctest::Approx(static_cast<double>(wanted.lse[q])).epsilon(1e-5));
    }
    compared += tokens;
    if (random.below(3) == 0) ragged.maintain(policy), singly.maintain(policy);
    for (std::size_t slot = 0; slot < p.batch; ++slot) {
      REQUIRE(ragged.size(slot) == singly.size(slot));
      REQUIRE(ragged.middle(slot).end == singly.middle(slot).end);
      const pqkv::slot_statistics a = ragged.statistics(slot), b = singly.statistics(slot);
      REQUIRE(a.steps == b.steps);
      REQUIRE(a.tokens_attended == b.tokens_attended);
      REQUIRE(a.attended_bytes == b.attended_bytes);
      REQUIRE(a.index_bytes == b.index_bytes);
      REQUIRE(a.selector_bytes == b.selector_bytes);
    }
  }
  return compared;
}

template <class Rows = pqkv::dense_rows<float>>
typename pqkv::pqcache<Rows>::params params_of(search_path path, group_reduction reduction = group_reduction::probability_sum) {
  auto p = cache_params<pqkv::pqcache<Rows>>(3, 2, 4, 32, 420, 4, 10, 20);
  p.selector.subspaces = 2;
  p.selector.bits = 4;
  p.selector.train.iterations = 2;
  p.selector.tail_tokens = 25;
  p.selector.path = path;
  p.selector.reduction = reduction;
  return p;
}
}  // namespace

TEST_CASE("pqcache: ragged steps equal single tokens, on either path, for every reduction") {
  std::size_t compared = 0;
  std::uint64_t seed = 1;
  for (const search_path path : {search_path::scan, search_path::joint, search_path::automatic})
    for (std::size_t reduction = 0; reduction < 5; ++reduction) {
      auto p = params_of(path, static_cast<group_reduction>(reduction));
      p.step_queries = reduction * 4;  // passes of a few queries, that end within rows
      compared += compare_with_singles<host<>, pqkv::dense_rows<float>, pqkv::selector::pq>(cpu, p, seed++);
    }
  CHECK(compared > 1000);
}

TEST_CASE("pqcache: ragged steps equal single tokens under a growing budget, a frozen one, a second stage, and on threads") {
  auto growing = params_of(search_path::joint);
  growing.budget = {.ratio = 0.2, .min_tokens = 20, .sinks = 3, .window_share = 0.4};
  compare_with_singles<host<>, pqkv::dense_rows<float>, pqkv::selector::pq>(cpu, growing, 21);
  growing.budget.growth = pqkv::budget_growth::frozen_at_prompt;
  compare_with_singles<host<>, pqkv::dense_rows<float>, pqkv::selector::pq>(cpu, growing, 22);
  auto refined = params_of(search_path::joint);
  refined.selector.residual = {.subspaces = 4, .bits = 4, .shortlist = 3};
  compare_with_singles<host<>, pqkv::dense_rows<float>, pqkv::selector::pq>(cpu, refined, 23);
  using threads = host<pqkv::isa::scalar, threaded_runner>;
  compare_with_singles<threads, pqkv::dense_rows<pqkv::bfloat16>, pqkv::selector::pq>(
      threads{}, params_of<pqkv::dense_rows<pqkv::bfloat16>>(search_path::automatic), 24);
}

TEST_CASE("pqcache: ragged steps equal single tokens with every other selector") {
  const auto check = []<class Selector>(Selector*) {
    using rows_type = pqkv::dense_rows<pqkv::half>;
    compare_with_singles<host<>, rows_type, Selector>(cpu, cache_params<pqkv::pqcache<rows_type, Selector>>(3, 2, 4, 32, 420, 4, 10, 20),
                                                      31);
  };
  check(static_cast<pqkv::selector::full*>(nullptr));
  check(static_cast<pqkv::selector::streaming*>(nullptr));
  check(static_cast<pqkv::selector::oracle*>(nullptr));
}

namespace {
/// Elements of a view [tokens, hq, d] whose places in memory are any, and what lies between them.
template <class T>
struct scattered {
  std::vector<T> memory;
  pqkv::view<T, 3> at;

  scattered(std::size_t tokens, std::size_t hq, std::size_t d, std::size_t which) {
    const std::size_t t = tokens, gap = 3;
    const std::size_t strides[4][3] = {{hq * d, d, 1}, {hq * (d + gap), d + gap, 1}, {d, t * d, 1}, {1, t, t * hq}};
    memory.assign(t * hq * (d + gap), T(-9.0f));
    at = {memory.data(), {t, hq, d}, {strides[which][0], strides[which][1], strides[which][2]}};
  }
  /// Elements of memory that are not as they were and belong to no element of the view.
  std::size_t spilled() const {
    std::vector<bool> own(memory.size(), false);
    for (std::size_t i = 0; i < at.extent(0); ++i)
      for (std::size_t q = 0; q < at.extent(1); ++q)
        for (std::size_t e = 0; e < at.extent(2); ++e) own[static_cast<std::size_t>(&at(i, q, e) - at.data)] = true;
    std::size_t all = 0;
    for (std::size_t i = 0; i < memory.size(); ++i) all += !own[i] && float(memory[i]) != -9.0f ? 1 : 0;
    return all;
  }
};
}  // namespace

TEST_CASE("pqcache: queries and outputs of every type and layout, log-sum-exps of any stride") {
  auto p = params_of(search_path::automatic);
  p.step_queries = 2;
  const std::size_t hq = 4, d = 32;
  pqkv::pqcache<> cache(p);
  for (const std::size_t slot : {0u, 1u, 2u}) prefill(cpu, cache, slot, prompt(2, 90 + 40 * slot, d, slot));
  const std::vector<std::uint32_t> slots = {2, 0}, counts = {3, 2};
  const pqkv::cache_step step{.slots = pqkv::make_view(slots.data(), 2), .counts = pqkv::make_view(counts.data(), 2)};
  random_source random(7);
  const auto check = [&]<class Q, class O>(Q, O) {
    for (std::size_t layout_of_query = 0; layout_of_query < 4; ++layout_of_query)
      for (std::size_t layout_of_out = 0; layout_of_out < 4; ++layout_of_out) {
        scattered<Q> query(5, hq, d, layout_of_query);
        std::vector<float> flat;
        for (std::size_t i = 0; i < 5; ++i)
          for (std::size_t q = 0; q < hq; ++q)
            for (std::size_t e = 0; e < d; ++e) {
              query.at(i, q, e) = Q(1.5f * random.gaussian());
              flat.push_back(float(query.at(i, q, e)));
            }
        const step_reply wanted = ask_step(cpu, cache, pqkv::as_const(pqkv::make_view(flat.data(), 5, hq, d)), step);
        scattered<O> out(5, hq, d, layout_of_out);
        std::vector<float> sums(5 * hq * 2 + 7, -9.0f);
        const pqkv::view<float, 2> lse = layout_of_out % 2 == 0 ? pqkv::view<float, 2>{sums.data(), {5, hq}, {1, 5}}
                                                                : pqkv::view<float, 2>{sums.data() + 1, {5, hq}, {hq * 2 + 1, 2}};
        cache.attend(cpu, pqkv::as_const(query.at), out.at, lse, step);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < 5; ++i)
          for (std::size_t q = 0; q < hq; ++q) {
            wrong += lse(i, q) != wanted.lse[i * hq + q] ? 1 : 0;
            for (std::size_t e = 0; e < d; ++e) wrong += float(out.at(i, q, e)) != float(O(wanted.out[(i * hq + q) * d + e])) ? 1 : 0;
          }
        CHECK(wrong == 0);
        CHECK(out.spilled() == 0);
        std::size_t written = 0;
        for (const float x : sums) written += x != -9.0f ? 1 : 0;
        CHECK(written == 5 * hq);
        std::vector<std::int32_t> indices(5 * 2 * p.capacity);
        std::vector<std::uint32_t> found(5 * 2);
        cache.retrieve(cpu, pqkv::as_const(query.at), pqkv::make_view(indices.data(), 5, 2, p.capacity),
                       pqkv::make_view(found.data(), 5, 2), step);
        for (std::size_t list = 0; list < 10; ++list) {
          const auto first = indices.begin() + static_cast<std::ptrdiff_t>(list * p.capacity);
          CHECK(std::vector<std::int32_t>(first, first + static_cast<std::ptrdiff_t>(found[list])) == wanted.lists[list]);
        }
        cache.attend(cpu, pqkv::as_const(query.at), out.at, {}, step);  // no log-sum-exp wanted
        CHECK(float(out.at(4, 3, 5)) == float(O(wanted.out[(4 * hq + 3) * d + 5])));
      }
  };
  using pqkv::half, pqkv::bfloat16;
  check(float(), float()), check(half(), float()), check(bfloat16(), half()), check(float(), bfloat16()), check(half(), half());
}

TEST_CASE("pqcache: lists and counts of any stride, and rows of -1 behind what is listed") {
  auto p = params_of(search_path::joint);
  pqkv::pqcache<> cache(p);
  for (const std::size_t slot : {0u, 1u, 2u}) prefill(cpu, cache, slot, prompt(2, 90 + 40 * slot, 32, slot));
  const std::vector<float> query = random_query(cache, 3);
  const auto queries = pqkv::make_view(query.data(), 3, 4, 32);
  const step_reply wanted = ask_step(cpu, cache, queries, {});
  std::vector<std::int32_t> memory(25 * 2 * 3 * 2 + 99, -9);
  std::vector<std::uint32_t> counts(3 * 2 * 4, 99);
  const pqkv::view<std::int32_t, 3> indices{memory.data(), {3, 2, 25}, {2, 6, 12}};  // positions of a list are 12 apart
  const pqkv::view<std::uint32_t, 2> found{counts.data(), {3, 2}, {8, 3}};
  cache.retrieve(cpu, queries, indices, found);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t list = 0; list < 2; ++list) {
      const std::vector<std::int32_t>& one = wanted.lists[i * 2 + list];
      REQUIRE(found(i, list) == one.size());
      for (std::size_t k = 0; k < 25; ++k) CHECK(indices(i, list, k) == (k < one.size() ? one[k] : -1));
    }
  CHECK(std::count(memory.begin(), memory.end(), -9) == static_cast<std::ptrdiff_t>(memory.size() - 150));
}

TEST_CASE("pqcache: a scale of the caller's reaches selection and attention, of every selector") {
  const prompt given(2, 200, 32, 5);
  const auto model_of = [&](const auto& p, float scale) {
    slot_model<float> model(2, 32, p.budget, scale);
    model.add(given.keys.view(), given.values.view());
    model.end_prompt();
    model.commit();
    return model;
  };
  const auto check_attention = [&](const slot_model<float>& model, const reply& r, const std::vector<float>& query, std::size_t lists) {
    for (std::size_t q = 0; q < 4; ++q) {
      const plain_result exact = model.attend(query, q, r.list(q * lists / 4));
      CHECK(relative_error(r.out.data() + q * 32, exact.out) < 1e-5);
      CHECK(static_cast<double>(r.lse[q]) == doctest::Approx(exact.lse).epsilon(1e-5));
    }
  };
  for (std::size_t reduction = 0; reduction < 5; ++reduction) {
    std::size_t others = 0;
    for (const float scale : {0.0f, 0.02f, 0.6f, 1.0f}) {
      auto p = params_of(search_path::automatic, static_cast<group_reduction>(reduction));
      p.batch = 1;
      p.softmax_scale = scale;
      auto usual = p;
      usual.softmax_scale = 0;
      pqkv::pqcache<> cache(p), of_usual(usual);
      prefill(cpu, cache, 0, given), prefill(cpu, of_usual, 0, given);
      slot_model<float> model = model_of(p, scale);
      model.train(p.selector);
      const std::vector<float> query = random_query(cache, 8);
      const reply r = ask(cpu, cache, query);
      const auto wanted = model.lists(query, p.selector);
      for (std::size_t list = 0; list < cache.lists(); ++list) CHECK(r.list(list) == wanted[list]);
      check_attention(model, r, query, cache.lists());
      others += r.indices != ask(cpu, of_usual, query).indices ? 1 : 0;
    }
    // Sums of probabilities weigh query heads by how sharp they are, which the scale decides; logits are ranked as they are.
    if (static_cast<group_reduction>(reduction) == group_reduction::probability_sum) CHECK(others == 3);
    if (static_cast<group_reduction>(reduction) == group_reduction::logit_sum) CHECK(others == 0);
  }
  const auto others = [&]<class Selector>(Selector*) {
    using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, Selector>;
    auto p = cache_params<cache_type>(1, 2, 4, 32, 420, 4, 10, 20);
    p.softmax_scale = 0.5f;
    cache_type cache(p);
    prefill(cpu, cache, 0, given);
    const std::vector<float> query = random_query(cache, 8);
    check_attention(model_of(p, 0.5f), ask(cpu, cache, query), query, 2);
  };
  others(static_cast<pqkv::selector::full*>(nullptr));
  others(static_cast<pqkv::selector::streaming*>(nullptr));
  others(static_cast<pqkv::selector::oracle*>(nullptr));
}
