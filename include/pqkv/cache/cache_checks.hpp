// SPDX-License-Identifier: Apache-2.0
// What each verb of a pqcache checks before it changes anything. pqcache offers these checks as can_prefill(), can_append() and so on, for
// engines that ask first; every verb calls its own check. Only the device knows where a sequence of a device cache stands. There the host
// checks shapes, and the step itself refuses and counts what does not fit.
#pragma once

#include "step_plan.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// The checks of one cache, made from its shape and sequences for the length of one call.
/// @tparam Space  where the step's rows are
template <class Space>
class cache_checks {
 public:
  static constexpr bool reads_steps = space::usable_from<Space, space::host>;

  /// @param sequences  [batch] as the host knows them
  cache_checks(const cache_shape& shape, const sequence* sequences, std::size_t lists)
      : shape_(shape), sequences_(sequences), lists_(lists) {}

  status slot(const char* function, const char* parameter, std::size_t slot) const noexcept {
    return checks(function).that(slot < shape_.batch, status::code::value, parameter, relation::below, "batch", shape_.batch, slot);
  }

  /// @param room  tokens that the slot has memory for
  template <class Keys, class Values>
  status prefill(std::size_t slot, const Keys& keys, const Values& values, std::size_t room) const noexcept {
    if (const status s = this->slot("prefill", "slot", slot); !s.ok()) return s;
    const sequence& now = sequences_[slot];
    const std::size_t n = keys.extent(1), left = room - (now.n < room ? now.n : room);
    return checks("prefill")
        .that(now.n == 0 || now.prefilling != 0, status::code::value, "slot", relation::stated,
              "empty: append() takes the tokens that follow a prompt, reset() empties a slot", 0, now.n)
        .extent("keys.extent(0)", keys.extent(0), shape_.kv_heads, "h, from params")
        .extent("keys.extent(2)", keys.extent(2), shape_.head_dim, "d, from params")
        .extent("values.extent(0)", values.extent(0), shape_.kv_heads, "h, from params")
        .extent("values.extent(1)", values.extent(1), n, "n, from keys")
        .extent("values.extent(2)", values.extent(2), shape_.head_dim, "d, from params")
        .that(n <= left, status::code::capacity, "keys.extent(1)", relation::at_most, "n, free tokens of the slot", left, n);
  }

  /// @param room  room(slot): tokens that a slot has memory for
  template <class Keys, class Values, class Room>
  status append(const Keys& keys, const Values& values, const basic_step<Space>& step, Room room) const noexcept {
    if (const status s = rows("append", step, keys.extent(0), "keys.extent(0)"); !s.ok()) return s;
    checks all("append");
    all.extent("keys.extent(1)", keys.extent(1), shape_.kv_heads, "h, from params")
        .extent("keys.extent(2)", keys.extent(2), shape_.head_dim, "d, from params")
        .extent("values.extent(0)", values.extent(0), keys.extent(0), "tokens, from keys")
        .extent("values.extent(1)", values.extent(1), shape_.kv_heads, "h, from params")
        .extent("values.extent(2)", values.extent(2), shape_.head_dim, "d, from params");
    if constexpr (reads_steps)
      for (std::size_t row = 0; row < step.rows(shape_.batch) && all.ok(); ++row) {
        const std::uint32_t slot = step.slot(row);
        const std::size_t n = std::size_t{sequences_[slot].n} + step.count(row), most = room(slot);
        all.that(n <= most, status::code::capacity, "step", relation::at_most, "tokens of the slot then, capacity", most, n);
      }
    return all;
  }

  template <class Query, class Out, class Lse>
  status attend(const Query& query, const Out& out, const Lse& lse, const basic_step<Space>& step) const noexcept {
    if (const status s = queries("attend", query, step); !s.ok()) return s;
    const bool wanted = lse.data != nullptr;
    return checks("attend")
        .extent("out.extent(0)", out.extent(0), query.extent(0), "tokens, from query")
        .extent("out.extent(1)", out.extent(1), shape_.query_heads, "hq, from params")
        .extent("out.extent(2)", out.extent(2), shape_.head_dim, "d, from params")
        .extent("lse.extent(0)", wanted ? lse.extent(0) : query.extent(0), query.extent(0), "tokens, from query")
        .extent("lse.extent(1)", wanted ? lse.extent(1) : shape_.query_heads, shape_.query_heads, "hq, from params");
  }

