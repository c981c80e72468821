// SPDX-License-Identifier: Apache-2.0
// A cache's own memory for keys and values. K and V of one token and head are contiguous and begin on a cache line, so reading a row is one
// run of lines on the host and one burst over a bus. It is in the policy's space. An engine that keeps its own pages uses paged_rows
// instead, which copies nothing.
#pragma once

#include "../exec/memory.hpp"
#include "kv_store.hpp"
#include "sequence.hpp"
#include "../core/slot_parts.hpp"

namespace pqkv::inline PQKV_MODE {

/// Rows [batch * h, capacity, 2, d]; each token's row is padded to a cache line. Not thread-safe; its views end with it.
///
/// @tparam T      float, half or bfloat16
/// @tparam Space  where the rows are: the policy's space; or pinned, as slow memory of tiered_rows under a device
template <storage_scalar T = float, class Space = space::host>
class dense_rows {
 public:
  using value_type = T;
  using space_type = Space;
  using view_type = strided_rows<T, Space>;
  struct params {};  // nothing can be set

  static constexpr status can_construct(const cache_shape&, const params&) noexcept { return {}; }
  /// Elements from one token's row to the next.
  static constexpr std::size_t row_elements(std::size_t d) { return token_row<T>::elements(d); }
  /// Takes the rows from the arena; a counting arena only counts the bytes.
  static constexpr view_type place(arena& memory, const cache_shape& shape) {
    const std::size_t h = shape.batch * shape.kv_heads, n = shape.capacity, d = shape.head_dim, row = row_elements(d);
    constexpr std::size_t most = static_cast<std::size_t>(-1);
    const bool fits = h <= most / row / n;
    T* const rows = memory.take<T>(fits ? h * n * row : most);
    return {{rows, {h, n, d}, {n * row, row, 1}}, {rows == nullptr ? nullptr : rows + d, {h, n, d}, {n * row, row, 1}}};
  }
  static constexpr std::size_t required_bytes(const cache_shape& shape, const params& = {}) {
    arena count;
    place(count, shape);
    return count.used_bytes();
  }

  dense_rows() = default;
  /// @throws std::bad_alloc; on a device cuda_error
  template <exec::policy P>
  dense_rows(const P& policy, const cache_shape& shape, const params& = {})
      : shape_(shape), memory_(make_owner<std::byte, Space>(policy, required_bytes(shape))) {}

  view_type view() const {
    arena memory(memory_);
    return place(memory, shape_);
  }
  /// Reads the rows wherever they are.
  strided_store<T, Space> store() const { return view(); }
  std::size_t size_bytes() const { return memory_.size_bytes(); }
  /// Tokens that a slot has room for.
  std::size_t room(std::size_t) const { return shape_.capacity; }
  static constexpr status can_hold(const char*, std::size_t, std::size_t, std::size_t) noexcept { return {}; }
  slot_parts parts() const {
    slot_parts all;
    const std::size_t row = row_elements(shape_.head_dim);
    all.add_tokens(reinterpret_cast<T*>(memory_.data()), shape_.kv_heads, shape_.capacity, row);
    return all;
  }

 private:
  cache_shape shape_{};
  owner<std::byte, Space> memory_;
};

}  // namespace pqkv
