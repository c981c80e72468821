// SPDX-License-Identifier: Apache-2.0
// Slots in the order in which they are given away: buckets of equal frequency, ascending, and in a bucket the slots by their latest
// offer, oldest first. Linked rings on flat arrays: each bucket has a node of its own in its ring and the buckets one in theirs, so
// that linking and unlinking ask no question that a branch predictor could get wrong. A bucket exists while a slot is in it, so
// `capacity` of them suffice. Every operation but age() and clear() takes constant time. What a slot holds is the affair of
// frequency_index.hpp. Source: Shah, Mitra, Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../core/arena.hpp"

namespace pqkv::inline PQKV_MODE {

/// Integer types that number keys and slots.
template <class T>
concept index_integer = std::integral<T> && !std::same_as<std::remove_cv_t<T>, bool>;

/// A view: copies mean the same lists. Nothing is checked here; frequency_index_view has the doors.
template <index_integer Slot>
class frequency_lists {
 public:
  static constexpr Slot none = static_cast<Slot>(-1);

  /// Takes its arrays from an arena; clear() before use. A counting arena counts.
  /// @param capacity  below 2^31
  void carve(arena& memory, std::size_t capacity, std::uint32_t max_frequency) {
    capacity_ = static_cast<std::uint32_t>(capacity);
    nodes_ = memory.take<node>(2 * capacity);
    offers_ = memory.take<std::uint64_t>(capacity);
    buckets_ = memory.take<bucket>(capacity + 1);
    ends_ = memory.take<ends>(1);
    max_frequency_ = max_frequency;
  }
  /// All slots become free, the lowest to be taken first.
  void clear() const {
    for (std::uint32_t i = 0; i < capacity_; ++i) {
      nodes_[i].next = i + 1;
      buckets_[i].next = i + 1;
    }
    buckets_[capacity_] = {capacity_, capacity_, 0};
    *ends_ = {0, 0, 0};
  }

  std::size_t capacity() const { return capacity_; }
  std::size_t size() const { return ends_ == nullptr ? 0 : ends_->size; }
  /// Of a slot that is not free: how often it was offered, and the number of its latest offer.
  std::uint32_t frequency(Slot slot) const { return buckets_[nodes_[number(slot)].bucket].frequency; }
  std::uint64_t offer(Slot slot) const { return offers_[number(slot)]; }
  /// Asks for the memory that rise() will want first.
  void prefetch(Slot slot) const { __builtin_prefetch(&nodes_[number(slot)], 1); }

  /// A slot that take() has given: frequency 1.
  /// @param offer  above that of every other slot of frequency 1
  void enter(Slot slot, std::uint64_t offer) const {
    if (buckets_[lowest()].frequency != 1) add_bucket(1, capacity_);
    offers_[number(slot)] = offer;
    append(number(slot), lowest());
    ++ends_->size;
  }

  /// One more offer: the slot's frequency rises up to the highest, where only its place among equals does.
  /// @param offer  above that of every other slot
  void rise(Slot slot, std::uint64_t offer) const {
    const std::uint32_t moved = number(slot), from = nodes_[moved].bucket, risen = buckets_[from].frequency + 1;
    const bool alone = nodes_[moved].previous == nodes_[moved].next;
    offers_[moved] = offer;
    std::uint32_t to = from;
    if (risen - 1 != max_frequency_) {
      to = buckets_[from].next;
      if (buckets_[to].frequency != risen) {
        if (alone) {  // the bucket rises with its only slot
          buckets_[from].frequency = risen;
          return;
        }
        to = add_bucket(risen, from);
      }
    }
    unlink(moved);
    append(moved, to);
    if (alone && to != from) remove_bucket(from);
  }

  /// Where take() is in its walk over the slots of a step.
  struct search {
    std::uint32_t bucket = 0;
  };
  search begin_search() const { return {ends_ == nullptr ? 0 : lowest()}; }

  /// A free slot, or else the first in the order that was not offered since `step`, which leaves its list. none when there is neither.
  /// Between the calls of one search slots may be taken and nothing else.
  Slot take(search& where, std::uint64_t step) const {
    if (ends_->free_slot != capacity_) return static_cast<Slot>(std::exchange(ends_->free_slot, nodes_[ends_->free_slot].next));
    while (where.bucket != capacity_) {
      const std::uint32_t here = where.bucket, next = buckets_[here].next, slot = nodes_[own_node(here)].next;
      if (offers_[slot] < step) {
        if (leave(slot)) where.bucket = next;
        return static_cast<Slot>(slot);
      }
      where.bucket = next;  // the newest offers stand last: the whole rest of a bucket is of this step
    }
    return none;
  }

