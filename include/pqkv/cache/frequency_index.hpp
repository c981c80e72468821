// SPDX-License-Identifier: Apache-2.0
// Which blocks stay in a cache of few slots: the least frequently used one leaves, the least recently used one among equals. Keys are
// dense, [0, keys), so flat integer arrays take the place of hash and nodes; every key costs constant time and nothing allocates after
// construction. It keeps no data: it says which slot holds what, the caller copies. Host code for one caller at a time, without a
// policy. Not for keys of an open domain, which need a hash.
// Sources: Shah, Mitra, Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010; PQCache, SIGMOD 2025, for
// blocks, counts and offers.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>

#include "../core/arena.hpp"
#include "../core/error.hpp"
#include "../core/view.hpp"
#include "frequency_lists.hpp"

namespace pqkv::inline PQKV_MODE {

inline constexpr std::size_t default_admit_limit = 32;           // blocks offered in a step
inline constexpr std::uint32_t highest_frequency = 0xffffffffu;  // where counting stops, unless told another

/// Sums since construction. Bytes moved are admissions times the size of a block, the caller's.
struct frequency_statistics {
  std::uint64_t hits = 0;  // of lookups, one for each element of `keys`
  std::uint64_t misses = 0;
  std::uint64_t admissions = 0;
  std::uint64_t evictions = 0;  // of these, into a slot that another key had to leave
};

/// Of one lookup: keys that have a slot, and keys that have none.
struct lookup_outcome {
  std::size_t hits = 0, misses = 0;
};

/// Of one admission: keys offered, keys that entered, and keys that had to leave for them.
struct admit_outcome {
  std::size_t offered = 0, admitted = 0, evicted = 0;
};

/// A key that entered: what is to be copied to where.
template <index_integer Key, index_integer Slot>
struct admission {
  Key key;
  Slot slot;
  Key evicted;  // which key left the slot; -1 as a Key: it was free
};

/// Which blocks have all their tokens: all of them, or those below `end`. Any function of a key to bool will do.
struct every_block_final {
  template <class Key>
  constexpr bool operator()(Key) const noexcept {
    return true;
  }
};
/// Blocks below `end` have all their tokens.
struct final_blocks_end {
  std::size_t end = 0;
  template <class Key>
  constexpr bool operator()(Key key) const noexcept {
    return static_cast<std::size_t>(key) < end;
  }
};

/// The bounds of an index.
template <index_integer Key = std::int32_t, index_integer Slot = std::int32_t>
constexpr status can_frequency_index(std::size_t keys, std::size_t capacity, std::uint32_t max_frequency = highest_frequency) noexcept {
  constexpr auto most_keys = std::min<std::uintmax_t>(std::numeric_limits<Key>::max(), 0xffffffffu);
  constexpr auto most_slots = std::min<std::uintmax_t>(std::numeric_limits<Slot>::max(), 0x7fffffffu);
  return detail::checks("frequency_index")
      .at_most("keys", keys, most_keys, "keys, by their type")
      .at_most("capacity", capacity, most_slots, "slots, by their type")
      .at_least("max_frequency", max_frequency, 2, "at which frequencies stop rising");
}

/// The index, over memory of a frequency_index or of the caller. A small value: copies mean the same index.
///
/// A step looks up first, then admits. Of the keys that are offered in a step, those with a slot rise by one in frequency, up to
/// max_frequency; the others enter with frequency 1, best first, into a free slot or that of a victim. The victim is the key of the
/// lowest frequency; among equals the one whose latest offer is the longest ago; among those of one step the one that ranked last in
/// it. No key leaves in the step that offers it, so a slot is given away at most once a step, and an offer that finds no victim stays
/// out. A key that left is forgotten. Lookups change no order: "used" means offered, whoever looks up, in whatever order.
///
/// @tparam Key   integer type of keys
/// @tparam Slot  integer type of slots; std::uint16_t halves the tables of a small cache
template <index_integer Key = std::int32_t, index_integer Slot = std::int32_t>
class frequency_index_view {
 public:
  using admission_type = admission<Key, Slot>;
  static constexpr Key no_key = static_cast<Key>(-1);
  static constexpr Slot no_slot = static_cast<Slot>(-1);

