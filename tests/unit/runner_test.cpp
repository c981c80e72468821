// SPDX-License-Identifier: Apache-2.0
// Task runners: the concept, ours, and an engine's pool handed over by reference. Whatever runs them, tasks run once each.
#include <pqkv/exec/runner.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cases/policies.hpp"

namespace exec = pqkv::exec;

namespace {

/// An engine's pool: state, no copies, run() not const.
struct counting_pool {
  int calls = 0;
  std::size_t tasks = 0;
  counting_pool() = default;
  counting_pool(const counting_pool&) = delete;
  template <class F>
  void run(std::size_t count, F&& f) {
    ++calls;
    tasks += count;
    for (std::size_t i = count; i-- > 0;) f(i);
  }
};
struct without_run {};
struct wrong_run {
  void run(void (*f)()) const { f(); }
};

}  // namespace

static_assert(exec::task_runner<exec::serial> && exec::task_runner<exec::slice> && exec::task_runner<counting_pool&>);
static_assert(!exec::task_runner<counting_pool>, "held by value a runner is called as const");
static_assert(!exec::task_runner<without_run> && !exec::task_runner<wrong_run> && !exec::task_runner<int>);
static_assert(exec::runs_whole_call<exec::serial> && exec::runs_whole_call<counting_pool&> && !exec::runs_whole_call<exec::slice>);
static_assert(!exec::runs_whole_call<exec::slice&> && !exec::runs_whole_call<const exec::slice&>);

TEST_CASE("serial runs tasks in order, in the calling thread") {
  std::vector<std::size_t> order;
  bool here = true;
  exec::serial{}.run(5, [&, caller = std::this_thread::get_id()](std::size_t i) {
    order.push_back(i);
    here = here && std::this_thread::get_id() == caller;
  });
  CHECK(order == std::vector<std::size_t>{0, 1, 2, 3, 4});
  CHECK(here);
  exec::serial{}.run(0, [&](std::size_t) { here = false; });
  CHECK(here);
}

TEST_CASE("serial passes an exception on") {
  int done = 0;
  const auto task = [&](std::size_t i) {
    if (i == 2) throw std::runtime_error("two");
    ++done;
  };
  CHECK_THROWS_WITH(exec::serial{}.run(5, task), "two");
  CHECK(done == 2);
}

TEST_CASE("slices of n threads together run each task once") {
  for (const std::size_t nth : {1u, 2u, 3u, 8u})
    for (const std::size_t count : {0u, 1u, 7u, 8u, 100u}) {
      std::vector<std::atomic<int>> seen(count);
      std::vector<std::thread> threads;
      for (std::size_t ith = 0; ith < nth; ++ith)
        threads.emplace_back([&, ith] { exec::slice{ith, nth}.run(count, [&](std::size_t i) { ++seen[i]; }); });
      for (std::thread& one : threads) one.join();
      for (const auto& times : seen) CHECK(times == 1);
    }
}

TEST_CASE("a slice takes every nth task from its own on, then enters the barrier once") {
  std::vector<std::size_t> mine;
  int entered = 0;
  const auto barrier = [](void* context) { ++*static_cast<int*>(context); };
  exec::slice{1, 3, barrier, &entered}.run(8, [&](std::size_t i) {
    CHECK(entered == 0);
    mine.push_back(i);
  });
  CHECK(mine == std::vector<std::size_t>{1, 4, 7});
  CHECK(entered == 1);
  exec::slice{5, 6, barrier, &entered}.run(2, [&](std::size_t i) { mine.push_back(i); });
  CHECK(mine.size() == 3);
  CHECK(entered == 2);  // a thread without a task waits as well
}

TEST_CASE("an engine's pool is used in place, through a policy") {
  counting_pool pool;
  const exec::host<pqkv::isa::best, counting_pool&> policy{pool};
  std::vector<int> seen(9);
  policy.runner.run(9, [&](std::size_t i) { ++seen[i]; });
  CHECK(pool.calls == 1);
  CHECK(pool.tasks == 9);
  CHECK(seen == std::vector<int>(9, 1));
  const auto copy = policy;
  copy.runner.run(1, [](std::size_t) {});
  CHECK(pool.calls == 2);
}

TEST_CASE("the tests' own runner runs each task once, on other threads") {
  for (const std::size_t threads : {1u, 2u, 5u})
    for (const std::size_t count : {0u, 1u, 3u, 1000u}) {
      std::vector<std::atomic<int>> seen(count);
      std::atomic<bool> elsewhere = true;
      pqkv_cases::threaded_runner{threads}.run(count, [&, caller = std::this_thread::get_id()](std::size_t i) {
        ++seen[i];
        if (std::this_thread::get_id() == caller) elsewhere = false;
      });
      std::size_t wrong = 0;
      for (const auto& times : seen) wrong += times != 1;
      CHECK(wrong == 0);
      CHECK(elsewhere);
    }
}
