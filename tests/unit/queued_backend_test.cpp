// SPDX-License-Identifier: Apache-2.0
// The queued backend keeps its promises: memory that the host cannot touch, work that waits, graphs, refusals inside a capture, a step
// that is not checked against sequences. The life of a whole cache on it is property/queued_lives_test.cpp.
#include <doctest/doctest.h>

#include <csignal>
#include <sys/resource.h>
#include <sys/wait.h>

#include "cases/inputs.hpp"
#include "cases/queued_backend.hpp"

namespace {
using namespace pqkv_cases;
using cache_type = pqkv::device_pqcache<float>;

/// Whether a child process that runs f is stopped by an access to memory that it has no rights to.
template <class F>
bool is_stopped(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
    ::signal(SIGSEGV, SIG_DFL);  // doctest and sanitizers have handlers of their own
    f();
    ::_exit(0);
  }
  int how = 0;
  ::waitpid(child, &how, 0);
  return WIFSIGNALED(how) && WTERMSIG(how) == SIGSEGV;
}

cache_type::params small_params() {
  cache_type::params p;
  p.batch = 3, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 120;
  p.budget.sinks = 4, p.budget.window = 16, p.budget.retrieve = 20;
  p.selector.bits = 4, p.selector.train.iterations = 2;
  return p;
}
std::vector<float> gaussians(std::size_t size, std::uint64_t seed) {
  random_source random(seed);
  std::vector<float> all(size);
  for (float& x : all) x = random.gaussian();
  return all;
}
}  // namespace

TEST_CASE("queued: the host can neither read nor write a queue's memory, before and after it ran") {
  queue q;
  const queued_policy dev{&q};
  const queued_array<int> numbers(dev, std::vector<int>(5000, 7));
  volatile int* const first = numbers.data();
  volatile int* const last = numbers.data() + 4999;
  CHECK(is_stopped([&] { static_cast<void>(*first); }));
  CHECK(is_stopped([&] { static_cast<void>(*last); }));
  CHECK(is_stopped([&] { *first = 1; }));
  CHECK(is_stopped([&] { static_cast<void>(first[5 * 1024]); }));  // behind its last page
  int own = 1;
  CHECK_FALSE(is_stopped([&] { *static_cast<volatile int*>(&own) = 2; }));
  CHECK(numbers.read()[4999] == 7);
}

TEST_CASE("queued: where a device cache stands is not the host's to read") {
  queue q;
  const queued_policy dev{&q};
  const cache_type cache(dev, small_params());
  const auto rows = cache.store();
  CHECK(q.holds(rows.keys.data));
  CHECK(is_stopped([&] { static_cast<void>(*static_cast<const volatile float*>(rows.keys.data)); }));
  CHECK(cache.at(dev, 0).n == 0);
}

TEST_CASE("queued: work runs at sync(), in order, and small values are those of the time of the call") {
  queue q;
  const queued_policy dev{&q};
  std::vector<int> to(2, 0), from(2, 1);
  pqkv::copy_bytes(dev, to.data(), from.data(), 2 * sizeof(int));
  from = {5, 6};  // host memory is read when the copy runs
  CHECK(to == std::vector<int>{0, 0});
  int value = 3;
  q.push([=, &to] { to.push_back(value); });
  value = 4;
  pqkv::sync(dev);
  CHECK(to == std::vector<int>{5, 6, 3});
  pqkv::sync(dev);
  CHECK(to.size() == 3);
}

TEST_CASE("queued: what throws ends the run, its memory is closed and what came behind it is dropped") {
  queue q;
  const queued_policy dev{&q};
  const queued_array<int> numbers(dev, std::vector<int>{1});
  int ran = 0;
  q.push([] { throw std::runtime_error("broken"); });
  q.push([&ran] { ++ran; });
  CHECK_THROWS_AS(pqkv::sync(dev), std::runtime_error);
  pqkv::sync(dev);
  CHECK(ran == 0);
  CHECK(is_stopped([&] { static_cast<void>(*static_cast<volatile int*>(numbers.data())); }));
}

