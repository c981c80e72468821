// SPDX-License-Identifier: Apache-2.0
// A random life of a pqcache beside the plain model: prompts whole and in chunks, ragged steps of 0 to 16 tokens on random rows, cuts,
// forks, resets, saved and loaded slots and maintenance in any order, at any scale of logits. After every change the lists of every query
// of a step, each at its own length, equal the model's to the token, and attention the same in double to 1e-5 (more only for keys with
// offsets in the hundreds).
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cache_model.hpp"
#include "inputs.hpp"
#include "slot_bytes.hpp"

namespace pqkv_cases {

/// A cache, and a plain model of each of its slots.
/// @tparam T  of the stored rows
template <class T, class Policy>
class model_life {
 public:
  using cache_type = pqkv::pqcache<pqkv::dense_rows<T>>;
  using params = typename cache_type::params;

  model_life(const Policy& policy, const params& p, content what, std::uint64_t seed)
      : policy_(policy), p_(p), cache_(p), what_(what), random_(seed) {
    for (std::size_t slot = 0; slot < p.batch; ++slot) slots_.push_back(empty_model());
  }

  void prefill(std::size_t slot, std::size_t n) {
    auto keys = draw_rows(what_, p_.kv_heads, n);
    auto values = draw_rows(content::gaussian, p_.kv_heads, n);
    for (std::size_t first = 0; first < n || n == 0;) {
      const std::size_t count = n == 0 || random_.below(2) == 0 ? n - first : 1 + random_.below(n - first);
      cache_.prefill(policy_, slot, keys.view().slice(1, first, count), values.view().slice(1, first, count),
                     first + count == n ? pqkv::chunk::last : pqkv::chunk::more);
      first += count;
      if (n == 0) break;
    }
    slots_[slot].add(keys.view(), values.view());
    given += n;
    slots_[slot].end_prompt();
    if (n == 0) return;
    slots_[slot].commit();
    slots_[slot].train(p_.selector);
  }

  struct drawn_step {
    std::vector<std::uint32_t> slots, counts;
    std::size_t tokens = 0;
    /// Says no more than it must: nothing for every slot in order with a token each, no counts where all are one.
    pqkv::cache_step step(std::size_t batch) const {
      bool in_order = slots.size() == batch, ones = true;
      for (std::size_t row = 0; row < slots.size(); ++row) in_order &= slots[row] == row, ones &= counts[row] == 1;
      pqkv::cache_step made;
      if (!in_order) made.slots = pqkv::make_view(slots.data(), slots.size());
      if (!ones) made.counts = pqkv::make_view(counts.data(), counts.size());
      return made;
    }
  };
  drawn_step draw_step(std::size_t most) {
    drawn_step s;
    for (std::uint32_t slot = 0; slot < p_.batch; ++slot)
      if (random_.below(4) != 0) s.slots.push_back(slot);
    for (std::size_t i = s.slots.size(); i > 1; --i) std::swap(s.slots[i - 1], s.slots[random_.below(i)]);
    for (const std::uint32_t slot : s.slots) {
      const std::size_t room = p_.capacity - slots_[slot].size();
      s.counts.push_back(static_cast<std::uint32_t>(std::min(room, random_.below(3) == 0 ? random_.below(most + 1) : std::size_t{1})));
      s.tokens += s.counts.back();
    }
    return s;
  }
  void append(const drawn_step& s) {
    auto keys = draw_rows(what_, s.tokens, p_.kv_heads);
    auto values = draw_rows(content::gaussian, s.tokens, p_.kv_heads);
    cache_.append(policy_, keys.view(), values.view(), s.step(p_.batch));
    given += s.tokens;
    std::size_t t = 0;
    for (std::size_t row = 0; row < s.slots.size(); ++row)
      for (std::uint32_t i = 0; i < s.counts[row]; ++i, ++t) {
        slots_[s.slots[row]].add(one_token(keys.view()[t]), one_token(values.view()[t]));
        slots_[s.slots[row]].commit();
      }
  }

  /// One slot by its number, or several by lengths in memory.
  void truncate(std::size_t slot) {
    const auto draw_length = [&](std::size_t n) {
      return random_.below(3) == 0 ? random_.below(n + 1) : n - std::min<std::size_t>(n, random_.below(9));
    };
    if (random_.below(3) != 0) {
      const std::size_t n = draw_length(slots_[slot].size());
      cache_.truncate(policy_, slot, n);
      slots_[slot].truncate(n);
      return;
    }
    const std::vector<std::uint32_t> which = draw_step(0).slots;
    std::vector<std::uint32_t> lengths;
    for (const std::uint32_t one : which) {
      lengths.push_back(static_cast<std::uint32_t>(draw_length(slots_[one].size())));
      slots_[one].truncate(lengths.back());
    }
    if (which.empty()) return;  // no list of slots would mean every slot
    cache_.truncate(policy_, pqkv::make_view(std::as_const(lengths).data(), lengths.size()), pqkv::make_view(which.data(), which.size()));
  }

