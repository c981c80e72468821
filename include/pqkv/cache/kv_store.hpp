// SPDX-License-Identifier: Apache-2.0
// Where keys and values are. Engines lay them out in many ways. Attention and selectors read any `kv_store`: a small value that says where
// row t of head h begins. The adapters here are for every regular layout of engine memory; dense_rows is our own memory, and paged_rows an
// engine's pages.
#pragma once

#include <concepts>
#include <cstdint>

#include "../core/error.hpp"
#include "../core/row.hpp"
#include "../core/scalar.hpp"
#include "../core/view.hpp"
#include "../exec/kernel.hpp"
#include "../search/head_map.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct store_rows {};
}  // namespace op

template <class S>
concept kv_store = std::copy_constructible<S> && requires(const S& store, std::size_t head, std::size_t token) {
  typename S::value_type;
  typename S::space_type;
  requires row_scalar<typename S::value_type>;
  { store.heads() } -> std::convertible_to<std::size_t>;
  { store.tokens() } -> std::convertible_to<std::size_t>;
  { store.head_dim() } -> std::convertible_to<std::size_t>;
  { store.key(head, token) } -> std::same_as<kv_row<typename S::value_type>>;
  { store.value(head, token) } -> std::same_as<kv_row<typename S::value_type>>;
};

/// Keys and values as two strided views, which can describe every regular layout. Made by dense_kv(), interleaved_kv() and strided_kv().
template <storage_scalar T, class Space = space::host>
struct strided_store {
  using value_type = T;
  using space_type = Space;

  view<const T, 3, Space> keys;    // [h, n, d]
  view<const T, 3, Space> values;  // [h, n, d]

  PQKV_HD constexpr std::size_t heads() const { return keys.extent(0); }
  PQKV_HD constexpr std::size_t tokens() const { return keys.extent(1); }
  PQKV_HD constexpr std::size_t head_dim() const { return keys.extent(2); }
  PQKV_HD constexpr kv_row<T> key(std::size_t head, std::size_t token) const { return row_of(keys, head, token); }
  PQKV_HD constexpr kv_row<T> value(std::size_t head, std::size_t token) const { return row_of(values, head, token); }
};

/// Any strides: K [h, n, d] as a view of [n, h, d] memory, V transposed, padded rows.
/// @throws shape_error when the extents of keys and values differ
template <class K, class V, class Space>
requires storage_scalar<K> && std::same_as<std::remove_cv_t<K>, std::remove_cv_t<V>> strided_store<std::remove_cv_t<K>, Space> strided_kv(
    view<K, 3, Space> keys, view<V, 3, Space> values) {
  require_ok(detail::checks("strided_kv")
                 .extent("values.extent(0)", values.extent(0), keys.extent(0), "h, from keys")
                 .extent("values.extent(1)", values.extent(1), keys.extent(1), "n, from keys")
                 .extent("values.extent(2)", values.extent(2), keys.extent(2), "d, from keys"));
  return {as_const(keys), as_const(values)};
}

/// Two dense arrays [h, n, d].
template <class Space = space::host, storage_scalar T>
constexpr strided_store<T, Space> dense_kv(const T* keys, const T* values, std::size_t h, std::size_t n, std::size_t d) {
  return {make_view<Space>(keys, h, n, d), make_view<Space>(values, h, n, d)};
}

/// One dense array [h, n, 2, d]: K and V of a token side by side.
template <class Space = space::host, storage_scalar T>
constexpr strided_store<T, Space> interleaved_kv(const T* rows, std::size_t h, std::size_t n, std::size_t d) {
  const view<const T, 3, Space> keys{rows, {h, n, d}, {n * 2 * d, 2 * d, 1}};
  view<const T, 3, Space> values = keys;
  values.data += d;
  return {keys, values};
}

/// A store whose rows can be written: where a cache keeps its tokens (dense_rows, quantized_rows, paged_rows). Heads are batch * h, slot
/// after slot.
template <class S>
concept kv_rows = kv_store<S> && requires(const S& store, std::size_t head, std::size_t token) {
  { store.key_slot(head, token) } -> std::same_as<row_slot<typename S::value_type>>;
  { store.value_slot(head, token) } -> std::same_as<row_slot<typename S::value_type>>;
};

/// Writable keys and values as two strided views, [h, n, d] each.
template <storage_scalar T, class Space = space::host>
struct strided_rows {
  using value_type = T;
  using space_type = Space;

