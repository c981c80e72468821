// SPDX-License-Identifier: Apache-2.0
// A store of an engine's own, as the device tests give one to operations that take any kv_store.
#pragma once

#include <cstdint>
#include <vector>

#include "on_device.cuh"

namespace pqkv_cases {

/// An engine's store: pages of 16 tokens, [page, token, h, 2, d], found through a table.
template <class T, class Space>
struct paged_store {
  using value_type = T;
  using space_type = Space;
  static constexpr std::size_t page_tokens = 16;

  const T* memory;
  const std::uint32_t* pages;
  std::size_t h, n, d;

  PQKV_HD std::size_t heads() const { return h; }
  PQKV_HD std::size_t tokens() const { return n; }
  PQKV_HD std::size_t head_dim() const { return d; }
  PQKV_HD pqkv::kv_row<T> key(std::size_t head, std::size_t token) const {
    return {memory + ((pages[token / page_tokens] * page_tokens + token % page_tokens) * h + head) * 2 * d, 1};
  }
  PQKV_HD pqkv::kv_row<T> value(std::size_t head, std::size_t token) const { return {key(head, token).data + d, 1}; }
};
static_assert(pqkv::kv_store<paged_store<float, device>>);

/// A page table of `count` pages, none of them in its place.
inline std::vector<std::uint32_t> shuffled_pages(std::size_t count) {
  std::vector<std::uint32_t> pages(count);
  for (std::size_t i = 0; i < count; ++i)
    pages[i] = static_cast<std::uint32_t>(count % 7 == 0 ? count - 1 - i : (i * 7 + 3) % count);
  return pages;
}

}  // namespace pqkv_cases
