// SPDX-License-Identifier: Apache-2.0
// Who runs the tasks of a host policy. The library starts no thread: an engine's own pool models `task_runner` in three lines.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE::exec {
namespace detail {
template <class R>
using called_runner = std::conditional_t<std::is_reference_v<R>, R, const R&>;
}

/// run(count, f) calls f(0), ..., f(count - 1) once each, in any order and on any threads, and returns when all are done.
/// May be a value (called as const) or a reference to the engine's object: host<isa::best, my_pool&>.
template <class R>
concept task_runner = requires(detail::called_runner<R> runner, void (*f)(std::size_t)) {
  runner.run(std::size_t{}, f);
};

/// One after the other, in the calling thread.
struct serial {
  template <class F>
  void run(std::size_t count, F&& f) const {
    for (std::size_t i = 0; i < count; ++i) f(i);
  }
};

/// ggml's way: all `nth` threads make the same call, and each does its share, tasks ith, ith + nth, ... Between two calls the caller waits
/// for all threads, or gives `barrier`. For functions on views. Objects with state (pqcache) refuse it, since each thread would change the
/// state once.
struct slice {
  using partial_call = void;
  std::size_t ith = 0, nth = 1;
  void (*barrier)(void*) = nullptr;  // called with `context` when this thread's share is done
  void* context = nullptr;

  template <class F>
  void run(std::size_t count, F&& f) const {
    for (std::size_t i = ith; i < count; i += nth) f(i);
    if (barrier != nullptr) barrier(context);
  }
};

/// False for a runner whose threads all make the same call.
template <class R>
inline constexpr bool runs_whole_call = !requires {
  typename std::remove_cvref_t<R>::partial_call;
};

/// A reference to a runner whose type is hidden: code that takes it is compiled once for all runners. Valid as long as the runner is.
///
/// @cost  a task is called through a pointer
class erased_runner {
 public:
  template <class R>
  requires(!std::is_base_of_v<erased_runner, std::remove_cv_t<R>>) explicit erased_runner(R& runner) noexcept
      : runner_(&runner), run_([](const void* of, std::size_t count, task_call* call, const void* task) {
          const_cast<R*>(static_cast<const R*>(of))->run(count, [=](std::size_t i) { call(task, i); });  // const only where R is
        }) {}

  template <class F>
  void run(std::size_t count, F&& f) const {
    using task_type = std::remove_reference_t<F>;
    run_(
        runner_, count, [](const void* task, std::size_t i) { (*const_cast<task_type*>(static_cast<const task_type*>(task)))(i); }, &f);
  }

 private:
  using task_call = void(const void* task, std::size_t i);

  const void* runner_;
  void (*run_)(const void* runner, std::size_t count, task_call* call, const void* task);
};

/// The same for a runner that runs a part of a call's tasks.
class erased_slice : public erased_runner {
 public:
  using partial_call = void;
  using erased_runner::erased_runner;
};

}  // namespace pqkv::exec