  frequency_index_view() = default;

  /// Makes an empty index in memory of the caller, which must stay as long as the views do.
  /// @param memory  takes required_bytes() from it
  /// @throws value_error when keys or capacity are out of bounds; capacity_error when the arena has too little left
  static frequency_index_view place(arena& memory, std::size_t keys, std::size_t capacity,
                                    std::uint32_t max_frequency = highest_frequency) {
    require_ok(can_frequency_index<Key, Slot>(keys, capacity, max_frequency));
    const std::size_t needed = required_bytes(keys, capacity), given = memory.counting() ? 0 : memory.free_bytes();
    require_ok(
        detail::checks("frequency_index")
            .that(given >= needed, status::code::capacity, "memory", relation::at_least, "bytes, from required_bytes()", needed, given));
    frequency_index_view made{};
    made.carve(memory, keys, capacity, max_frequency);
    *made.state_ = {};
    std::fill_n(made.totals_, keys, 0u);
    std::fill_n(made.seen_, (keys + 63) / 64, std::uint64_t{0});
    made.clear();
    return made;
  }
  static std::size_t required_bytes(std::size_t keys, std::size_t capacity) {
    arena counter;
    frequency_index_view().carve(counter, keys, capacity, highest_frequency);
    return counter.used_bytes();
  }

  std::size_t keys() const { return keys_; }
  std::size_t capacity() const { return capacity_; }
  std::size_t size() const { return lists_.size(); }
  frequency_statistics statistics() const { return state_ == nullptr ? frequency_statistics{} : state_->counted; }
  pqkv::view<const Slot, 1> slot_of() const { return as_const(make_view(slot_of_, keys_)); }   // [keys], or no_slot
  pqkv::view<const Key, 1> key_of() const { return as_const(make_view(key_of_, capacity_)); }  // [capacity], or no_key
  /// Offers of a key below keys() since it entered, that one included, halved by age(); 0 for one without a slot.
  std::uint32_t frequency(Key key) const {
    PQKV_ASSERT(number(key) < keys_);
    const Slot slot = slot_of_[number(key)];
    return slot == no_slot ? 0 : lists_.frequency(slot);
  }

  /// Looks keys up. No order changes.
  ///
  /// @param keys   [count], repeated ones count each time
  /// @param slots  [count], written: the key's slot, or -1
  /// @throws shape_error, value_error; then nothing is changed
  /// @cost   reads and writes count elements, and one gather; no allocation
  lookup_outcome lookup(pqkv::view<const Key, 1> keys, pqkv::view<Slot, 1> slots) const;

  /// Offers the `limit` keys of the highest counts, equal ones in favour of the lower key.
  ///
  /// @param keys      [count], in any order; counts of a repeated key are added up
  /// @param counts    [count] uint32, selected tokens; a key whose counts are all 0 is never offered. Empty: each is 1
  /// @param limit     keys offered at most
  /// @param is_final  is_final(key): whether a key without a slot may enter; asked once for each offer
  /// @param admitted  [>= min(limit, count)], written as far as outcome.admitted says, best first; may be empty
  /// @throws shape_error, value_error; then nothing is changed
  /// @cost   O(count + limit log limit) on average; no allocation
  template <std::predicate<Key> Final = every_block_final>
  admit_outcome admit(pqkv::view<const Key, 1> keys, pqkv::view<const std::uint32_t, 1> counts, std::size_t limit = default_admit_limit,
                      Final is_final = {}, pqkv::view<admission_type, 1> admitted = {}) const;

  /// Offers all of a list that the caller has ranked: distinct keys, best first.
  template <std::predicate<Key> Final = every_block_final>
  admit_outcome admit_ranked(pqkv::view<const Key, 1> keys, Final is_final = {}, pqkv::view<admission_type, 1> admitted = {}) const;

  /// Halves every frequency, rounding up, so that what was often used long ago can leave. Optional; the caller says when. O(size)
  void age() const { lists_.age(); }

