// SPDX-License-Identifier: Apache-2.0
// Where one sequence of a cache stands, as plain data in the memory of the cache's space, and what follows from it. The same functions
// serve host loops and device kernels. A token's position decides its class: sinks [0, s), middle [s, window_begin), window [window_begin,
// n). All of this depends on the length alone, so a sequence can be viewed as it was when it was shorter.
#pragma once

#include <cstdint>

#include "../core/view.hpp"
#include "../search/retrieve.hpp"
#include "budget.hpp"

namespace pqkv::inline PQKV_MODE {

/// Which selection the queries of a row use when a step has several tokens of a sequence.
enum class draft_selection : std::uint8_t {
  each_query,  // each query has its own, as if the tokens had come one by one
  first_query  // every query uses that of the row's first query, and attends to all tokens from that query's window on: for drafts of a
               // few tokens, whose selections hardly differ. The queries of one pass share it (cache_shape::queries_at_once)
};

/// The sizes of one layer's cache.
struct cache_shape {
  std::size_t batch = 1;         // slots, each a sequence of its own length
  std::size_t kv_heads = 0;      // h
  std::size_t query_heads = 0;   // hq
  std::size_t head_dim = 0;      // d
  std::size_t capacity = 0;      // tokens per slot
  std::size_t step_queries = 0;  // query tokens that attend() works on at once; more are taken in turns; 0: batch
  float softmax_scale = 0;       // of logits; 0: 1 / sqrt(d)
  draft_selection selection = draft_selection::each_query;

  /// step_queries, or its default.
  constexpr std::size_t queries_at_once() const { return step_queries != 0 ? step_queries : batch; }
};

/// The bounds of every cache; a selector may have stricter ones.
constexpr status can_cache(const cache_shape& shape) noexcept {
  const bool grouped = shape.kv_heads != 0 && shape.query_heads != 0 && shape.query_heads % shape.kv_heads == 0;
  return detail::checks("pqcache")
      .at_least("batch", shape.batch, 1, "slots")
      .at_most("batch", shape.batch, 65535, "slots")
      .at_least("kv_heads", shape.kv_heads, 1, "h")
      .that(shape.query_heads != 0, status::code::shape, "query_heads", relation::at_least, "h", shape.kv_heads, 0)
      .that(grouped, status::code::shape, "query_heads", relation::multiple_of, "h", shape.kv_heads, shape.query_heads)
      .at_most("query_heads", shape.query_heads, 65535, "hq")
      .at_least("head_dim", shape.head_dim, 8, "d")
      .that(shape.head_dim % 8 == 0, status::code::value, "head_dim", relation::multiple_of, "", 8, shape.head_dim)
      .at_most("head_dim", shape.head_dim, max_head_dim, "d")
      .at_least("capacity", shape.capacity, 1, "tokens per slot")
      .at_most("capacity", shape.capacity, 2147483647.0, "tokens per slot")
      .at_most("step_queries", shape.step_queries, 65535, "query tokens worked on at once")
      .that(shape.softmax_scale >= 0 && is_finite(shape.softmax_scale), status::code::value, "softmax_scale", relation::stated,
            "finite and at least 0", 0, shape.softmax_scale);
}

/// Whether a call of prefill() ends the prompt.
enum class chunk : std::uint8_t { more, last };

/// Bytes that a cache takes; known before anything is allocated.
struct memory_plan {
  std::size_t kv_bytes = 0;       // keys and values, of all slots
  std::size_t index_bytes = 0;    // the selector's: codebooks, codes, cells
  std::size_t scratch_bytes = 0;  // of a step, at most
  constexpr std::size_t total_bytes() const { return kv_bytes + index_bytes + scratch_bytes; }
};

/// Counters of one slot since construction or reset(); bytes are sums over KV heads.
struct slot_statistics {
  std::uint64_t steps = 0;            // query tokens that attend() answered
  std::uint64_t tokens_attended = 0;  // s + w + k, per KV head (mean over lists, rounded down each step)
  std::uint64_t attended_bytes = 0;   // rows of K and V that attention read
  std::uint64_t index_bytes = 0;      // codes, counts and id lists that selection read
  std::uint64_t selector_bytes = 0;   // codebooks, or keys for a selector that scores them
  std::uint64_t nonfinite_keys = 0;   // rows stored with an infinity or a NaN; such a key gets code 0
  std::uint64_t nonfinite_values = 0;
  std::uint64_t nonfinite_queries = 0;  // query heads that attend() or retrieve() were given with one; selection leaves them out
  std::uint64_t trainings = 0;          // trainings of the slot's index that succeeded: the first, and those by maintain()
  std::uint64_t codes_trained = 0;      // codes of tokens, one per KV head and subspace, that these trainings wrote
  std::uint64_t refused = 0;            // tokens or cuts that a device step had no room for or could not make; the host throws instead

