// SPDX-License-Identifier: Apache-2.0
// The host policy: SIMD code for the CPU that runs it, on the caller's threads.
#pragma once

#include <type_traits>

#include "../core/arena.hpp"
#include "isa.hpp"
#include "policy.hpp"
#include "runner.hpp"

namespace pqkv::inline PQKV_MODE::exec {

template <class Isa = isa::best, class Runner = serial>
requires task_runner<Runner>
struct host;

/// The host policy that operations are compiled for: one for each instruction set and all runners.
template <class Isa, class Runner>
using erased_host = host<Isa, std::conditional_t<runs_whole_call<Runner>, erased_runner, erased_slice>>;

/// @tparam Isa     isa::best finds the instruction set at run time; a named one is used unchecked (the CPU must have it)
/// @tparam Runner  who runs tasks; a value or a reference
template <class Isa, class Runner>
requires task_runner<Runner>
struct host {
  using backend_type = backend::host;
  using space_type = space::host;
  using isa_type = Isa;
  using runner_type = Runner;

  Runner runner{};
  arena scratch{};  // empty: scratch comes from the heap, for the length of one call

  /// The same policy with its runner's type hidden. Refers to this one's runner.
  erased_host<Isa, Runner> erased() const {
    if constexpr (std::is_base_of_v<erased_runner, Runner>)
      return *this;
    else
      return {typename erased_host<Isa, Runner>::runner_type(runner), scratch};
  }
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

  /// As above.
  erased_host<Isa, Runner> erased() const { return {typename erased_host<Isa, Runner>::runner_type(runner), scratch}; }
};

}  // namespace pqkv::exec