  /// Frees a slot that is not free; the next take() gives it.
  void release(Slot slot) const {
    leave(number(slot));
    nodes_[number(slot)].next = std::exchange(ends_->free_slot, number(slot));
  }

  /// Halves every frequency, rounding up: at most two buckets become one, and their slots keep the order of their offers.
  void age() const {
    if (ends_ == nullptr) return;
    for (std::uint32_t low = lowest(); low != capacity_; low = buckets_[low].next) {
      buckets_[low].frequency -= buckets_[low].frequency / 2;
      const std::uint32_t high = buckets_[low].next, halved = buckets_[high].frequency - buckets_[high].frequency / 2;
      if (halved == buckets_[low].frequency) merge(low, high);
    }
  }

 private:
  struct alignas(16) node {        // of a slot, and at capacity + i that of bucket i, between its last and its first slot
    std::uint32_t previous, next;  // in its ring; the free slots are a list by `next` that ends with `capacity`
    std::uint32_t bucket;
  };
  struct bucket {                  // at `capacity` the ring's own, of frequency 0, between the highest and the lowest
    std::uint32_t previous, next;  // in the ring; the free ones are a list by `next`
    std::uint32_t frequency;
  };
  struct ends {
    std::uint32_t free_slot, free_bucket;
    std::size_t size;
  };

  static constexpr std::uint32_t number(Slot slot) { return static_cast<std::uint32_t>(slot); }
  std::uint32_t own_node(std::uint32_t index) const { return capacity_ + index; }
  std::uint32_t lowest() const { return buckets_[capacity_].next; }

  std::uint32_t add_bucket(std::uint32_t frequency, std::uint32_t previous) const {
    const std::uint32_t made = ends_->free_bucket, next = buckets_[previous].next;
    ends_->free_bucket = buckets_[made].next;
    buckets_[made] = {previous, next, frequency};
    buckets_[previous].next = buckets_[next].previous = made;
    nodes_[own_node(made)] = {own_node(made), own_node(made), made};
    return made;
  }
  void remove_bucket(std::uint32_t index) const {
    const bucket gone = buckets_[index];
    buckets_[gone.previous].next = gone.next;
    buckets_[gone.next].previous = gone.previous;
    buckets_[index].next = std::exchange(ends_->free_bucket, index);
  }
  void append(std::uint32_t slot, std::uint32_t to) const {
    node& end = nodes_[own_node(to)];
    nodes_[slot] = {end.previous, own_node(to), to};
    nodes_[end.previous].next = slot;
    end.previous = slot;
  }
  void unlink(std::uint32_t slot) const {
    const node gone = nodes_[slot];
    nodes_[gone.previous].next = gone.next;
    nodes_[gone.next].previous = gone.previous;
  }
  /// Out of its bucket, and the bucket too if nothing is left in it, which the answer says.
  bool leave(std::uint32_t slot) const {
    const bool alone = nodes_[slot].previous == nodes_[slot].next;
    unlink(slot);
    if (alone) remove_bucket(nodes_[slot].bucket);
    --ends_->size;
    return alone;
  }
  /// Two lists, each by offers, into one.
  void merge(std::uint32_t low, std::uint32_t high) const {
    std::uint32_t one = nodes_[own_node(low)].next, other = nodes_[own_node(high)].next;
    nodes_[own_node(low)] = {own_node(low), own_node(low), low};
    while (one != own_node(low) || other != own_node(high)) {
      const bool first = other == own_node(high) || (one != own_node(low) && offers_[one] < offers_[other]);
      const std::uint32_t slot = first ? one : other;
      (first ? one : other) = nodes_[slot].next;
      append(slot, low);
    }
    remove_bucket(high);
  }

  std::uint32_t capacity_{};
  node* nodes_{};            // [2 * capacity]
  std::uint64_t* offers_{};  // [capacity] number of a slot's latest offer
  bucket* buckets_{};        // [capacity + 1]
  ends* ends_{};
  std::uint32_t max_frequency_{};
};

}  // namespace pqkv