  /// Gives up the slots of keys whose content is no longer valid; those without a slot are passed over. Not counted as evictions.
  /// @return how many slots became free
  /// @throws shape_error, value_error; then nothing is changed
  std::size_t drop(pqkv::view<const Key, 1> keys) const {
    require_ok(can_drop(keys));
    std::size_t freed = 0;
    for (std::size_t i = 0; i < keys.extent(0); ++i) {
      const Slot slot = std::exchange(slot_of_[number(keys.data[i])], no_slot);
      if (slot == no_slot) continue;
      key_in(slot) = no_key;
      lists_.release(slot);
      ++freed;
    }
    return freed;
  }
  /// Gives up all slots; statistics stay. O(keys + capacity)
  void clear() const {
    if (state_ == nullptr) return;
    std::fill_n(slot_of_, keys_, no_slot);
    std::fill_n(key_of_, capacity_, no_key);
    lists_.clear();
  }

  status can_lookup(pqkv::view<const Key, 1> keys, pqkv::view<Slot, 1> slots) const noexcept {
    return in_domain("lookup", keys)
        .extent("slots.extent(0)", slots.extent(0), keys.extent(0), "count, from keys")
        .extent("slots.stride(0)", keys.extent(0) == 0 ? 1 : slots.stride(0), 1, "last axis contiguous");
  }
  status can_admit(pqkv::view<const Key, 1> keys, pqkv::view<const std::uint32_t, 1> counts, std::size_t limit = default_admit_limit,
                   pqkv::view<admission_type, 1> admitted = {}) const noexcept {
    const std::size_t count = keys.extent(0);
    return room_for(in_domain("admit", keys)
                        .extent("counts.extent(0)", counts.data == nullptr ? count : counts.extent(0), count, "count, from keys")
                        .extent("counts.stride(0)", counts.data == nullptr || count == 0 ? 1 : counts.stride(0), 1, "last axis contiguous"),
                    std::min(limit, count), admitted);
  }
  status can_admit_ranked(pqkv::view<const Key, 1> keys, pqkv::view<admission_type, 1> admitted = {}) const noexcept;
  status can_drop(pqkv::view<const Key, 1> keys) const noexcept { return in_domain("drop", keys); }

 private:
  struct state {
    std::uint64_t offers;  // made so far
    frequency_statistics counted;
  };

  static constexpr std::size_t number(Key key) { return static_cast<std::size_t>(static_cast<std::make_unsigned_t<Key>>(key)); }
  Key& key_in(Slot slot) const { return key_of_[static_cast<std::size_t>(slot)]; }

  detail::checks in_domain(const char* function, pqkv::view<const Key, 1> keys) const noexcept {
    detail::checks checked(function);
    checked.extent("keys.stride(0)", keys.extent(0) == 0 ? 1 : keys.stride(0), 1, "last axis contiguous");
    if (!checked.ok()) return checked;
    using unsigned_key = std::make_unsigned_t<Key>;
    unsigned_key highest = 0;
    for (std::size_t i = 0; i < keys.extent(0); ++i) highest = std::max(highest, static_cast<unsigned_key>(keys.data[i]));
    return checked.that(keys.extent(0) == 0 || highest < keys_, status::code::value, "keys", relation::below, "each a key", keys_,
                        static_cast<Key>(highest));
  }
  static status room_for(detail::checks checked, std::size_t offers, pqkv::view<admission_type, 1> admitted) noexcept {
    const bool wanted = admitted.data != nullptr;
    return checked
        .that(!wanted || admitted.extent(0) >= offers, status::code::shape, "admitted.extent(0)", relation::at_least, "keys offered",
              offers, admitted.extent(0))
        .extent("admitted.stride(0)", wanted && offers != 0 ? admitted.stride(0) : 1, 1, "last axis contiguous");
  }
  template <class Final>
  admit_outcome offer(std::size_t count, Final& is_final, admission_type* admitted) const;

