// SPDX-License-Identifier: Apache-2.0
// What selectors share that keep k tokens of the middle and drop the others for good (snapkv.hpp, h2o.hpp). Each token of each KV head has
// a score and the length at which it was dropped. So a sequence that is cut back to fewer tokens has again what was dropped later than
// that: its state is the one of that length. Host memory only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../cache/sequence_steps.hpp"
#include "../exec/memory.hpp"
#include "../search/head_map.hpp"

namespace pqkv::inline PQKV_MODE::selector {

/// What is known of one slot beside its tokens: plain data, so that a fork copies it.
struct kept_slot {
  std::uint32_t decides = 0;       // 1: the slot's prompt has ended, and tokens are dropped from now on
  std::uint32_t decided = 0;       // the length up to which queries have been answered: each length decides once
  std::uint32_t first_recent = 0;  // tokens from here on have no votes (snapkv)
  std::uint32_t observed = 0;      // queries that observe() was shown
};

/// A query as select() meets it, from the ranges that the cache planned for it.
struct kept_query {
  std::size_t slot = 0;
  std::uint32_t begin = 0, end = 0;  // the middle; empty for a query that attends to everything
  std::uint32_t length = 0;          // tokens up to the query's own; 0: nobody asks
  std::uint32_t retrieve = 0;        // k
  bool listed = false;               // whether a list is wanted
};

/// Scores and decisions of all slots. This is also the index that follows tokens which leave a window or are cut off.
struct kept_tokens_view {
  static constexpr std::uint32_t never = 0xffffffffu;

  view<double, 2> scores;          // [slots * h, capacity]
  view<std::uint32_t, 2> dropped;  // [slots * h, capacity] the length at which a token of the middle was dropped, or never
  view<kept_slot, 1> slots;        // [slots]
  std::size_t heads = 1;           // h

  static constexpr kept_tokens_view place(arena& memory, std::size_t slots, std::size_t heads, std::size_t capacity) {
    constexpr std::size_t most = static_cast<std::size_t>(-1);
    const std::size_t rows = slots * heads, size = rows <= most / 16 / capacity ? rows * capacity : most;
    return {make_view(memory.take<double>(size), rows, capacity), make_view(memory.take<std::uint32_t>(size), rows, capacity),
            make_view(memory.take<kept_slot>(slots), slots), heads};
  }

  void encode(const auto&, const auto&, view<const leaving_tokens, 1>) const noexcept {}
  void commit(const leaving_tokens& tokens) const noexcept { keep(tokens.slot, tokens.first, tokens.last); }
  /// @cost  reads 4 bytes for each token and head of the middle
  void forget(const leaving_tokens& tokens, const sequence& after) const noexcept {
    kept_slot& slot = slots(tokens.slot);
    if (after.n == 0) {
      slot = {};
      return;
    }
    slot.decided = std::min(slot.decided, after.n);
    slot.first_recent = std::min(slot.first_recent, after.n);
    for (std::size_t head = 0; head < heads; ++head) {
      std::uint32_t* const row = &dropped(tokens.slot * heads + head, 0);
      for (std::uint32_t t = 0; t < tokens.first; ++t)
        if (row[t] > after.n) row[t] = never;
    }
  }
  slot_parts parts() const noexcept {
    slot_parts all;
    all.add_tokens(scores.data, heads, scores.extent(1), 1);
    all.add_tokens(dropped.data, heads, dropped.extent(1), 1);
    all.add_fixed(slots.data, 1, 1);
    return all;
  }

  /// Tokens [first, last) of a slot are kept.
  void keep(std::size_t slot, std::uint32_t first, std::uint32_t last) const noexcept {
    for (std::size_t head = 0; head < heads; ++head)
      for (std::uint32_t t = first; t < last; ++t) dropped(slot * heads + head, t) = never;
  }

  /// The query of row `row` of a step. It asks nothing if the slot's prompt has not ended: such a slot attends to everything.
  kept_query query_of(const head_map<>& map, view<const token_span, 1> spans, view<const middle_range, 1> ranges, std::size_t row) const {
    const std::size_t list = row * heads;
    const token_span& span = spans(list);
    const middle_range& range = ranges(list);
    kept_query asked;
    asked.slot = map.head(list) / heads;
    if (slots(asked.slot).decides == 0) return asked;
    const bool whole = span.window_end == 0;
    asked.length = whole ? span.leading : span.window_end;
    asked.begin = whole ? asked.length : span.leading;
    asked.end = whole ? asked.length : span.window_begin;
    asked.listed = range.size() != 0;
    asked.retrieve = asked.listed ? range.retrieve : 0;
    return asked;
  }

  /// Writes the tokens of the middle that are still kept at a length, ascending. @return how many
  std::uint32_t kept(const kept_query& asked, std::size_t head, std::uint32_t* tokens) const noexcept {
    const std::uint32_t* const row = &dropped(asked.slot * heads + head, 0);
    std::uint32_t count = 0;
    for (std::uint32_t t = asked.begin; t < asked.end; ++t) {
      tokens[count] = t;  // no branch: whether a token was kept cannot be predicted
      count += row[t] > asked.length ? 1 : 0;
    }
    return count;
  }

  /// Keeps the best k of `count` tokens, by score(token), ties to the lower token, and drops the others at the query's length. Decisions
  /// of earlier lengths stand: where the slot has decided for more tokens since, the others are only left out of the list.
  /// @param tokens  [count], written: the best k, ascending
  /// @return how many they are
  std::uint32_t decide(const kept_query& asked, std::size_t head, std::uint32_t* tokens, std::uint32_t count, auto score) const {
    if (count <= asked.retrieve) return count;
    std::uint32_t* const rest = tokens + asked.retrieve;
    std::nth_element(tokens, rest, tokens + count, [&](std::uint32_t a, std::uint32_t b) {
      const double of_a = score(a), of_b = score(b);
      return of_a != of_b ? of_a > of_b : a < b;
    });
    std::sort(tokens, rest);
    if (asked.length >= slots(asked.slot).decided)
      for (std::uint32_t* t = rest; t != tokens + count; ++t) dropped(asked.slot * heads + head, *t) = asked.length;
    return asked.retrieve;
  }
};

/// The checks that such selectors share.
constexpr status can_keep_tokens(const cache_shape& shape) noexcept {
  return pqkv::detail::checks("pqcache").that(shape.selection == draft_selection::each_query, status::code::value, "selection",
                                              relation::required,
                                              "draft_selection::each_query: what is kept is decided by one query after the other", 0, 1);
}

/// The check at a prompt's end: a prompt without queries has no votes.
constexpr status can_end_prompt(const kept_slot& slot, const sequence& at) noexcept {
  if (at.prompt == 0) return {};
  return pqkv::detail::checks("prefill")
      .that(slot.observed != 0, status::code::value, "selector", relation::required,
            "shown queries of the prompt: call observe() before the last chunk", 1, 0)
      .at_most("observed queries", slot.observed, at.n, "tokens of the prompt");
}

/// The check of observe(): queries come before the prompt ends.
constexpr status can_observe_slot(const kept_slot& slot) noexcept {
  return pqkv::detail::checks("observe").that(slot.decides == 0, status::code::value, "slot", relation::required,
                                              "before the last chunk of its prompt: what is kept has been decided", 0, 1);
}

}  // namespace pqkv::selector
