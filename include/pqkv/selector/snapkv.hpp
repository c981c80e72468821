// SPDX-License-Identifier: Apache-2.0
// SnapKV, for comparison: the last queries of a prompt vote for its earlier tokens, once. The best k are kept, the others are dropped for
// good. Host memory only. A fork works; save() and load() do not.
//
//   votes[q, t]  = sum over the observation window's tokens of softmax(<query of head q, keys>)[t], t before the window, causal
//   pooled[q, t] = average or maximum of votes[q, .] over pool_tokens tokens around t; beyond the ends there is nothing, or 0 in an average
//   score[h, t]  = mean of pooled[q, t] over the group of query heads of KV head h
//
// Shown to it: pqcache::observe() takes the queries of consecutive tokens, ending with the prompt's last. The last observation_tokens of
// them are the observation window, or all if there are fewer. A prompt that ends before any query was shown is refused.
//
// Generated tokens: the paper keeps them all. Here a step never selects more than k tokens, so this rule takes its place: tokens of the
// observation window and generated ones, once they have left the cache's window, come before all votes, newest first; then the prompt's
// tokens by their scores. A token that once found no place is not kept again, even if k grows. A cut restores the state of that length,
// except that votes cast by tokens of the prompt that were cut off still count. In a slot that began without a prompt no token has votes.
//
// Source: Li et al., "SnapKV: LLM knows what you are looking for before generation", NeurIPS 2024. The mean over the group follows
// implementations for models with grouped queries.
#pragma once

#include <algorithm>
#include <cstring>

#include "concept.hpp"
#include "kept_tokens.hpp"
#include "received_attention.hpp"

namespace pqkv::inline PQKV_MODE::selector {

/// How votes of neighbouring tokens are joined, so that what stands around a token of many votes is kept too.
enum class vote_pooling : std::uint8_t { average, maximum };

/// Bytes that keeping reads: for every token of the middle when it was dropped, and the scores of those that compete. No keys.
struct kept_traffic {
  std::uint64_t kv_heads;
  PQKV_HD constexpr traffic operator()(const middle_range& middle) const {
    const std::uint64_t competing = middle.retrieve < middle.size() ? middle.retrieve + std::uint64_t{1} : 0;
    return {kv_heads * (std::uint64_t{middle.size()} * sizeof(std::uint32_t) + competing * sizeof(double)), 0};
  }
};

/// Keeps what the end of the prompt attended to.
class snapkv : public defaults {
 public:
  /// Its settings.
  struct params {
    std::size_t observation_tokens = 32;
    std::size_t pool_tokens = 5;  // odd; 1: no pooling
    vote_pooling pooling = vote_pooling::average;
  };

  static constexpr status can_construct(const cache_shape& shape, const params& settings) noexcept {
    if (const status s = can_keep_tokens(shape); !s.ok()) return s;
    return pqkv::detail::checks("pqcache")
        .at_least("selector.observation_tokens", settings.observation_tokens, 1, "tokens")
        .at_most("selector.observation_tokens", settings.observation_tokens, 65535, "tokens")
        .that(settings.pool_tokens % 2 == 1, status::code::value, "selector.pool_tokens", relation::stated, "odd", 5, settings.pool_tokens)
        .at_most("selector.pool_tokens", settings.pool_tokens, 65535, "tokens")
        .that(settings.pooling <= vote_pooling::maximum, status::code::value, "selector.pooling", relation::stated, "a vote_pooling", 1,
              static_cast<double>(settings.pooling));
  }
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params& settings) {
    arena count;
    place(count, shape, settings);
    return count.used_bytes();
  }
  template <exec::policy P>
  static constexpr std::size_t scratch_bytes(const P&, const cache_shape& shape, const params&) {
    return shape.kv_heads * shape.capacity * sizeof(std::uint32_t) + cache_line_bytes;
  }
  /// @throws std::bad_alloc
  snapkv(const auto& policy, const cache_shape& shape, const params& settings)
      : shape_(shape), params_(settings), memory_(make_owner<std::byte>(policy, index_bytes(shape, settings))) {
    arena memory(memory_);
    all_ = place(memory, shape, settings);
  }

