// SPDX-License-Identifier: Apache-2.0
// A layer with a sliding window is a cache without sinks and retrieval: lives of one, in the memory of any policy, against attention in
// double over the last w tokens up to each query's own.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <utility>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "inputs.hpp"
#include "placed_array.hpp"
#include "plain_attention.hpp"

namespace pqkv_cases {

struct window_counts {
  std::size_t queries = 0, bounded = 0, differing = 0, miscounted = 0;  // bounded: those that some token is too old for
};

template <class Rows, class P>
class window_life {
 public:
  using cache_type = pqkv::pqcache<Rows, pqkv::selector::streaming>;
  using space = typename P::space_type;
  static constexpr std::size_t batch = 3, h = 2, hq = 4, d = 16, capacity = 220;

  window_life(const P& policy, std::size_t window, const typename Rows::params& rows, std::uint64_t seed, window_counts& counts)
      : policy_(policy), window_(window), random_(seed), counts_(counts), cache_(policy, params(window, rows)), tokens_(batch) {}

  /// @param at_once  tokens of a chunk
  void prefill(std::size_t slot, std::size_t n, std::size_t at_once) {
    std::vector<float> key(h * n * d), value(key.size());
    for (std::size_t i = 0; i < n; ++i) {
      const token& one = added(slot);
      for (std::size_t head = 0; head < h; ++head) {
        std::copy_n(one.key.data() + head * d, d, key.data() + (head * n + i) * d);
        std::copy_n(one.value.data() + head * d, d, value.data() + (head * n + i) * d);
      }
    }
    const placed_array<float, P> keys(policy_, key), values(policy_, value);
    for (std::size_t first = 0, count = 0; first < n; first += count) {
      count = std::min(at_once, n - first);
      cache_.prefill(policy_, slot, keys.const_view(h, n, d).slice(1, first, count), values.const_view(h, n, d).slice(1, first, count),
                     first + count == n ? pqkv::chunk::last : pqkv::chunk::more);
    }
    pqkv::sync(policy_);
  }
  /// Appends so many tokens to slots, and compares the attention of each.
  void step(std::initializer_list<std::pair<std::uint32_t, std::uint32_t>> rows) {
    std::vector<std::uint32_t> slot, count;
    std::vector<float> key, value;
    for (const auto& [of, tokens] : rows) {
      slot.push_back(of), count.push_back(tokens);
      for (std::size_t i = 0; i < tokens; ++i) {
        const token& one = added(of);
        key.insert(key.end(), one.key.begin(), one.key.end());
        value.insert(value.end(), one.value.begin(), one.value.end());
      }
    }
    const std::size_t n = key.size() / (h * d);
    const std::vector<float> query = drawn(n * hq * d);
    const placed_array<std::uint32_t, P> slots(policy_, slot), counts(policy_, count);
    const placed_array<float, P> keys(policy_, key), values(policy_, value), queries(policy_, query), outs(policy_, query),
        sums(policy_, n * hq);
    const pqkv::basic_step<space> which{slots.const_view(slot.size()), counts.const_view(count.size())};
    cache_.append(policy_, keys.const_view(n, h, d), values.const_view(n, h, d), which);
    const std::uint64_t before = attended();
    cache_.attend(policy_, queries.const_view(n, hq, d), outs.view(n, hq, d), sums.view(n, hq), which);
    const std::vector<float> out = outs.read(), lse = sums.read();
    std::uint64_t wanted = 0;
    std::size_t q = 0;
    for (const auto& [of, tokens] : rows)
      for (std::size_t i = 0; i < tokens; ++i, ++q)
        wanted += compare(tokens_[of], tokens_[of].size() - tokens + i + 1, &query[q * hq * d], &out[q * hq * d], &lse[q * hq]);
    counts_.miscounted += attended() == before + wanted ? 0 : 1;
  }
  void truncate(std::size_t slot, std::size_t n) {
    cache_.truncate(policy_, slot, n);
    tokens_[slot].resize(n);
  }
  void fork(std::size_t from, std::size_t to) {
    cache_.fork(policy_, from, to);
    tokens_[to] = tokens_[from];
  }
  void maintain() { cache_.maintain(policy_); }

