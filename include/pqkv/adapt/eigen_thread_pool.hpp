// SPDX-License-Identifier: Apache-2.0
// An engine's Eigen thread pool as a task_runner: the library's tasks run on the pool's threads and on the calling thread. Owns nothing, so
// the pool must outlive it; a policy holds it by value. No header of the library includes this file; it needs Eigen 3.4 or later.
//
// Not where a step must not allocate: each call allocates once for each thread that it hands work to, however many tasks there are. Without
// exceptions (-fno-exceptions) a task must not fail, as everywhere.
#pragma once

#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE {

/// pqkv::exec::host<pqkv::isa::best, pqkv::eigen_pool_runner> cpu{pqkv::eigen_pool_runner(pool)};
class eigen_pool_runner {
 public:
  explicit eigen_pool_runner(Eigen::ThreadPoolInterface& pool) : pool_(&pool) {}

  /// Threads that take part in a call: the pool's and the calling one.
  std::size_t threads() const { return static_cast<std::size_t>(std::max(pool_->NumThreads(), 0)) + (on_the_pool() ? 0 : 1); }

  /// Calls f(0) to f(count - 1) once each and returns when all are done; f may call run() again, and several threads may call it.
  ///
  /// The calling thread works through whatever the pool's threads have not taken, so a busy pool delays nothing.
  /// @throws the first exception that f threw, after the other tasks have run
  /// @cost   one atomic addition a task, or less where there are many; allocates once a thread, never a task
  template <class F>
  void run(std::size_t count, F&& f) const {
    const std::size_t helpers = std::min(threads(), count) - (count > 0 ? 1 : 0);
    if (helpers == 0) return run_alone(count, f);
    // Shared, because a helper may wake up after everything is done. It then finds no task left and never touches f.
    const auto work = std::make_shared<job>(count, helpers + 1);
    for (std::size_t i = 0; i < helpers; ++i)
      if (!hand_over([work, task = std::addressof(f)] { work->take_part(*task); })) break;
    work->take_part(f);
    work->wait();
  }

 private:
  class job {
   public:
    job(std::size_t count, std::size_t threads)
        : count_(count), run_length_(std::max<std::size_t>(count / (threads * 64), 1)), open_(count) {}

    template <class F>
    void take_part(F& f) {
      for (std::size_t first = next_.fetch_add(run_length_); first < count_; first = next_.fetch_add(run_length_)) {
        const std::size_t taken = std::min(run_length_, count_ - first);
        for (std::size_t i = first; i < first + taken; ++i) call(f, i);
        if (open_.fetch_sub(taken) == taken) {
          const std::lock_guard lock(mutex_);  // not between the other thread's look at open_ and its sleep
          all_done_.notify_one();
        }
      }
    }

    void wait() {
      std::unique_lock lock(mutex_);
      all_done_.wait(lock, [this] { return open_ == 0; });
#if PQKV_HAS_EXCEPTIONS
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));  // a late helper, the job's last owner, must not free it
#endif
    }

   private:
    template <class F>
    void call(F& f, std::size_t i) {
#if PQKV_HAS_EXCEPTIONS
      try {
        f(i);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
#else
      f(i);
#endif
    }

    const std::size_t count_;
    const std::size_t run_length_;  // tasks taken at a time: 1 unless there are many, so that few atomics are fought over
    std::atomic<std::size_t> next_{0};
    std::atomic<std::size_t> open_;
    std::mutex mutex_;
    std::condition_variable all_done_;
    std::exception_ptr error_;
  };

  /// False when the pool cannot take it (no memory). The calling thread then does the work, and f stays alive for the helpers that run.
  template <class Closure>
  bool hand_over(Closure&& closure) const {
#if PQKV_HAS_EXCEPTIONS
    try {
      pool_->Schedule(std::forward<Closure>(closure));
    } catch (...) {
      return false;
    }
#else
    pool_->Schedule(std::forward<Closure>(closure));
#endif
    return true;
  }

  bool on_the_pool() const { return pool_->CurrentThreadId() >= 0; }

  template <class F>
  static void run_alone(std::size_t count, F& f) {
#if PQKV_HAS_EXCEPTIONS
    std::exception_ptr error;
    for (std::size_t i = 0; i < count; ++i) {
      try {
        f(i);
      } catch (...) {
        if (!error) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
#else
    for (std::size_t i = 0; i < count; ++i) f(i);
#endif
  }

  Eigen::ThreadPoolInterface* pool_;
};

}  // namespace pqkv