  std::size_t lists() const { return shape_.kv_heads; }
  static constexpr coverage_rule covers() { return {coverage::everything, coverage::listed}; }
  kept_traffic traffic_of(std::size_t) const { return {shape_.kv_heads}; }
  /// Scores, decisions and observed queries of all slots.
  struct index_view : kept_tokens_view {
    view<float, 4> queries;  // [slots, observation_tokens, hq, d] the last ones, in order

    slot_parts parts() const noexcept {
      slot_parts all = kept_tokens_view::parts();
      all.add_fixed(queries.data, 1, queries.extent(1) * queries.extent(2) * queries.extent(3));
      return all;
    }
  };
  index_view index() const { return all_; }

  static constexpr status can_observe(const params&) noexcept { return {}; }
  status can_observe_in(std::size_t slot) const noexcept { return can_observe_slot(all_.slots(slot)); }
  /// Remembers the last queries. @pre can_observe(), and the shapes of pqcache_state::observe()
  template <exec::policy P, class Q>
  void observe(const P&, std::size_t slot, view<Q, 3> queries) {
    const std::size_t most = params_.observation_tokens, size = shape_.query_heads * shape_.head_dim, n = queries.extent(0);
    const std::size_t fresh = std::min(n, most), held = held_by(slot), old = std::min(held, most - fresh);
    float* const rows = &all_.queries(slot, 0, 0, 0);
    std::memmove(rows, rows + (held - old) * size, old * size * sizeof(float));
    for (std::size_t i = 0; i < fresh; ++i)
      for (std::size_t q = 0; q < shape_.query_heads; ++q)
        for (std::size_t e = 0; e < shape_.head_dim; ++e)
          all_.queries(slot, old + i, q, e) = static_cast<float>(queries(n - fresh + i, q, e));
    all_.slots(slot).observed += static_cast<std::uint32_t>(n);
  }

  /// Counts the votes and drops what the budget has no room for. @throws value_error when the prompt's queries were not shown
  template <exec::policy P, class Rows>
  learning<space::host> learn(const P& policy, std::size_t slot, const Rows& rows, const sequence& at, middle_range middle) {
    kept_slot& now = all_.slots(slot);
    require_ok(can_end_prompt(now, at));
    const std::size_t held = at.prompt == 0 ? 0 : held_by(slot), first_recent = at.n - held, h = shape_.kv_heads;
    buffer<std::uint32_t> tokens(std::max<std::size_t>(middle.size(), 1));
    if (held != 0) vote(policy, slot, rows, held, first_recent);
    all_.keep(slot, 0, middle.end);
    now = {1, at.n, held == 0 ? 0 : static_cast<std::uint32_t>(first_recent), now.observed};
    // Without a prompt the first query decides.
    const kept_query end{slot, middle.begin, middle.end, at.n, at.prompt != 0 ? middle.retrieve : middle.size(), true};
    for (std::size_t head = 0; head < h; ++head)
      all_.decide(end, head, tokens.data(), all_.kept(end, head, tokens.data()), score_in(slot, head));
    return {true, {}};
  }

  template <exec::policy P>
  void select(const P& policy, view<const float, 2>, const auto&, const head_map<>& map, view<const token_span, 1> spans,
              view<const middle_range, 1> ranges, view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts) {
    const std::size_t h = shape_.kv_heads;
    workspace memory(policy.scratch, scratch_bytes(policy, shape_, params_), "select");
    std::uint32_t* const tokens = memory.take<std::uint32_t>(h * shape_.capacity);
    for (std::size_t row = 0; row < counts.extent(0) / h; ++row) {
      const kept_query asked = all_.query_of(map, spans, ranges, row);
      if (asked.length == 0) continue;
      pqkv::detail::run_tasks(policy, h, [&](std::size_t head) {
        std::uint32_t* const own = tokens + head * shape_.capacity;
        const std::uint32_t k = all_.decide(asked, head, own, all_.kept(asked, head, own), score_in(asked.slot, head));
        if (!asked.listed) return;
        counts(row * h + head) = k;
        std::copy_n(own, k, &indices(row * h + head, 0));
      });
      std::uint32_t& decided = all_.slots(asked.slot).decided;
      decided = std::max(decided, asked.length);
    }
  }