  void carve(arena& memory, std::size_t keys, std::size_t capacity, std::uint32_t max_frequency) {
    keys_ = keys, capacity_ = capacity;
    slot_of_ = memory.take<Slot>(keys);
    key_of_ = memory.take<Key>(capacity);
    lists_.carve(memory, capacity, max_frequency);
    totals_ = memory.take<std::uint32_t>(keys);
    seen_ = memory.take<std::uint64_t>((keys + 63) / 64);
    ranked_ = memory.take<std::uint64_t>(keys);
    state_ = memory.take<state>(1);
  }

  std::size_t keys_{}, capacity_{};
  Slot* slot_of_{};  // [keys]
  Key* key_of_{};    // [capacity]
  frequency_lists<Slot> lists_{};
  std::uint32_t* totals_{};  // [keys], 0 between calls
  std::uint64_t* seen_{};    // [keys / 64], a bit a key, 0 between calls
  std::uint64_t* ranked_{};  // [keys], scratch
  state* state_{};
};

/// Owner of an index in host memory.
template <index_integer Key = std::int32_t, index_integer Slot = std::int32_t>
class frequency_index {
 public:
  frequency_index() = default;
  /// @throws value_error when keys or capacity do not fit their types, or max_frequency is below 2
  frequency_index(std::size_t keys, std::size_t capacity, std::uint32_t max_frequency = highest_frequency) {
    require_ok(can_frequency_index<Key, Slot>(keys, capacity, max_frequency));
    memory_ = buffer<std::byte>(frequency_index_view<Key, Slot>::required_bytes(keys, capacity));
    arena all(memory_);
    view_ = frequency_index_view<Key, Slot>::place(all, keys, capacity, max_frequency);
  }
  frequency_index(frequency_index&& other) noexcept : memory_(std::move(other.memory_)), view_(std::exchange(other.view_, {})) {}
  frequency_index& operator=(frequency_index&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(view_, other.view_);
    return *this;
  }

  std::size_t size_bytes() const { return memory_.size_bytes(); }
  frequency_index_view<Key, Slot> mutable_view() { return view_; }

 private:
  buffer<std::byte> memory_;
  frequency_index_view<Key, Slot> view_{};
};

// What follows implements the above.

template <index_integer Key, index_integer Slot>
lookup_outcome frequency_index_view<Key, Slot>::lookup(pqkv::view<const Key, 1> keys, pqkv::view<Slot, 1> slots) const {
  require_ok(can_lookup(keys, slots));
  const std::size_t count = keys.extent(0);
  if (count == 0) return {};
  std::size_t hits = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Slot slot = slot_of_[number(keys.data[i])];
    slots.data[i] = slot;
    hits += slot != no_slot;
  }
  state_->counted.hits += hits;
  state_->counted.misses += count - hits;
  return {hits, count - hits};
}

template <index_integer Key, index_integer Slot>
template <std::predicate<Key> Final>
admit_outcome frequency_index_view<Key, Slot>::admit(pqkv::view<const Key, 1> keys, pqkv::view<const std::uint32_t, 1> counts,
                                                     std::size_t limit, Final is_final, pqkv::view<admission_type, 1> admitted) const {
  require_ok(can_admit(keys, counts, limit, admitted));
  std::size_t found = 0;
  for (std::size_t i = 0; i < keys.extent(0); ++i) {
    const std::uint32_t count = counts.data == nullptr ? 1 : counts.data[i];
    if (count == 0) continue;
    std::uint32_t& total = totals_[number(keys.data[i])];
    if (total == 0) ranked_[found++] = number(keys.data[i]);
    total = count > 0xffffffffu - total ? 0xffffffffu : total + count;
  }
  for (std::size_t i = 0; i < found; ++i) {  // one number that orders by total, then by the lower key
    std::uint32_t& total = totals_[ranked_[i]];
    ranked_[i] = std::uint64_t{total} << 32 | (0xffffffffu - ranked_[i]);
    total = 0;
  }
  if (found > limit) std::nth_element(ranked_, ranked_ + limit, ranked_ + found, std::greater<>());
  found = std::min(found, limit);
  std::sort(ranked_, ranked_ + found, std::greater<>());
  for (std::size_t i = 0; i < found; ++i) ranked_[i] = 0xffffffffu - (ranked_[i] & 0xffffffffu);
  return offer(found, is_final, admitted.data);
}

