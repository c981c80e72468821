// SPDX-License-Identifier: Apache-2.0
#include "index_worker.hpp"

#include <utility>

#include "process_memory.hpp"

namespace minillama {

index_worker::index_worker(host_session& at, std::size_t threads) : at_(at), runner_(threads), thread_([this] { work(); }) {}

index_worker::~index_worker() {
  {
    const std::lock_guard lock(mutex_);
    state_ = state::closed;
    waiting_.reset();
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void index_worker::take(std::size_t layer, prefilled_prompt::layer&& rows) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !waiting_ || failure_; });
  if (failure_) std::rethrow_exception(failure_);
  waiting_ = waiting_layer{layer, std::move(rows)};
  changed_.notify_all();
}

void index_worker::finish() {
  {
    const std::lock_guard lock(mutex_);
    state_ = state::closed;
  }
  changed_.notify_all();
  thread_.join();
  if (failure_) std::rethrow_exception(failure_);
}

void index_worker::work() {
  const host_policy cpu{runner_, {}};
  try {
    while (true) {
      std::optional<waiting_layer> next;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return waiting_ || state_ == state::closed; });
        if (!waiting_) return;
        next = std::exchange(waiting_, std::nullopt);
      }
      changed_.notify_all();
      lap_clock clock;
      at_.take_layer(cpu, next->layer, next->rows);
      next.reset();
      return_free_memory();
      seconds_ += clock.lap();
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  changed_.notify_all();
}

}  // namespace minillama
