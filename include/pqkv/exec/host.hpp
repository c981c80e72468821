// SPDX-License-Identifier: Apache-2.0
// The host policy: SIMD code of the CPU it lands on, on the caller's threads.
#pragma once

#include "../core/arena.hpp"
#include "isa.hpp"
#include "policy.hpp"
#include "runner.hpp"

namespace pqkv::inline PQKV_MODE::exec {

/// @tparam Isa     isa::best finds the instruction set at run time; a named one is used unchecked (the CPU must have it)
/// @tparam Runner  who runs tasks; a value or a reference
template <class Isa = isa::best, class Runner = serial>
  requires task_runner<Runner>
struct host {
  using backend_type = backend::host;
  using space_type = space::host;
  using isa_type = Isa;
  using runner_type = Runner;

  Runner runner{};
  arena scratch{};  // empty: scratch comes from the heap, for the length of one call
};

}  // namespace pqkv::exec