  /// Through a file, into another slot or into itself.
  void reload(std::size_t from, std::size_t to) {
    const auto file = saved(policy_, cache_, from);
    cache_.reset(to);
    load(policy_, cache_, to, file, pqkv::slot_contents::index_and_rows, 1 + random_.below(100000));
    if (from != to) slots_[to].copy_from(slots_[from]);
  }

  void maintain() {
    cache_.maintain(policy_);
    for (std::size_t slot = 0; slot < p_.batch; ++slot)
      if (slots_[slot].outgrown(p_.selector))
        slots_[slot].refresh(p_.selector);
      else if (!slots_[slot].trained() && cache_.at(slot).learned != 0)
        slots_[slot].train(p_.selector);
  }

  void check(const drawn_step& s) {
    const std::size_t hq = p_.query_heads, d = p_.head_dim, lists = cache_.lists(), tokens = s.tokens;
    std::vector<float> query(tokens * hq * d), out(query.size(), 77.0f), lse(tokens * hq, 77.0f);
    for (float& x : query) x = 2 * random_.gaussian();
    std::size_t k_max = 1;
    for (std::size_t slot = 0; slot < p_.batch; ++slot) k_max = std::max(k_max, cache_.retrieve_capacity(slot));
    std::vector<std::int32_t> indices(tokens * lists * k_max, -7);
    std::vector<std::uint32_t> counts(tokens * lists, 77);
    const auto queries = pqkv::as_const(pqkv::make_view(query.data(), tokens, hq, d));
    cache_.retrieve(policy_, queries, pqkv::make_view(indices.data(), tokens, lists, k_max), pqkv::make_view(counts.data(), tokens, lists),
                    s.step(p_.batch));
    cache_.attend(policy_, queries, pqkv::make_view(out.data(), tokens, hq, d), pqkv::make_view(lse.data(), tokens, hq), s.step(p_.batch));
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      REQUIRE(cache_.size(slot) == slots_[slot].size());
      REQUIRE(cache_.middle(slot).begin == slots_[slot].first());
      REQUIRE(cache_.middle(slot).end == slots_[slot].window_begin());
    }
    std::size_t t = 0;
    for (std::size_t row = 0; row < s.slots.size(); ++row)
      for (std::uint32_t i = 0; i < s.counts[row]; ++i, ++t) {
        const slot_model<T>& now = slots_[s.slots[row]];
        if (s.counts[row] > now.size()) {
          for (std::size_t x = 0; x < hq * d; ++x) REQUIRE(out[t * hq * d + x] == 0.0f);
          continue;
        }
        const slot_model<T> model = now.when_it_had(now.size() - s.counts[row] + i + 1);
        const std::vector<float> own(query.begin() + static_cast<std::ptrdiff_t>(t * hq * d),
                                     query.begin() + static_cast<std::ptrdiff_t>((t + 1) * hq * d));
        const auto wanted = model.lists(own, p_.selector);
        for (std::size_t list = 0; list < lists; ++list) {
          const auto first = indices.begin() + static_cast<std::ptrdiff_t>((t * lists + list) * k_max);
          const std::size_t count = counts[t * lists + list];
          REQUIRE(count <= k_max);
          REQUIRE(std::vector<std::int32_t>(first, first + static_cast<std::ptrdiff_t>(count)) == wanted[list]);
          for (std::size_t k = count; k < k_max; ++k) REQUIRE(indices[(t * lists + list) * k_max + k] == -1);
        }
        for (std::size_t q = 0; q < hq; ++q) {
          const plain_result exact = model.attend(own, q, wanted[q * lists / hq]);
          REQUIRE(relative_error(out.data() + (t * hq + q) * d, exact.out) < exact.tolerance());
          REQUIRE(static_cast<double>(lse[t * hq + q]) == doctest::Approx(exact.lse).epsilon(exact.tolerance()));
        }
        ++checked;
        listed += wanted[0].size() < model.middle_size() && !wanted[0].empty() ? 1 : 0;
      }
  }

