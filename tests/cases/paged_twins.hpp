// SPDX-License-Identifier: Apache-2.0
// A host cache with rows of its own and a cache in an engine's pages that are given the same calls: the same lists, the same bits of
// attention. The pages' cache may be in the memory of any policy; its rows are given, or written by the engine beforehand.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "engine_pages.hpp"

namespace pqkv_cases {

template <class T, class Policy, class HostSelector, class Selector>
class paged_twins {
 public:
  using dense_cache = pqkv::pqcache<pqkv::dense_rows<T>, HostSelector>;
  using paged_cache = pqkv::pqcache<pqkv::paged_rows<T, typename Policy::space_type>, Selector>;

  paged_twins(const Policy& policy, const typename dense_cache::params& p, page_layout how, content what, std::uint64_t seed)
      : policy_(policy), p_(p), what_(what), random_(seed), dense_(p), pages_(policy, p, how, seed), paged_(policy, of_pages(p, pages_)) {}

  const dense_cache& dense() const { return dense_; }
  engine_pages<T, Policy>& pages() { return pages_; }
  std::size_t size(std::size_t slot) const { return dense_.size(slot); }

  void prefill(std::size_t slot, std::size_t n) {
    if (size(slot) != 0) reset(slot);
    const auto keys = make_rows<float>(what_, p_.kv_heads, n, p_.head_dim, random_.bits());
    const auto values = make_rows<float>(content::gaussian, p_.kv_heads, n, p_.head_dim, random_.bits());
    for (std::size_t first = 0; first < n;) {
      const std::size_t count = random_.below(2) == 0 ? n - first : 1 + random_.below(n - first);
      const auto which = first + count == n ? pqkv::chunk::last : pqkv::chunk::more;
      const auto k = keys.view().slice(1, first, count), v = values.view().slice(1, first, count);
      pages_.make_writable(slot, first, first + count);
      dense_.prefill(cpu_, slot, k, v, which);
      if (random_.below(2) == 0) {
        for (std::size_t t = 0; t < count; ++t) pages_.write(slot, first + t, column(k, t), column(v, t));
        paged_.prefill(policy_, slot, count, which);
      } else {
        const placed_array<float, Policy> pk(policy_, packed(k)), pv(policy_, packed(v));
        paged_.prefill(policy_, slot, pk.const_view(p_.kv_heads, count, p_.head_dim), pv.const_view(p_.kv_heads, count, p_.head_dim),
                       which);
        pqkv::sync(policy_);
      }
      first += count;
    }
  }
  /// Some rows in any order, up to `most` tokens each; then both are asked.
  void step(std::size_t most) {
    std::vector<std::uint32_t> order(p_.batch), slots, counts;
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t i = p_.batch; i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
    order.resize(1 + random_.below(p_.batch));
    for (const std::uint32_t slot : order) {
      const std::size_t count = std::min(1 + random_.below(most), p_.capacity - size(slot));
      if (count != 0) slots.push_back(slot), counts.push_back(static_cast<std::uint32_t>(count));
    }
    if (slots.empty()) return;
    const std::size_t tokens = std::accumulate(counts.begin(), counts.end(), std::size_t{0}), h = p_.kv_heads, d = p_.head_dim;
    const auto keys = make_rows<float>(what_, tokens, h, d, random_.bits()),
               values = make_rows<float>(content::gaussian, tokens, h, d, random_.bits());
    const bool writes = random_.below(2) == 0;
    for (std::size_t row = 0, first = 0; row < slots.size(); first += counts[row], ++row) {
      pages_.make_writable(slots[row], size(slots[row]), size(slots[row]) + counts[row]);
      for (std::size_t t = 0; writes && t < counts[row]; ++t)
        pages_.write(slots[row], size(slots[row]) + t, keys.view()[first + t], values.view()[first + t]);
    }
    const placed_array<std::uint32_t, Policy> placed_slots(policy_, slots), placed_counts(policy_, counts);
    const pqkv::basic_step<typename Policy::space_type> there{placed_slots.const_view(slots.size()),
                                                              placed_counts.const_view(slots.size())};
    const pqkv::basic_step<> here{pqkv::make_view(std::as_const(slots)), pqkv::make_view(std::as_const(counts))};
    dense_.append(cpu_, keys.view(), values.view(), here);
    const placed_array<float, Policy> pk(policy_, packed(keys.view())), pv(policy_, packed(values.view()));
    if (writes)
      paged_.append(policy_, tokens, there);
    else
      paged_.append(policy_, pk.const_view(tokens, h, d), pv.const_view(tokens, h, d), there);
    pqkv::sync(policy_);
    ask(tokens, here, there);
  }
  void truncate(std::size_t slot, std::size_t n) {
    dense_.truncate(cpu_, slot, n);
    paged_.truncate(policy_, slot, n);
    pages_.release(slot, n);
  }
  void fork(std::size_t from, std::size_t to) {
    if (from == to) return;
    pages_.share(from, to, size(from));
    dense_.fork(cpu_, from, to);
    paged_.fork(policy_, from, to);
    shared += pages_.shared_pages();
  }
  void reset(std::size_t slot) {
    dense_.reset(slot);
    paged_.reset(policy_, slot);
    pages_.release(slot, 0);
  }
  void maintain() {
    dense_.maintain(cpu_);
    paged_.maintain(policy_);
  }

