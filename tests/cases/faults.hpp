// SPDX-License-Identifier: Apache-2.0
// Makes one thing go wrong in a call on the host: the k-th allocation, or the k-th run() of the policy's runner, before, amid or after
// its tasks.
#pragma once

#include <cstddef>
#include <new>
#include <stdexcept>

#include <pqkv/exec/host.hpp>

#include "allocation_count.hpp"

namespace pqkv_cases {

/// What fails.
enum class fault { allocation, before_tasks, amid_tasks, after_tasks };
inline constexpr fault every_fault[] = {fault::allocation, fault::before_tasks, fault::amid_tasks, fault::after_tasks};

struct runner_failed : std::runtime_error {
  runner_failed() : std::runtime_error("the runner failed") {}
};

/// Counts run() calls down to the one that fails.
struct fault_plan {
  fault what = fault::before_tasks;
  std::size_t until = 0;  // 1: the next run() fails; 0: none
};

/// Serial; throws when its plan says so.
struct failing_runner {
  fault_plan* plan;

  template <class F>
  void run(std::size_t count, F&& f) const {
    const bool fails = plan->until != 0 && --plan->until == 0;
    const std::size_t done = !fails || plan->what == fault::after_tasks ? count : plan->what == fault::amid_tasks ? (count + 1) / 2 : 0;
    for (std::size_t i = 0; i < done; ++i) f(i);
    if (fails) throw runner_failed();
  }
};
using failing_host = pqkv::exec::host<pqkv::isa::best, failing_runner>;

/// Whether f, in which the k-th chance of that fault is taken, throws. Nothing fails afterwards.
template <class F>
bool fails(fault_plan& plan, fault what, std::size_t k, F&& f) {
  bool thrown = false;
  if (what == fault::allocation)
    fail_allocation(k);
  else
    plan = {what, k};
  try {
    f();
  } catch (const std::bad_alloc&) {
    thrown = true;
  } catch (const runner_failed&) {
    thrown = true;
  }
  fail_allocation(0);
  plan.until = 0;
  return thrown;
}

}  // namespace pqkv_cases