TEST_CASE("queued: a graph runs as often as it is launched, and nothing of it before") {
  queue q;
  const queued_policy dev{&q};
  int count = 0;
  q.begin_capture();
  q.push([&count] { ++count; });
  q.push([&count] { count += 10; });
  const work_list graph = q.end_capture();
  pqkv::sync(dev);
  CHECK(count == 0);
  for (int i = 0; i < 3; ++i) q.launch(graph);
  pqkv::sync(dev);
  CHECK(count == 33);
  CHECK_FALSE(graph.empty());
}

TEST_CASE("queued: a capture refuses what a step must not do") {
  queue q;
  const queued_policy dev{&q};
  int x = 0, y = 0;
  q.begin_capture();
  CHECK_THROWS_AS(pqkv::make_owner<float>(dev, 10), std::logic_error);
  CHECK_THROWS_AS(pqkv::copy_bytes(dev, &x, &y, sizeof x), std::logic_error);
  CHECK_THROWS_AS(pqkv::sync(dev), std::logic_error);
  CHECK_THROWS_AS(q.begin_capture(), std::logic_error);
  CHECK(q.end_capture().empty());
}

TEST_CASE("queued: memory is given back, and a call without scratch has none") {
  queue q;
  const queued_policy dev{&q};
  {
    const queued_array<float> query(dev, gaussians(64, 1));
    CHECK(q.blocks() == 1);
    const auto plan = cache_type::plan(dev, small_params());
    CHECK(plan.scratch_bytes != 0);
    const cache_type cache(dev, small_params());
    CHECK(q.blocks() > 1);
  }
  CHECK(q.blocks() == 0);
  const queued_array<float> table(dev, std::vector<float>(32, 0.0f)), bias(dev, std::vector<float>(1, 0.0f)), scores(dev, 8);
  const queued_array<std::uint8_t> codes(dev, std::vector<std::uint8_t>(8, 0));
  pqkv::scan(dev, {table.const_view(1, 2, 16), bias.const_view(1)}, codes.const_view(1, 2, 4), scores.view(1, 4),
             pqkv::group_reduction::probability_sum, 16);
  CHECK_THROWS_AS(pqkv::sync(dev), pqkv::capacity_error);
}

TEST_CASE("queued: rows of a step that do not fit are refused and counted, the others appended") {
  queue q;
  const queued_policy dev{&q};
  cache_type cache(dev, small_params());
  const queued_array<float> rows(dev, gaussians(2 * 118 * 16, 2)), more(dev, gaussians(12 * 2 * 16, 3));
  cache.prefill(dev, 0, rows.const_view(2, 100, 16), rows.const_view(2, 100, 16));
  cache.prefill(dev, 1, rows.const_view(2, 118, 16), rows.const_view(2, 118, 16));
  cache.prefill(dev, 2, rows.const_view(2, 50, 16), rows.const_view(2, 50, 16), pqkv::chunk::more);
  const queued_array<std::uint32_t> slots(dev, std::vector<std::uint32_t>{1, 2, 0}), counts(dev, std::vector<std::uint32_t>{3, 4, 5});
  const pqkv::basic_step<pqkv::space::device> step{slots.const_view(3), counts.const_view(3)};
  cache.append(dev, more.const_view(12, 2, 16), more.const_view(12, 2, 16), step);
  CHECK(cache.size(dev, 0) == 105);
  CHECK(cache.size(dev, 1) == 118);  // 121 of 120
  CHECK(cache.size(dev, 2) == 50);   // still being prefilled
  CHECK(cache.statistics(dev, 0).refused == 0);
  CHECK(cache.statistics(dev, 1).refused == 3);
  CHECK(cache.statistics(dev, 2).refused == 4);
  // The accepted row got its own tokens, the last five.
  std::vector<float> key(16);
  pqkv::copy_bytes(dev, key.data(), &cache.store().keys.data[cache.store().keys.stride(1) * 104], 16 * sizeof(float));
  pqkv::sync(dev);
  const std::vector<float> given = more.read();
  CHECK(key == std::vector<float>(given.begin() + 11 * 2 * 16, given.begin() + 11 * 2 * 16 + 16));
  // A row that the step has no tokens for.
  const queued_array<std::uint32_t> too_many(dev, std::vector<std::uint32_t>{0, 0, 13});
  cache.append(dev, more.const_view(12, 2, 16), more.const_view(12, 2, 16), {slots.const_view(3), too_many.const_view(3)});
  CHECK(cache.size(dev, 0) == 105);
  CHECK(cache.statistics(dev, 0).refused == 13);
}
