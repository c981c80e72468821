// SPDX-License-Identifier: Apache-2.0
// Keys and values in pages of 64 tokens that slots take from a common pool and give back, and the block table that says which page holds
// which tokens of a slot. Slots may name the same page, as forks do; who appends to a shared page gets a copy of it first. pqkv's cache
// reads and writes rows through the table, and no row is copied for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory.hpp"

namespace engine {

using pqkv::bfloat16;
inline constexpr std::size_t page_tokens = 64;

/// [layers, pages, h, 2, page_tokens, d] bfloat16: of each head its keys, then its values. Page p of a slot is page p of every layer.
class page_pool {
 public:
  page_pool(slab& memory, std::size_t layers, std::size_t pages, std::size_t h, std::size_t d)
      : layers_(layers), pages_(pages), d_(d), elements_(h * 2 * page_tokens * d), users_(pages) {
    rows_ = memory.take<bfloat16>(layers * pages * elements_);
    for (std::size_t page = pages; page-- > 0;) free_.push_back(static_cast<std::uint32_t>(page));
  }
  static std::size_t bytes(std::size_t layers, std::size_t pages, std::size_t h, std::size_t d) {
    return layers * pages * h * 2 * page_tokens * d * sizeof(bfloat16);
  }

  std::size_t pages() const { return pages_; }
  std::size_t free_pages() const { return free_.size(); }
  bool is_shared(std::uint32_t page) const { return users_[page] > 1; }
  std::uint32_t take() {
    const std::uint32_t page = free_.back();
    free_.pop_back();
    return share(page);
  }
  std::uint32_t share(std::uint32_t page) {
    ++users_[page];
    return page;
  }
  void give_back(std::uint32_t page) {
    if (--users_[page] == 0) free_.push_back(page);
  }
  void copy(std::uint32_t from, std::uint32_t to) {
    for (std::size_t l = 0; l < layers_; ++l) std::copy_n(keys(l) + from * elements_, elements_, keys(l) + to * elements_);
  }

  /// The first key of a layer's page 0; its value is page_tokens * d elements further.
  bfloat16* keys(std::size_t layer) const { return rows_ + layer * pages_ * elements_; }
  bfloat16* values(std::size_t layer) const { return keys(layer) + page_tokens * d_; }
  pqkv::page_strides strides() const { return {.page = elements_, .token = d_, .head = 2 * page_tokens * d_}; }

 private:
  std::size_t layers_, pages_, d_, elements_;
  bfloat16* rows_;
  std::vector<std::uint32_t> users_, free_;
};

/// Which pages a slot's tokens are in.
class block_table {
 public:
  block_table(slab& memory, page_pool& pool, std::size_t slots, std::size_t most)
      : pool_(pool), pages_(pqkv::make_view(memory.take<std::uint32_t>(slots * most), slots, most)), used_(slots) {}

  pqkv::view<const std::uint32_t, 2> pages() const { return pqkv::as_const(pages_); }  // [slots, pages of a slot]

  /// Makes room for tokens [n, more) of a slot with n tokens. False, and nothing done, when there are too few pages.
  bool reserve(std::size_t slot, std::size_t n, std::size_t more) {
    const std::size_t wanted = pages_for(more);
    const bool copies = n % page_tokens != 0 && more > n && pool_.is_shared(pages_(slot, n / page_tokens));
    if (wanted > pages_.extent(1) || wanted + copies > used_[slot] + pool_.free_pages()) return false;
    if (copies) {
      std::uint32_t& last = pages_(slot, n / page_tokens);
      const std::uint32_t own = pool_.take();
      pool_.copy(last, own);
      pool_.give_back(last);
      last = own;
    }
    while (used_[slot] < wanted) pages_(slot, used_[slot]++) = pool_.take();
    return true;
  }
  /// Gives back what comes after n tokens.
  void cut(std::size_t slot, std::size_t n) {
    while (used_[slot] > pages_for(n)) pool_.give_back(pages_(slot, --used_[slot]));
  }
  /// An empty slot shares all pages of another.
  void share(std::size_t from, std::size_t to) {
    for (; used_[to] < used_[from]; ++used_[to]) pages_(to, used_[to]) = pool_.share(pages_(from, used_[to]));
  }

 private:
  static std::size_t pages_for(std::size_t tokens) { return (tokens + page_tokens - 1) / page_tokens; }

  page_pool& pool_;
  pqkv::view<std::uint32_t, 2> pages_;
  std::vector<std::size_t> used_;
};

/// What the engine itself reads of one slot in one layer: the first n tokens.
struct slot_rows {
  const bfloat16* pool;
  const std::uint32_t* pages;
  std::size_t h, n, d;

  const bfloat16* key(std::size_t head, std::size_t token) const {
    const std::size_t page = pages[token / page_tokens];
    return pool + ((page * h + head) * 2 * page_tokens + token % page_tokens) * d;
  }
  const bfloat16* value(std::size_t head, std::size_t token) const { return key(head, token) + page_tokens * d; }
};

}  // namespace engine
