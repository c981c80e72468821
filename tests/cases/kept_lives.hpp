// SPDX-License-Identifier: Apache-2.0
// Random lives of caches whose selector keeps k tokens and drops the others for good, beside a plain formulation in double: it writes down
// what each head kept at each length and goes back through these notes when a sequence is cut. A Method says what a token's score is:
//
//   begin(keys, shown, n)          the prompt of n tokens ended; `shown` holds the queries [hq * d] of its last tokens
//   query(keys, asked, attended)   a query [hq * d] whose head h attends to the tokens attended[h]
//   cut(n)                         only n tokens are left
//   score(head, token)             the best k are kept, ties to the lower token
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cache_driver.hpp"

namespace pqkv_cases {

using kept_list = std::vector<std::uint32_t>;

/// All keys of a sequence, and exact softmax weights over some of them.
struct plain_keys {
  std::size_t h, hq, d;
  float scale = 0;
  std::vector<float> rows{};  // [n, h, d]

  std::size_t size() const { return rows.size() / (h * d); }
  /// The weights of query head q; a logit that is not finite counts as -infinity.
  std::vector<double> weights(const float* asked, std::size_t q, const kept_list& tokens) const {
    std::vector<double> w;
    const std::size_t head = q * h / hq;
    double top = -HUGE_VAL, total = 0;
    for (const std::uint32_t t : tokens) {
      double z = 0;
      for (std::size_t i = 0; i < d; ++i) z += static_cast<double>(asked[q * d + i]) * static_cast<double>(rows[(t * h + head) * d + i]);
      w.push_back(std::isfinite(z) ? z * (scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : static_cast<double>(scale)) : -HUGE_VAL);
      top = std::max(top, w.back());
    }
    for (double& z : w) total += z = top == -HUGE_VAL ? 0 : std::exp(z - top);
    for (double& z : w) z = total == 0 ? 0 : z / total;
    return w;
  }
};

inline kept_list tokens_up_to(std::size_t n) {
  kept_list all;
  for (std::uint32_t t = 0; t < n; ++t) all.push_back(t);
  return all;
}

/// One sequence by a plain formulation.
template <class Method>
class plain_kept {
 public:
  plain_kept(const plain_keys& empty, const Method& method) : keys(empty), method_(method) {}

  plain_keys keys;
  bool decides() const { return decides_; }
  Method& method() { return method_; }

  void begin(const std::vector<std::vector<float>>& shown, bool prompt) {
    const std::size_t n = keys.size();
    method_.begin(keys, shown, n);
    decides_ = true;
    decided_ = static_cast<std::uint32_t>(prompt ? n : n - 1);
  }
  void cut(std::size_t n) {
    keys.rows.resize(n * keys.h * keys.d);
    method_.cut(n);
    decided_ = std::min(decided_, static_cast<std::uint32_t>(n));
    notes_.erase(notes_.upper_bound(decided_), notes_.end());
    if (n == 0) decides_ = false;
  }

  /// Whether the lists [h] that a query got at a length are right; then takes them over, since scores that are nearly equal may be ordered
  /// in two ways. @return "" or what is wrong
  std::string judge(std::uint32_t length, const pqkv::middle_range& middle, const float* asked, const std::vector<kept_list>& got) {
    const bool everything = !decides_ || middle.retrieve >= middle.size();
    std::vector<kept_list> candidates(keys.h), attended(keys.h);
    for (std::size_t head = 0; head < keys.h; ++head) {
      candidates[head] = everything ? tokens_between(middle.begin, middle.end) : kept_at(length, middle, head);
      attended[head] = tokens_up_to(middle.begin);
      attended[head].insert(attended[head].end(), candidates[head].begin(), candidates[head].end());
      for (std::uint32_t t = middle.end; t < length; ++t) attended[head].push_back(t);
    }
    const bool noted = notes_.count(length) != 0;
    if (decides_ && length > decided_) method_.query(keys, asked, attended);
    note made{middle.end, {}};
    for (std::size_t head = 0; head < keys.h; ++head) {
      const std::size_t k = everything ? candidates[head].size() : std::min<std::size_t>(middle.retrieve, candidates[head].size());
      if (got[head].size() != k) return "a list of " + std::to_string(got[head].size()) + " tokens, not " + std::to_string(k);
      if (!std::is_sorted(got[head].begin(), got[head].end())) return "not ascending";
      if (!std::includes(candidates[head].begin(), candidates[head].end(), got[head].begin(), got[head].end()))
        return "a token that was dropped";
      if (k != candidates[head].size()) {
        kept_list best = candidates[head];
        std::stable_sort(best.begin(), best.end(), [&](auto a, auto b) { return method_.score(head, a) > method_.score(head, b); });
        const double least = k == 0 ? HUGE_VAL : method_.score(head, best[k - 1]);
        for (const std::uint32_t t : best) {
          const bool in = std::binary_search(got[head].begin(), got[head].end(), t);
          const double score = method_.score(head, t);
          if (in ? score < least * (1 - slack) : score > least * (1 + slack))
            return "token " + std::to_string(t) + (in ? " is kept" : " is dropped");
        }
        best.resize(k);
        std::sort(best.begin(), best.end());
        same += best == got[head] ? 1 : 0;
        ++chosen;
      }
      made.kept.push_back(got[head]);
    }
    if (decides_ && !noted && length >= decided_ && !everything) notes_[length] = made;
    if (decides_) decided_ = std::max(decided_, length);
    return "";
  }

