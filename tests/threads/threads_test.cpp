// SPDX-License-Identifier: Apache-2.0
// What threads may share, under the thread sanitizer (preset tsan): runners, a pool, a policy, what is only read. Each result equals one
// thread's. What they may not share, a cache, is not here: one call at a time. Results are compared when the threads have ended, since a
// comparison in between would order them.
#include <pqkv/adapt/eigen_thread_pool.hpp>
#include <pqkv/pqkv.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/slot_bytes.hpp"

namespace {
using namespace pqkv_cases;

/// A pool's runner whose tasks let other threads go first: on a machine of few cores the calling thread would do all of them, and no two
/// threads would meet.
struct shy_runner {
  pqkv::eigen_pool_runner pool;
  std::atomic<std::size_t>* elsewhere;  // tasks that another thread than the caller's ran

  template <class F>
  void run(std::size_t count, F&& f) const {
    const auto caller = std::this_thread::get_id();
    pool.run(count, [&](std::size_t i) {
      for (int turn = 0; turn < 4; ++turn) std::this_thread::yield();
      if (std::this_thread::get_id() != caller) elsewhere->fetch_add(1, std::memory_order_relaxed);
      f(i);
    });
  }
};
using pooled_host = pqkv::exec::host<pqkv::isa::best, shy_runner>;

/// Calls f(0) to f(count - 1), each on a thread of its own, all let go at once.
template <class F>
void on_threads(std::size_t count, F f) {
  std::atomic<std::size_t> waiting = 0;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      ++waiting;
      while (waiting.load(std::memory_order_relaxed) < count) std::this_thread::yield();
      f(i);
    });
  for (std::thread& one : threads) one.join();
}

/// A life of a cache: prompt, steps, a fork, a cut, upkeep, a saved slot. @return all lists and outputs, and the saved bytes
struct told {
  std::vector<std::int32_t> indices;
  std::vector<float> out;
  std::vector<std::byte> file;
  bool operator==(const told&) const = default;
};
template <class Policy>
told live(const Policy& policy, std::uint64_t seed) {
  pqkv::pqcache<>::params p;
  p.batch = 2, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 32, p.capacity = 400;
  p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 40;
  p.selector.bits = 4, p.selector.train.iterations = 2, p.selector.train.seed = seed;
  pqkv::pqcache<> cache(p);
  const auto prompt = make_rows<float>(content::clustered, p.kv_heads, 300, p.head_dim, seed);
  cache.prefill(policy, 0, prompt.view(), prompt.view());
  cache.fork(policy, 0, 1);
  cache.truncate(policy, 1, 200);
  told all;
  for (std::size_t step = 0; step < 12; ++step) {
    const auto token = make_rows<float>(content::clustered, p.batch, p.kv_heads, p.head_dim, seed + step);
    const auto query = make_rows<float>(content::gaussian, p.batch, p.query_heads, p.head_dim, seed + 100 + step);
    cache.append(policy, token.view(), token.view());
    std::vector<std::int32_t> indices(p.batch * cache.lists() * 40);
    std::vector<std::uint32_t> counts(p.batch * cache.lists());
    std::vector<float> out(query.view().size());
    cache.retrieve(policy, query.view(), pqkv::make_view(indices.data(), p.batch, cache.lists(), 40),
                   pqkv::make_view(counts.data(), p.batch, cache.lists()));
    cache.attend(policy, query.view(), pqkv::make_view(out.data(), p.batch, p.query_heads, p.head_dim));
    cache.maintain(policy);
    all.indices.insert(all.indices.end(), indices.begin(), indices.end());
    all.out.insert(all.out.end(), out.begin(), out.end());
  }
  all.file = saved(policy, cache, 1);
  return all;
}

/// An index that is only read, and what a retrieval in it gives.
struct shared_index {
  static constexpr std::size_t h = 2, hq = 4, n = 1500, d = 32, k = 60;
  pqkv::pq_shape shape{.kv_heads = h, .head_dim = d, .subspaces = 2, .bits = 4};
  rows<float> keys = make_rows<float>(content::clustered, h, n, d, 5);
  rows<float> queries = make_rows<float>(content::gaussian, 1, hq, d, 6);
  pqkv::codebook book{shape};
  pqkv::codes codes{shape, n};

  template <class Policy>
  void build(const Policy& policy) {
    pqkv::train(policy, pqkv::as_const(keys.view()), book);
    pqkv::encode(policy, pqkv::as_const(keys.view()), book.view(), codes.mutable_view());
  }
  template <class Policy>
  std::vector<std::int32_t> retrieve(const Policy& policy) const {
    pqkv::distance_table table(hq, shape);
    std::vector<std::int32_t> indices(h * k);
    fill(policy, table, indices);
    return indices;
  }
  /// The same into memory that threads share, each writing its part.
  template <class Policy>
  void fill(const Policy& policy, pqkv::distance_table& table, std::vector<std::int32_t>& indices) const {
    std::vector<std::uint32_t> counts(h);
    fill(policy, table, indices, counts);
  }
  template <class Policy>
  void fill(const Policy& policy, pqkv::distance_table& table, std::vector<std::int32_t>& indices,
            std::vector<std::uint32_t>& counts) const {
    const pqkv::middle_range all{4, n - 16, k};
    const pqkv::middle_range middle[h] = {all, all};
    pqkv::inner_product_table(policy, queries.view()[0], book.view(), table.mutable_view());
    pqkv::retrieve(policy, table.view(), codes.view(), {}, pqkv::make_view(middle, h), pqkv::make_view(indices.data(), h, k),
                   pqkv::make_view(counts.data(), h), {.head_dim = d});
  }
};
}  // namespace

