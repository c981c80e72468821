// SPDX-License-Identifier: Apache-2.0
// A cache's keys and values in a file, laid out as in dense_rows: for contexts larger than memory on a machine without a device. The
// operating system keeps recently used parts in memory and drops them when memory is needed. It can be used alone, like any other Rows, or
// as the slow memory of tiered_rows.
#pragma once

#include "dense_rows.hpp"
#include "mapped_file.hpp"

namespace pqkv::inline PQKV_MODE {

/// Rows [batch * h, capacity, 2, d] in a file; each token's row is padded to a cache line. Not thread-safe; its views end with it.
///
/// @tparam T  float, half or bfloat16
template <storage_scalar T = float>
class file_rows {
 public:
  using value_type = T;
  using space_type = space::host;
  using view_type = strided_rows<T>;
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
    dense_rows<T>::place(count, shape);
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
    return dense_rows<T>::place(memory, shape_);
  }
  strided_store<T> store() const { return view(); }
  std::size_t size_bytes() const { return 0; }
  std::size_t room(std::size_t) const { return shape_.capacity; }
  static constexpr status can_hold(const char*, std::size_t, std::size_t, std::size_t) noexcept { return {}; }
  slot_parts parts() const {
    slot_parts all;
    all.add_tokens(reinterpret_cast<T*>(file_.data()), shape_.kv_heads, shape_.capacity, dense_rows<T>::row_elements(shape_.head_dim));
    return all;
  }
  /// Every verb calls this before it touches rows. @throws storage_error when the file has lost some of its bytes
  void ensure_readable(const char* function) const { file_.ensure_readable(function); }
  const mapped_file& file() const { return file_; }

 private:
  cache_shape shape_{};
  mapped_file file_;
};

}  // namespace pqkv
