// SPDX-License-Identifier: Apache-2.0
// H2O, for comparison: the tokens that have received the most attention so far, the heavy hitters, are kept; a token that has been dropped
// is never selected again. Host memory only. A fork works; save() and load() do not.
//
//   score[h, t] = sum over all queries seen so far, of all query heads of KV head h, of the softmax weight that t received
//
// The prompt: pqcache::observe() takes the queries of consecutive tokens, ending with the prompt's last; all of them, to follow the paper.
// At the prompt's end their causal weights are summed and the best k of the middle are kept. A prompt that ends without any is refused.
// A decode step: the softmax is over the tokens attended to (sinks, kept tokens, window) and the token that has just left the window, which
// was attended to until then. The weights are added to the scores; then the best k of the kept tokens and of those that left the window are
// kept.
// Several queries of a sequence are handled in order, each after the one before has decided which tokens to keep; for this, a cache must
// use draft_selection::each_query. At each length this is decided once: if queries are repeated at the same length, only the first ones
// count.
//
// If k grows, only tokens that leave the window later fill it; dropped tokens stay dropped. While the budget holds the whole middle,
// nothing is dropped, but weights are summed. A cut restores the tokens that were kept at that length; weights from queries that were cut
// off stay in the scores. A slot that began without a prompt counts from the first maintain() on.
//
// Source: Zhang et al., "H2O: Heavy-hitter oracle for efficient generative inference of large language models", NeurIPS 2023. The sum over
// the group of query heads is ours, for models with grouped queries. The window is the paper's share of recent tokens,
// which is half of the budget there: budget_rule::window_share 0.5.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "concept.hpp"
#include "kept_tokens.hpp"
#include "received_attention.hpp"

namespace pqkv::inline PQKV_MODE::selector {

/// Bytes that a step reads: keys of everything attended to and of the token that left; the scores of these tokens; and, for every token of
/// the middle, the length at which it was dropped. A query that is asked again at the same length, or in a slot that does not count yet,
/// reads no keys, but is counted like the others.
struct received_traffic {
  std::uint64_t kv_heads, key_bytes;

  PQKV_HD constexpr traffic operator()(const middle_range& middle, const token_span& span) const {
    const std::uint64_t kept = middle.retrieve < middle.size() ? middle.retrieve + std::uint64_t{1} : middle.size();
    const std::uint64_t between = span.window_end != 0 ? span.window_begin - span.leading : 0, tokens = attended_tokens_of(span) + kept;
    return {kv_heads * (between * sizeof(std::uint32_t) + tokens * sizeof(double)), kv_heads * tokens * key_bytes};
  }
  /// Without a span, as if there were no sinks and no window.
  PQKV_HD constexpr traffic operator()(const middle_range& middle) const { return (*this)(middle, {0, middle.size(), middle.size()}); }
};

/// Keeps the heavy hitters.
class h2o : public defaults {
 public:
  struct params {};  // nothing can be set

  static constexpr status can_construct(const cache_shape& shape, const params&) noexcept { return can_keep_tokens(shape); }
  /// The observed queries of a prompt, n * hq * d floats, come from the heap until the prompt ends; they are not in this number.
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params&) {
    arena count;
    kept_tokens_view::place(count, shape.batch, shape.kv_heads, shape.capacity);
    return count.used_bytes();
  }
  template <exec::policy P>
  static constexpr std::size_t scratch_bytes(const P& policy, const cache_shape& shape, const params&) {
    arena count;
    step_memory::place(count, shape);
    const std::size_t weights =
        pqkv::scratch_bytes<op::received_attention>(policy, {shape.kv_heads, shape.query_heads / shape.kv_heads, shape.capacity});
    return count.used_bytes() + weights + cache_line_bytes;
  }
  /// @throws std::bad_alloc
  h2o(const auto& policy, const cache_shape& shape, const params& settings)
      : shape_(shape), memory_(make_owner<std::byte>(policy, index_bytes(shape, settings))), shown_(shape.batch) {
    arena memory(memory_);
    kept_ = kept_tokens_view::place(memory, shape.batch, shape.kv_heads, shape.capacity);
  }

  std::size_t lists() const { return shape_.kv_heads; }
  static constexpr coverage_rule covers() { return {coverage::everything, coverage::listed}; }
  received_traffic traffic_of(std::size_t element_bytes) const { return {shape_.kv_heads, shape_.head_dim * element_bytes}; }
  kept_tokens_view index() const { return kept_; }

