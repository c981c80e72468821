// SPDX-License-Identifier: Apache-2.0
// Which block leaves a full cache, as a type. A policy says what an offer does to a block's frequency, whether a newcomer may replace a
// victim, and when old offers count for less. The rest is common: each slot of the cache has one number, and the block with the lowest
// number leaves first. There are no lists and no hash, so a host loop and a device kernel find the same victim.
//
//   lfu       the paper's: least frequently offered first
//   lru       least recently offered first
//   tiny_lfu  as lfu, but old offers fade, blocks outside the cache are remembered, and a newcomer must beat its victim
//
// Sources: PQCache, SIGMOD 2025, for lfu and for what an offer is; Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission
// Policy", ACM Transactions on Storage 13(4), 2017, for tiny_lfu. Theirs keeps counts in a sketch, because its keys are of an open domain.
// Our blocks are numbered from 0, so our counts are exact.
#pragma once

#include <concepts>
#include <cstdint>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE {

/// A block's number in the order of leaving. The upper 24 bits say how often it was offered, the lower 40 when it was offered last (its
/// stamp). Of two blocks with the same frequency, the one with the older stamp is lower. No two blocks of a cache have the same stamp.
namespace eviction_order {
/// Bits of a stamp.
inline constexpr unsigned stamp_bits = 40;
/// The highest stamp.
inline constexpr std::uint64_t last_stamp = (std::uint64_t{1} << stamp_bits) - 1;
/// The highest frequency, 24 bits.
inline constexpr std::uint32_t highest_frequency = 0xffffffu;

/// The number of a block.
/// @param stamp  a stamp above last_stamp becomes last_stamp: after 10^12 offers no block leaves any more
PQKV_HD constexpr std::uint64_t of(std::uint32_t frequency, std::uint64_t stamp) {
  return std::uint64_t{frequency} << stamp_bits | (stamp < last_stamp ? stamp : last_stamp);
}
/// How often the block was offered.
PQKV_HD constexpr std::uint32_t frequency(std::uint64_t order) { return static_cast<std::uint32_t>(order >> stamp_bits); }
/// When it was offered last.
PQKV_HD constexpr std::uint64_t stamp(std::uint64_t order) { return order & last_stamp; }
/// The number of the same block when every frequency is halved.
PQKV_HD constexpr std::uint64_t halved(std::uint64_t order) { return of(frequency(order) / 2, stamp(order)); }
}  // namespace eviction_order

/// How often any block was offered lately, in or out of the cache: a count, and the age in which it was last written. It is halved once for
/// each age that has begun since. So no age has to begin with a visit to all blocks.
struct remembered_frequency {
  static constexpr std::uint32_t highest = 255, last_age = 0xffffffu;

  std::uint32_t bits = 0;  // age << 8 | count

  PQKV_HD constexpr std::uint32_t at(std::uint32_t age) const {
    const std::uint32_t since = age - (bits >> 8);
    return since < 8 ? (bits & highest) >> since : 0;
  }
  PQKV_HD static constexpr remembered_frequency of(std::uint32_t frequency, std::uint32_t age) { return {age << 8 | frequency}; }
};

/// The questions that a block cache asks its policy. All of them are plain functions of numbers, for host and device.
template <class E>
concept eviction_policy = requires(std::uint32_t frequency, std::uint64_t offers, std::uint32_t capacity) {
  { E::remembers } -> std::convertible_to<bool>;                 // whether it keeps frequencies of blocks that have no slot
  { E::offered(frequency) } -> std::same_as<std::uint32_t>;      // the frequency after one more offer
  { E::may_enter(frequency, frequency) } -> std::same_as<bool>;  // whether a newcomer, counting its offer, may replace a victim
  { E::is_age_over(offers, capacity) } -> std::same_as<bool>;    // after so many offers: then all frequencies are halved
};

/// Policies of eviction, as types.
namespace eviction {

/// Least frequently used: the block offered in the fewest steps since it entered leaves first; of equal ones, the least recently used. A
/// block that left is forgotten.
struct lfu {
  static constexpr bool remembers = false;
  PQKV_HD static constexpr std::uint32_t offered(std::uint32_t frequency) {
    return frequency < eviction_order::highest_frequency ? frequency + 1 : frequency;
  }
  PQKV_HD static constexpr bool may_enter(std::uint32_t, std::uint32_t) { return true; }
  PQKV_HD static constexpr bool is_age_over(std::uint64_t, std::uint32_t) { return false; }
};

/// Least recently used: every block has the same frequency, so only its last offer counts.
struct lru {
  static constexpr bool remembers = false;
  PQKV_HD static constexpr std::uint32_t offered(std::uint32_t) { return 1; }
  PQKV_HD static constexpr bool may_enter(std::uint32_t, std::uint32_t) { return true; }
  PQKV_HD static constexpr bool is_age_over(std::uint64_t, std::uint32_t) { return false; }
};

/// Least frequently used with aging and an admission filter: a newcomer enters a full cache only if it was offered more often lately than
/// the block that would leave. A block that is wanted once replaces nothing, and a block wanted long ago gives way. An age ends, and all
/// frequencies are halved, after ten offers for every slot of the cache, the paper's sample; at least 640, so that ages last.
struct tiny_lfu {
  static constexpr bool remembers = true;
  PQKV_HD static constexpr std::uint32_t offered(std::uint32_t frequency) {
    return frequency < remembered_frequency::highest ? frequency + 1 : frequency;
  }
  PQKV_HD static constexpr bool may_enter(std::uint32_t newcomer, std::uint32_t victim) { return newcomer > victim; }
  PQKV_HD static constexpr bool is_age_over(std::uint64_t offers, std::uint32_t capacity) {
    return offers >= 10 * std::uint64_t{capacity < 64 ? 64 : capacity};
  }
};

}  // namespace eviction
}  // namespace pqkv
