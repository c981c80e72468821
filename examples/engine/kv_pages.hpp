// SPDX-License-Identifier: Apache-2.0
// Keys and values in pages of 64 tokens that sequences take from a common pool and give back. The store that attention reads is an
// indirection of the engine's own: paged_kv models pqkv::kv_store, and no row is copied for it.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.hpp"

namespace engine {

using pqkv::bfloat16;
inline constexpr std::size_t page_tokens = 64;

/// A page is [h, 2, page_tokens, d] bfloat16: of each head its keys, then its values.
class page_pool {
 public:
  page_pool(slab& memory, std::size_t pages, std::size_t h, std::size_t d) : elements_(h * 2 * page_tokens * d) {
    bfloat16* first = memory.take<bfloat16>(pages * elements_);
    for (std::size_t i = pages; i-- > 0;) free_.push_back(first + i * elements_);
  }
  std::size_t free_pages() const { return free_.size(); }
  bfloat16* take() {
    bfloat16* page = free_.back();
    free_.pop_back();
    return page;
  }
  void give_back(bfloat16* page) { free_.push_back(page); }
  static std::size_t bytes(std::size_t pages, std::size_t h, std::size_t d) { return pages * h * 2 * page_tokens * d * sizeof(bfloat16); }

 private:
  std::size_t elements_;
  std::vector<bfloat16*> free_;
};

/// One layer of one sequence: n tokens in pages.
struct paged_kv {
  using value_type = bfloat16;
  using space_type = pqkv::space::host;

  bfloat16* const* pages;
  std::size_t h, n, d;

  std::size_t heads() const { return h; }
  std::size_t tokens() const { return n; }
  std::size_t head_dim() const { return d; }
  pqkv::kv_row<bfloat16> key(std::size_t head, std::size_t token) const { return {row(head, token), 1}; }
  pqkv::kv_row<bfloat16> value(std::size_t head, std::size_t token) const { return {row(head, token) + page_tokens * d, 1}; }

  /// Keys of the tokens of one page, from `first` on, as [h, count, d]; values lie page_tokens * d further.
  pqkv::view<bfloat16, 3> keys_in_page(std::size_t first, std::size_t count) const {
    return {row(0, first), {h, count, d}, {2 * page_tokens * d, d, 1}};
  }

 private:
  bfloat16* row(std::size_t head, std::size_t token) const {
    return pages[token / page_tokens] + (head * 2 * page_tokens + token % page_tokens) * d;
  }
};
static_assert(pqkv::kv_store<paged_kv>);

}  // namespace engine