  static constexpr status can_observe(const params&) noexcept { return {}; }
  status can_observe_in(std::size_t slot) const noexcept { return can_observe_slot(kept_.slots(slot)); }
  /// Stores the queries until the prompt ends. @pre can_observe(), and the shapes of pqcache_state::observe() @throws std::bad_alloc
  template <exec::policy P, class Q>
  void observe(const P&, std::size_t slot, view<Q, 3> queries) {
    const std::size_t n = queries.extent(0), h = shape_.kv_heads, g = shape_.query_heads / h, d = shape_.head_dim;
    if (n == 0) return;
    auto chunk = std::make_shared<observed_chunk>(n, shape_.query_heads * d);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < shape_.query_heads; ++q)
        for (std::size_t e = 0; e < d; ++e) chunk->rows[((q / g * n + t) * g + q % g) * d + e] = static_cast<float>(queries(t, q, e));
    chunk->before = std::move(shown_[slot]);
    shown_[slot] = std::move(chunk);
    kept_.slots(slot).observed += static_cast<std::uint32_t>(n);
  }

  /// Sums the attention of the prompt's queries and drops what the budget has no room for.
  /// @throws value_error when the prompt's queries were not shown; std::bad_alloc
  template <exec::policy P, class Rows>
  learning<space::host> learn(const P& policy, std::size_t slot, const Rows& rows, const sequence& at, middle_range middle) {
    kept_slot& now = kept_.slots(slot);
    require_ok(can_end_prompt(now, at));
    const std::size_t h = shape_.kv_heads;
    buffer<double> sums(h * at.n);
    buffer<std::uint32_t> tokens(std::max<std::size_t>(middle.size(), 1));
    if (at.prompt != 0) sum_prompt(policy, slot, rows, at.n, make_view(sums.data(), h, std::size_t{at.n}));
    kept_.keep(slot, 0, middle.end);
    const bool drops = at.prompt != 0;  // without a prompt there are no scores yet: the next query decides
    now = {1, drops ? at.n : at.n - 1, 0, now.observed};
    shown_[slot].reset();
    const kept_query end{slot, middle.begin, middle.end, at.n, drops ? middle.retrieve : middle.size(), true};
    for (std::size_t head = 0; head < h; ++head) {
      std::copy_n(sums.data() + head * at.n, at.n, &kept_.scores(slot * h + head, 0));
      kept_.decide(end, head, tokens.data(), kept_.kept(end, head, tokens.data()), score_in(slot, head));
    }
    return {true, {}};
  }

  /// Adds the weights of the step's queries, then decides which tokens to keep. Called for every query, even if no list is needed.
  template <exec::policy P, kv_store Rows>
  void select(const P& policy, view<const float, 2> query, const Rows& rows, const head_map<>& map, view<const token_span, 1> spans,
              view<const middle_range, 1> ranges, view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts) {
    const std::size_t h = shape_.kv_heads, g = shape_.query_heads / h;
    workspace memory(policy.scratch, scratch_bytes(policy, shape_, {}), "select");
    const step_memory work = step_memory::place(memory, shape_);
    P weighing = policy;
    const std::size_t bytes = pqkv::scratch_bytes<op::received_attention>(policy, {h, g, shape_.capacity});
    weighing.scratch = arena(memory.take<std::byte>(bytes), bytes);
    for (std::size_t row = 0; row < counts.extent(0) / h; ++row) {
      const kept_query asked = kept_.query_of(map, spans, ranges, row);
      if (asked.length == 0) continue;
      if (asked.length > kept_.slots(asked.slot).decided) weigh(weighing, asked, query.slice(0, row * h * g, h * g), rows, work);
      pqkv::detail::run_tasks(policy, h, [&](std::size_t head) {
        std::uint32_t* const own = &work.tokens(head, 0);
        const std::uint32_t k = kept_.decide(asked, head, own, kept_.kept(asked, head, own), score_in(asked.slot, head));
        if (!asked.listed) return;
        counts(row * h + head) = k;
        std::copy_n(own, k, &indices(row * h + head, 0));
      });
    }
  }

  /// The attention that a token has received. For tests and for debugging. @pre slot < batch, head < h, token below n
  double score(std::size_t slot, std::size_t head, std::size_t token) const { return kept_.scores(slot * shape_.kv_heads + head, token); }
  void clear(const auto&, std::size_t slot) {
    kept_.slots(slot) = {};
    shown_[slot].reset();
  }
  /// A fork in the middle of a prompt shares the queries that were observed.
  void copied(std::size_t from, std::size_t to) noexcept { shown_[to] = shown_[from]; }

 private:
  /// The queries of one call of observe(), and those before it. Forks share them.
  struct observed_chunk {
    std::size_t tokens = 0;
    buffer<float> rows;  // [h, tokens, g, d]
    std::shared_ptr<observed_chunk> before;

    observed_chunk(std::size_t count, std::size_t size) : tokens(count), rows(count * size) {}
    observed_chunk(const observed_chunk&) = delete;
    observed_chunk& operator=(const observed_chunk&) = delete;
    /// Frees the chain in a loop: otherwise the destructors of many chunks would nest.
    ~observed_chunk() {
      while (before && before.use_count() == 1) before = std::move(before->before);
    }
  };
  /// The memory of one select().
  struct step_memory {
    view<std::uint32_t, 2> tokens;  // [h, capacity]
    view<std::uint32_t, 1> counts;  // [h]
    view<double, 2> sums;           // [h, capacity]

    template <class Memory>
    static constexpr step_memory place(Memory& memory, const cache_shape& shape) {
      const std::size_t h = shape.kv_heads, size = h * shape.capacity;  // kept_tokens_view::place() has refused what no memory holds
      return {make_view(memory.template take<std::uint32_t>(size), h, shape.capacity), make_view(memory.template take<std::uint32_t>(h), h),
              make_view(memory.template take<double>(size), h, shape.capacity)};
    }
  };

  struct scores_of_head {
    const double* scores;

    double operator()(std::uint32_t token) const { return scores[token]; }
  };
  scores_of_head score_in(std::size_t slot, std::size_t head) const { return {&kept_.scores(slot * shape_.kv_heads + head, 0)}; }

  /// sums[h, t] of a prompt of n tokens, by the observed queries.
  template <class P, class Rows>
  void sum_prompt(const P& policy, std::size_t slot, const Rows& rows, std::size_t n, view<double, 2> sums) const {
    const std::size_t h = shape_.kv_heads, g = shape_.query_heads / h, d = shape_.head_dim;
    std::size_t end = n;
    for (const observed_chunk* chunk = shown_[slot].get(); chunk != nullptr; chunk = chunk->before.get()) {
      weighed_queries call{make_view(std::as_const(chunk->rows).data(), h, chunk->tokens * g, d), slot * h, h};
      call.first_token = end -= chunk->tokens;
      call.rows_per_token = g;
      received_attention(policy, call, rows, sums, shape_.softmax_scale);
    }
  }

  /// Adds the weights of one token's queries [hq, d] over sinks, kept tokens and window.
  template <class P, class Rows>
  void weigh(const P& policy, const kept_query& asked, view<const float, 2> query, const Rows& rows, const step_memory& work) {
    const std::size_t h = shape_.kv_heads, g = shape_.query_heads / h;
    pqkv::detail::run_tasks(policy, h, [&](std::size_t head) {
      std::uint32_t* const own = &work.tokens(head, 0);
      std::uint32_t count = asked.begin;
      for (std::uint32_t t = 0; t < asked.begin; ++t) own[t] = t;
      count += kept_.kept(asked, head, own + count);
      for (std::uint32_t t = asked.end; t < asked.length; ++t) own[count++] = t;
      work.counts(head) = count;
      std::fill_n(&work.sums(head, 0), count, 0.0);
    });
    weighed_queries call{{query.data, {h, g, query.extent(1)}, {g * query.stride(0), query.stride(0), query.stride(1)}},
                         asked.slot * h,
                         h,
                         as_const(work.tokens),
                         as_const(work.counts)};
    call.rows_per_token = g;
    received_attention(policy, call, rows, work.sums, shape_.softmax_scale);
    // Nothing below can fail, so a call that fails has changed no score.
    kept_slot& now = kept_.slots(asked.slot);
    pqkv::detail::in_float_environment([&] {
      for (std::size_t head = 0; head < h; ++head) {
        double* const scores = &kept_.scores(asked.slot * h + head, 0);
        std::fill(scores + now.decided, scores + asked.length, 0.0);  // tokens that came since the last decision
        for (std::uint32_t i = 0; i < work.counts(head); ++i) scores[work.tokens(head, i)] += work.sums(head, i);
      }
    });
    now.decided = asked.length;
  }

  cache_shape shape_;
  buffer<std::byte> memory_;
  kept_tokens_view kept_;
  std::vector<std::shared_ptr<observed_chunk>> shown_;  // [batch] the newest chunk
};

}  // namespace pqkv::selector
