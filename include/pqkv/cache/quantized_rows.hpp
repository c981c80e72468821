// SPDX-License-Identifier: Apache-2.0
// A cache's own memory for keys and values in 8 bits. Every key and every value is a row of integers with one scale. A token takes about
// 0.53 of the bytes of 16-bit rows, so a step can attend to almost twice as many tokens for the same bytes. Attention and selectors read
// these rows like any others; values are rounded once, when they are stored.
// Measured on a real model: docs/quality.md.
#pragma once

#include "../core/slot_parts.hpp"
#include "../exec/memory.hpp"
#include "dense_rows.hpp"
#include "kv_store.hpp"
#include "sequence.hpp"

namespace pqkv::inline PQKV_MODE {

/// Rows of 8-bit integers, [heads, tokens]. A token has its key [d], its value [d], and their scales. For reading and writing.
template <class Space = space::host>
struct quantized_store {
  using value_type = scaled_int8;
  using space_type = Space;

  std::byte* data = nullptr;
  std::size_t count = 0, capacity = 0, dims = 0;  // heads, tokens of each, d

  using row_type = token_row<scaled_int8>;
  /// Bytes of a token: two rows, and 16 for their scales.
  PQKV_HD static constexpr std::size_t token_bytes(std::size_t d) { return row_type::bytes(d); }

  PQKV_HD constexpr std::size_t heads() const { return count; }
  PQKV_HD constexpr std::size_t tokens() const { return capacity; }
  PQKV_HD constexpr std::size_t head_dim() const { return dims; }
  PQKV_HD kv_row<scaled_int8> key(std::size_t head, std::size_t token) const { return row_type::key(row(head, token), dims); }
  PQKV_HD kv_row<scaled_int8> value(std::size_t head, std::size_t token) const { return row_type::value(row(head, token), dims); }
  PQKV_HD row_slot<scaled_int8> key_slot(std::size_t head, std::size_t token) const { return row_type::key_slot(row(head, token), dims); }
  PQKV_HD row_slot<scaled_int8> value_slot(std::size_t head, std::size_t token) const {
    return row_type::value_slot(row(head, token), dims);
  }

 private:
  PQKV_HD std::byte* row(std::size_t head, std::size_t token) const { return data + (head * capacity + token) * token_bytes(dims); }
};

/// A cache's rows in 8 bits, in our own memory. Not thread-safe; its views end with it.
///
/// x is stored as round(x / scale), scale = the row's largest magnitude / 127, so it is read back within scale / 2. A row that holds an
/// infinity or a NaN is read back as NaNs. Host and device store the same bits.
///
/// @tparam Space  where the rows are: the policy's space; or pinned, as slow memory of tiered_rows under a device
/// @source one scale a row: measured on SmolLM2-135M against scales for each 32 elements, and against rows minus their mean: no difference
template <class Space = space::host>
class quantized_rows {
 public:
  using value_type = scaled_int8;
  using space_type = Space;
  using view_type = quantized_store<Space>;
  struct params {};  // nothing can be set

  static constexpr status can_construct(const cache_shape&, const params&) noexcept { return {}; }
  /// Bytes of a token of one KV head.
  static constexpr std::size_t token_bytes(std::size_t d) { return view_type::token_bytes(d); }
  /// The share of tokens whose 8-bit rows take as many bytes as 16-bit rows of `ratio` of the tokens; at most 1.
  static constexpr double equal_bytes_ratio(double ratio, std::size_t d) {
    const double more = ratio * static_cast<double>(4 * d) / static_cast<double>(token_bytes(d));
    return more < 1 ? more : 1;
  }
  /// Takes the rows from the arena; a counting arena only counts the bytes.
  static constexpr view_type place(arena& memory, const cache_shape& shape) {
    const std::size_t h = shape.batch * shape.kv_heads, n = shape.capacity, row = token_bytes(shape.head_dim);
    constexpr std::size_t most = static_cast<std::size_t>(-1);
    const bool fits = h <= most / row / n;
    return {memory.take<std::byte>(fits ? h * n * row : most), h, n, shape.head_dim};
  }
  static constexpr std::size_t required_bytes(const cache_shape& shape, const params& = {}) {
    arena count;
    place(count, shape);
    return count.used_bytes();
  }

  quantized_rows() = default;
  /// @throws std::bad_alloc; on a device cuda_error
  template <exec::policy P>
  quantized_rows(const P& policy, const cache_shape& shape, const params& = {})
      : shape_(shape), memory_(make_owner<std::byte, Space>(policy, required_bytes(shape))) {}

  view_type view() const {
    arena memory(memory_);
    return place(memory, shape_);
  }
  /// Reads the rows wherever they are.
  view_type store() const { return view(); }
  std::size_t size_bytes() const { return memory_.size_bytes(); }
  /// Tokens that a slot has room for.
  std::size_t room(std::size_t) const { return shape_.capacity; }
  static constexpr status can_hold(const char*, std::size_t, std::size_t, std::size_t) noexcept { return {}; }
  slot_parts parts() const {
    slot_parts all;
    all.add_tokens(memory_.data(), shape_.kv_heads, shape_.capacity, token_bytes(shape_.head_dim));
    return all;
  }

 private:
  cache_shape shape_{};
  owner<std::byte, Space> memory_;
};

namespace detail {
template <class T, class Space>
struct owned_rows_of {
  using type = dense_rows<T, Space>;
};
template <class Space>
struct owned_rows_of<scaled_int8, Space> {
  using type = quantized_rows<Space>;
};
}  // namespace detail

/// The rows of a type in a cache's own memory: quantized_rows for 8-bit integers, dense_rows for all others.
template <row_scalar T, class Space = space::host>
using owned_rows = typename detail::owned_rows_of<T, Space>::type;

}  // namespace pqkv