  view<T, 3, Space> keys;
  view<T, 3, Space> values;

  PQKV_HD constexpr std::size_t heads() const { return keys.extent(0); }
  PQKV_HD constexpr std::size_t tokens() const { return keys.extent(1); }
  PQKV_HD constexpr std::size_t head_dim() const { return keys.extent(2); }
  PQKV_HD constexpr kv_row<T> key(std::size_t head, std::size_t token) const { return row_of(keys, head, token); }
  PQKV_HD constexpr kv_row<T> value(std::size_t head, std::size_t token) const { return row_of(values, head, token); }
  PQKV_HD constexpr row_slot<T> key_slot(std::size_t head, std::size_t token) const { return slot_of(keys, head, token); }
  PQKV_HD constexpr row_slot<T> value_slot(std::size_t head, std::size_t token) const { return slot_of(values, head, token); }
  /// Keys of heads [head, head + h), tokens [first, first + count), as one view. Only a strided store can give this.
  PQKV_HD constexpr view<const T, 3, Space> strided_keys(std::size_t head, std::size_t h, std::size_t first, std::size_t count) const {
    return as_const(keys.slice(0, head, h).slice(1, first, count));
  }
  PQKV_HD constexpr operator strided_store<T, Space>() const { return {as_const(keys), as_const(values)}; }
};

/// A store seen through a map of its heads: head i of the result is head heads.head(i) of the store. For steps whose rows are slots in any
/// order.
template <kv_store Store>
struct mapped_store {
  using value_type = typename Store::value_type;
  using space_type = typename Store::space_type;

  Store store;
  head_map<space_type> map;
  std::size_t count;  // heads of the result

  PQKV_HD constexpr std::size_t heads() const { return count; }
  PQKV_HD constexpr std::size_t tokens() const { return store.tokens(); }
  PQKV_HD constexpr std::size_t head_dim() const { return store.head_dim(); }
  PQKV_HD constexpr kv_row<value_type> key(std::size_t head, std::size_t token) const { return store.key(map.head(head), token); }
  PQKV_HD constexpr kv_row<value_type> value(std::size_t head, std::size_t token) const { return store.value(map.head(head), token); }
};

/// The checks of store_rows().
template <class From, class To, class Nonfinite>
constexpr status can_store_rows(const From& from, const To& to, const Nonfinite& nonfinite) noexcept {
  const std::size_t h = from.extent(0);
  return detail::checks("store_rows")
      .extent("to.extent(0)", to.extent(0), h, "h, from rows")
      .extent("to.extent(1)", to.extent(1), from.extent(1), "n, from rows")
      .extent("to.extent(2)", to.extent(2), from.extent(2), "d, from rows")
      .extent("nonfinite.extent(0)", nonfinite.data == nullptr ? h : nonfinite.extent(0), h, "h, from rows");
}

/// Copies rows into a store's keys or values, converting the type (to nearest, ties to even).
///
/// @param from       [h, n, d] float, half or bfloat16, any strides
/// @param to         [h, n, d], any strides, written
/// @param nonfinite  [h] uint32, raised by the number of rows stored with an infinity or a NaN, if given
/// @throws shape_error
/// @cost   reads and writes h * n * d once; no allocation; asynchronous on device policies
template <exec::policy P, class T, writable_scalar U, class From, class To>
requires storage_scalar<T> && reachable_from<From, P> && reachable_from<To, P>
void store_rows(const P& policy, view<T, 3, From> from, view<U, 3, To> to, view<std::uint32_t, 1, typename P::space_type> nonfinite = {}) {
  require_ok(can_store_rows(from, to, nonfinite));
  detail::run_operation<op::store_rows>(policy, from, to, nonfinite);
}

namespace detail {
/// Queries [tokens, hq, d] as contiguous floats [tokens * hq, d]: the caller's own memory if it holds them in that form, otherwise a copy.
/// @param copies  [at least tokens, hq, d] memory for that
template <exec::policy P, class Q, class From>
view<const float, 2, typename P::space_type> as_floats(const P& policy, view<Q, 3, From> query,
                                                       view<float, 3, typename P::space_type> copies) {
  if constexpr (std::is_same_v<std::remove_const_t<Q>, float>)
    if (is_flat(query)) return flatten(view<const float, 3, typename P::space_type>(as_const(query)));
  const auto copy = copies.slice(0, 0, query.extent(0));
  store_rows(policy, query, copy);
  return as_const(flatten(copy));
}
}  // namespace detail

}  // namespace pqkv
