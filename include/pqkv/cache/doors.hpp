// SPDX-License-Identifier: Apache-2.0
// What each verb of a pqcache checks before it changes anything. pqcache offers these as can_prefill(), can_append() and so on, for
// engines that ask first, and raises them at its doors.
#pragma once

#include "slots.hpp"

namespace pqkv::detail {

/// Over one cache's shape and slots; a value for the length of one call.
class cache_doors {
 public:
  cache_doors(const cache_shape& shape, const slot_state* slots, std::size_t lists) : shape_(shape), slots_(slots), lists_(lists) {}

  status slot(const char* function, const char* parameter, std::size_t slot) const noexcept {
    return checks(function).that(slot < shape_.batch, status::code::value, parameter, "batch, slot below it",
                                 static_cast<double>(shape_.batch), static_cast<double>(slot));
  }

  template <class Keys, class Values>
  status prefill(std::size_t slot, const Keys& keys, const Values& values) const noexcept {
    if (const status s = this->slot("prefill", "slot", slot); !s.ok()) return s;
    const slot_state& state = slots_[slot];
    const std::size_t n = keys.extent(1), room = shape_.capacity - state.n;
    return checks("prefill")
        .that(state.n == 0 || state.prefilling, status::code::value, "slot", "tokens in it; reset() or fork() first", 0,
              static_cast<double>(state.n))
        .extent("keys.extent(0)", keys.extent(0), shape_.kv_heads, "h, from params")
        .extent("keys.extent(2)", keys.extent(2), shape_.head_dim, "d, from params")
        .extent("values.extent(0)", values.extent(0), shape_.kv_heads, "h, from params")
        .extent("values.extent(1)", values.extent(1), n, "n, from keys")
        .extent("values.extent(2)", values.extent(2), shape_.head_dim, "d, from params")
        .that(n <= room, status::code::capacity, "keys.extent(1)", "n, free tokens of the slot, at most", static_cast<double>(room),
              static_cast<double>(n));
  }

  template <class Keys, class Values>
  status append(const Keys& keys, const Values& values, active_slots active) const noexcept {
    if (const status s = step("append", active); !s.ok()) return s;
    checks all("append");
    all.extent("keys.extent(0)", keys.extent(0), shape_.batch, "batch, from params")
        .extent("keys.extent(1)", keys.extent(1), shape_.kv_heads, "h, from params")
        .extent("keys.extent(2)", keys.extent(2), shape_.head_dim, "d, from params")
        .extent("values.extent(0)", values.extent(0), shape_.batch, "batch, from params")
        .extent("values.extent(1)", values.extent(1), shape_.kv_heads, "h, from params")
        .extent("values.extent(2)", values.extent(2), shape_.head_dim, "d, from params");
    for (std::size_t slot = 0; slot < shape_.batch; ++slot)
      all.that(!is_active(active, slot) || slots_[slot].n < shape_.capacity, status::code::capacity, "active slot",
               "tokens, below capacity", static_cast<double>(shape_.capacity), static_cast<double>(slots_[slot].n));
    return all;
  }

  template <class Query, class Out, class Lse>
  status attend(const Query& query, const Out& out, const Lse& lse, active_slots active) const noexcept {
    if (const status s = step("attend", active); !s.ok()) return s;
    if (const status s = queries("attend", query); !s.ok()) return s;
    const bool wanted = lse.data != nullptr;
    return checks("attend")
        .extent("out.extent(0)", out.extent(0), shape_.batch, "batch, from params")
        .extent("out.extent(1)", out.extent(1), shape_.query_heads, "hq, from params")
        .extent("out.extent(2)", out.extent(2), shape_.head_dim, "d, from params")
        .extent("lse.extent(0)", wanted ? lse.extent(0) : shape_.batch, shape_.batch, "batch, from params")
        .extent("lse.extent(1)", wanted ? lse.extent(1) : shape_.query_heads, shape_.query_heads, "hq, from params");
  }

  /// @param needed  needed(slot): how long that slot's lists are
  template <class Query, class Indices, class Counts, class Needed>
  status retrieve(const Query& query, const Indices& indices, const Counts& counts, active_slots active, Needed needed) const noexcept {
    if (const status s = step("retrieve", active); !s.ok()) return s;
    if (const status s = queries("retrieve", query); !s.ok()) return s;
    checks all("retrieve");
    all.extent("indices.extent(0)", indices.extent(0), shape_.batch, "batch, from params")
        .extent("indices.extent(1)", indices.extent(1), lists_, "h, or hq under reduction none")
        .extent("counts.extent(0)", counts.extent(0), shape_.batch, "batch, from params")
        .extent("counts.extent(1)", counts.extent(1), lists_, "h, or hq under reduction none");
    for (std::size_t slot = 0; slot < shape_.batch; ++slot) {
      const std::size_t least = is_active(active, slot) ? needed(slot) : 0;
      all.that(indices.extent(2) >= least, status::code::capacity, "indices.extent(2)", "k_max, at least", static_cast<double>(least),
               static_cast<double>(indices.extent(2)));
    }
    return all;
  }

 private:
  /// No active slot may be in the middle of a prefill.
  status step(const char* function, active_slots active) const noexcept {
    checks all(function);
    all.extent("active.extent(0)", active.data == nullptr ? shape_.batch : active.extent(0), shape_.batch, "batch, from params");
    for (std::size_t slot = 0; slot < shape_.batch && all.ok(); ++slot)
      all.that(!is_active(active, slot) || !slots_[slot].prefilling, status::code::value, "active slot",
               "prefill chunks still to come; send chunk::last", 0, 1);
    return all;
  }
  template <class Query>
  status queries(const char* function, const Query& query) const noexcept {
    return checks(function)
        .extent("query.extent(0)", query.extent(0), shape_.batch, "batch, from params")
        .extent("query.extent(1)", query.extent(1), shape_.query_heads, "hq, from params")
        .extent("query.extent(2)", query.extent(2), shape_.head_dim, "d, from params");
  }

  const cache_shape& shape_;
  const slot_state* slots_;
  std::size_t lists_;
};

}  // namespace pqkv::detail
