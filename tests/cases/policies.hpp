// SPDX-License-Identifier: Apache-2.0
// Host policies that tests run everything under: every instruction set this CPU has, and tasks on threads in a shuffled order.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include <pqkv/exec/host.hpp>

namespace pqkv_cases {

/// Calls body(Isa{}) with every instruction set that the running CPU has, scalar first.
template <class Body>
void for_each_isa(Body&& body) {
  body(pqkv::isa::scalar{});
#if defined(__aarch64__)
  if (pqkv::isa::detected() == pqkv::isa::level::neon) body(pqkv::isa::neon{});
#else
  if (pqkv::isa::detected() >= pqkv::isa::level::avx2) body(pqkv::isa::avx2{});
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512) body(pqkv::isa::avx512{});
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512_vbmi) body(pqkv::isa::avx512_vbmi{});
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512_bf16) body(pqkv::isa::avx512_bf16{});
#endif
}

/// A task runner that starts `threads` threads a call and hands tasks out last to first.
struct threaded_runner {
  std::size_t threads = 3;

  template <class F>
  void run(std::size_t count, F&& f) const {
    std::atomic<std::size_t> left = count;
    std::vector<std::thread> pool;
    for (std::size_t i = 0; i < threads; ++i)
      pool.emplace_back([&] {
        for (std::size_t now = left.load(); now != 0;)
          if (left.compare_exchange_weak(now, now - 1)) f(now - 1);
      });
    for (std::thread& one : pool) one.join();
  }
};
static_assert(pqkv::exec::task_runner<threaded_runner>);

}  // namespace pqkv_cases