  /// @param needed  needed(slot): how long that slot's lists can be
  template <class Query, class Indices, class Counts, class Needed>
  status retrieve(const Query& query, const Indices& indices, const Counts& counts, const basic_step<Space>& step,
                  Needed needed) const noexcept {
    if (const status s = queries("retrieve", query, step); !s.ok()) return s;
    checks all("retrieve");
    all.extent("indices.extent(0)", indices.extent(0), query.extent(0), "tokens, from query")
        .extent("indices.extent(1)", indices.extent(1), lists_, "h, or hq under reduction none")
        .extent("counts.extent(0)", counts.extent(0), query.extent(0), "tokens, from query")
        .extent("counts.extent(1)", counts.extent(1), lists_, "h, or hq under reduction none");
    if constexpr (reads_steps)
      for (std::size_t row = 0; row < step.rows(shape_.batch) && all.ok(); ++row) {
        const std::size_t least = step.count(row) == 0 ? 0 : needed(step.slot(row));
        all.that(indices.extent(2) >= least, status::code::capacity, "indices.extent(2)", relation::at_least, "k_max", least,
                 indices.extent(2));
      }
    return all;
  }

  status truncate(std::size_t slot, std::size_t n) const noexcept {
    if (const status s = this->slot("truncate", "slot", slot); !s.ok()) return s;
    // The host knows of every cache whether a prompt is whole. How long a slot on a device is, the device checks.
    const double most = static_cast<double>(reads_steps ? sequences_[slot].n : shape_.capacity);
    return checks("truncate")
        .that(sequences_[slot].prefilling == 0, status::code::value, "slot", relation::required,
              "past its prompt: send chunk::last, or reset() the slot", 0, 1)
        .at_most("n", n, most, "tokens of the slot");
  }

  template <class Rows>
  status truncate(const Rows& lengths, const Rows& slots) const noexcept {
    const std::size_t rows = slots.data != nullptr || lengths.extent(0) == 0 ? slots.extent(0) : shape_.batch;
    checks all("truncate");
    all.extent("lengths.extent(0)", lengths.extent(0), rows, slots.data != nullptr ? "rows, from slots" : "batch, without slots");
    const bool is_somewhere = lengths.extent(0) == 0 || lengths.data != nullptr;
    all.that(is_somewhere, status::code::value, "lengths", relation::required, "in memory: its pointer is null", 1, 0);
    if constexpr (reads_steps)
      for (std::size_t row = 0; row < lengths.extent(0) && all.ok(); ++row) {
        const std::size_t slot = slots.data != nullptr ? slots(row) : row;
        if (const status s = truncate(slot, lengths(row)); !s.ok()) return s;
        for (std::size_t before = 0; slots.data != nullptr && before < row; ++before)
          all.that(slots(before) != slot, status::code::value, "slots", relation::required, "distinct: a slot is cut once", 0, 0);
      }
    return all;
  }

 private:
  /// Checks the rows of a step: the slots exist, none is named twice, none is in the middle of a prefill, and the counts add up to
  /// `tokens`.
  status rows(const char* function, const basic_step<Space>& step, std::size_t tokens, const char* parameter) const noexcept {
    checks all(function);
    if (step.has_slots() && step.has_counts())
      all.extent("step.counts.extent(0)", step.counts.extent(0), step.slots.extent(0), "rows, from step.slots");
    const std::size_t count = step.rows(shape_.batch);
    all.at_most(step.has_slots() ? "step.slots.extent(0)" : "step.counts.extent(0)", count, shape_.batch, "rows, batch");
    if (!step.has_counts()) all.extent(parameter, tokens, count, "tokens of the step: one for every row");
    if constexpr (reads_steps) {
      std::size_t sum = 0;
      bool ascending = true;  // while ascending, no slot can be named twice
      for (std::size_t row = 1; step.has_slots() && row < count; ++row) ascending &= step.slot(row - 1) < step.slot(row);
      for (std::size_t row = 0; row < count && all.ok(); ++row) {
        const std::uint32_t slot = step.slot(row);
        all.that(slot < shape_.batch, status::code::value, "step.slots", relation::below, "batch", shape_.batch, slot);
        for (std::size_t before = 0; !ascending && before < row; ++before)
          all.that(step.slot(before) != slot, status::code::value, "step.slots", relation::required, "distinct: a step names a slot once",
                   1, 2);
        all.that(!all.ok() || sequences_[slot].prefilling == 0, status::code::value, "step.slots", relation::required,
                 "past their prompts: send chunk::last first", 0, 1);
        sum += step.count(row);
      }
      if (all.ok()) all.extent(parameter, tokens, sum, "tokens of the step");
    }
    return all;
  }
  template <class Query>
  status queries(const char* function, const Query& query, const basic_step<Space>& step) const noexcept {
    if (const status s = rows(function, step, query.extent(0), "query.extent(0)"); !s.ok()) return s;
    return checks(function)
        .extent("query.extent(1)", query.extent(1), shape_.query_heads, "hq, from params")
        .extent("query.extent(2)", query.extent(2), shape_.head_dim, "d, from params");
  }

  const cache_shape& shape_;
  const sequence* sequences_;
  std::size_t lists_;
};

}  // namespace pqkv::detail
