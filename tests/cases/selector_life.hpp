// SPDX-License-Identifier: Apache-2.0
// Random lives of a cache beside a plain formulation of its selector: prompts in chunks, ragged steps of several tokens, cuts back into the
// middle, forks, resets and maintenance. After every event the lists of a step's queries, each at its own length, equal the plain ones.
// Keys and queries are small whole numbers, so that every order of additions gives the same sum and ties are common; some keys are not
// finite. A token's query is always the same one, as an engine's is. Now and then the runner fails, and the call is made again.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cache_driver.hpp"
#include "cache_model.hpp"
#include "faults.hpp"

namespace pqkv_cases {

/// The tokens [begin, end) of a middle, of which a query gets k. `position` is the query's own.
struct plain_range {
  std::size_t begin, end, k, position;
};
/// Rows of whole numbers [count, h, d] from -3 to 3.
inline std::vector<float> whole_numbers(random_source& random, std::size_t count) {
  std::vector<float> all(count);
  for (float& x : all) x = static_cast<float>(static_cast<int>(random.below(7)) - 3);
  return all;
}

/// The reduction of a group's logits [g][n].
inline std::vector<double> plain_reduce(const std::vector<std::vector<double>>& logits, pqkv::group_reduction reduction, double nats) {
  using pqkv::group_reduction;
  const bool probability = reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
  const bool maximum = reduction == group_reduction::probability_max || reduction == group_reduction::logit_max;
  std::vector<double> scores(logits.front().size(), maximum ? -HUGE_VAL : 0.0);
  for (const std::vector<double>& z : logits) {
    const double top = *std::max_element(z.begin(), z.end());
    double total = 0;
    for (const double x : z) total += std::exp((x - top) * nats);
    for (std::size_t t = 0; t < z.size(); ++t) {
      const double one = probability ? std::exp((z[t] - top) * nats) / total : z[t];
      scores[t] = maximum ? std::max(scores[t], one) : scores[t] + one;
    }
  }
  return scores;
}

/// Tokens by their scores, equal ones by their positions: the first k, ascending.
inline std::vector<std::int32_t> plain_best(const std::vector<double>& scores, std::size_t begin, std::size_t k) {
  std::vector<std::int32_t> order;
  for (std::size_t t = 0; t < scores.size(); ++t) order.push_back(static_cast<std::int32_t>(t));
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const double one = scores[static_cast<std::size_t>(a)], other = scores[static_cast<std::size_t>(b)];
    return one > other || (one == other && a < b);
  });
  order.resize(std::min(k, order.size()));
  for (std::int32_t& t : order) t += static_cast<std::int32_t>(begin);
  std::sort(order.begin(), order.end());
  return order;
}

/// All that was given to one slot.
struct given_tokens {
  std::size_t h, hq, d;
  std::vector<float> keys, queries;  // [n, h, d], [n, hq, d]

  std::size_t size() const { return keys.size() / (h * d); }
  const float* key(std::size_t head, std::size_t t) const { return keys.data() + (t * h + head) * d; }
  const float* query(std::size_t q, std::size_t t) const { return queries.data() + (t * hq + q) * d; }
  bool is_finite_key(std::size_t head, std::size_t t) const {
    return std::all_of(key(head, t), key(head, t) + d, [](float x) { return std::isfinite(x); });
  }
};

/// @tparam Plain  of one slot: Plain(params); learned(given, range, whether the queries were shown); asked(given, range) for every query;
///                cut(n, middle end); list(given, list, range)
template <class Cache, class Plain>
class selector_life {
 public:
  using params = typename Cache::params;

  selector_life(const params& p, std::uint64_t seed) : p_(p), cache_(p), random_(seed) {
    for (std::size_t i = 0; i < p.batch; ++i) slots_.push_back(empty());
  }

