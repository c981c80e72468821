// SPDX-License-Identifier: Apache-2.0
// One block cache as plain memory, and every decision about it as a function of that memory: where a block is, whether it may enter, which
// block leaves for it. The host's loop and the device's kernels call the same functions, so both keep the same blocks. block_cache.hpp says
// what a cache is for and how to use it; users need only that header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../core/arena.hpp"
#include "eviction.hpp"

namespace pqkv::inline PQKV_MODE {

/// What a slot of fast memory holds.
enum class block_state : std::uint8_t {
  empty,
  filling,  // it belongs to a block whose rows have not been copied yet: never found, never evicted
  valid
};

/// A block that entered, and what to copy where.
struct block_admission {
  std::uint32_t block, slot;
  std::int32_t evicted;  // the block that left the slot; -1: it was empty
  std::uint32_t unused = 0;
};

/// A block or slot with its place in some order; the lowest is first.
struct ranked_block {
  std::uint64_t order;
  std::uint32_t number, rank;
};

/// Counts of one cache since it was empty. Bytes moved are admissions times the bytes of a block, which the caller knows.
struct block_statistics {
  std::uint64_t hits = 0;        // tokens looked up that were in fast memory
  std::uint64_t misses = 0;      // tokens looked up that were not
  std::uint64_t admissions = 0;  // blocks that got a slot
  std::uint64_t evictions = 0;   // admissions that made another block leave its slot
  std::uint64_t kept_out = 0;    // offers of complete blocks that were not in the cache and did not enter

  PQKV_HD constexpr block_statistics& operator+=(const block_statistics& other) {
    hits += other.hits, misses += other.misses, admissions += other.admissions, evictions += other.evictions, kept_out += other.kept_out;
    return *this;
  }
};

/// One cache as plain pointers, and the decisions about it. All zeros are an empty cache.
template <eviction_policy Eviction>
struct one_block_cache {
  static constexpr std::uint64_t never = ~std::uint64_t{0};
  static constexpr std::uint32_t nobody = 0xffffffffu, on_the_way = 0x80000000u;

  /// Counters of the cache.
  struct progress_type {
    std::uint64_t offers, age_began;  // offers made so far, and when the age began
    std::uint32_t age, touched, admitted, unused;
  };

  std::uint32_t* slots{};              // [blocks] slot + 1, plus `on_the_way` while it is filling; 0: no slot
  std::uint32_t* counts{};             // [blocks] selected tokens since the last admission
  std::uint32_t* touched{};            // [blocks + 1] the first progress->touched entries: blocks whose count is not 0, in any order
  remembered_frequency* remembered{};  // [blocks] if the policy remembers
  std::uint32_t* held{};               // [capacity] block + 1; 0: none
  std::uint64_t* order{};              // [capacity] for slots that are not empty
  block_state* states{};               // [capacity]
  block_admission* admitted{};         // [admit] the first progress->admitted entries: the last admission, best first
  ranked_block* ranked{};              // [2 * admit] scratch of the host
  progress_type* progress{};
  block_statistics* statistics{};
  std::uint32_t blocks{}, capacity{}, admit{}, block_tokens{1};

  /// The slot of a block, whether its rows have been copied or not; -1: none.
  PQKV_HD std::int32_t slot_of(std::uint32_t block) const { return static_cast<std::int32_t>(slots[block] & ~on_the_way) - 1; }
  /// The slot of a block whose rows have been copied; -1 for all other blocks.
  PQKV_HD std::int32_t found(std::uint32_t block) const {
    const auto entry = static_cast<std::int32_t>(slots[block]);
    return (entry > 0 ? entry : 0) - 1;
  }
  /// Whether all rows of a block are final. A half-filled block is never admitted.
  PQKV_HD bool is_final(std::uint32_t block, std::uint32_t final_tokens) const {
    return std::uint64_t{block + 1} * block_tokens <= final_tokens;
  }
  /// The lower value is offered first: the higher count, then the lower block.
  PQKV_HD std::uint64_t offer_order(std::uint32_t block) const { return std::uint64_t{0xffffffffu - counts[block]} << 32 | block; }
  /// The lower value leaves first: empty slots by number, then blocks by the policy's order. `never` for a slot that is filling, and for
  /// one whose block was offered in this step.
  PQKV_HD std::uint64_t leave_order(std::uint32_t slot, std::uint64_t first_stamp) const {
    const block_state state = states[slot];
    if (state == block_state::empty) return slot;
    return state == block_state::filling || eviction_order::stamp(order[slot]) >= first_stamp ? never : order[slot];
  }
  /// The first stamp for a step's `count` offers: above every slot's number, so that empty slots are taken first.
  PQKV_HD std::uint64_t first_stamp() const { return capacity + progress->offers; }