  /// The score of a token of the prompt: see the head of this file. For tests and for looking into a decision.
  /// @pre slot < batch, head < h, token below the observation window's first
  double score(std::size_t slot, std::size_t head, std::size_t token) const { return all_.scores(slot * shape_.kv_heads + head, token); }
  void clear(const auto&, std::size_t slot) { all_.slots(slot) = {}; }

 private:
  static constexpr index_view place(arena& memory, const cache_shape& shape, const params& settings) {
    index_view all{kept_tokens_view::place(memory, shape.batch, shape.kv_heads, shape.capacity), {}};
    constexpr std::size_t most = static_cast<std::size_t>(-1);
    const std::size_t rows = shape.batch * settings.observation_tokens, row = shape.query_heads * shape.head_dim;
    all.queries = make_view(memory.take<float>(rows <= most / 8 / row ? rows * row : most), shape.batch, settings.observation_tokens,
                            shape.query_heads, shape.head_dim);
    return all;
  }

  std::size_t held_by(std::size_t slot) const { return std::min<std::size_t>(all_.slots(slot).observed, params_.observation_tokens); }
  /// The order of tokens: recent ones before all others, newest first.
  struct order_of_head {
    const double* scores;
    std::uint32_t first_recent;
    double above;  // no score is larger

    double operator()(std::uint32_t token) const { return token >= first_recent ? above + static_cast<double>(token) : scores[token]; }
  };
  order_of_head score_in(std::size_t slot, std::size_t head) const {
    return {&all_.scores(slot * shape_.kv_heads + head, 0), all_.slots(slot).first_recent,
            static_cast<double>(params_.observation_tokens) + 1};  // a voter gives 1 in all
  }

  /// Scores of tokens [0, first_recent) by the last `held` queries.
  template <class P, class Rows>
  void vote(const P& policy, std::size_t slot, const Rows& rows, std::size_t held, std::size_t first_recent) {
    const std::size_t hq = shape_.query_heads, h = shape_.kv_heads, g = hq / h, d = shape_.head_dim, n = first_recent + held;
    buffer<float> by_head(hq * held * d);  // [hq, held, d]
    for (std::size_t q = 0; q < hq; ++q)
      for (std::size_t i = 0; i < held; ++i) std::copy_n(&all_.queries(slot, i, q, 0), d, by_head.data() + (q * held + i) * d);
    buffer<double> votes(hq * n);
    weighed_queries call{make_view(std::as_const(by_head).data(), hq, held, d), slot * h, h};
    call.first_token = first_recent;
    received_attention(policy, call, rows, make_view(votes.data(), hq, n), shape_.softmax_scale);
    pqkv::detail::run_tasks(policy, h, [&](std::size_t head) {
      for (std::size_t t = 0; t < first_recent; ++t) {
        double sum = 0;
        for (std::size_t q = head * g; q < (head + 1) * g; ++q) sum += pooled(votes.data() + q * n, t, first_recent);
        all_.scores(slot * h + head, t) = sum / static_cast<double>(g);
      }
    });
  }
  double pooled(const double* votes, std::size_t t, std::size_t count) const {
    const std::size_t reach = params_.pool_tokens / 2, first = t - std::min(t, reach), last = std::min(count, t + reach + 1);
    double result = 0;
    for (std::size_t i = first; i < last; ++i)
      result = params_.pooling == vote_pooling::maximum ? std::max(result, votes[i]) : result + votes[i];
    return params_.pooling == vote_pooling::maximum ? result : result / static_cast<double>(params_.pool_tokens);
  }

  cache_shape shape_;
  params params_;
  buffer<std::byte> memory_;
  index_view all_;
};

}  // namespace pqkv::selector
