// SPDX-License-Identifier: Apache-2.0
// The program's threads: hand `pool_runner&` to pqkv::exec::host and the library runs on them. The calling thread takes part, so one
// thread means no pool.
#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <pqkv/adapt/eigen_thread_pool.hpp>
#include <pqkv/exec/runner.hpp>
#include <utility>

namespace minillama {

class pool_runner {
 public:
  explicit pool_runner(std::size_t threads) {
    if (threads > 1) pool_ = std::make_unique<Eigen::ThreadPool>(static_cast<int>(threads - 1));
  }

  std::size_t threads() const { return pool_ ? pqkv::eigen_pool_runner(*pool_).threads() : 1; }

  /// Runs f(0), ..., f(count - 1) in any order and returns when all are done. The first exception is passed on.
  template <class F>
  void run(std::size_t count, F&& f) {
    if (pool_)
      pqkv::eigen_pool_runner(*pool_).run(count, std::forward<F>(f));
    else
      pqkv::exec::serial{}.run(count, std::forward<F>(f));
  }

 private:
  std::unique_ptr<Eigen::ThreadPool> pool_;
};

}  // namespace minillama
