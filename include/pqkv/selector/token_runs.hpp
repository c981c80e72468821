// SPDX-License-Identifier: Apache-2.0
// Runs of neighbouring tokens that are ranked as one and taken whole: quest's pages, infllm's blocks. Run r of a sequence holds the tokens
// [r * length, (r + 1) * length). A range of the middle may cut its first and last run. Each run has one row of numbers; its score is the
// inner product of that row with a query. Host memory only.
#pragma once

#include <cmath>

#include "../core/float_environment.hpp"
#include "../core/slot_parts.hpp"
#include "../search/top_k.hpp"
#include "oracle.hpp"

namespace pqkv::inline PQKV_MODE::selector {

/// What becomes of a run that only the beginning of the range cuts.
enum class front_run : std::uint8_t {
  computed,  // its row is computed for the query, from the tokens that are in the range
  kept       // its row is kept like those of whole runs: the middle of a sequence always begins at the same token
};

/// The runs that a range of tokens falls into. The row of a run whose end is outside the range is always computed for the query.
struct token_runs {
  middle_range range;
  std::uint32_t length = 1;
  front_run front = front_run::computed;

  constexpr std::uint32_t first() const { return range.begin / length; }
  constexpr std::uint32_t count() const { return range.size() == 0 ? 0 : (range.end - 1) / length - first() + 1; }
  /// Tokens of the range's i-th run.
  /// @{
  constexpr std::uint32_t begin(std::uint32_t i) const { return i == 0 ? range.begin : (first() + i) * length; }
  constexpr std::uint32_t end(std::uint32_t i) const { return i + 1 == count() ? range.end : (first() + i + 1) * length; }
  constexpr std::uint32_t size(std::uint32_t i) const { return end(i) - begin(i); }
  /// @}
  constexpr bool is_computed(std::uint32_t i) const {
    return end(i) % length != 0 || (front == front_run::computed && begin(i) % length != 0);
  }
  /// Calls f(i) for every run whose row is computed: the first, the last, both or none.
  template <class F>
  constexpr void for_each_computed(F f) const {
    const std::uint32_t runs = count();
    if (runs > 0 && is_computed(0)) f(0);
    if (runs > 1 && is_computed(runs - 1)) f(runs - 1);
  }
};

/// Bytes that ranking reads: the kept rows of runs, and the keys of runs whose rows are computed.
struct run_traffic {
  std::uint64_t kv_heads, row_bytes, key_bytes;
  std::uint32_t length;
  front_run front;

  constexpr traffic operator()(const middle_range& middle) const {
    const token_runs runs{middle, length, front};
    std::uint64_t kept = runs.count(), keys = 0;
    runs.for_each_computed([&](std::uint32_t i) { --kept, keys += runs.size(i); });
    return {kv_heads * kept * row_bytes, kv_heads * keys * key_bytes};
  }
};

/// The rows of runs as a store: key i of row head `head` belongs to the i-th run of the head's range.
struct run_rows {
  using value_type = float;
  using space_type = space::host;

  view<const float, 3> kept;           // [batch * h, runs, row]
  view<const float, 3> computed;       // [row heads, 2, row]: of the first run and of the last one, where these are computed
  view<const middle_range, 1> ranges;  // [row heads]
  head_map<> map;                      // row head -> head of `kept`
  std::uint32_t length;                // tokens of a run
  front_run front;

  std::size_t heads() const { return ranges.extent(0); }
  std::size_t tokens() const { return kept.extent(1) + 2; }
  std::size_t head_dim() const { return kept.extent(2); }
  token_runs runs(std::size_t head) const { return {ranges(head), length, front}; }
  kv_row<float> key(std::size_t head, std::size_t i) const {
    const token_runs of_head = runs(head);
    const auto run = static_cast<std::uint32_t>(i);
    if (of_head.is_computed(run)) return {&computed(head, place_of(run), 0), 1};
    return {&kept(map.head(head), of_head.first() + run, 0), 1};
  }
  kv_row<float> value(std::size_t head, std::size_t i) const { return key(head, i); }  // nobody reads it

  /// Where the row of a computed run is: 0 for the first run, 1 for the last.
  static constexpr std::size_t place_of(std::uint32_t i) { return i == 0 ? 0 : 1; }
};

/// What ranking runs works in.
struct run_memory {
  view<float, 3> computed;       // [row heads, 2, row]
  view<float, 2> scores;         // [lists, runs + 2]
  view<middle_range, 1> counts;  // [row heads]: {0, runs of the range}
  view<std::int32_t, 2> best;    // [1, runs + 2]

