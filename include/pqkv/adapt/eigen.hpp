// SPDX-License-Identifier: Apache-2.0
// Eigen's matrices, maps and blocks as views, and views as Eigen maps. Nothing is copied: both are the same memory. No header of the
// library includes this file; it needs Eigen 3.4 or later. Not for .cu files (Eigen costs nvcc 3 s and 20 warnings each).
//
// A view points into the matrix, so the matrix must outlive it and must not be resized meanwhile. Expressions without memory of their own
// (a * b, a.reverse()) and temporaries that would die first do not compile. A block of a temporary cannot be detected, as in Eigen.
// Eigen::half and Eigen::bfloat16 become pqkv's types of the same layout; other element types stay as they are.
#pragma once

#include <Eigen/Core>

#include <cstddef>
#include <type_traits>
#include <utility>

#include "../core/error.hpp"
#include "../core/scalar.hpp"
#include "../core/view.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {
template <class Derived>
void takes_dense(const Eigen::DenseBase<Derived>&);

/// The same bits under another name: Eigen's 16-bit types and ours.
template <class T>
struct eigen_scalar {
  using ours = T;
  using theirs = T;
};
template <>
struct eigen_scalar<Eigen::half> {
  using ours = half;
};
template <>
struct eigen_scalar<Eigen::bfloat16> {
  using ours = bfloat16;
};
template <>
struct eigen_scalar<half> {
  using theirs = Eigen::half;
};
template <>
struct eigen_scalar<bfloat16> {
  using theirs = Eigen::bfloat16;
};

template <class To, class From>
using copy_const = std::conditional_t<std::is_const_v<From>, const To, To>;
template <class T>
using from_eigen = copy_const<typename eigen_scalar<std::remove_const_t<T>>::ours, T>;
template <class T>
using to_eigen = copy_const<typename eigen_scalar<std::remove_const_t<T>>::theirs, T>;

/// A pointer to elements of the same layout, as the other library names them.
template <class To, class From>
To* same_memory(From* data) {
  if constexpr (std::is_same_v<To, From>) {
    return data;
  } else {
    static_assert(sizeof(To) == sizeof(From) && alignof(To) == alignof(From) && std::is_standard_layout_v<From> &&
                      std::is_standard_layout_v<To> && std::is_trivially_copyable_v<From> && std::is_trivially_copyable_v<To>,
                  "pqkv: this Eigen's 16-bit type is not laid out as pqkv's; convert the matrix to float");
    return reinterpret_cast<To*>(data);
  }
}

/// A type that owns its numbers and dies with the statement: a matrix by value, or a Ref<const ...>, which may hold a copy.
template <class X>
inline constexpr bool owns_its_numbers = std::is_base_of_v<Eigen::PlainObjectBase<X>, X>;
template <class X, int Options, class Stride>
inline constexpr bool owns_its_numbers<Eigen::Ref<const X, Options, Stride>> = true;
}  // namespace detail

/// Any dense type of Eigen's: Matrix, Array, Map, Ref, Block, Transpose, and expressions, which make_view() then refuses.
template <class X>
concept eigen_dense = requires(const std::remove_cvref_t<X>& x) {
  detail::takes_dense(x);
};

namespace detail {
/// [rows, cols] of any dense expression that lies in memory.
template <class Space, class X>
auto eigen_rows(X&& x, const char* function) {
  using plain = std::remove_cvref_t<X>;
  static_assert((plain::Flags & Eigen::DirectAccessBit) != 0,
                "pqkv: this Eigen expression has no memory that a view could point into (a product, a sum, a reverse(), a cast); "
                "evaluate it into a matrix first");
  static_assert(std::is_lvalue_reference_v<X> || !owns_its_numbers<plain>,
                "pqkv: this Eigen matrix is a temporary, a view of it would dangle; give it a name first");
  require_ok(checks(function)
                 .at_least("matrix.rowStride()", x.rowStride(), 0, "elements, not negative (reversed)")
                 .at_least("matrix.colStride()", x.colStride(), 0, "elements, not negative (reversed)"));
  using element = from_eigen<std::remove_pointer_t<decltype(x.data())>>;
  return view<element, 2, Space>{same_memory<element>(x.data()),
                                 {static_cast<std::size_t>(x.rows()), static_cast<std::size_t>(x.cols())},
                                 {static_cast<std::size_t>(x.rowStride()), static_cast<std::size_t>(x.colStride())}};
}

/// The check of both ways to split: h heads of equal d in each row.
template <class Rows>
constexpr status can_split_heads(const Rows& rows, std::size_t h, const char* function) noexcept {
  return checks(function)
      .at_least("h", h, 1, "heads")
      .that(h != 0 && rows.extent(1) % h == 0, status::code::shape, "matrix.cols()", relation::multiple_of, "h", h, rows.extent(1));
}
}  // namespace detail

