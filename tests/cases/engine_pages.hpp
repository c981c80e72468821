// SPDX-License-Identifier: Apache-2.0
// An engine's pages as paged_rows sees them: a pool, a block table, pages handed out in a shuffled order, shared by slots that forked and
// copied before they are written. In the memory of any policy. What no token was written to holds NaN, so that reading it shows.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "inputs.hpp"
#include "placed_array.hpp"

namespace pqkv_cases {

/// How a pool is laid out.
struct page_layout {
  std::size_t page_tokens;
  bool heads_first;  // H x N x D instead of N x H x D
  bool together;     // a page's values behind its keys, instead of a pool of their own
};

template <class T, class Policy>
class engine_pages {
 public:
  using space_type = typename Policy::space_type;
  static constexpr std::uint32_t none = 0xffffffffu;

  engine_pages(const Policy& policy, const pqkv::cache_shape& shape, page_layout how, std::uint64_t seed)
      : policy_(policy),
        shape_(shape),
        how_(how),
        row_pages_((shape.capacity + how.page_tokens - 1) / how.page_tokens),
        owners_(2 * shape.batch * row_pages_, 0),
        table_(shape.batch * row_pages_, none),
        pool_(policy, std::vector<T>(2 * owners_.size() * page_elements(), T(std::nanf("")))),
        placed_table_(policy, table_) {
    for (std::uint32_t page = 0; page < owners_.size(); ++page) free_.push_back(page);
    random_source random(seed);
    for (std::size_t i = free_.size(); i > 1; --i) std::swap(free_[i - 1], free_[random.below(i)]);
  }

  typename pqkv::paged_rows<T, space_type>::params params() const {
    const auto strides = how_.heads_first ? pqkv::page_strides::hnd(how_.page_tokens, shape_.kv_heads, shape_.head_dim)
                                          : pqkv::page_strides::nhd(how_.page_tokens, shape_.kv_heads, shape_.head_dim);
    return {pool_.data(),
            pool_.data() + values_at(),
            owners_.size(),
            how_.page_tokens,
            how_.together ? strides.together() : strides,
            placed_table_.const_view(shape_.batch, row_pages_)};
  }

  /// Pages for tokens [first, last) of a slot that nobody else reads.
  void make_writable(std::size_t slot, std::size_t first, std::size_t last) {
    for (std::size_t i = first / how_.page_tokens; i * how_.page_tokens < last; ++i) {
      std::uint32_t& entry = table_[slot * row_pages_ + i];
      if (entry != none && owners_[entry] == 1) continue;
      const std::uint32_t old = entry;
      entry = free_.back();
      free_.pop_back();
      owners_[entry] = 1;
      if (old == none) continue;
      --owners_[old];
      copy_page(old, entry);
    }
    placed_table_.write(table_);
  }
  /// Writes a token's rows of all heads: keys and values [h, d].
  void write(std::size_t slot, std::size_t token, pqkv::view<const float, 2> keys, pqkv::view<const float, 2> values) {
    const auto p = params();
    const std::size_t page = table_[slot * row_pages_ + token / how_.page_tokens], in_page = token % how_.page_tokens;
    std::vector<T> row(shape_.head_dim);
    for (std::size_t head = 0; head < shape_.kv_heads; ++head) {
      const std::size_t at = page * p.strides.page + in_page * p.strides.token + head * p.strides.head;
      for (const auto& [to, from] : {std::pair{p.keys, keys}, std::pair{p.values, values}}) {
        for (std::size_t i = 0; i < row.size(); ++i) row[i] = T(from(head, i));
        pqkv::copy_bytes(policy_, to + at, row.data(), row.size() * sizeof(T));
        pqkv::sync(policy_);
      }
    }
  }
  /// Slot `to` reads the pages of `from`; one that is not full is copied, since both will write it.
  void share(std::size_t from, std::size_t to, std::size_t tokens) {
    release(to, 0);
    for (std::size_t i = 0; i * how_.page_tokens < tokens; ++i) {
      table_[to * row_pages_ + i] = table_[from * row_pages_ + i];
      ++owners_[table_[to * row_pages_ + i]];
    }
    if (tokens % how_.page_tokens != 0) make_writable(to, tokens - 1, tokens);
    placed_table_.write(table_);
  }
  /// Gives back the pages behind a slot's first tokens.
  void release(std::size_t slot, std::size_t tokens) {
    for (std::size_t i = (tokens + how_.page_tokens - 1) / how_.page_tokens; i < row_pages_; ++i) {
      std::uint32_t& entry = table_[slot * row_pages_ + i];
      if (entry != none && --owners_[entry] == 0) free_.insert(free_.begin(), entry);
      entry = none;
    }
    placed_table_.write(table_);
  }
  /// For tests of refusals: an entry of the table as it should never be.
  void spoil(std::size_t slot, std::size_t page, std::uint32_t entry) {
    table_[slot * row_pages_ + page] = entry;
    placed_table_.write(table_);
  }
  std::size_t pages() const { return owners_.size(); }
  std::size_t shared_pages() const {
    std::size_t count = 0;
    for (const std::size_t owners : owners_) count += owners > 1 ? 1 : 0;
    return count;
  }

 private:
  std::size_t page_elements() const { return how_.page_tokens * shape_.kv_heads * shape_.head_dim; }
  std::size_t values_at() const { return how_.together ? page_elements() : owners_.size() * page_elements(); }
  void copy_page(std::uint32_t from, std::uint32_t to) {
    const auto p = params();
    for (T* const pool : {p.keys, p.values})
      pqkv::copy_bytes(policy_, pool + to * p.strides.page, pool + from * p.strides.page, page_elements() * sizeof(T));
    pqkv::sync(policy_);
  }

  Policy policy_;
  pqkv::cache_shape shape_;
  page_layout how_;
  std::size_t row_pages_;
  std::vector<std::size_t> owners_;  // of each page of the pool
  std::vector<std::uint32_t> table_, free_;
  placed_array<T, Policy> pool_;
  placed_array<std::uint32_t, Policy> placed_table_;
};

}  // namespace pqkv_cases
