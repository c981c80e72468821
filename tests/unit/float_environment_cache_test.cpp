// SPDX-License-Identifier: Apache-2.0
// The caller's rounding mode and flushing of subnormals change no bit of what a cache stores, learns, selects and answers: budgets by
// ratio, rows of floats and of integers, pairs of coordinates by their weight, two stages, and every verb of a slot's life.
#include <doctest/doctest.h>

#include <vector>

#include "cases/cache_driver.hpp"
#include "cases/float_modes.hpp"
#include "cases/slot_bytes.hpp"

namespace {
using namespace pqkv_cases;
const pqkv::exec::host<> cpu;
constexpr std::size_t h = 2, hq = 4, d = 32, steps = 40;

/// Inputs of a life, drawn before any mode is set.
struct inputs {
  prompt first;
  std::vector<rows<float>> keys, values;    // [1, h, d] of each step
  std::vector<std::vector<float>> queries;  // [hq, d] of each step

  explicit inputs(float unit) : first(h, 150, d, 1, content::offset) {
    for (std::size_t i = 0; i < h * 150 * d; ++i) first.keys.view().data[i] *= unit;
    random_source random(7);
    for (std::size_t step = 0; step < steps; ++step) {
      keys.push_back(make_rows<float>(content::gaussian, 1, h, d, step));
      for (std::size_t i = 0; i < h * d; ++i) keys.back().view().data[i] *= unit;
      values.push_back(make_rows<float>(content::gaussian, 1, h, d, step + 1000));
      queries.emplace_back(hq * d);
      for (float& x : queries.back()) x = random.gaussian() / unit;
    }
  }
};

template <class Cache>
typename Cache::params params_of() {
  auto p = cache_params<Cache>(2, h, hq, d, 200, 3, 1, 0);
  p.budget = {.ratio = 0.3, .min_tokens = 4, .sinks = 3, .window_share = 0.29};
  p.selector.subspaces = 2;
  p.selector.bits = 4;
  p.selector.train.iterations = 3;
  p.selector.refresh = 1.1;  // trained again within the life
  p.softmax_scale = 0.15f;
  return p;
}

/// Answers of every step and the slots' bytes at the end.
template <class Cache>
void live(const typename Cache::params& params, const inputs& given, byte_list& out) {
  Cache cache(params);
  if (params.selector.axes == pqkv::axis_order::weighted_pairs)
    for (const auto& query : given.queries) cache.observe(cpu, 0, pqkv::make_view(query.data(), std::size_t{1}, hq, d));
  prefill(cpu, cache, 0, given.first);
  const std::uint32_t slot = 0;
  const pqkv::cache_step one{.slots = pqkv::make_view(&slot, 1)};
  for (std::size_t step = 0; step < steps; ++step) {
    cache.append(cpu, given.keys[step].view(), given.values[step].view(), one);
    const auto query = pqkv::make_view(given.queries[step].data(), std::size_t{1}, hq, d);
    const std::size_t k = cache.retrieve_capacity(0), lists = cache.lists();
    std::vector<float> answer(hq * d), sums(hq);
    std::vector<std::int32_t> indices(lists * k, -7);
    std::vector<std::uint32_t> counts(lists);
    cache.retrieve(cpu, query, pqkv::make_view(indices.data(), std::size_t{1}, lists, k),
                   pqkv::make_view(counts.data(), std::size_t{1}, lists), one);
    cache.attend(cpu, query, pqkv::make_view(answer.data(), std::size_t{1}, hq, d), pqkv::make_view(sums.data(), std::size_t{1}, hq), one);
    out.add(indices), out.add(counts), out.add(answer), out.add(sums);
    if (step % 10 == 9) cache.maintain(cpu);
    if (step == 20) cache.truncate(cpu, 0, 165);
  }
  cache.fork(cpu, 0, 1);
  const auto trainings = cache.statistics(0).trainings;
  out.add(&trainings, 1), out.add(saved(cpu, cache, 0)), out.add(saved(cpu, cache, 1));
}
}  // namespace

TEST_CASE("float environment: a cache of floats with weighted pairs and two stages") {
  for (const float unit : {1.0f, 0x1p-68f}) {
    CAPTURE(unit);
    const inputs given(unit);
    auto params = params_of<pqkv::pqcache<>>();
    params.selector.axes = pqkv::axis_order::weighted_pairs;
    params.selector.residual = {.subspaces = 2, .bits = 4};
    CHECK(modes_that_change([&](byte_list& out) { live<pqkv::pqcache<>>(params, given, out); }) == "");
  }
}

TEST_CASE("float environment: a cache of floats whose index is joint") {
  const inputs given(1);
  const auto params = params_of<pqkv::pqcache<>>();
  CHECK(modes_that_change([&](byte_list& out) { live<pqkv::pqcache<>>(params, given, out); }) == "");
}

TEST_CASE("float environment: a cache of integers, cut as rotary halves and by weighted pairs") {
  using cache_type = pqkv::pqcache<pqkv::quantized_rows<>>;
  for (const float unit : {1.0f, 0x1p-68f})
    for (const pqkv::axis_order axes : {pqkv::axis_order::rotary_halves, pqkv::axis_order::weighted_pairs}) {
      CAPTURE(unit);
      CAPTURE(static_cast<int>(axes));
      const inputs given(unit);
      auto params = params_of<cache_type>();
      params.selector.axes = axes;
      CHECK(modes_that_change([&](byte_list& out) { live<cache_type>(params, given, out); }) == "");
    }
}