/// A vector (one row or column by its type) becomes [n], any other matrix [rows, cols], in either storage order, with its strides. The
/// element is const if Eigen gives no write access.
///
/// @tparam Space  where a Map's memory is, if not in ordinary host memory
/// @param x       lvalue, or a temporary that only points (Map, Ref, Block, Transpose)
/// @throws value_error for a Map with a negative stride
template <class Space = space::host, eigen_dense X>
auto make_view(X&& x) {
  const auto rows = detail::eigen_rows<Space>(std::forward<X>(x), "make_view");
  if constexpr (std::remove_cvref_t<X>::IsVectorAtCompileTime) {
    constexpr std::size_t axis = std::remove_cvref_t<X>::ColsAtCompileTime == 1 ? 0 : 1;
    return view<typename decltype(rows)::element_type, 1, Space>{rows.data, {rows.extent(axis)}, {rows.stride(axis)}};
  } else {
    return view<typename decltype(rows)::element_type, 2, Space>(rows);
  }
}

/// Rows are tokens, columns the heads side by side: the matrix [n, h * d] as [h, n, d], what train(), encode() and prefill() take.
///
/// @throws value_error for h = 0 or a negative stride, shape_error when h does not divide the columns
template <class Space = space::host, eigen_dense X>
auto split_heads(X&& matrix, std::size_t h) {
  const auto rows = detail::eigen_rows<Space>(std::forward<X>(matrix), "split_heads");
  require_ok(detail::can_split_heads(rows, h, "split_heads"));
  const std::size_t d = rows.extent(1) / h;
  return view<typename decltype(rows)::element_type, 3, Space>{
      rows.data, {h, rows.extent(0), d}, {d * rows.stride(1), rows.stride(0), rows.stride(1)}};
}

/// The same matrix as [n, h, d]. With a sequence per row, [batch, h * d], it is what append(), attend() and retrieve() take.
///
/// @throws as split_heads()
template <class Space = space::host, eigen_dense X>
auto split_heads_by_token(X&& matrix, std::size_t h) {
  const auto rows = detail::eigen_rows<Space>(std::forward<X>(matrix), "split_heads_by_token");
  require_ok(detail::can_split_heads(rows, h, "split_heads_by_token"));
  const std::size_t d = rows.extent(1) / h;
  return view<typename decltype(rows)::element_type, 3, Space>{
      rows.data, {rows.extent(0), h, d}, {rows.stride(0), d * rows.stride(1), rows.stride(1)}};
}

/// A view [n] as a column vector, of any stride.
template <class T, class Space>
requires space::usable_from<Space, space::host>
auto eigen_map(view<T, 1, Space> v) {
  using element = detail::to_eigen<T>;
  using vector = Eigen::Matrix<std::remove_const_t<element>, Eigen::Dynamic, 1>;
  return Eigen::Map<detail::copy_const<vector, element>, Eigen::Unaligned, Eigen::InnerStride<>>(
      detail::same_memory<element>(v.data), static_cast<Eigen::Index>(v.extent(0)),
      Eigen::InnerStride<>(static_cast<Eigen::Index>(v.stride(0))));
}

/// A view [rows, cols] whose last axis is contiguous, as a row-major matrix: the one that Eigen's products run fast on.
///
/// @throws shape_error when the last axis is strided; eigen_strided_map() takes that
template <class T, class Space>
requires space::usable_from<Space, space::host>
auto eigen_map(view<T, 2, Space> v) {
  require_ok(detail::checks("eigen_map").extent("view.stride(1)", v.extent(1) > 1 ? v.stride(1) : 1, 1, "last axis contiguous"));
  using element = detail::to_eigen<T>;
  using matrix = Eigen::Matrix<std::remove_const_t<element>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<detail::copy_const<matrix, element>, Eigen::Unaligned, Eigen::OuterStride<>>(
      detail::same_memory<element>(v.data), static_cast<Eigen::Index>(v.extent(0)), static_cast<Eigen::Index>(v.extent(1)),
      Eigen::OuterStride<>(static_cast<Eigen::Index>(v.stride(0))));
}

/// A view [rows, cols] of any strides.
template <class T, class Space>
requires space::usable_from<Space, space::host>
auto eigen_strided_map(view<T, 2, Space> v) {
  using element = detail::to_eigen<T>;
  using matrix = Eigen::Matrix<std::remove_const_t<element>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  return Eigen::Map<detail::copy_const<matrix, element>, Eigen::Unaligned, strides>(
      detail::same_memory<element>(v.data), static_cast<Eigen::Index>(v.extent(0)), static_cast<Eigen::Index>(v.extent(1)),
      strides(static_cast<Eigen::Index>(v.stride(0)), static_cast<Eigen::Index>(v.stride(1))));
}

}  // namespace pqkv
