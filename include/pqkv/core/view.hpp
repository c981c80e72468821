// SPDX-License-Identifier: Apache-2.0
// Pointer, extents and element strides over memory that somebody else owns. Trivially copyable; passed to kernels by value. The vocabulary
// is std::mdspan's, and a std::mdspan with any strided layout converts to it. Bounds are checked in PQKV_CHECKED builds only: public
// functions check extents, kernels do not.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>
#include <version>
#if defined(__cpp_lib_mdspan)
#include <mdspan>
#endif

#include "../config.hpp"
#include "error.hpp"
#include "space.hpp"

namespace pqkv::inline PQKV_MODE {

/// @tparam T      element type; const for read-only
/// @tparam Rank   number of axes
/// @tparam Space  where the memory is
template <class T, std::size_t Rank, class Space = space::host>
struct view {
  static_assert(Rank > 0 && space::is_space<Space>);
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  using space_type = Space;

  T* data{};
  std::size_t extents[Rank]{};  // plain arrays: std::array's operators are not device functions
  std::size_t strides[Rank]{};  // in elements

  PQKV_HD static constexpr std::size_t rank() { return Rank; }
  PQKV_HD constexpr std::size_t extent(std::size_t axis) const { return extents[axis]; }
  PQKV_HD constexpr std::size_t stride(std::size_t axis) const { return strides[axis]; }
  PQKV_HD constexpr std::size_t size() const {
    std::size_t count = 1;
    for (std::size_t axis = 0; axis < Rank; ++axis) count *= extents[axis];
    return count;
  }
  PQKV_HD constexpr bool empty() const { return data == nullptr || size() == 0; }

  template <class... Index>
  requires(sizeof...(Index) == Rank) PQKV_HD constexpr T& operator()(Index... index) const {
    std::size_t offset = 0, axis = 0;
    ((PQKV_ASSERT(static_cast<std::size_t>(index) < extents[axis]), offset += static_cast<std::size_t>(index) * strides[axis++]), ...);
    return data[offset];
  }

  /// The sub-view at `index` of the first axis.
  PQKV_HD constexpr view<T, Rank - 1, Space> operator[](std::size_t index) const requires(Rank > 1) {
    view<T, Rank - 1, Space> inner{data + index * strides[0], {}, {}};
    for (std::size_t axis = 1; axis < Rank; ++axis) {
      inner.extents[axis - 1] = extents[axis];
      inner.strides[axis - 1] = strides[axis];
    }
    return inner;
  }

  /// `count` entries of `axis` from `first` on.
  PQKV_HD constexpr view slice(std::size_t axis, std::size_t first, std::size_t count) const {
    view part = *this;
    part.data += first * strides[axis];
    part.extents[axis] = count;
    return part;
  }

