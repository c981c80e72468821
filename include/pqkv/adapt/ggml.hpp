// SPDX-License-Identifier: Apache-2.0
// ggml's tensors as views, and the threads of a ggml operation as a task runner. Nothing is copied: a view is the tensor's own memory. No
// header of the library includes this file. It needs ggml.h and ggml-backend.h, and links one function of ggml's,
// ggml_backend_buffer_is_host.
//
// ggml counts axes from the innermost: its ne[0] is our last extent. A tensor of ne = [d, tokens, heads, 1] is the view [heads, tokens, d].
// Its strides nb are in bytes and may be in any order, so permuted and transposed tensors are views too.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <atomic>
#include <cstddef>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include "../core/error.hpp"
#include "../core/scalar.hpp"
#include "../core/view.hpp"

namespace pqkv::inline PQKV_MODE {

/// ggml's name of an element type: float, half or bfloat16.
/// @{
template <storage_scalar T>
inline constexpr ggml_type ggml_type_of = GGML_TYPE_F32;
template <>
inline constexpr ggml_type ggml_type_of<half> = GGML_TYPE_F16;
template <>
inline constexpr ggml_type ggml_type_of<bfloat16> = GGML_TYPE_BF16;
/// @}

namespace detail {
/// The name of the tensor in error messages: the one that the engine gave it.
inline const char* tensor_name(const ggml_tensor* tensor) { return tensor->name[0] != 0 ? tensor->name : "tensor"; }

template <class T>
constexpr const char* of_type() {
  return ggml_type_of<T> == GGML_TYPE_F32   ? "of type f32, ggml's number 0"
         : ggml_type_of<T> == GGML_TYPE_F16 ? "of type f16, ggml's number 1"
                                            : "of type bf16, ggml's number 30";
}

/// The checks that do not depend on the element type.
inline status can_reach(const ggml_tensor* tensor, std::size_t rank, std::size_t element_bytes, const char* function) noexcept {
  checks all(function);
  const char* name = tensor_name(tensor);
  all.that(tensor->data != nullptr, status::code::value, name, relation::required, "allocated: it has no data", 1, 0);
  if (tensor->buffer != nullptr)
    all.that(ggml_backend_buffer_is_host(tensor->buffer), status::code::value, name, relation::required,
             "in host memory: keep the layer on the CPU", 1, 0);
  for (std::size_t axis = rank; axis < GGML_MAX_DIMS; ++axis)
    all.that(tensor->ne[axis] == 1, status::code::shape, name, relation::equal, "extent of the axes beyond the view's", 1,
             tensor->ne[axis]);
  for (std::size_t axis = 0; axis < rank; ++axis)
    all.that(tensor->nb[axis] % element_bytes == 0, status::code::shape, name, relation::multiple_of, "bytes of an element, in each stride",
             element_bytes, tensor->nb[axis]);
  return all;
}
}  // namespace detail

/// Checks whether ggml_view<T, Rank>(tensor) would work, and says what is wrong. The status points to the tensor's name, so the tensor must
/// outlive it.
template <storage_scalar T, std::size_t Rank>
status can_ggml_view(const ggml_tensor* tensor, const char* function = "ggml_view") noexcept {
  static_assert(Rank <= GGML_MAX_DIMS, "pqkv: a ggml tensor has four axes");
  using element = std::remove_const_t<T>;
  detail::checks type(function);
  type.that(tensor != nullptr, status::code::value, "tensor", relation::required, "given: it is a null pointer", 1, 0);
  if (!type.ok()) return type;
  type.that(tensor->type == ggml_type_of<element>, status::code::value, detail::tensor_name(tensor), relation::stated,
            detail::of_type<element>(), static_cast<int>(ggml_type_of<element>), static_cast<int>(tensor->type));
  return type.ok() ? detail::can_reach(tensor, Rank, sizeof(T), function) : type;
}

/// A tensor's memory as a view of its last Rank axes, innermost last.
///
/// @tparam T       the tensor's type: float, half or bfloat16; const for reading
/// @tparam Rank    how many axes to keep; the tensor's other axes must have extent 1
/// @param tensor   in host memory; the tensor, and the graph that owns its memory, must outlive the view. It may itself be a view, permuted
///                 or transposed
/// @returns        [ne[Rank - 1], ..., ne[0]]
/// @throws value_error, shape_error; the message has the tensor's name and, if the type is wrong, the type's name
template <storage_scalar T, std::size_t Rank>
view<T, Rank> ggml_view(const ggml_tensor* tensor) {
  const status checked = can_ggml_view<T, Rank>(tensor);
#if PQKV_HAS_EXCEPTIONS
  if (!checked.ok() && checked.must == relation::stated)  // a wrong type: its number would say little
    throw value_error(checked.message() + " (" + ggml_type_name(tensor->type) + ")");
#endif
  require_ok(checked);
  view<T, Rank> v{static_cast<T*>(tensor->data), {}, {}};
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    v.extents[Rank - 1 - axis] = static_cast<std::size_t>(tensor->ne[axis]);
    v.strides[Rank - 1 - axis] = tensor->nb[axis] / sizeof(T);
  }
  return v;
}

