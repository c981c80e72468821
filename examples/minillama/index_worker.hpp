// SPDX-License-Identifier: Apache-2.0
// Fills a session's caches and builds their indexes on threads of its own, beside the prefill that computes the next layers.
#pragma once
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "decoder.hpp"
#include "pool_runner.hpp"

namespace minillama {

class index_worker {
 public:
  /// Rows of so many layers are in memory at most: one that is computed, one that waits, one that is taken.
  static constexpr std::size_t layers_at_once = 3;

  /// @param at  with empty caches; nobody else uses it until finish() has returned
  index_worker(host_session& at, std::size_t threads);
  index_worker(const index_worker&) = delete;
  index_worker& operator=(const index_worker&) = delete;
  /// Waits for what it has begun.
  ~index_worker();

  /// Hands over a layer; waits while the one before has not begun. @throws what an earlier layer's cache has thrown
  void take(std::size_t layer, prefilled_prompt::layer&& rows);
  /// Waits until all layers are done. @throws as take()
  void finish();
  /// That its threads worked. To be asked after finish().
  double seconds() const { return seconds_; }

 private:
  struct waiting_layer {
    std::size_t layer;
    prefilled_prompt::layer rows;
  };
  void work();

  host_session& at_;
  pool_runner runner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<waiting_layer> waiting_;
  enum class state { open, closed } state_ = state::open;  // closed: no layer follows
  std::exception_ptr failure_;
  double seconds_ = 0;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace minillama