  constexpr slot_statistics& operator+=(const slot_statistics& more) {
    steps += more.steps, tokens_attended += more.tokens_attended, attended_bytes += more.attended_bytes;
    index_bytes += more.index_bytes, selector_bytes += more.selector_bytes;
    nonfinite_keys += more.nonfinite_keys, nonfinite_values += more.nonfinite_values, nonfinite_queries += more.nonfinite_queries;
    trainings += more.trainings, codes_trained += more.codes_trained, refused += more.refused;
    return *this;
  }
};

namespace selector {
/// How a slot's middle is attended to: by lists, as a whole, or not at all.
enum class coverage : std::uint8_t { listed, everything, nothing };

/// How a selector wants a slot's middle attended to: before it has learned the slot's keys, and afterwards.
struct coverage_rule {
  coverage before = coverage::everything, after = coverage::listed;
};
}  // namespace selector

/// One sequence.
struct sequence {
  std::uint32_t n = 0;            // tokens cached
  std::uint32_t prompt = 0;       // of these, taken by prefill()
  std::uint32_t longest = 0;      // the largest n since the slot was empty: id lists may still hold tokens that were cut off
  std::uint32_t learn_again = 0;  // length at which training is due, first or again; 0: never for a slot with an index, else at once
  std::uint32_t learned = 0;      // 1: the selector has its index, e.g. a codebook
  std::uint32_t prefilling = 0;   // 1: more chunks of the prompt are to come

  /// The sequence with `count` more tokens.
  PQKV_HD constexpr sequence grown(std::uint32_t count) const {
    sequence then = *this;
    then.n += count;
    then.longest = then.longest > then.n ? then.longest : then.n;
    return then;
  }

  /// The sequence with `count` more tokens of its prompt.
  PQKV_HD constexpr sequence prefilled(std::uint32_t count, chunk which) const {
    sequence then = grown(count);
    then.prompt = then.n;
    then.prefilling = which == chunk::more ? 1 : 0;
    return then;
  }

  /// The sequence as it was with `length` tokens. If it has no index and was waiting for more tokens than that, it waits no longer.
  PQKV_HD constexpr sequence at(std::uint32_t length) const {
    sequence then = *this;
    then.n = length;
    then.prompt = prompt < length ? prompt : length;
    then.learn_again = learned == 0 && learn_again > length && length < n ? 0 : learn_again;
    return then;
  }

  /// s, w and k at present. The window holds fewer than w tokens until it has filled.
  PQKV_HD constexpr token_budget budget(const flat_budget_rule& rule) const { return rule.at(rule.frozen ? prompt : n); }

  /// The first window token. It never decreases as tokens come: a rule's window grows by at most one token for each new token. So a token
  /// that has left the window never returns.
  PQKV_HD constexpr std::uint32_t window_begin(const flat_budget_rule& rule) const {
    const std::size_t w = budget(rule).window, sinks = rule.sinks < n ? rule.sinks : n, begin = n > w ? n - w : 0;
    return prefilling != 0 ? 0 : static_cast<std::uint32_t>(begin > sinks ? begin : sinks);
  }

  /// The ranked tokens, and how many of them the rule retrieves at this length.
  PQKV_HD constexpr middle_range middle(const flat_budget_rule& rule) const {
    const std::size_t end = window_begin(rule), begin = rule.sinks < end ? rule.sinks : end, k = budget(rule).retrieve;
    return {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end),
            static_cast<std::uint32_t>(k < 0xffffffffu ? k : 0xffffffffu)};
  }

  /// How the middle is attended to now. If the budget holds all of it, it is taken whole; if k is 0 there is no list.
  PQKV_HD constexpr selector::coverage coverage(const middle_range& middle, selector::coverage_rule rule) const {
    using selector::coverage;
    const selector::coverage wish = learned != 0 ? rule.after : rule.before;
    if (middle.size() == 0) return coverage::nothing;
    if (wish != coverage::listed) return wish;
    if (middle.retrieve == 0) return coverage::nothing;
    return middle.retrieve >= middle.size() ? coverage::everything : coverage::listed;
  }

  /// The same tokens as before anything was learned from them: a query attends to all of them.
  PQKV_HD constexpr sequence without_index() const {
    sequence then = *this;
    then.learned = then.learn_again = 0;
    return then;
  }

  /// The sequence cut to its first `length` tokens. Cut to nothing, it is a new one without an index.
  PQKV_HD constexpr sequence truncated(std::uint32_t length) const { return length == 0 ? sequence{} : at(length); }
};
static_assert(sizeof(sequence) == 24);  // no padding: a saved sequence is these bytes

/// The lengths of sequences, in their place.
template <class Space>
constexpr view<const std::uint32_t, 1, Space> lengths_of(view<const sequence, 1, Space> sequences) {
  return {&sequences.data->n, {sequences.extent(0)}, {sequences.stride(0) * sizeof(sequence) / sizeof(std::uint32_t)}};
}

/// The functions of sequence for a budget_rule.
/// @{
constexpr middle_range middle_of(const sequence& s, const budget_rule& rule) { return s.middle(rule.flat()); }
constexpr token_budget budget_of(const sequence& s, const budget_rule& rule) { return s.budget(rule.flat()); }
/// @}

/// The tokens that leave the window when a sequence grows from `before` to `after`, or that leave the middle when it is cut back.
PQKV_HD constexpr leaving_tokens leaving_between(std::uint32_t slot, const sequence& before, const sequence& after,
                                                 const flat_budget_rule& rule) {
  const auto begin = [&](const sequence& s) {
    const std::size_t window = s.window_begin(rule);
    return static_cast<std::uint32_t>(window > rule.sinks ? window : rule.sinks);
  };
  const std::uint32_t first = begin(before), last = begin(after);
  return {slot, first, first < last ? last : first};
}

}  // namespace pqkv
