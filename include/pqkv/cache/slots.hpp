// SPDX-License-Identifier: Apache-2.0
// The bookkeeping of a cache's slots: how long each sequence is, where its window begins, what was counted. Tokens are in three
// classes by position: sinks [0, s), middle [s, window_begin), window [window_begin, n). A window that grows takes tokens only
// from new arrivals, never back from the middle.
#pragma once

#include <cstdint>

#include "../core/view.hpp"
#include "../search/retrieve.hpp"
#include "budget.hpp"

namespace pqkv {

/// The extents of one layer's cache.
struct cache_shape {
  std::size_t batch = 1;        // slots, each a sequence of its own length
  std::size_t kv_heads = 0;     // h
  std::size_t query_heads = 0;  // hq
  std::size_t head_dim = 0;     // d
  std::size_t capacity = 0;     // tokens per slot
};

/// The bounds of every cache; a selector may have narrower ones.
constexpr status can_cache(const cache_shape& shape) noexcept {
  const bool grouped = shape.kv_heads != 0 && shape.query_heads != 0 && shape.query_heads % shape.kv_heads == 0;
  return detail::checks("pqcache")
      .at_least("batch", static_cast<double>(shape.batch), 1, "slots, at least")
      .at_least("kv_heads", static_cast<double>(shape.kv_heads), 1, "h, at least")
      .that(grouped, status::code::shape, "query_heads", "hq, a multiple of h", static_cast<double>(shape.kv_heads),
            static_cast<double>(shape.query_heads))
      .that(shape.head_dim != 0 && shape.head_dim % 8 == 0, status::code::value, "head_dim", "d, a multiple of", 8,
            static_cast<double>(shape.head_dim))
      .at_most("head_dim", static_cast<double>(shape.head_dim), max_head_dim, "d, at most")
      .at_least("capacity", static_cast<double>(shape.capacity), 1, "tokens per slot, at least")
      .at_most("capacity", static_cast<double>(shape.capacity), 2147483647.0, "tokens per slot, at most");
}

/// Whether a call of prefill() ends the prompt.
enum class chunk : std::uint8_t { more, last };

/// Which slots a step is for: [batch] uint8, non-zero means active; empty: all.
using active_slots = view<const std::uint8_t, 1>;

/// Whether a step is for the slot.
constexpr bool is_active(active_slots active, std::size_t slot) { return active.data == nullptr || active(slot) != 0; }

/// Bytes that a cache takes, known before anything is allocated.
struct memory_plan {
  std::size_t kv_bytes = 0;       // keys and values, of all slots
  std::size_t index_bytes = 0;    // the selector's: codebooks, codes, cells
  std::size_t scratch_bytes = 0;  // of a step, at most
  constexpr std::size_t total_bytes() const { return kv_bytes + index_bytes + scratch_bytes; }
};

/// Counters of one slot since construction or reset(); bytes are sums over KV heads.
struct slot_statistics {
  std::uint64_t steps = 0;            // calls of attend()
  std::uint64_t tokens_attended = 0;  // s + w + k, per KV head (mean over lists, rounded down each step)
  std::uint64_t attended_bytes = 0;   // rows of K and V that attention read
  std::uint64_t index_bytes = 0;      // codes, counts and id lists that selection read
  std::uint64_t selector_bytes = 0;   // codebooks, or keys for a selector that scores them
  std::uint64_t nonfinite_keys = 0;   // rows stored with an infinity or a NaN; such a key gets code 0
  std::uint64_t nonfinite_values = 0;
  std::uint64_t nonfinite_queries = 0;  // query heads that attend() or retrieve() were given with one; selection leaves them out
};

/// Where a sequence stands. The verbs that follow a rule run on a device too.
struct slot_extent {
  std::size_t n = 0;             // tokens cached
  std::size_t prompt = 0;        // of these, taken by prefill()
  std::size_t window_begin = 0;  // first window token; never falls

  /// s, w and k at present; the window may hold fewer tokens than w until it has filled.
  PQKV_HD constexpr token_budget budget(const flat_budget_rule& rule) const { return rule.at(rule.frozen ? prompt : n); }

  /// The ranked tokens, and how many of them the rule retrieves at this length.
  PQKV_HD constexpr middle_range middle(const flat_budget_rule& rule) const {
    const std::size_t begin = rule.sinks < window_begin ? rule.sinks : window_begin, k = budget(rule).retrieve;
    return {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(window_begin),
            static_cast<std::uint32_t>(k < 0xffffffffu ? k : 0xffffffffu)};
  }

  /// Lets the oldest tokens leave a window that is over its size; the sinks stay in front of it.
  PQKV_HD constexpr void slide_window(const flat_budget_rule& rule) {
    const std::size_t w = budget(rule).window, sinks = rule.sinks < n ? rule.sinks : n, begin = n > w ? n - w : 0;
    if (sinks > window_begin) window_begin = sinks;
    if (begin > window_begin) window_begin = begin;
  }
};

/// One sequence.
struct slot_state : slot_extent {
  bool prefilling = false;  // more chunks are to come
  slot_statistics statistics{};

  /// As those of slot_extent.
  constexpr token_budget budget(const budget_rule& rule) const { return slot_extent::budget(rule.flat()); }
  constexpr middle_range middle(const budget_rule& rule) const { return slot_extent::middle(rule.flat()); }  // the ranked tokens
  constexpr void slide_window(const budget_rule& rule) { slot_extent::slide_window(rule.flat()); }           // oldest tokens leave
};

}  // namespace pqkv
