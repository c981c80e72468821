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

}  // namespace pqkv::exec