TEST_CASE("threads: the CPU is asked what it has by all at once") {
  std::vector<pqkv::isa::level> found(4);
  on_threads(4, [&](std::size_t i) { found[i] = pqkv::isa::detected(); });
  for (const pqkv::isa::level one : found) CHECK(one == found[0]);
}

TEST_CASE("threads: caches on two threads, one const policy") {
  const pqkv::exec::host<> policy;
  const told first = live(policy, 1), second = live(policy, 2);
  told got[2];
  on_threads(2, [&](std::size_t i) { got[i] = live(policy, i + 1); });
  CHECK(got[0] == first);
  CHECK(got[1] == second);
  CHECK_FALSE(first == second);
}

TEST_CASE("threads: caches on two threads share a pool") {
  const told first = live(pqkv::exec::host<>{}, 1), second = live(pqkv::exec::host<>{}, 2);
  Eigen::ThreadPool pool(2);
  std::atomic<std::size_t> elsewhere = 0;
  const pooled_host policy{{pqkv::eigen_pool_runner(pool), &elsewhere}, {}};
  told got[2];
  on_threads(2, [&](std::size_t i) { got[i] = live(policy, i + 1); });
  CHECK(got[0] == first);
  CHECK(got[1] == second);
  CHECK(elsewhere > 100);
}

TEST_CASE("threads: a runner that starts threads for every call") {
  const pqkv::exec::host<pqkv::isa::best, threaded_runner> policy;
  CHECK(live(policy, 3) == live(pqkv::exec::host<>{}, 3));
}

TEST_CASE("threads: a pool's rounds, exceptions and nested calls") {
  Eigen::ThreadPool pool(3);
  std::atomic<std::size_t> elsewhere = 0;
  const shy_runner runner{pqkv::eigen_pool_runner(pool), &elsewhere};
  std::size_t wrong = 0;
  for (std::size_t round = 0; round < 400; ++round) {
    std::vector<std::size_t> written(1 + round % 9);  // gone after the round
    runner.run(written.size(), [&](std::size_t i) { written[i] = round + i; });
    for (std::size_t i = 0; i < written.size(); ++i) wrong += written[i] != round + i;
    try {
      runner.run(6, [&](std::size_t i) {
        if (i == round % 6) throw i;
      });
      ++wrong;
    } catch (const std::size_t thrown) {
      wrong += thrown != round % 6;
    }
  }
  CHECK(wrong == 0);
  CHECK(elsewhere > 100);
  std::vector<std::size_t> sums(3 * 10);
  on_threads(3, [&](std::size_t caller) {
    runner.run(10, [&](std::size_t i) {
      std::vector<std::size_t> parts(5);
      runner.run(parts.size(), [&](std::size_t j) { parts[j] = j; });
      for (const std::size_t part : parts) sums[caller * 10 + i] += part;
    });
  });
  CHECK(sums == std::vector<std::size_t>(30, 10));
}

TEST_CASE("threads: all read one index while another is trained") {
  shared_index index;
  index.build(pqkv::exec::host<>{});
  const pqkv::exec::host<> policy;
  const std::vector<std::int32_t> wanted = index.retrieve(policy);
  std::vector<std::vector<std::int32_t>> got(3);
  shared_index other;
  on_threads(4, [&](std::size_t i) {
    if (i == 3) return other.build(policy);
    for (int round = 0; round < 5; ++round) got[i] = index.retrieve(policy);
  });
  for (const auto& one : got) CHECK(one == wanted);
  CHECK(other.retrieve(policy) == wanted);
}

TEST_CASE("threads: slices of the same calls, as ggml makes them") {
  shared_index index;
  const pqkv::exec::host<> serial;
  index.build(serial);
  const std::vector<std::int32_t> wanted = index.retrieve(serial);
  constexpr std::size_t threads = 3;
  struct meeting {
    std::atomic<std::size_t> arrived = 0;
    static void wait(void* context) {
      auto& self = *static_cast<meeting*>(context);
      const std::size_t round = self.arrived.fetch_add(1) / threads;
      while (self.arrived.load() < (round + 1) * threads) std::this_thread::yield();
    }
  } all;
  pqkv::distance_table table(shared_index::hq, index.shape);
  std::vector<std::int32_t> indices(wanted.size());
  std::vector<std::uint32_t> counts(shared_index::h);
  on_threads(threads, [&](std::size_t i) {
    const pqkv::exec::host<pqkv::isa::best, pqkv::exec::slice> policy{{i, threads, meeting::wait, &all}, {}};
    for (int round = 0; round < 3; ++round) index.fill(policy, table, indices, counts);
  });
  CHECK(indices == wanted);
}