  std::size_t chosen = 0, same = 0;  // lists that left tokens out, and those of them that are equal to the token

 private:
  static constexpr double slack = 1e-5;  // relative: float logits against double
  struct note {
    std::uint32_t end;  // of the middle
    std::vector<kept_list> kept;
  };
  static kept_list tokens_between(std::uint32_t first, std::uint32_t last) {
    kept_list all;
    for (; first < last; ++first) all.push_back(first);
    return all;
  }
  /// What is still there at a length before it decides: the last note's tokens, and those that left the window since.
  kept_list kept_at(std::uint32_t length, const pqkv::middle_range& middle, std::size_t head) const {
    const auto after = notes_.upper_bound(length);
    if (after == notes_.begin()) return tokens_between(middle.begin, middle.end);
    const note& last = std::prev(after)->second;
    kept_list all = last.kept[head];
    for (std::uint32_t t = last.end; t < middle.end; ++t) all.push_back(t);
    return all;
  }

  Method method_;
  bool decides_ = false;
  std::uint32_t decided_ = 0;
  std::map<std::uint32_t, note> notes_;  // by length
};

/// A cache, and a plain formulation of each of its slots.
template <class Cache, class Method>
class kept_life {
 public:
  kept_life(const typename Cache::params& p, const Method& method, std::uint64_t seed) : p_(p), cache(p), random(seed) {
    const plain_keys empty{p.kv_heads, p.query_heads, p.head_dim, p.softmax_scale};
    slots.assign(p.batch, plain_kept<Method>(empty, method));
    empty_.assign(p.batch, plain_kept<Method>(empty, method));
  }

  /// A prompt of n tokens in chunks, of which the last `shown` tokens' queries are observed.
  void prefill(std::size_t slot, std::size_t n, std::size_t shown) {
    auto k = make_rows<float>(content::gaussian, p_.kv_heads, n, p_.head_dim, random.bits());
    if (random.below(2) == 0) k(random.below(p_.kv_heads), random.below(n), 3) = nonfinite(random.below(3));
    std::vector<std::vector<float>> asked;
    std::vector<float> all;
    for (std::size_t i = 0; i < shown; ++i) asked.push_back(query_rows(1)), all.insert(all.end(), asked[i].begin(), asked[i].end());
    for (std::size_t first = 0, seen = 0; first < n;) {
      const std::size_t count = std::min(n - first, 1 + random.below(n)), last = first + count == n ? shown : std::min(shown, seen + count);
      cache.observe(cpu, slot, pqkv::as_const(pqkv::make_view(all.data(), shown, p_.query_heads, p_.head_dim)).slice(0, seen, last - seen));
      cache.prefill(cpu, slot, k.view().slice(1, first, count), k.view().slice(1, first, count),
                    first + count == n ? pqkv::chunk::last : pqkv::chunk::more);
      first += count, seen = last;
    }
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t head = 0; head < p_.kv_heads; ++head)
        for (std::size_t i = 0; i < p_.head_dim; ++i) slots[slot].keys.rows.push_back(k.view()(head, t, i));
    slots[slot].begin(asked, true);
  }
  /// A step of counts[slot] tokens for each slot.
  void append(const std::vector<std::uint32_t>& counts) {
    std::vector<float> rows;
    for (std::size_t slot = 0; slot < counts.size(); ++slot)
      for (std::uint32_t i = 0; i < counts[slot] * p_.kv_heads * p_.head_dim; ++i) {
        rows.push_back(random.gaussian());
        slots[slot].keys.rows.push_back(rows.back());
      }
    const auto k = pqkv::as_const(pqkv::make_view(rows.data(), rows.size() / (p_.kv_heads * p_.head_dim), p_.kv_heads, p_.head_dim));
    cache.append(cpu, k, k, step_of(counts));
  }
  /// Asks for the newest counts[slot] tokens of each slot and judges every list. With `again` the same is asked a second time, by attend()
  /// and retrieve(): neither lists nor scores may change. @return "" or what is wrong
  std::string ask(const std::vector<std::uint32_t>& counts, bool again = false) {
    std::size_t tokens = 0, room = 1;
    for (const std::uint32_t count : counts) tokens += count;
    for (std::size_t slot = 0; slot < counts.size(); ++slot)
      for (std::uint32_t i = 0; i < counts[slot]; ++i)
        room = std::max(room, cache.retrieve_capacity(cache.at(slot).at(cache.at(slot).n - i)));
    const std::vector<float> queries = query_rows(tokens);
    const auto asked = pqkv::as_const(pqkv::make_view(queries.data(), tokens, p_.query_heads, p_.head_dim));
    std::vector<std::int32_t> found(tokens * p_.kv_heads * room);
    std::vector<std::uint32_t> sizes(tokens * p_.kv_heads);
    const auto retrieve = [&] {
      cache.retrieve(cpu, asked, pqkv::make_view(found.data(), tokens, p_.kv_heads, room),
                     pqkv::make_view(sizes.data(), tokens, p_.kv_heads), step_of(counts));
    };
    retrieve();
    if (again) {
      const auto first = found;
      std::vector<float> out(queries.size());
      cache.attend(cpu, asked, pqkv::make_view(out.data(), tokens, p_.query_heads, p_.head_dim), {}, step_of(counts));
      retrieve();
      if (first != found) return "another list when asked again";
    }
    std::size_t token = 0;
    for (std::size_t slot = 0; slot < counts.size(); ++slot)
      for (std::uint32_t i = 0; i < counts[slot]; ++i, ++token) {
        const std::uint32_t length = cache.at(slot).n - counts[slot] + i + 1;
        std::vector<kept_list> got;
        for (std::size_t list = token * p_.kv_heads; list < (token + 1) * p_.kv_heads; ++list)
          got.emplace_back(found.data() + list * room, found.data() + list * room + sizes[list]);
        const std::string wrong = slots[slot].judge(length, cache.at(slot).at(length).middle(p_.budget.flat()),
                                                    queries.data() + token * p_.query_heads * p_.head_dim, got);
        if (!wrong.empty()) return "slot " + std::to_string(slot) + ", length " + std::to_string(length) + ": " + wrong;
      }
    return "";
  }
  void truncate(std::size_t slot, std::size_t n) {
    cache.truncate(cpu, slot, n);
    n == 0 ? slots[slot] = empty_[slot] : (slots[slot].cut(n), slots[slot]);
  }
  void fork(std::size_t from, std::size_t to) {
    cache.fork(cpu, from, to);
    if (from != to) slots[to] = slots[from];
  }
  void reset(std::size_t slot) {
    cache.reset(slot);
    slots[slot] = empty_[slot];
  }

