// SPDX-License-Identifier: Apache-2.0
// Eigen's thread pool as a pqkv task_runner: hand `pool_runner&` to pqkv::exec::host and the library runs on these threads.
// The calling thread takes part, so a pool of one thread has no threads of its own.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <unsupported/Eigen/CXX11/ThreadPool>

namespace minillama {

class pool_runner {
 public:
  explicit pool_runner(std::size_t threads) : threads_(std::max<std::size_t>(threads, 1)) {
    if (threads_ > 1) pool_ = std::make_unique<Eigen::ThreadPool>(static_cast<int>(threads_ - 1));
  }

  std::size_t threads() const { return threads_; }

  /// Runs f(0), ..., f(count - 1) in any order and returns when all are done. The first exception is passed on, after the rest has run.
  template <class F>
  void run(std::size_t count, F&& f) {
    const std::size_t helpers = std::min(threads_, count) - (count > 0 ? 1 : 0);
    if (helpers == 0) {
      for (std::size_t i = 0; i < count; ++i) f(i);
      return;
    }
    // Shared, because a helper may wake up after everything is done. It then finds no index left and never touches f.
    const auto work = std::make_shared<job>(count);
    for (std::size_t i = 0; i < helpers; ++i) pool_->Schedule([work, &f] { work->take_part(f); });
    work->take_part(f);
    work->wait();
  }

 private:
  class job {
   public:
    explicit job(std::size_t count) : count_(count), open_(count) {}

    template <class F>
    void take_part(F& f) {
      for (std::size_t i = next_++; i < count_; i = next_++) {
        try {
          f(i);
        } catch (...) {
          const std::lock_guard lock(mutex_);
          if (!error_) error_ = std::current_exception();
        }
        if (--open_ == 0) {
          const std::lock_guard lock(mutex_);
          all_done_.notify_one();
        }
      }
    }

    void wait() {
      std::unique_lock lock(mutex_);
      all_done_.wait(lock, [this] { return open_ == 0; });
      if (error_) std::rethrow_exception(error_);
    }

   private:
    const std::size_t count_;
    std::atomic<std::size_t> next_{0};
    std::atomic<std::size_t> open_;
    std::mutex mutex_;
    std::condition_variable all_done_;
    std::exception_ptr error_;
  };

  std::size_t threads_;
  std::unique_ptr<Eigen::ThreadPool> pool_;
};

}  // namespace minillama