 private:
  struct token {
    std::vector<float> key, value;  // [h, d]
  };

  static typename cache_type::params params(std::size_t window, const typename Rows::params& rows) {
    typename cache_type::params p;
    p.batch = batch, p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = capacity;
    p.budget.sinks = 0, p.budget.window = window, p.budget.retrieve = 0;
    p.rows = rows;
    return p;
  }
  std::vector<float> drawn(std::size_t size) {
    std::vector<float> numbers(size);
    for (float& x : numbers) x = random_.gaussian();
    return numbers;
  }
  const token& added(std::size_t slot) {
    tokens_[slot].push_back({drawn(h * d), drawn(h * d)});
    return tokens_[slot].back();
  }
  std::uint64_t attended() const {
    std::uint64_t sum = 0;
    for (std::size_t slot = 0; slot < batch; ++slot) sum += cache_.statistics(policy_, slot).tokens_attended;
    return sum;
  }
  /// @param n  tokens up to the query's own
  /// @return how many tokens it attends to
  std::size_t compare(const std::vector<token>& tokens, std::size_t n, const float* query, const float* out, const float* lse) {
    const std::size_t first = n > window_ ? n - window_ : 0, count = n - first;
    std::vector<float> key, value;  // [count, h, d]
    std::vector<std::size_t> all;
    for (std::size_t t = first; t < n; ++t) {
      key.insert(key.end(), tokens[t].key.begin(), tokens[t].key.end());
      value.insert(value.end(), tokens[t].value.begin(), tokens[t].value.end());
      all.push_back(t - first);
    }
    const pqkv::strided_store<float> store{{key.data(), {h, count, d}, {d, h * d, 1}}, {value.data(), {h, count, d}, {d, h * d, 1}}};
    bool same = true;
    for (std::size_t head = 0; head < hq; ++head) {
      const plain_result wanted = plain_attention(query + head * d, store, head / (hq / h), all);
      same &= relative_error(out + head * d, wanted.out) < wanted.tolerance();
      same &= std::fabs(static_cast<double>(lse[head]) - wanted.lse) < 1e-5 * std::max(1.0, std::fabs(wanted.lse));
    }
    ++counts_.queries;
    counts_.bounded += first != 0 ? 1 : 0;
    counts_.differing += same ? 0 : 1;
    return count;
  }

  P policy_;
  std::size_t window_;
  random_source random_;
  window_counts& counts_;
  cache_type cache_;
  std::vector<std::vector<token>> tokens_;
};

/// Windows from one token to more than a slot has; prompts below, at and beyond them, whole and in chunks; steps of one token and several,
/// cuts back into the window, and forks.
template <class Rows, class P>
window_counts live_in_windows(const P& policy, const typename Rows::params& rows = {}) {
  window_counts counts;
  std::uint64_t seed = 1;
  for (const std::size_t window : {1u, 5u, 24u, 300u})
    for (const std::size_t prompt : {window - 1, window, window + 1, 3 * window}) {
      const std::size_t n = std::clamp<std::size_t>(prompt, 1, 140);
      window_life<Rows, P> life(policy, window, rows, seed++, counts);
      life.prefill(0, n, n);
      life.prefill(1, n + 7, 4);
      for (int i = 0; i < 3; ++i) life.step({{0, 1}, {1, 1}, {2, 1}});
      life.step({{1, 3}, {2, 17}});
      life.maintain();
      life.step({{2, 9}, {0, 6}});
      life.truncate(1, (n + 13) / 2);
      life.step({{1, 2}});
      life.fork(0, 2);
      life.step({{2, 30}, {0, 1}});
      for (int i = 0; i < 3; ++i) life.step({{2, 1}, {1, 1}});
    }
  return counts;
}

}  // namespace pqkv_cases
