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

/// With a reference to the engine's runner, which there is no default for. A specialisation, since `Runner& runner{}` would be ill-formed
/// in a place where a compiler may not turn it into an answer: std::optional<host<best, pool&>> would not compile with clang. Copyable;
/// like every struct with a reference in it, not assignable.
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
