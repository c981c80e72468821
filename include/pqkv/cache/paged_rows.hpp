// SPDX-License-Identifier: Apache-2.0
// Keys and values in the engine's own pages. A block table says which page of a pool holds which tokens of a slot. Nothing is copied: the
// cache reads the pages, and writes a token's row where the table says, unless the engine has already written it. The engine owns the pool
// and the table and decides who shares which page. Slots that forked may name the same pages, but a page that is still being filled must
// belong to one slot. Sources: vLLM's paged attention (Kwon et al., SOSP 2023) for block tables; FlashInfer's names of layouts.
#pragma once

#include "kv_store.hpp"
#include "sequence.hpp"
#include "../core/slot_parts.hpp"

namespace pqkv::inline PQKV_MODE {

/// Where rows are inside a pool of pages, in elements.
struct page_strides {
  std::size_t page = 0, token = 0, head = 0;

  /// Pages [page_tokens, h, d]: N x H x D.
  static constexpr page_strides nhd(std::size_t page_tokens, std::size_t h, std::size_t d) { return {page_tokens * h * d, h * d, d}; }
  /// Pages [h, page_tokens, d]: H x N x D.
  static constexpr page_strides hnd(std::size_t page_tokens, std::size_t h, std::size_t d) {
    return {h * page_tokens * d, d, page_tokens * d};
  }
  /// The same where a page holds all its keys and then all its values: values begin after keys, one `page` (of the old layout) later.
  constexpr page_strides together() const { return {2 * page, token, head}; }
};

/// A pool seen through a block table, as kernels and attention read it. Heads are batch * h, slot after slot.
template <storage_scalar T, class Space = space::host>
struct paged_store {
  using value_type = T;
  using space_type = Space;

  T *key_pool = nullptr, *value_pool = nullptr;  // row of page 0, token 0, head 0
  page_strides strides{};
  view<const std::uint32_t, 2, Space> table{};  // [batch, pages of a slot] pages of the pool
  std::uint32_t page_tokens = 1, kv_heads = 1;
  std::size_t dims = 0, capacity = 0;

  PQKV_HD constexpr std::size_t heads() const { return table.extent(0) * kv_heads; }
  PQKV_HD constexpr std::size_t tokens() const { return capacity; }
  PQKV_HD constexpr std::size_t head_dim() const { return dims; }
  PQKV_HD constexpr kv_row<T> key(std::size_t head, std::size_t token) const { return {key_pool + row(head, token), 1}; }
  PQKV_HD constexpr kv_row<T> value(std::size_t head, std::size_t token) const { return {value_pool + row(head, token), 1}; }
  PQKV_HD constexpr row_slot<T> key_slot(std::size_t head, std::size_t token) const { return {key_pool + row(head, token), 1}; }
  PQKV_HD constexpr row_slot<T> value_slot(std::size_t head, std::size_t token) const { return {value_pool + row(head, token), 1}; }

 private:
  PQKV_HD constexpr std::size_t row(std::size_t head, std::size_t token) const {
    const auto h = static_cast<std::uint32_t>(head), t = static_cast<std::uint32_t>(token);
    const std::uint32_t slot = h / kv_heads, page = t / page_tokens;
    return table(slot, page) * strides.page + (t - page * page_tokens) * strides.token + (h - slot * kv_heads) * strides.head;
  }
};

/// A cache's rows in an engine's pages. Owns nothing: pool and table must outlive the cache.
///
/// @tparam T      float, half or bfloat16
/// @tparam Space  where pool and table are
template <storage_scalar T, class Space = space::host>
class paged_rows {
 public:
  using value_type = T;
  using space_type = Space;
  using view_type = paged_store<T, Space>;

  /// The engine's memory.
  struct params {
    T* keys = nullptr;            // of the pool: row of page 0, token 0, head 0
    T* values = nullptr;          // the same for values; same strides
    std::size_t pages = 0;        // of the pool
    std::size_t page_tokens = 0;  // tokens of a page, at least 1
    page_strides strides{};
    pqkv::view<const std::uint32_t, 2, Space> table{};  // [batch, pages of a slot]; read at every call, so it may change in between
  };

  static constexpr status can_construct(const cache_shape& shape, const params& p) noexcept {
    return detail::checks("pqcache")
        .that(p.keys != nullptr && p.values != nullptr, status::code::value, "rows.keys, rows.values", relation::required,
              "pointers, not null", 2, (p.keys != nullptr ? 1 : 0) + (p.values != nullptr ? 1 : 0))
        .at_least("rows.pages", p.pages, 1, "pages of the pool")
        .at_most("rows.pages", p.pages, 4294967295.0, "pages of the pool")
        .at_least("rows.page_tokens", p.page_tokens, 1, "tokens of a page")
        .at_most("rows.page_tokens", p.page_tokens, 2147483647.0, "tokens of a page")
        .at_least("rows.strides.page", p.strides.page, 1, "elements")
        .extent("rows.table.extent(0)", p.table.data == nullptr ? 0 : p.table.extent(0), shape.batch, "batch, from params")
        .at_least("rows.table.extent(1)", p.table.extent(1), 1, "pages of a slot");
  }
  static constexpr std::size_t required_bytes(const cache_shape&, const params&) { return 0; }

  /// @pre can_construct(shape, p)
  template <exec::policy P>
  paged_rows(const P&, const cache_shape& shape, const params& p)
      : pages_(p.pages), view_{p.keys,
                               p.values,
                               p.strides,
                               p.table,
                               static_cast<std::uint32_t>(p.page_tokens),
                               static_cast<std::uint32_t>(shape.kv_heads),
                               shape.head_dim,
                               shape.capacity} {}

  view_type view() const { return view_; }
  view_type store() const { return view_; }
  std::size_t size_bytes() const { return 0; }
  /// Tokens that a slot has room for: the capacity, but no more than its pages hold.
  std::size_t room(std::size_t) const {
    const std::size_t held = view_.table.extent(1) * view_.page_tokens;
    return held < view_.capacity ? held : view_.capacity;
  }
  /// Whether the table names a page of the pool for each of tokens [first, last). On a device this is not checked.
  status can_hold(const char* function, std::size_t slot, std::size_t first, std::size_t last) const noexcept {
    detail::checks all(function);
    if constexpr (space::usable_from<Space, space::host>)
      for (std::size_t page = first / view_.page_tokens; page * view_.page_tokens < last && all.ok(); ++page)
        all.that(view_.table(slot, page) < pages_, status::code::value, "rows.table", relation::below, "pages of the pool", pages_,
                 view_.table(slot, page));
    return all;
  }
  /// A fork copies no rows: the engine lets both slots name the same pages.
  slot_parts parts() const { return {}; }

 private:
  std::size_t pages_;
  view_type view_;
};

}  // namespace pqkv