/// Calls f with a read-only view of the tensor, in the tensor's own type.
///
/// @param f  f(view<const T, Rank>) for T float, half and bfloat16; all three must compile and return the same type
/// @throws as ggml_view(); value_error naming the type for any other type, for example a quantized one
template <std::size_t Rank, class F>
decltype(auto) visit_ggml_view(const ggml_tensor* tensor, F&& f) {
  if (tensor != nullptr && tensor->type == GGML_TYPE_BF16) return f(ggml_view<const bfloat16, Rank>(tensor));
  if (tensor != nullptr && tensor->type == GGML_TYPE_F32) return f(ggml_view<const float, Rank>(tensor));
#if PQKV_HAS_EXCEPTIONS
  if (tensor != nullptr && tensor->type != GGML_TYPE_F16)
    throw value_error(std::string("pqkv::visit_ggml_view: ") + detail::tensor_name(tensor) + " must be of type f32, f16 or bf16, got " +
                      ggml_type_name(tensor->type));
#endif
  return f(ggml_view<const half, Rank>(tensor));
}

/// The same memory with two axes exchanged: [heads, tokens, d] as [tokens, heads, d].
template <std::size_t A, std::size_t B, class T, std::size_t Rank, class Space>
requires(A < Rank && B < Rank) constexpr view<T, Rank, Space> swap_axes(view<T, Rank, Space> v) {
  std::swap(v.extents[A], v.extents[B]);
  std::swap(v.strides[A], v.strides[B]);
  return v;
}

/// The threads of a ggml operation as one runner of whole calls. All these threads make the same call with (ith, nth): here the first one
/// calls pqkv, and the others take its tasks. A cache needs this, since each call changes it; functions on views can use exec::slice
/// instead.
///
///     void op(ggml_tensor* out, int ith, int nth, void* data) {         // a ggml custom operation
///       auto& mine = *static_cast<layer*>(data);
///       mine.team.lead(ith, nth, [&] { mine.cache.attend(pqkv::exec::host<pqkv::isa::best, pqkv::ggml_team&>{mine.team}, ...); });
///     }
///
/// Use one team for each operation. All its threads must meet between two calls of lead(), as ggml's do after every operation. Waiting
/// threads spin, as ggml's do. Nothing allocates.
class ggml_team {
 public:
  ggml_team() = default;
  ggml_team(const ggml_team&) = delete;
  ggml_team& operator=(const ggml_team&) = delete;

  /// Every thread of the operation calls this. f() runs in thread 0, where this team is a task_runner; the other threads return when f has
  /// ended.
  /// @param f  called without arguments. lead() passes on what it throws in thread 0, so catch it there: ggml is C
  template <class F>
  void lead(int ith, int nth, F&& f) {
    if (ith != 0) return serve();
    others_ = static_cast<std::size_t>(nth) - 1;
    const closing at_end{*this};
    f();
  }

  /// Calls f(0) to f(count - 1), once each: the task_runner's run(). Only inside of f of lead().
  /// @throws the first exception of a task, after the other tasks have run
  template <class F>
  void run(std::size_t count, F&& f) {
    using function = std::remove_reference_t<F>;
    if (others_ == 0 || count <= 1) {
      for (std::size_t i = 0; i < count; ++i) f(i);
      return;
    }
    call_ = [](const void* context, std::size_t task) { (*static_cast<function*>(const_cast<void*>(context)))(task); };
    context_ = &f;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    open_round();
    take();
    wait_for_others();
#if PQKV_HAS_EXCEPTIONS
    if (failed_.exchange(false)) std::rethrow_exception(std::exchange(error_, nullptr));
#endif
  }

 private:
  /// Releases the other threads, however f ended.
  struct closing {
    ggml_team& team;
    ~closing() {
      if (team.others_ == 0) return;
      team.call_ = nullptr;
      team.open_round();
      team.wait_for_others();
      team.round_.store(0, std::memory_order_relaxed);  // the next operation counts from the start; its threads meet before that
    }
  };

  void open_round() {
    left_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);  // publishes the round's count and function
  }
  void wait_for_others() {
    wait_until([&] { return left_.load(std::memory_order_acquire) == others_; });
  }
  /// Every thread takes part in every round, and the first waits for a late one, so none misses a round.
  void serve() {
    for (std::size_t seen = 0;; ++seen) {
      wait_until([&] { return round_.load(std::memory_order_acquire) != seen; });
      const bool closed = call_ == nullptr;
      if (!closed) take();
      left_.fetch_add(1, std::memory_order_release);
      if (closed) return;
    }
  }
  void take() {
    for (std::size_t task = next_++; task < count_; task = next_++) {
#if PQKV_HAS_EXCEPTIONS
      try {
        call_(context_, task);
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
#else
      call_(context_, task);
#endif
    }
  }
  template <class Condition>
  static void wait_until(Condition holds) {
    for (std::size_t spins = 0; !holds(); ++spins)
      if (spins > 4000) std::this_thread::yield();  // there may be more threads than cores
  }

  std::size_t others_ = 0, count_ = 0;
  void (*call_)(const void*, std::size_t) = nullptr;
  const void* context_ = nullptr;
  std::atomic<std::size_t> round_{0}, next_{0}, left_{0};
#if PQKV_HAS_EXCEPTIONS
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
#endif
};

}  // namespace pqkv