  void begin() {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) prefill(slot, random_.below(p_.capacity - 40));
  }
  /// Something happens to some slot; then all is compared.
  void event() {
    const std::size_t slot = random_.below(p_.batch), other = random_.below(p_.batch);
    drawn_step s = draw_step(16);
    switch (random_.below(18)) {
      case 0:
        cache_.reset(slot);
        slots_[slot] = empty_model();
        break;
      case 1:
        cache_.fork(policy_, slot, other);
        if (slot != other) slots_[other].copy_from(slots_[slot]);
        break;
      case 2:
        maintain();
        break;
      case 3:
      case 4:
        if (slots_[slot].size() == 0) prefill(slot, p_.capacity / 2 + random_.below(p_.capacity / 2 - 20));
        break;
      case 5:
      case 6:
        truncate(slot);
        break;
      case 7:
        reload(slot, other);
        break;
      default:
        for (std::size_t i = 1 + random_.below(3); i-- > 0;) append(s = draw_step(16));
    }
    check(s);
  }
  void run(std::size_t events) {
    begin();
    for (std::size_t event = 0; event < events; ++event) this->event();
  }

  std::size_t checked = 0, listed = 0;  // queries; those with a ranked list
  std::size_t given = 0;                // tokens, to the cache

 private:
  rows<T> draw_rows(content what, std::size_t h, std::size_t n) {
    const layout where = every_layout[random_.below(5)];
    return make_rows<T>(what, h, n, p_.head_dim, random_.bits(), where);
  }
  template <class U>
  static pqkv::view<U, 3> one_token(pqkv::view<U, 2> rows) {
    return {rows.data, {rows.extent(0), 1, rows.extent(1)}, {rows.stride(0), 0, rows.stride(1)}};
  }

  slot_model<T> empty_model() const { return {p_.kv_heads, p_.head_dim, p_.budget, p_.softmax_scale}; }

  Policy policy_;
  params p_;
  cache_type cache_;
  content what_;
  random_source random_;
  std::vector<slot_model<T>> slots_;
};

/// A cache of any shape and settings, of up to 400 tokens a slot.
template <class T>
typename pqkv::pqcache<pqkv::dense_rows<T>>::params random_params(random_source& random) {
  typename pqkv::pqcache<pqkv::dense_rows<T>>::params p;
  const std::size_t groups[] = {1, 2, 4, 9};
  p.batch = 1 + random.below(3);
  p.kv_heads = 1 + random.below(3);
  p.query_heads = p.kv_heads * groups[random.below(4)];
  p.head_dim = 16 * (1 + random.below(3));
  p.capacity = 150 + random.below(250);
  p.selector.subspaces = std::size_t{1} << random.below(4);
  p.selector.bits = 4 + static_cast<unsigned>(random.below(2));
  p.selector.train.iterations = 2;
  p.selector.train.seed = random.bits();
  p.selector.tail_tokens = 1 + random.below(30);
  p.selector.reduction = static_cast<pqkv::group_reduction>(random.below(5));
  p.selector.path =
      p.selector.subspaces * p.selector.bits <= 10 ? static_cast<pqkv::search_path>(random.below(3)) : pqkv::search_path::automatic;
  p.budget.sinks = random.below(9);
  p.budget.min_tokens = p.budget.sinks + 1 + random.below(30);
  p.budget.ratio = 0.03 * static_cast<double>(random.below(10));
  p.budget.window_share = 0.1 * static_cast<double>(random.below(6));
  p.budget.growth = static_cast<pqkv::budget_growth>(random.below(4) == 0);
  p.selector.metric = static_cast<pqkv::key_metric>(random.below(3) == 0);
  if (random.below(3) == 0) {
    p.selector.residual.subspaces = std::size_t{1} << random.below(4);
    p.selector.residual.bits = 4;
    p.selector.residual.shortlist = 1 + random.below(5);
  }
  if (!p.selector.residual.used()) p.selector.over = static_cast<pqkv::selector::normalisation>(random.below(2));
  p.selector.renewal = pqkv::selector::renewal_scope::all_keys;  // what the model does
  if (random.below(4) == 0) p.budget.tokens = p.budget.sinks + 1 + random.below(60);
  if (random.below(4) == 0) p.budget.window = 1 + random.below(50);
  if (random.below(4) == 0) p.budget.retrieve = random.below(80);
  if (random.below(3) == 0) p.softmax_scale = 0.03f + 0.4f * random.uniform();
  p.step_queries = random.below(3) * random.below(9);
  return p;
}

}  // namespace pqkv_cases
