// SPDX-License-Identifier: Apache-2.0
// The thread pool as a task runner: each index once, all done on return, exceptions passed on, calls from several threads and nested.
#include "pool_runner.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <pqkv/exec/runner.hpp>
#include <stdexcept>
#include <thread>
#include <vector>

using minillama::pool_runner;
static_assert(pqkv::exec::task_runner<pool_runner&>);

TEST_CASE("every index runs once, whatever the number of threads and tasks") {
  for (const std::size_t threads : {0u, 1u, 2u, 3u, 8u}) {
    pool_runner runner(threads);
    CHECK(runner.threads() == (threads ? threads : 1));
    for (const std::size_t count : {0u, 1u, 2u, 7u, 1000u}) {
      std::vector<std::atomic<int>> seen(count);
      runner.run(count, [&](std::size_t i) { ++seen[i]; });
      for (const auto& times : seen) CHECK(times == 1);
    }
  }
}

TEST_CASE("an exception is passed on after the other tasks have run") {
  for (const std::size_t threads : {2u, 4u}) {
    pool_runner runner(threads);
    std::atomic<int> done = 0;
    const auto task = [&](std::size_t i) {
      if (i == 5) throw std::runtime_error("five");
      ++done;
    };
    CHECK_THROWS_WITH(runner.run(20, task), "five");
    CHECK(done == 19);
  }
}

TEST_CASE("runs may be nested and started from several threads") {
  pool_runner runner(3);
  std::atomic<int> done = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] { runner.run(10, [&](std::size_t) { runner.run(10, [&](std::size_t) { ++done; }); }); });
  for (auto& caller : callers) caller.join();
  CHECK(done == 300);
}