  /// @param runs  whole runs that a slot can hold
  static constexpr run_memory place(arena& memory, const cache_shape& shape, std::size_t lists, std::size_t runs, std::size_t row) {
    const std::size_t tokens = shape.queries_at_once(), h = tokens * shape.kv_heads;
    run_memory all;
    all.computed = make_view(memory.take<float>(h * 2 * row), h, std::size_t{2}, row);
    all.scores = make_view(memory.take<float>(tokens * lists * (runs + 2)), tokens * lists, runs + 2);
    all.counts = make_view(memory.take<middle_range>(h), h);
    all.best = make_view(memory.take<std::int32_t>(runs + 2), std::size_t{1}, runs + 2);
    return all;
  }
};

/// Writes the tokens of the runs with the highest scores, ascending: exactly range.selected() of them. Runs are taken whole. The last one
/// that is taken may be too long; then its first tokens are taken. Equal scores go to the run that begins first.
///
/// @param scores  [1, runs.count()]
/// @param best    [1, runs.count()] scratch
/// @param tokens  [range.selected()], written
template <exec::policy P>
void take_runs(const P& policy, const token_runs& runs, view<const float, 2> scores, view<std::int32_t, 2> best,
               view<std::int32_t, 1> tokens) {
  const std::size_t k = runs.range.selected();
  if (k == 0) return;
  // All runs but two are whole, so these are enough.
  std::size_t taken = k / runs.length + 3 < runs.count() ? k / runs.length + 3 : runs.count(), total = 0;
  best = best.slice(1, 0, taken);
  top_k(policy, scores, best);
  const auto score = [&](std::size_t i) { return scores(0, static_cast<std::size_t>(best(0, i))); };
  const auto size = [&](std::size_t i) -> std::size_t { return runs.size(static_cast<std::uint32_t>(best(0, i))); };
  const auto is_nan = [](float x) { return (float_bits(x) & 0x7fffffffu) > 0x7f800000u; };
  const auto is_below = [&](float a, float b) { return !is_nan(b) && (is_nan(a) || a < b); };
  for (std::size_t i = 0; i < taken; ++i) total += size(i);
  std::size_t worst = 0;
  while (true) {
    worst = 0;
    for (std::size_t i = 1; i < taken; ++i)
      if (!is_below(score(worst), score(i))) worst = i;
    if (total - size(worst) < k) break;
    total -= size(worst);
    for (std::size_t i = worst + 1; i < taken; ++i) best(0, i - 1) = best(0, i);
    --taken;
  }
  std::size_t written = 0;
  for (std::size_t i = 0; i < taken; ++i) {
    const std::size_t count = i == worst ? size(i) - (total - k) : size(i), first = runs.begin(static_cast<std::uint32_t>(best(0, i)));
    for (std::size_t t = 0; t < count; ++t) tokens(written++) = static_cast<std::int32_t>(first + t);
  }
}

/// Ranks the runs of every range by exact_scores() of their rows and lists the tokens of the best.
///
/// @param query    [hq, row]
/// @param scale    of the scores in the softmax
/// @param indices  [lists, k_max], written
/// @param counts   [lists], written
/// @throws capacity_error when the policy's scratch is too small
/// @cost   reads a row for each run; no allocation
template <exec::policy P>
void select_runs(const P& policy, view<const float, 2> query, const run_rows& rows, group_reduction reduction, float scale,
                 const run_memory& memory, view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts) {
  const std::size_t heads = rows.heads(), lists = counts.extent(0), lists_per_head = lists / heads;
  const auto run_counts = memory.counts.slice(0, 0, heads);
  for (std::size_t head = 0; head < heads; ++head) run_counts(head) = {0, rows.runs(head).count(), 0};
  const auto scores = memory.scores.slice(0, 0, lists);
  exact_scores(policy, query, rows, as_const(run_counts), reduction, scores, scale);
  for (std::size_t list = 0; list < lists; ++list) {
    const token_runs runs = rows.runs(list / lists_per_head);
    counts(list) = runs.range.selected();
    take_runs(policy, runs, as_const(scores.slice(0, list, 1).slice(1, 0, runs.count())), memory.best,
              indices[list].slice(0, 0, counts(list)));
  }
}

/// The scale of the logits of a cache, in the library's rounding mode.
inline float softmax_scale_of(const cache_shape& shape) {
  float scale = shape.softmax_scale;
  pqkv::detail::in_float_environment([&] {
    if (scale == 0) scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
  });
  return scale;
}

/// Memory of rows of whole runs, [batch * h, runs, row] floats. A head's rows take a whole number of bytes for each token, so that a slot's
/// share grows with its tokens (core/slot_parts.hpp).
struct run_table {
  std::size_t heads, capacity, length, row;  // capacity, length: tokens

  constexpr std::size_t runs() const { return capacity / length; }
  constexpr std::size_t token_bytes() const { return (row * sizeof(float) + length - 1) / length; }
  constexpr std::size_t head_floats() const { return (capacity * token_bytes() + sizeof(float) - 1) / sizeof(float); }
  constexpr view<float, 3> place(arena& memory) const {
    const bool fits = head_floats() <= static_cast<std::size_t>(-1) / 8 / heads;
    float* const data = memory.take<float>(fits ? heads * head_floats() : static_cast<std::size_t>(-1));
    return {data, {heads, runs(), row}, {head_floats(), row, 1}};
  }
  slot_parts parts(view<float, 3> rows, std::size_t kv_heads) const {
    slot_parts all;
    slot_part one;
    one.data = reinterpret_cast<std::byte*>(rows.data);
    one.segments = kv_heads;
    one.segment_bytes = head_floats() * sizeof(float);
    one.slot_bytes = kv_heads * one.segment_bytes;
    one.token_bytes = token_bytes();
    all.part[all.count++] = one;
    return all;
  }
};

}  // namespace pqkv::selector