  /// Turns of everything, in random order. @param shown(n)  how many queries of a prompt of n tokens are observed
  /// @return "" or what is wrong
  template <class Shown>
  std::string live(std::size_t turns, Shown shown) {
    std::string wrong;
    for (std::size_t turn = 0; turn < turns && wrong.empty(); ++turn) {
      const std::size_t slot = random.below(p_.batch);
      if (slots[slot].keys.size() == 0 || cache.size(slot) + 8 > p_.capacity) {
        reset(slot);
        const std::size_t n = 1 + random.below(p_.capacity - 10);
        prefill(slot, n, shown(n));
        wrong = ask(only(slot, 1));  // what the prompt's end left
        continue;
      }
      std::vector<std::uint32_t> counts(p_.batch), fewer(p_.batch);
      switch (random.below(8)) {
        case 0:
          truncate(slot, random.below(3) == 0 ? random.below(cache.size(slot) + 1)
                                              : cache.size(slot) - random.below(std::min<std::size_t>(4, cache.size(slot))));
          break;
        case 1:
          fork(slot, random.below(p_.batch));
          break;
        default:
          for (std::size_t i = 0; i < p_.batch; ++i) {
            if (cache.size(i) == 0 || cache.size(i) + 5 > p_.capacity) continue;
            counts[i] = turn % 3 == 0 ? 1 : static_cast<std::uint32_t>(random.below(4));
            fewer[i] = std::min(counts[i], static_cast<std::uint32_t>(random.below(4)));
          }
          append(counts);
          if (random.below(3) == 0) wrong = ask(fewer);  // lengths are passed over, and then asked after all
          if (wrong.empty() && random.below(4) != 0) wrong = ask(counts, random.below(2) == 0);
          cache.maintain(cpu);
      }
    }
    std::size_t chosen = 0, same = 0;
    for (const auto& one : slots) chosen += one.chosen, same += one.same;
    if (wrong.empty() && (chosen == 0 || same < chosen - chosen / 50)) return "too many lists differ, or none leaves a token out";
    return wrong;
  }

  std::vector<std::uint32_t> only(std::size_t slot, std::uint32_t count) const {
    std::vector<std::uint32_t> counts(p_.batch);
    counts[slot] = count;
    return counts;
  }
  std::vector<float> query_rows(std::size_t tokens) {
    std::vector<float> rows(tokens * p_.query_heads * p_.head_dim);
    for (float& x : rows) x = 2 * random.gaussian();
    return rows;
  }

 private:
  /// One token for every slot is the default step, which has no map of slots.
  static pqkv::cache_step step_of(const std::vector<std::uint32_t>& counts) {
    if (std::all_of(counts.begin(), counts.end(), [](std::uint32_t count) { return count == 1; })) return {};
    return {.counts = pqkv::make_view(counts.data(), counts.size())};
  }
  typename Cache::params p_;
  const pqkv::exec::host<> cpu{};
  std::vector<plain_kept<Method>> empty_;

 public:
  Cache cache;
  random_source random;
  std::vector<plain_kept<Method>> slots;
};

}  // namespace pqkv_cases
