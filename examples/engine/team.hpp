// SPDX-License-Identifier: Apache-2.0
// The engine's threads, in ggml's manner: all `nth` of them run the same program, each takes its share by `ith`, and they meet at
// barriers. A library call is made by all of them at once; pqkv::exec::slice is the runner for that.
#pragma once

#include <barrier>
#include <cstddef>
#include <thread>
#include <vector>

#include "pqkv_setup.hpp"

namespace engine {

using policy = pqkv::exec::host<pqkv::isa::best, pqkv::exec::slice>;

/// One thread's place in the team.
struct worker {
  std::size_t ith, nth;
  std::barrier<>* meeting;

  void wait() const { meeting->arrive_and_wait(); }
  bool first() const { return ith == 0; }
  /// This thread's share of a pqkv call, and of `scratch`, which all threads name alike.
  policy share(pqkv::arena scratch = {}) const {
    return {{ith, nth, [](void* all) { static_cast<std::barrier<>*>(all)->arrive_and_wait(); }, meeting}, scratch};
  }
};

class team {
 public:
  explicit team(std::size_t threads) : nth_(threads), meeting_(static_cast<std::ptrdiff_t>(threads)) {
    for (std::size_t ith = 1; ith < threads; ++ith)
      threads_.emplace_back([this, ith] {
        for (meeting_.arrive_and_wait(); program_ != nullptr; meeting_.arrive_and_wait()) {
          program_(context_, {ith, nth_, &meeting_});
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
    program(worker{0, nth_, &meeting_});
    meeting_.arrive_and_wait();
  }

 private:
  std::size_t nth_;
  std::barrier<> meeting_;
  void (*program_)(void*, const worker&) = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> threads_;
};

}  // namespace engine
