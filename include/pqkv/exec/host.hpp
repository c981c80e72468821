// SPDX-License-Identifier: Apache-2.0
// The host policy: SIMD code for the CPU that runs it, on the caller's threads.
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

/// The policy with a reference to the engine's runner, which has no default. This is a specialisation because `Runner& runner{}` would be
/// ill-formed in a place where a compiler reports an error instead of answering no: std::optional<host<best, pool&>> would not compile with
/// clang. Copyable but, like every struct with a reference member, not assignable.
template <class Isa, class Runner>
requires task_runner<Runner&>
struct host<Isa, Runner&> {
  using backend_type = backend::host;
  using space_type = space::host;
  using isa_type = Isa;
  using runner_type = Runner&;

  Runner& runner;
  arena scratch{};  // as above
};

}  // namespace pqkv::exec
