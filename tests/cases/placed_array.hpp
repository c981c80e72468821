// SPDX-License-Identifier: Apache-2.0
// A test's own array in the memory of any policy: written and read from the host through the seam.
#pragma once

#include <cstddef>
#include <vector>

#include <pqkv/exec/memory.hpp>
#include <pqkv/exec/sync.hpp>

namespace pqkv_cases {

template <class T, class Policy>
class placed_array {
 public:
  using space_type = typename Policy::space_type;

  placed_array(const Policy& policy, std::size_t size) : policy_(policy), memory_(pqkv::make_owner<T>(policy, size)) {}
  placed_array(const Policy& policy, const std::vector<T>& values) : placed_array(policy, values.size()) { write(values); }

  /// `values` first, the rest stays. Waits, here and below.
  void write(const std::vector<T>& values) const {
    pqkv::copy_bytes(policy_, memory_.data(), values.data(), values.size() * sizeof(T));
    pqkv::sync(policy_);
  }
  std::vector<T> read() const {
    std::vector<T> values(memory_.size());
    read(values);
    return values;
  }
  void read(std::vector<T>& values) const {
    pqkv::copy_bytes(policy_, values.data(), memory_.data(), values.size() * sizeof(T));
    pqkv::sync(policy_);
  }
  T* data() const { return memory_.data(); }
  std::size_t size() const { return memory_.size(); }
  template <class... Extent>
  auto view(Extent... extents) const {
    return pqkv::make_view<space_type>(memory_.data(), extents...);
  }
  template <class... Extent>
  auto const_view(Extent... extents) const {
    return pqkv::as_const(view(extents...));
  }

 private:
  Policy policy_;
  pqkv::owner<T, space_type> memory_;
};

}  // namespace pqkv_cases