template <index_integer Key, index_integer Slot>
status frequency_index_view<Key, Slot>::can_admit_ranked(pqkv::view<const Key, 1> keys,
                                                         pqkv::view<admission_type, 1> admitted) const noexcept {
  detail::checks checked = in_domain("admit_ranked", keys);
  if (!checked.ok()) return checked;
  std::size_t distinct = 0;  // before the first repeated one
  for (; distinct < keys.extent(0); ++distinct) {
    const std::size_t key = number(keys.data[distinct]);
    if ((seen_[key / 64] >> key % 64 & 1) != 0) break;
    seen_[key / 64] |= std::uint64_t{1} << key % 64;
  }
  for (std::size_t i = 0; i < distinct; ++i) seen_[number(keys.data[i]) / 64] = 0;
  return room_for(
      checked.that(distinct == keys.extent(0), status::code::value, "keys", relation::required, "distinct", keys.extent(0), distinct),
      keys.extent(0), admitted);
}

template <index_integer Key, index_integer Slot>
template <std::predicate<Key> Final>
admit_outcome frequency_index_view<Key, Slot>::admit_ranked(pqkv::view<const Key, 1> keys, Final is_final,
                                                            pqkv::view<admission_type, 1> admitted) const {
  require_ok(can_admit_ranked(keys, admitted));
  for (std::size_t i = 0; i < keys.extent(0); ++i) ranked_[i] = number(keys.data[i]);
  return offer(keys.extent(0), is_final, admitted.data);
}

/// ranked_ [count] has the keys, best first.
template <index_integer Key, index_integer Slot>
template <class Final>
admit_outcome frequency_index_view<Key, Slot>::offer(std::size_t count, Final& is_final, admission_type* admitted) const {
  if (count == 0) return {};
  constexpr std::uint64_t key_bits = 0xffffffffu, enters = 1, rises = 2;  // above the key: 0, `enters`, or `rises` + slot
  for (std::size_t rank = 0; rank < count; ++rank) {                      // asked before anything is changed: a caller's function may throw
    const std::uint64_t key = ranked_[rank];
    const Slot slot = slot_of_[key];
    if (slot != no_slot) {
      lists_.prefetch(slot);
      ranked_[rank] = (rises + static_cast<std::uint64_t>(slot)) << 32 | key;
    } else if (is_final(static_cast<Key>(key))) {
      ranked_[rank] = enters << 32 | key;
    }
  }
  // From the last to the best, so that buckets stay in the order of offers; keys that are to enter gather at the end.
  const std::uint64_t step = state_->offers;
  std::size_t first_new = count;
  for (std::size_t rank = count; rank-- > 0;) {
    const std::uint64_t what = ranked_[rank] >> 32;
    if (what >= rises)
      lists_.rise(static_cast<Slot>(what - rises), step + (count - 1 - rank));
    else if (what == enters)
      ranked_[--first_new] = std::uint64_t{rank} << 32 | (ranked_[rank] & key_bits);
  }
  admit_outcome outcome{count, 0, 0};
  for (auto search = lists_.begin_search(); first_new + outcome.admitted < count; ++outcome.admitted) {
    const Slot slot = lists_.take(search, step);
    if (slot == no_slot) break;
    const auto key = static_cast<Key>(ranked_[first_new + outcome.admitted] & key_bits), left = std::exchange(key_in(slot), key);
    if (left != no_key) {
      slot_of_[number(left)] = no_slot;
      ++outcome.evicted;
    }
    slot_of_[number(key)] = slot;
    if (admitted != nullptr) admitted[outcome.admitted] = {key, slot, left};
  }
  for (std::size_t i = outcome.admitted; i-- > 0;) {  // into the lists only now: nobody who has just entered is a victim
    const std::uint64_t entering = ranked_[first_new + i];
    lists_.enter(slot_of_[entering & key_bits], step + (count - 1 - (entering >> 32)));
  }
  state_->offers += count;
  state_->counted.admissions += outcome.admitted;
  state_->counted.evictions += outcome.evicted;
  return outcome;
}

}  // namespace pqkv
