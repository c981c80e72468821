// SPDX-License-Identifier: Apache-2.0
// Eigen's pool as a task runner: each task once, all done on return, exceptions passed on, nested and concurrent calls, and the same
// bits as one thread.
#include <pqkv/adapt/eigen_thread_pool.hpp>
#include <pqkv/pqkv.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cases/inputs.hpp"

using pqkv::eigen_pool_runner;
static_assert(pqkv::exec::task_runner<eigen_pool_runner> && pqkv::exec::task_runner<eigen_pool_runner&>);
static_assert(pqkv::exec::runs_whole_call<eigen_pool_runner>);
static_assert(std::is_trivially_copyable_v<eigen_pool_runner>, "it owns nothing");

namespace {

/// A pool that has no room: what it is handed is refused after `accepted` closures.
class refusing_pool : public Eigen::ThreadPoolInterface {
 public:
  explicit refusing_pool(int accepted) : accepted_(accepted) {}
  void Schedule(std::function<void()> closure) override {
    if (accepted_-- <= 0) throw std::bad_alloc();
    closures.push_back(std::move(closure));
  }
  int NumThreads() const override { return 4; }
  int CurrentThreadId() const override { return -1; }

  std::vector<std::function<void()>> closures;

 private:
  int accepted_;
};

}  // namespace

TEST_CASE("every index runs once, whatever the number of threads and tasks") {
  for (const int threads : {1, 2, 4}) {
    Eigen::ThreadPool pool(threads);
    const eigen_pool_runner runner(pool);
    CHECK(runner.threads() == static_cast<std::size_t>(threads) + 1);
    for (const std::size_t count : {0u, 1u, 2u, 7u, 1000u, 100003u}) {
      std::vector<std::atomic<std::uint8_t>> seen(count);
      runner.run(count, [&](std::size_t i) { ++seen[i]; });
      std::size_t once = 0;
      for (const auto& times : seen) once += times == 1;
      CHECK(once == count);
    }
  }
}

TEST_CASE("no task runs after the call has returned, in many rounds") {
  Eigen::ThreadPool pool(4);
  const eigen_pool_runner runner(pool);
  for (std::size_t round = 0; round < 5000; ++round) {
    std::vector<std::size_t> written(1 + round % 9);  // gone after the round: a late write would be one after free
    runner.run(written.size(), [&](std::size_t i) { written[i] = round + i; });
    bool right = true;
    for (std::size_t i = 0; i < written.size(); ++i) right = right && written[i] == round + i;
    REQUIRE(right);
  }
}

TEST_CASE("the first exception is passed on after the other tasks have run, and the runner goes on") {
  Eigen::ThreadPool pool(4);
  const eigen_pool_runner runner(pool);
  for (const std::size_t count : {6u, 20u, 5000u}) {
    std::atomic<std::size_t> done = 0;
    const auto task = [&](std::size_t i) {
      if (i == 5) throw std::runtime_error("five");
      ++done;
    };
    CHECK_THROWS_WITH_AS(runner.run(count, task), "five", std::runtime_error);
    CHECK(done == count - 1);
    done = 0;
    runner.run(count, [&](std::size_t) { ++done; });
    CHECK(done == count);
  }
  CHECK_THROWS_AS(runner.run(1, [](std::size_t) { throw std::runtime_error("alone"); }), std::runtime_error);
  CHECK_THROWS_AS(runner.run(100, [](std::size_t) { throw std::runtime_error("every one"); }), std::runtime_error);
}

TEST_CASE("calls may be nested and come from several threads, even on a pool of one") {
  for (const int threads : {1, 4}) {
    Eigen::ThreadPool pool(threads);
    const eigen_pool_runner runner(pool);
    std::atomic<int> done = 0;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller)
      callers.emplace_back(
          [&] { runner.run(10, [&](std::size_t) { runner.run(10, [&](std::size_t) { runner.run(3, [&](std::size_t) { ++done; }); }); }); });
    for (auto& caller : callers) caller.join();
    CHECK(done == 900);
  }
}

TEST_CASE("a call from a thread of the pool counts that thread once") {
  Eigen::ThreadPool pool(3);
  const eigen_pool_runner runner(pool);
  std::atomic<std::size_t> inside = 0;
  std::atomic<bool> finished = false;
  pool.Schedule([&] { inside = runner.threads(), finished = true; });
  while (!finished) std::this_thread::yield();
  CHECK(inside == 3);
  CHECK(runner.threads() == 4);
}

TEST_CASE("the calling thread does what the pool does not take, and late helpers find nothing") {
  for (const int accepted : {0, 2, 9}) {
    refusing_pool pool(accepted);
    std::vector<int> seen(50);
    eigen_pool_runner(pool).run(seen.size(), [&](std::size_t i) { ++seen[i]; });
    CHECK(seen == std::vector<int>(50, 1));
    CHECK(pool.closures.size() == static_cast<std::size_t>(std::min(accepted, 4)));
    for (auto& closure : pool.closures) closure();  // long after the call
    CHECK(seen == std::vector<int>(50, 1));
  }
}

TEST_CASE("training and retrieval give the bits of one thread") {
  const std::size_t h = 3, hq = 6, n = 3000, d = 32;
  pqkv_cases::random_source random(5);
  std::vector<float> keys(h * n * d), query(hq * d);
  for (float& x : keys) x = random.gaussian();
  for (float& x : query) x = random.gaussian();
  const pqkv::pq_shape shape{.kv_heads = h, .head_dim = d, .subspaces = 2, .bits = 6};

  using result = std::pair<std::vector<float>, std::vector<std::int32_t>>;  // centroids, chosen tokens
  const auto run = [&](const auto& cpu) {
    pqkv::codebook book(shape);
    const auto rows = pqkv::make_view(std::as_const(keys).data(), h, n, d);
    REQUIRE(pqkv::train(cpu, rows, book) == pqkv::kmeans_outcome::trained);
    pqkv::codes codes(shape, n);
    pqkv::encode(cpu, rows, book.view(), codes.mutable_view());
    pqkv::distance_table table(hq, shape);
    pqkv::inner_product_table(cpu, pqkv::make_view(std::as_const(query).data(), hq, d), book.view(), table.mutable_view());
    const std::vector<pqkv::middle_range> middle(h, {16, n - 64, 200});
    std::vector<std::uint32_t> counts(h);
    result r{{book.view().centroids.data, book.view().centroids.data + book.view().centroids.size()}, std::vector<std::int32_t>(h * 200)};
    pqkv::retrieve(cpu, table.view(), codes.view(), {}, pqkv::make_view(middle.data(), h), pqkv::make_view(r.second.data(), h, 200),
                   pqkv::make_view(counts.data(), h), {.head_dim = d});
    return r;
  };
  Eigen::ThreadPool pool(4);
  const pqkv::exec::host<pqkv::isa::best, eigen_pool_runner> threaded{eigen_pool_runner(pool)};
  const result by_one = run(pqkv::exec::host<>{});
  for (int round = 0; round < 5; ++round) CHECK(run(threaded) == by_one);
}
