// SPDX-License-Identifier: Apache-2.0
// pqkv's threads in this program: the calling one and `threads - 1` more. llama.cpp's own threads wait while the callback runs, so both
// may have as many as there are cores.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace llama_example {

class thread_pool {
 public:
  explicit thread_pool(std::size_t threads) {
    for (std::size_t i = 1; i < threads; ++i) helpers_.emplace_back([this] { serve(); });
  }
  ~thread_pool() {
    call_ = nullptr;
    open_round();
    for (std::thread& helper : helpers_) helper.join();
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  std::size_t threads() const { return helpers_.size() + 1; }

  /// Calls f(0) to f(count - 1) once each and returns when all are done. @throws the first exception of a task
  template <class F>
  void run(std::size_t count, F&& f) {
    using function = std::remove_reference_t<F>;
    if (helpers_.empty() || count <= 1) {
      for (std::size_t i = 0; i < count; ++i) f(i);
      return;
    }
    call_ = [](void* context, std::size_t task) { (*static_cast<function*>(context))(task); };
    context_ = const_cast<void*>(static_cast<const void*>(&f));
    count_ = count;
    next_ = 0;
    busy_ = helpers_.size();
    open_round();
    take();
    for (std::size_t left = busy_; left != 0; left = busy_) busy_.wait(left);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void open_round() {
    ++round_;
    round_.notify_all();
  }
  void serve() {
    for (std::size_t seen = 0;; ++seen) {
      round_.wait(seen);
      if (call_ == nullptr) return;
      take();
      if (--busy_ == 0) busy_.notify_one();
    }
  }
  void take() {
    for (std::size_t task = next_++; task < count_; task = next_++) {
      try {
        call_(context_, task);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }

  void (*call_)(void*, std::size_t) = nullptr;
  void* context_ = nullptr;
  std::size_t count_ = 0;
  std::atomic<std::size_t> round_{0}, next_{0}, busy_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
  std::vector<std::thread> helpers_;
};

}  // namespace llama_example
