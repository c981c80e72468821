// SPDX-License-Identifier: Apache-2.0
// Slots that are not in a step cost nothing: one active slot of 32 takes as many tasks, tables and rows as one of one, in every verb of a
// step. Counted by a runner, not timed.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "cases/inputs.hpp"
#include "cases/queued_backend.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

/// Counts calls and tasks.
struct counting_runner {
  std::size_t calls = 0, tasks = 0;

  template <class F>
  void run(std::size_t count, F&& f) {
    ++calls, tasks += count;
    for (std::size_t i = 0; i < count; ++i) f(i);
  }
};
using counting_host = pqkv::exec::host<pqkv::isa::best, counting_runner&>;

struct work_done {
  std::vector<std::size_t> tasks;  // of append, attend, retrieve, truncate
  std::vector<float> out;
  bool operator==(const work_done&) const = default;
};

/// A step of `count` tokens of one slot, the last one, after a prompt of 200 tokens in every slot.
template <class Cache>
work_done one_active(typename Cache::params p, std::size_t batch, std::uint32_t count) {
  p.batch = batch, p.step_queries = 4;
  counting_runner runner;
  const counting_host cpu{runner, {}};
  Cache cache(cpu, p);
  const auto prompt = make_rows<float>(content::clustered, p.kv_heads, 200, p.head_dim, 3);
  for (std::size_t slot = 0; slot < batch; ++slot) cache.prefill(cpu, slot, prompt.view(), prompt.view());
  const auto token = make_rows<float>(content::clustered, count, p.kv_heads, p.head_dim, 4);
  const auto query = make_rows<float>(content::gaussian, count, p.query_heads, p.head_dim, 5);
  const std::uint32_t slot = static_cast<std::uint32_t>(batch - 1);
  const pqkv::basic_step<> step{pqkv::make_view(&slot, 1), pqkv::make_view(&count, 1)};
  work_done all;
  all.out.resize(count * p.query_heads * p.head_dim);
  std::vector<std::int32_t> indices(count * cache.lists() * p.capacity);
  std::vector<std::uint32_t> counts(count * cache.lists());
  const auto counted = [&](auto&& verb) {
    const std::size_t before = runner.tasks;
    verb();
    all.tasks.push_back(runner.tasks - before);
  };
  counted([&] { cache.append(cpu, token.view(), token.view(), step); });
  counted([&] { cache.attend(cpu, query.view(), pqkv::make_view(all.out.data(), count, p.query_heads, p.head_dim), {}, step); });
  counted([&] {
    cache.retrieve(cpu, query.view(), pqkv::make_view(indices.data(), count, cache.lists(), p.capacity),
                   pqkv::make_view(counts.data(), count, cache.lists()), step);
  });
  counted([&] { cache.truncate(cpu, slot, 150); });
  return all;
}

template <class Cache>
void check_idle(const typename Cache::params& p) {
  for (const std::uint32_t count : {1u, 3u, 7u}) {
    const work_done alone = one_active<Cache>(p, 1, count);
    CHECK(alone.tasks[0] != 0);
    CHECK(alone.tasks[1] != 0);
    CHECK(one_active<Cache>(p, 8, count) == alone);
    CHECK(one_active<Cache>(p, 32, count) == alone);
  }
}
template <class Cache>
typename Cache::params shape() {
  typename Cache::params p;
  p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 220;
  p.budget.sinks = 4, p.budget.window = 8, p.budget.retrieve = 20;
  return p;
}
}  // namespace

TEST_CASE("pqcache: one active slot of 32 takes the work of one of one") {
  auto p = shape<pqkv::pqcache<>>();
  p.selector.bits = 4, p.selector.train.iterations = 2;
  for (const search_path path : {search_path::scan, search_path::joint})
    for (const group_reduction reduction : {group_reduction::probability_sum, group_reduction::none}) {
      p.selector.path = path, p.selector.reduction = reduction;
      check_idle<pqkv::pqcache<>>(p);
    }
  p.selector.residual = {.subspaces = 4, .bits = 4, .shortlist = 3};
  check_idle<pqkv::pqcache<>>(p);
  using full = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::full>;
  check_idle<full>(shape<full>());
  using oracle = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::oracle>;
  check_idle<oracle>(shape<oracle>());
}

TEST_CASE("pqcache: a step's tables are those of its queries") {
  auto p = shape<pqkv::pqcache<>>();
  p.selector.bits = 4, p.selector.train.iterations = 2, p.selector.path = search_path::scan;
  p.selector.over = pqkv::selector::normalisation::middle;  // attended: sums of each list's sinks and window too
  // In one pass of attend(): a table for each query head, a list for each KV head, attention by list.
  const work_done one = one_active<pqkv::pqcache<>>(p, 32, 1);
  const work_done three = one_active<pqkv::pqcache<>>(p, 32, 3);
  CHECK(one.tasks[1] == p.query_heads + p.kv_heads + p.kv_heads);
  CHECK(three.tasks[1] == 3 * one.tasks[1]);
  CHECK(one.tasks[2] == p.query_heads + p.kv_heads);
  CHECK(one.tasks[3] == 0);
}

TEST_CASE("pqcache: an idle slot's memory is not looked at in a step, nor changed") {
  // On the backend that queues, since there a step's plan is made from what is in memory: the idle slots' rows and codes are poison.
  queue q;
  const queued_policy dev{&q};
  using cache_type = pqkv::device_pqcache<float>;
  auto p = shape<cache_type>();
  p.batch = 6, p.selector.bits = 4, p.selector.train.iterations = 2;
  cache_type cache(dev, p);
  const auto prompt = make_rows<float>(content::clustered, 2, 200, 16, 3);
  const queued_array<float> rows(dev, std::vector<float>(prompt.view().data, prompt.view().data + 2 * 200 * 16));
  for (std::size_t slot = 0; slot < p.batch; ++slot) cache.prefill(dev, slot, rows.const_view(2, 200, 16), rows.const_view(2, 200, 16));
  const queued_array<std::uint32_t> slot(dev, std::vector<std::uint32_t>{4});
  const queued_array<float> out(dev, 4 * 16);
  const pqkv::basic_step<pqkv::space::device> step{.slots = slot.const_view(1)};
  const auto attend = [&] {
    cache.attend(dev, rows.const_view(1, 4, 16), out.view(1, 4, 16), {}, step);
    return out.read();
  };
  const std::vector<float> wanted = attend();
  const std::size_t row = cache.store().keys.stride(1), heads = 2 * p.capacity * row;
  const std::vector<float> poison(heads, std::nanf(""));
  for (const std::size_t idle : {0u, 1u, 2u, 3u, 5u}) {
    pqkv::copy_bytes(dev, const_cast<float*>(cache.store().keys.data) + idle * heads, poison.data(), (heads - row) * sizeof(float));
    const auto codes = cache.selection().index().codes;
    pqkv::copy_bytes(dev, codes.data + idle * 2 * codes.stride(0), poison.data(), 2 * codes.stride(0));
  }
  CHECK(attend() == wanted);
  cache.append(dev, rows.const_view(1, 2, 16), rows.const_view(1, 2, 16), step);
  for (std::size_t i = 0; i < p.batch; ++i) {
    CHECK(cache.size(dev, i) == (i == 4 ? 201 : 200));
    CHECK(cache.statistics(dev, i).steps == (i == 4 ? 2 : 0));
  }
}