  /// Offers a block.
  PQKV_HD void offer(std::uint32_t block, std::uint64_t stamp) const {
    const std::int32_t slot = slot_of(block);
    std::uint32_t frequency = slot >= 0 ? eviction_order::frequency(order[slot]) : 0;
    if constexpr (Eviction::remembers) frequency = remembered[block].at(progress->age);
    frequency = Eviction::offered(frequency);
    if constexpr (Eviction::remembers) remembered[block] = remembered_frequency::of(frequency, progress->age);
    if (slot >= 0) order[slot] = eviction_order::of(frequency, stamp);
  }
  /// The frequency of a block without a slot, after its offer.
  PQKV_HD std::uint32_t newcomer_frequency(std::uint32_t block) const {
    if constexpr (Eviction::remembers)
      return remembered[block].at(progress->age);
    else
      return Eviction::offered(0);
  }
  /// The frequency of the block that would leave a slot; `nobody` if the slot is empty.
  PQKV_HD std::uint32_t leaving_frequency(std::uint32_t slot) const {
    return states[slot] == block_state::empty ? nobody : eviction_order::frequency(order[slot]);
  }
  PQKV_HD static bool may_enter(std::uint32_t newcomer_frequency, std::uint32_t leaving_frequency) {
    return leaving_frequency == nobody || Eviction::may_enter(newcomer_frequency, leaving_frequency);
  }
  /// A newcomer takes a slot, and the block in it leaves. It is the i-th that the step admits. @return whether a block left
  PQKV_HD bool enter(std::size_t i, std::uint32_t block, std::uint32_t slot, std::uint64_t stamp) const {
    const std::uint32_t left = held[slot];
    if (left != 0) slots[left - 1] = 0;
    slots[block] = (slot + 1) | on_the_way;
    held[slot] = block + 1;
    states[slot] = block_state::filling;
    order[slot] = eviction_order::of(newcomer_frequency(block), stamp);
    admitted[i] = {block, slot, static_cast<std::int32_t>(left) - 1};
    return left != 0;
  }
  /// Call when the rows of the i-th admitted block have been copied. Does nothing if a cut has removed the block since.
  PQKV_HD void fill(std::size_t i) const {
    const block_admission& one = admitted[i];
    if (states[one.slot] != block_state::filling || held[one.slot] != one.block + 1) return;
    states[one.slot] = block_state::valid;
    slots[one.block] = one.slot + 1;
  }
  /// Empties a slot.
  PQKV_HD void release(std::uint32_t slot) const {
    if (held[slot] != 0) slots[held[slot] - 1] = 0;
    held[slot] = 0;
    states[slot] = block_state::empty;
    order[slot] = 0;
  }
  /// The outcome of a step of admissions.
  struct step_totals {
    std::uint32_t offered, waited, admitted, evicted;  // blocks; `waited`: complete ones without a slot
  };
  /// Ends a step. @return whether an age is over: then the caller halves order[] of all slots
  PQKV_HD bool end_step(const step_totals& step) const {
    progress->offers += step.offered;
    progress->touched = 0;
    progress->admitted = step.admitted;
    statistics->admissions += step.admitted;
    statistics->evictions += step.evicted;
    statistics->kept_out += step.waited - step.admitted;
    if (progress->age == remembered_frequency::last_age || !Eviction::is_age_over(progress->offers - progress->age_began, capacity))
      return false;
    ++progress->age;
    progress->age_began = progress->offers;
    return true;
  }

  /// The same cache, `bytes` further in memory.
  PQKV_HD one_block_cache moved(std::size_t bytes) const {
    one_block_cache other = *this;
    const auto move = [bytes](auto*& p) {
      p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(reinterpret_cast<std::uintptr_t>(p) + bytes);
    };
    move(other.slots), move(other.counts), move(other.touched), move(other.held), move(other.order), move(other.states);
    move(other.admitted), move(other.ranked), move(other.progress), move(other.statistics);
    if (remembered != nullptr) move(other.remembered);
    return other;
  }
  void carve(arena& memory) {
    slots = memory.take<std::uint32_t>(blocks);
    counts = memory.take<std::uint32_t>(blocks);
    touched = memory.take<std::uint32_t>(std::size_t{blocks} + 1);
    if constexpr (Eviction::remembers) remembered = memory.take<remembered_frequency>(blocks);
    held = memory.take<std::uint32_t>(capacity);
    order = memory.take<std::uint64_t>(capacity);
    states = memory.take<block_state>(capacity);
    admitted = memory.take<block_admission>(admit);
    ranked = memory.take<ranked_block>(2 * std::size_t{admit});
    progress = memory.take<progress_type>(1);
    statistics = memory.take<block_statistics>(1);
  }
};

}  // namespace pqkv
