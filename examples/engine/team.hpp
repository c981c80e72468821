// SPDX-License-Identifier: Apache-2.0
// The engine's threads, in ggml's manner: all `nth` of them run the same program, each takes its share by `ith`, and they meet at
// barriers. A call of pqkv's cache changes the cache once, so one thread makes it: lead() has the first thread call, and the others take
// tasks of what it called until it is through.
#pragma once

#include <atomic>
#include <barrier>
#include <cstddef>
#include <thread>
#include <vector>

#include "pqkv_setup.hpp"

namespace engine {

/// The tasks of a library call, on all threads of the team. One thread calls run() any number of times and then close(); the others are
/// in serve() meanwhile.
class task_board {
 public:
  explicit task_board(std::barrier<>& meeting) : meeting_(meeting) {}

  template <class F>
  void run(std::size_t count, F&& f) {
    using function = std::remove_reference_t<F>;
    if (count == 1) return f(std::size_t{0});
    call_ = [](const void* context, std::size_t task) { (*static_cast<function*>(const_cast<void*>(context)))(task); };
    context_ = &f;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);  // the barrier publishes it
    meeting_.arrive_and_wait();
    take();
    meeting_.arrive_and_wait();
  }
  void close() {
    call_ = nullptr;
    meeting_.arrive_and_wait();
  }
  void serve() {
    for (meeting_.arrive_and_wait(); call_ != nullptr; meeting_.arrive_and_wait()) {
      take();
      meeting_.arrive_and_wait();
    }
  }

 private:
  void take() {
    for (std::size_t task = next_++; task < count_; task = next_++) call_(context_, task);
  }

  std::barrier<>& meeting_;
  void (*call_)(const void*, std::size_t) = nullptr;
  const void* context_ = nullptr;
  std::size_t count_ = 0;
  std::atomic<std::size_t> next_{0};
};

/// pqkv's policy on the team: a runner of whole calls.
using policy = pqkv::exec::host<pqkv::isa::best, task_board&>;

/// One thread's place in the team.
struct worker {
  std::size_t ith, nth;
  std::barrier<>* meeting;
  task_board* board;

  void wait() const { meeting->arrive_and_wait(); }
  bool first() const { return ith == 0; }
  /// Calls f(policy) in the first thread, with the whole team as its runner; all return when it is through.
  template <class F>
  void lead(F f) const {
    if (!first()) return board->serve();
    f(policy{*board, {}});
    board->close();
  }
};

class team {
 public:
  explicit team(std::size_t threads) : nth_(threads), meeting_(static_cast<std::ptrdiff_t>(threads)), board_(meeting_) {
    for (std::size_t ith = 1; ith < threads; ++ith)
      threads_.emplace_back([this, ith] {
        for (meeting_.arrive_and_wait(); program_ != nullptr; meeting_.arrive_and_wait()) {
          program_(context_, {ith, nth_, &meeting_, &board_});
          meeting_.arrive_and_wait();
        }
      });
  }
  ~team() {
    program_ = nullptr;
    meeting_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
  }

  /// Every thread, the calling one too, runs program(worker); returns when all are through.
  template <class Program>
  void run(Program program) {
    program_ = [](void* p, const worker& me) { (*static_cast<Program*>(p))(me); };
    context_ = &program;
    meeting_.arrive_and_wait();
    program(worker{0, nth_, &meeting_, &board_});
    meeting_.arrive_and_wait();
  }

 private:
  std::size_t nth_;
  std::barrier<> meeting_;
  task_board board_;
  void (*program_)(void*, const worker&) = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> threads_;
};

}  // namespace engine