  void run(std::size_t events) {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) prefill(slot, 1 + random_.below(p_.capacity - 30));
    for (std::size_t i = 0; i < events; ++i) event();
  }
  std::size_t listed = 0, failed = 0;  // ranked lists; calls that failed

 private:
  struct slot_state {
    slot_model<float> model;  // where the window begins
    given_tokens given;
    Plain plain;
    bool is_learned = false;
  };
  slot_state empty() const {
    return {{p_.kv_heads, p_.head_dim, p_.budget}, {p_.kv_heads, p_.query_heads, p_.head_dim, {}, {}}, Plain(p_)};
  }

  /// Makes a call that may fail, until it does not.
  template <class F>
  void make(const F& call) {
    plan_ = {every_fault[1 + random_.below(3)], random_.below(5)};
    try {
      call();
    } catch (const runner_failed&) {
      ++failed;
      plan_.until = 0;
      call();
    }
    plan_.until = 0;
  }

  /// New tokens [count, h, d]; the queries are noted.
  std::vector<float> draw(slot_state& slot, std::size_t count) {
    std::vector<float> keys = whole_numbers(random_, count * p_.kv_heads * p_.head_dim);
    const std::vector<float> queries = whole_numbers(random_, count * p_.query_heads * p_.head_dim);
    for (std::size_t row = 0; row < count * p_.kv_heads; ++row)
      if (random_.below(40) == 0) keys[row * p_.head_dim + random_.below(p_.head_dim)] = nonfinite(random_.below(3));
    slot.given.keys.insert(slot.given.keys.end(), keys.begin(), keys.end());
    slot.given.queries.insert(slot.given.queries.end(), queries.begin(), queries.end());
    return keys;
  }
  pqkv::view<const float, 3> by_head(const std::vector<float>& keys) const {
    const std::size_t h = p_.kv_heads, d = p_.head_dim;
    return {keys.data(), {h, keys.size() / (h * d), d}, {d, h * d, 1}};
  }

  void prefill(std::size_t which, std::size_t n) {
    slot_state& slot = slots_[which];
    const std::vector<float> keys = draw(slot, n);
    const auto rows = by_head(keys);
    if constexpr (requires { cache_.selection().observed(which); }) {
      const std::size_t half = random_.below(n + 1);
      const auto queries = pqkv::make_view(std::as_const(slot.given.queries).data(), n, p_.query_heads, p_.head_dim);
      cache_.observe(cpu_, which, queries.slice(0, 0, half));
      cache_.observe(cpu_, which, queries.slice(0, half, n - half));
    }
    const std::size_t first = random_.below(n);
    if (first != 0) make([&] { cache_.prefill(cpu_, which, rows.slice(1, 0, first), rows.slice(1, 0, first), pqkv::chunk::more); });
    make([&] { cache_.prefill(cpu_, which, rows.slice(1, first, n - first), rows.slice(1, first, n - first)); });
    slot.model.add(rows, rows);
    slot.model.end_prompt();
    slot.model.commit();
    slot.is_learned = true;
    slot.plain.learned(slot.given, range_of(slot.model), true);
  }
  static plain_range range_of(const slot_model<float>& model) {
    return {model.first(), model.window_begin(), model.budget().retrieve, model.size() - 1};
  }

  struct drawn_step {
    std::vector<std::uint32_t> slots, counts;
    pqkv::cache_step step() const { return {pqkv::make_view(slots.data(), slots.size()), pqkv::make_view(counts.data(), counts.size())}; }
  };
  /// Some tokens for some slots.
  drawn_step append(std::size_t most) {
    drawn_step made;
    for (std::uint32_t i = 0; i < p_.batch; ++i)
      if (random_.below(4) != 0) made.slots.push_back(i);
    if (made.slots.size() > 1 && random_.below(2) == 0) std::swap(made.slots.front(), made.slots.back());
    std::vector<float> all;
    for (const std::uint32_t i : made.slots) {
      const std::size_t room = p_.capacity - slots_[i].given.size(), wanted = random_.below(2) == 0 ? 1 : random_.below(most + 1);
      made.counts.push_back(static_cast<std::uint32_t>(std::min(room, wanted)));
      const std::vector<float> keys = draw(slots_[i], made.counts.back());
      all.insert(all.end(), keys.begin(), keys.end());
      for (std::size_t t = 0; t < made.counts.back(); ++t) {
        slots_[i].model.add(by_head(keys).slice(1, t, 1), by_head(keys).slice(1, t, 1));
        slots_[i].model.commit();
      }
    }
    const auto rows = pqkv::make_view(std::as_const(all).data(), all.size() / (p_.kv_heads * p_.head_dim), p_.kv_heads, p_.head_dim);
    make([&] {
      const std::size_t before = allocations();
      cache_.append(cpu_, rows, rows, made.step());
      REQUIRE(allocations() == before);
    });
    return made;
  }
  /// The newest token of every slot that has one.
  drawn_step newest() const {
    drawn_step made;
    for (std::uint32_t i = 0; i < p_.batch; ++i)
      if (slots_[i].given.size() != 0) made.slots.push_back(i), made.counts.push_back(1);
    return made;
  }

  void truncate(std::size_t which) {
    slot_state& slot = slots_[which];
    const std::size_t n = slot.given.size(), kept = random_.below(3) == 0 ? random_.below(n + 1) : n - std::min(n, random_.below(20));
    const std::uint32_t length = static_cast<std::uint32_t>(kept), at = static_cast<std::uint32_t>(which);
    if (random_.below(2) == 0)
      cache_.truncate(cpu_, which, kept);
    else
      cache_.truncate(cpu_, pqkv::make_view(&length, 1), pqkv::make_view(&at, 1));
    slot.given.keys.resize(kept * p_.kv_heads * p_.head_dim);
    slot.given.queries.resize(kept * p_.query_heads * p_.head_dim);
    slot.model.truncate(kept);
    slot.plain.cut(kept, slot.model.window_begin());
    if (kept == 0) slot = empty();
  }

  void event() {
    const std::size_t which = random_.below(p_.batch), other = random_.below(p_.batch);
    switch (random_.below(14)) {
      case 0:
        cache_.reset(which);
        slots_[which] = empty();
        break;
      case 1:
        make([&] { cache_.fork(cpu_, which, other); });
        if (which != other) {
          slots_[other].model.copy_from(slots_[which].model);
          slots_[other].given = slots_[which].given;
          slots_[other].plain = slots_[which].plain;
          slots_[other].is_learned = slots_[which].is_learned;
        }
        break;
      case 2:
      case 3:
        truncate(which);
        break;
      case 4:
      case 5:
        if (slots_[which].given.size() == 0) prefill(which, p_.capacity / 2 + random_.below(p_.capacity / 2 - 10));
        break;
      case 6:
        append(12);  // and nobody asks
        return;
      default:
        return check(append(12));
    }
    make([&] { cache_.maintain(cpu_); });
    for (slot_state& slot : slots_)
      if (!slot.is_learned && slot.given.size() != 0) {
        slot.is_learned = true;
        slot.plain.learned(slot.given, range_of(slot.model), false);
      }
    check(newest());
  }

  void check(const drawn_step& s) {
    const std::size_t hq = p_.query_heads, lists = cache_.lists();
    std::vector<float> query;
    for (std::size_t row = 0; row < s.slots.size(); ++row) {
      const given_tokens& given = slots_[s.slots[row]].given;
      query.insert(query.end(), given.queries.end() - static_cast<std::ptrdiff_t>(s.counts[row] * hq * p_.head_dim), given.queries.end());
    }
    const std::size_t tokens = query.size() / (hq * p_.head_dim);
    std::size_t k_max = 1;
    for (std::size_t slot = 0; slot < p_.batch; ++slot) k_max = std::max(k_max, cache_.retrieve_capacity(slot));
    std::vector<std::int32_t> indices(tokens * lists * k_max);
    std::vector<std::uint32_t> counts(tokens * lists);
    make([&] {
      const std::size_t before = allocations();
      cache_.retrieve(cpu_, pqkv::make_view(std::as_const(query).data(), tokens, hq, p_.head_dim),
                      pqkv::make_view(indices.data(), tokens, lists, k_max), pqkv::make_view(counts.data(), tokens, lists), s.step());
      REQUIRE(allocations() == before);
    });
    std::size_t token = 0;
    for (std::size_t row = 0; row < s.slots.size(); ++row)
      for (std::size_t i = 0; i < s.counts[row]; ++i, ++token) {
        slot_state& slot = slots_[s.slots[row]];
        const std::size_t length = slot.given.size() - s.counts[row] + i + 1;
        const plain_range range = range_of(slot.model.when_it_had(length));
        if (slot.is_learned) slot.plain.asked(slot.given, range);
        for (std::size_t list = 0; list < lists; ++list) {
          const auto first = indices.begin() + static_cast<std::ptrdiff_t>((token * lists + list) * k_max);
          const std::vector<std::int32_t> got(first, first + static_cast<std::ptrdiff_t>(counts[token * lists + list]));
          std::vector<std::int32_t> wanted;
          if (!slot.is_learned || range.k >= range.end - range.begin)
            wanted = plain_best(std::vector<double>(range.end - range.begin), range.begin, range.end);
          else if (range.k != 0)
            wanted = slot.plain.list(slot.given, list, range), ++listed;
          REQUIRE(got == wanted);
        }
      }
    if constexpr (requires { cache_.selection().blind_blocks(0); })
      for (std::size_t slot = 0; slot < p_.batch; ++slot) REQUIRE(cache_.selection().blind_blocks(slot) == slots_[slot].plain.blind);
  }

  params p_;
  Cache cache_;
  fault_plan plan_;
  failing_host cpu_{{&plan_}, {}};
  random_source random_;
  std::vector<slot_state> slots_;
};

/// A small cache of any shape and budget.
template <class Cache>
typename Cache::params random_life_params(random_source& random) {
  const std::size_t h = 1 + random.below(2), g = 1 + random.below(3);
  auto p = cache_params<Cache>(1 + random.below(3), h, h * g, 8, 90 + random.below(60), random.below(10), 1 + random.below(20),
                               random.below(40));
  if (random.below(2) == 0) {
    p.budget.window.reset(), p.budget.retrieve.reset();
    p.budget.min_tokens = p.budget.sinks + 2 + random.below(20);
    p.budget.ratio = 0.05 * static_cast<double>(random.below(10));
    p.budget.growth = static_cast<pqkv::budget_growth>(random.below(3) == 0);
  }
  p.step_queries = random.below(3) * 5;
  return p;
}

}  // namespace pqkv_cases