  std::size_t checked = 0, ranked = 0, shared = 0;

 private:
  static typename paged_cache::params of_pages(const typename dense_cache::params& p, const engine_pages<T, Policy>& pages) {
    typename paged_cache::params all;
    static_cast<pqkv::cache_shape&>(all) = p;
    all.budget = p.budget, all.selector = p.selector, all.rows = pages.params();
    return all;
  }
  static pqkv::view<const float, 2> column(pqkv::view<const float, 3> rows, std::size_t t) {
    return {rows.data + t * rows.stride(1), {rows.extent(0), rows.extent(2)}, {rows.stride(0), rows.stride(2)}};
  }
  static std::vector<float> packed(pqkv::view<const float, 3> rows) {
    std::vector<float> all;
    for (std::size_t a = 0; a < rows.extent(0); ++a)
      for (std::size_t b = 0; b < rows.extent(1); ++b)
        for (std::size_t i = 0; i < rows.extent(2); ++i) all.push_back(rows(a, b, i));
    return all;
  }

  template <class Step>
  void ask(std::size_t tokens, const pqkv::basic_step<>& here, const Step& there) {
    const std::size_t hq = p_.query_heads, d = p_.head_dim, lists = dense_.lists(), k = p_.capacity;
    std::vector<float> query(tokens * hq * d), out(query.size()), lse(tokens * hq);
    for (float& x : query) x = 2 * random_.gaussian();
    std::vector<std::int32_t> indices(tokens * lists * k);
    std::vector<std::uint32_t> counts(tokens * lists);
    const placed_array<float, Policy> placed_query(policy_, query), placed_out(policy_, query.size()), placed_lse(policy_, lse.size());
    const placed_array<std::int32_t, Policy> placed_indices(policy_, indices.size());
    const placed_array<std::uint32_t, Policy> placed_counts(policy_, counts.size());
    const auto q = pqkv::make_view(std::as_const(query).data(), tokens, hq, d);
    dense_.retrieve(cpu_, q, pqkv::make_view(indices.data(), tokens, lists, k), pqkv::make_view(counts.data(), tokens, lists), here);
    dense_.attend(cpu_, q, pqkv::make_view(out.data(), tokens, hq, d), pqkv::make_view(lse.data(), tokens, hq), here);
    const auto asked = placed_query.const_view(tokens, hq, d);
    paged_.retrieve(policy_, asked, placed_indices.view(tokens, lists, k), placed_counts.view(tokens, lists), there);
    paged_.attend(policy_, asked, placed_out.view(tokens, hq, d), placed_lse.view(tokens, hq), there);
    REQUIRE(placed_counts.read() == counts);
    REQUIRE(placed_indices.read() == indices);
    const std::vector<float> got = placed_out.read(), got_lse = placed_lse.read();
    REQUIRE(std::memcmp(got.data(), out.data(), out.size() * sizeof(float)) == 0);
    REQUIRE(std::memcmp(got_lse.data(), lse.data(), lse.size() * sizeof(float)) == 0);
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const pqkv::sequence a = dense_.at(slot), b = paged_.at(policy_, slot);
      REQUIRE(std::memcmp(&a, &b, sizeof a) == 0);
      const pqkv::slot_statistics mine = dense_.statistics(slot), theirs = paged_.statistics(policy_, slot);
      REQUIRE(std::memcmp(&mine, &theirs, sizeof mine) == 0);
    }
    ++checked;
    const std::uint32_t last = here.slots(here.slots.extent(0) - 1);
    ranked += counts.back() != 0 && counts.back() < dense_.middle(last).size() ? 1 : 0;
  }

  Policy policy_;
  typename dense_cache::params p_;
  content what_;
  random_source random_;
  pqkv::exec::host<> cpu_;
  dense_cache dense_;
  engine_pages<T, Policy> pages_;
  paged_cache paged_;
};

}  // namespace pqkv_cases
