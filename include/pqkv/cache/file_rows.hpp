// SPDX-License-Identifier: Apache-2.0
// A cache's keys and values in a file, laid out as in dense_rows or quantized_rows: for contexts larger than memory on a machine without a
// device. The operating system keeps recently used parts in memory and drops them when memory is needed. It can be used alone, like any
// other Rows, or as the slow memory of tiered_rows.
#pragma once

#include "mapped_file.hpp"
#include "quantized_rows.hpp"

namespace pqkv::inline PQKV_MODE {

/// Rows [batch * h, capacity, 2, d] in a file, as the same type has them in memory. Not thread-safe; its views end with it.
///
/// @tparam T  float, half or bfloat16, laid out as in dense_rows; scaled_int8: 8-bit integers, as in quantized_rows
template <row_scalar T = float>
class file_rows {
 public:
  using value_type = T;
  using space_type = space::host;
  using in_memory = owned_rows<T>;
  using view_type = typename in_memory::view_type;
  using params = file_place;  // rows.folder or rows.file

  static constexpr status can_construct(const cache_shape& shape, const params& p) noexcept {
    constexpr std::size_t most = static_cast<std::size_t>(-1) / 4;
    const std::size_t bytes = file_bytes(shape);
    return detail::checks("pqcache")
        .that(p.folder != nullptr || p.file >= 0, status::code::value, "rows.folder", relation::required,
              "a folder for the file, or rows.file an open one", 1, 0)
        .that(bytes < most, status::code::capacity, "params", relation::at_most, "bytes of the file", most, bytes);
  }
  static constexpr std::size_t file_bytes(const cache_shape& shape) {
    arena count;
    in_memory::place(count, shape);
    return count.used_bytes();
  }
  /// No memory: the rows are in the file.
  static constexpr std::size_t required_bytes(const cache_shape&, const params&) { return 0; }

  /// @pre can_construct(shape, p)
  /// @throws storage_error
  template <exec::policy P>
  file_rows(const P&, const cache_shape& shape, const params& p) : shape_(shape), file_("pqcache", p, file_bytes(shape)) {}

  view_type view() const {
    arena memory(file_.data(), file_.size());
    return in_memory::place(memory, shape_);
  }
  auto store() const { return as_store(view()); }
  std::size_t size_bytes() const { return 0; }
  std::size_t room(std::size_t) const { return shape_.capacity; }
  static constexpr status can_hold(const char*, std::size_t, std::size_t, std::size_t) noexcept { return {}; }
  slot_parts parts() const {
    slot_parts all;
    using element = typename token_row<T>::element_type;
    all.add_tokens(reinterpret_cast<element*>(file_.data()), shape_.kv_heads, shape_.capacity, token_row<T>::elements(shape_.head_dim));
    return all;
  }
  /// Every verb calls this before it touches rows. @throws storage_error when the file has lost some of its bytes
  void ensure_readable(const char* function) const { file_.ensure_readable(function); }
  const mapped_file& file() const { return file_; }

 private:
  template <storage_scalar U>
  static strided_store<U> as_store(const strided_rows<U>& rows) {
    return rows;
  }
  static quantized_store<> as_store(const quantized_store<>& rows) { return rows; }

  cache_shape shape_{};
  mapped_file file_;
};

}  // namespace pqkv