  /// Read-only view of the same memory; or a view for a space that can read this memory.
  template <class U, class To>
  requires(std::is_same_v<U, T> || std::is_same_v<U, const T>) && space::usable_from<Space, To> &&
      (!std::is_same_v<view<U, Rank, To>, view>)PQKV_HD constexpr operator view<U, Rank, To>() const {
    view<U, Rank, To> other{data, {}, {}};
    for (std::size_t axis = 0; axis < Rank; ++axis) {
      other.extents[axis] = extents[axis];
      other.strides[axis] = strides[axis];
    }
    return other;
  }
};

/// Row-major view of contiguous memory: make_view(pointer, extents...).
template <class Space = space::host, class T, class... Extent>
PQKV_HD constexpr view<T, sizeof...(Extent), Space> make_view(T* data, Extent... extents) {
  view<T, sizeof...(Extent), Space> v{data, {static_cast<std::size_t>(extents)...}, {}};
  std::size_t stride = 1;
  for (std::size_t axis = sizeof...(Extent); axis-- > 0;) {
    v.strides[axis] = stride;
    stride *= v.extents[axis];
  }
  return v;
}

/// Row-major view of a container's elements (std::vector, std::span, std::array, buffer): make_view(container, extents...). Without
/// extents, one axis of all elements. The view ends with the container's memory.
/// @throws shape_error when the container holds fewer elements than the extents ask for
template <class Space = space::host, class Container, class... Extent>
requires requires(Container& c) {
  { c.data() } -> std::convertible_to<const volatile void*>;
  { c.size() } -> std::convertible_to<std::size_t>;
  requires !requires { c.rows(); };  // a matrix has strides of its own (adapt/eigen.hpp)
  requires !space::has_own_views<std::remove_const_t<Container>>;
}
constexpr auto make_view(Container& container, Extent... extents) {
  const std::size_t size = container.size();
  if constexpr (sizeof...(Extent) == 0) {
    return make_view<Space>(container.data(), size);
  } else {
    const auto made = make_view<Space>(container.data(), extents...);
    require_ok(detail::checks("make_view")
                   .that(made.size() <= size, status::code::shape, "container.size()", relation::at_least, "elements of the extents",
                         made.size(), size));
    return made;
  }
}

/// The same for a temporary span.
template <class Space = space::host, class T, std::size_t Extent, class... Extents>
constexpr auto make_view(std::span<T, Extent>&& span, Extents... extents) {
  return make_view<Space>(static_cast<std::span<T, Extent>&>(span), extents...);
}

/// Read-only copy of a view: lets template parameters deduce `const T`.
template <class T, std::size_t Rank, class Space>
PQKV_HD constexpr view<const T, Rank, Space> as_const(view<T, Rank, Space> v) {
  view<const T, Rank, Space> other{v.data, {}, {}};
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    other.extents[axis] = v.extents[axis];
    other.strides[axis] = v.strides[axis];
  }
  return other;
}

/// Whether flatten() can join the first two axes, and the last axis is contiguous.
template <class T, std::size_t Rank, class Space>
requires(Rank > 1) PQKV_HD constexpr bool is_flat(const view<T, Rank, Space>& v) {
  return v.strides[Rank - 1] == 1 && (v.extents[0] <= 1 || v.strides[0] == v.extents[1] * v.strides[1]);
}

/// Joins the first two axes; they must be dense on each other (stride(0) == extent(1) * stride(1)).
template <class T, std::size_t Rank, class Space>
requires(Rank > 1) PQKV_HD constexpr view<T, Rank - 1, Space> flatten(view<T, Rank, Space> v) {
  PQKV_ASSERT(v.extents[0] <= 1 || v.strides[0] == v.extents[1] * v.strides[1]);
  view<T, Rank - 1, Space> joined{v.data, {}, {}};
  for (std::size_t axis = 1; axis < Rank; ++axis) {
    joined.extents[axis - 1] = v.extents[axis];
    joined.strides[axis - 1] = v.strides[axis];
  }
  joined.extents[0] *= v.extents[0];
  return joined;
}

/// The same memory with an axis of extent 1 before axis `Axis`.
template <std::size_t Axis, class T, std::size_t Rank, class Space>
requires(Axis <= Rank) PQKV_HD constexpr view<T, Rank + 1, Space> insert_axis(view<T, Rank, Space> v) {
  view<T, Rank + 1, Space> wider{v.data, {}, {}};
  for (std::size_t axis = 0; axis <= Rank; ++axis) {
    const std::size_t from = axis > Axis ? axis - 1 : axis;
    wider.extents[axis] = axis == Axis ? 1 : v.extents[from];
    wider.strides[axis] = axis == Axis ? 0 : v.strides[from];
  }
  return wider;
}

#if defined(__cpp_lib_mdspan)
/// A view over a strided std::mdspan.
template <class Space = space::host, class T, class Extents, class Layout, class Accessor>
constexpr view<T, Extents::rank(), Space> make_view(std::mdspan<T, Extents, Layout, Accessor> span) {
  view<T, Extents::rank(), Space> v{span.data_handle(), {}, {}};
  for (std::size_t axis = 0; axis < Extents::rank(); ++axis) {
    v.extents[axis] = static_cast<std::size_t>(span.extent(axis));
    v.strides[axis] = static_cast<std::size_t>(span.stride(axis));
  }
  return v;
}
#endif

}  // namespace pqkv
