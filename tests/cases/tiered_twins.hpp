// SPDX-License-Identifier: Apache-2.0
// A host cache with all rows in memory, in 8 bits where the tiers have them so, and one with tiered rows that are given the same calls: the
// same lists, the same bits of attention, and of every row of every slot, wherever attention would read it. Calls of the tiered one fail
// now and then, and are made again.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "faults.hpp"
#include "inputs.hpp"
#include "sanitized.hpp"

namespace pqkv_cases {

template <class Rows, class Selector>
class tiered_twins {
 public:
  using value_type = typename Rows::value_type;
  static constexpr bool has_scales = std::is_same_v<value_type, pqkv::scaled_int8>;
  using dense_cache = pqkv::pqcache<pqkv::owned_rows<value_type>, Selector>;
  using tiered_cache = pqkv::pqcache<Rows, Selector>;

  tiered_twins(const typename dense_cache::params& p, const typename Rows::params& rows, std::uint64_t seed)
      : p_(p), random_(seed), dense_(p), tiered_(with_rows(p, rows)) {}

  const dense_cache& dense() const { return dense_; }
  tiered_cache& tiered() { return tiered_; }
  std::size_t size(std::size_t slot) const { return dense_.size(slot); }

  void prefill(std::size_t slot, std::size_t n) {
    if (size(slot) != 0) reset(slot);
    const auto keys = make_rows<float>(content::clustered, p_.kv_heads, n, p_.head_dim, random_.bits());
    const auto values = make_rows<float>(content::gaussian, p_.kv_heads, n, p_.head_dim, random_.bits());
    for (std::size_t first = 0; first < n;) {
      const std::size_t count = random_.below(2) == 0 ? n - first : 1 + random_.below(n - first);
      const auto which = first + count == n ? pqkv::chunk::last : pqkv::chunk::more;
      const auto k = keys.view().slice(1, first, count), v = values.view().slice(1, first, count);
      dense_.prefill(cpu_, slot, k, v, which);
      twice([&](const auto& policy) { tiered_.prefill(policy, slot, k, v, which); });
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
    const auto keys = make_rows<float>(content::clustered, tokens, h, d, random_.bits()),
               values = make_rows<float>(content::gaussian, tokens, h, d, random_.bits());
    const pqkv::cache_step which{pqkv::make_view(std::as_const(slots)), pqkv::make_view(std::as_const(counts))};
    dense_.append(cpu_, keys.view(), values.view(), which);
    twice([&](const auto& policy) { tiered_.append(policy, keys.view(), values.view(), which); });
    ask(tokens, which);
  }
  void truncate(std::size_t slot, std::size_t n) {
    dense_.truncate(cpu_, slot, n);
    if (random_.below(2) == 0) return tiered_.truncate(cpu_, slot, n);
    const std::uint32_t length = static_cast<std::uint32_t>(n), of = static_cast<std::uint32_t>(slot);
    tiered_.truncate(cpu_, pqkv::make_view(&length, 1), pqkv::make_view(&of, 1));
  }
  void fork(std::size_t from, std::size_t to) {
    dense_.fork(cpu_, from, to);
    if (size(to) == 0)
      tiered_.fork(cpu_, from, to);
    else
      twice([&](const auto& policy) { tiered_.fork(policy, from, to); });
  }
  void reset(std::size_t slot) {
    dense_.reset(slot);
    tiered_.reset(slot);
  }
  void maintain() {
    dense_.maintain(cpu_);
    tiered_.maintain(cpu_);
  }
  /// Through a saved slot into the other cache and back.
  void exchange(std::size_t slot) {
    std::vector<std::byte> saved, again;
    dense_.save(cpu_, slot, [&](const std::byte* bytes, std::size_t count) { saved.insert(saved.end(), bytes, bytes + count); });
    tiered_.save(cpu_, slot, [&](const std::byte* bytes, std::size_t count) { again.insert(again.end(), bytes, bytes + count); });
    REQUIRE(saved == again);
    reset(slot);
    for (int cache = 0; cache < 2; ++cache) {
      std::size_t at = 0;
      const auto source = [&](std::byte* bytes, std::size_t count) {
        const std::size_t given = std::min(count, saved.size() - at);
        std::memcpy(bytes, saved.data() + at, given);
        at += given;
        return given;
      };
      cache == 0 ? dense_.load(cpu_, slot, source) : tiered_.load(cpu_, slot, source);
    }
  }

  std::size_t checked = 0, ranked = 0, failed = 0;
  std::uint64_t hits = 0, evictions = 0;

 private:
  static typename tiered_cache::params with_rows(const typename dense_cache::params& p, const typename Rows::params& rows) {
    typename tiered_cache::params all;
    static_cast<pqkv::cache_shape&>(all) = p;
    all.budget = p.budget, all.selector = p.selector, all.rows = rows;
    return all;
  }

  /// Makes a call that fails somewhere, one time of four, and then the same call once more.
  template <class F>
  void twice(F&& call) {
    if (random_.below(4) == 0) {
      if (!fails(plan_, every_fault[1 + random_.below(3)], 1 + random_.below(6), [&] { call(cpu_); })) return;
      ++failed;
    }
    call(cpu_);
  }

  template <class Cache>
  std::uint64_t attended_bytes(const Cache& cache) const {
    std::uint64_t sum = 0;
    for (std::size_t slot = 0; slot < p_.batch; ++slot) sum += cache.statistics(slot).attended_bytes;
    return sum;
  }
  void ask(std::size_t tokens, const pqkv::cache_step& which) {
    const std::size_t hq = p_.query_heads, d = p_.head_dim, lists = dense_.lists(), k = p_.capacity;
    std::vector<float> query(tokens * hq * d), out(query.size()), lse(tokens * hq), got(query.size()), got_lse(lse.size());
    for (float& x : query) x = 2 * random_.gaussian();
    std::vector<std::int32_t> indices(tokens * lists * k), got_indices(indices.size());
    std::vector<std::uint32_t> counts(tokens * lists), got_counts(counts.size());
    const auto q = pqkv::make_view(std::as_const(query).data(), tokens, hq, d);
    dense_.retrieve(cpu_, q, pqkv::make_view(indices.data(), tokens, lists, k), pqkv::make_view(counts.data(), tokens, lists), which);
    const std::uint64_t bytes = attended_bytes(dense_);
    dense_.attend(cpu_, q, pqkv::make_view(out.data(), tokens, hq, d), pqkv::make_view(lse.data(), tokens, hq), which);
    tiered_.retrieve(cpu_, q, pqkv::make_view(got_indices.data(), tokens, lists, k), pqkv::make_view(got_counts.data(), tokens, lists),
                     which);
    std::uint64_t got_bytes = 0;  // of the last try
    twice([&](const auto& policy) {
      got_bytes = attended_bytes(tiered_);
      tiered_.attend(policy, q, pqkv::make_view(got.data(), tokens, hq, d), pqkv::make_view(got_lse.data(), tokens, hq), which);
    });
    REQUIRE(attended_bytes(tiered_) - got_bytes == attended_bytes(dense_) - bytes);
    REQUIRE(got_counts == counts);
    REQUIRE(got_indices == indices);
    REQUIRE(std::memcmp(got.data(), out.data(), out.size() * sizeof(float)) == 0);
    REQUIRE(std::memcmp(got_lse.data(), lse.data(), lse.size() * sizeof(float)) == 0);
    hits = evictions = 0;
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const pqkv::sequence a = dense_.at(slot), b = tiered_.at(slot);
      REQUIRE(std::memcmp(&a, &b, sizeof a) == 0);
      check_rows(slot);
      hits += tiered_.rows().statistics(slot).hits;
      evictions += tiered_.rows().statistics(slot).evictions;
    }
    ++checked;
    const std::uint32_t last = which.slots(which.slots.extent(0) - 1);
    ranked += counts.back() != 0 && counts.back() < dense_.middle(last).size() ? 1 : 0;
  }
  void check_rows(std::size_t slot) {
    const auto& tiers = tiered_.rows().tiers();
    const auto wanted = dense_.store();
    std::size_t strided = 0, filling = 0, differing = 0;  // counted: an assertion a row takes a quarter of the test's time
    for (std::size_t head = slot * p_.kv_heads; head < (slot + 1) * p_.kv_heads; ++head) {
      const auto blocks = tiers.cache_of_head(head);
      for (std::size_t i = 0; i < blocks.capacity; ++i) filling += blocks.states[i] == pqkv::block_state::filling ? 1 : 0;
      REQUIRE(blocks.progress->touched == 0);
      for (std::size_t t = 0; t < dense_.size(slot); ++t) {
        const auto key = tiers.key(head, t), value = tiers.value(head, t), wanted_key = wanted.key(head, t),
                   wanted_value = wanted.value(head, t);
        strided += key.stride != 1 || value.stride != 1 ? 1 : 0;
        differing += std::memcmp(key.data, wanted_key.data, p_.head_dim * sizeof *key.data) != 0 ? 1 : 0;
        differing += std::memcmp(value.data, wanted_value.data, p_.head_dim * sizeof *value.data) != 0 ? 1 : 0;
        if constexpr (has_scales) differing += *key.scale != *wanted_key.scale || *value.scale != *wanted_value.scale ? 1 : 0;
      }
    }
    REQUIRE(filling == 0);  // a step has ended
    REQUIRE(strided == 0);
    REQUIRE(differing == 0);
  }

  typename dense_cache::params p_;
  random_source random_;
  fault_plan plan_;
  const failing_host cpu_{{&plan_}, {}};  // fails only where twice() says so
  dense_cache dense_;
  tiered_cache tiered_;
};

}  // namespace pqkv_cases
