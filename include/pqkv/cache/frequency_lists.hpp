// SPDX-License-Identifier: Apache-2.0
// Slots in the order in which they are given away: buckets of equal frequency, ascending, and in a bucket the slots by their latest
// offer, oldest first. Doubly linked lists on two flat arrays; a bucket exists while a slot is in it, so `capacity` of them suffice.
// Every operation but age() and clear() takes constant time. What a slot holds is the affair of frequency_index.hpp.
// Source: Shah, Mitra, Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../core/arena.hpp"

namespace pqkv {

/// Integer types that number keys and slots.
template <class T>
concept index_integer = std::integral<T> && !std::same_as<std::remove_cv_t<T>, bool>;

/// A view: copies mean the same lists. Nothing is checked here; frequency_index_view has the doors.
template <index_integer Slot>
class frequency_lists {
 public:
  static constexpr Slot none = static_cast<Slot>(-1);

  /// Takes its arrays from an arena; clear() before use. A counting arena counts.
  void carve(arena& memory, std::size_t capacity, std::uint32_t max_frequency) {
    capacity_ = capacity;
    entries_ = memory.take<entry>(capacity);
    buckets_ = memory.take<bucket>(capacity);
    ends_ = memory.take<ends>(1);
    max_frequency_ = max_frequency;
  }
  /// All slots become free, the lowest to be taken first.
  void clear() const {
    for (std::size_t i = 0; i < capacity_; ++i) {
      const Slot next = i + 1 < capacity_ ? static_cast<Slot>(i + 1) : none;
      entries_[i] = {none, next, none, 0};
      buckets_[i] = {none, none, none, next, 0};
    }
    *ends_ = {capacity_ != 0 ? Slot{0} : none, capacity_ != 0 ? Slot{0} : none, none, 0};
  }

  std::size_t capacity() const { return capacity_; }
  std::size_t size() const { return ends_ == nullptr ? 0 : ends_->size; }
  /// Of a slot that is not free: how often it was offered, and the number of its latest offer.
  std::uint32_t frequency(Slot slot) const { return at(at(slot).bucket, buckets_).frequency; }
  std::uint64_t offer(Slot slot) const { return at(slot).offer; }

  /// A slot that take() has given: frequency 1.
  /// @param offer  above that of every other slot of frequency 1
  void enter(Slot slot, std::uint64_t offer) const {
    if (ends_->lowest == none || list(ends_->lowest).frequency != 1) add_bucket(1, none, ends_->lowest);
    at(slot).offer = offer;
    append(slot, ends_->lowest);
    ++ends_->size;
  }

  /// One more offer: the slot's frequency rises up to the highest, where only its place among equals does.
  /// @param offer  above that of every other slot
  void rise(Slot slot, std::uint64_t offer) const {
    entry& moved = at(slot);
    moved.offer = offer;
    bucket& from = list(moved.bucket);
    const bool saturated = from.frequency == max_frequency_, alone = from.first == from.last;
    if (saturated && from.last == slot) return;
    if (saturated) {
      const Slot same = moved.bucket;
      unlink(slot);
      append(slot, same);
      return;
    }
    const std::uint32_t risen = from.frequency + 1;
    Slot to = from.next;
    if (to == none || list(to).frequency != risen) {
      if (alone) {  // the bucket rises with its only slot
        from.frequency = risen;
        return;
      }
      to = add_bucket(risen, moved.bucket, from.next);
    }
    unlink(slot);
    append(slot, to);
  }

  /// Where take() is in its walk over the slots of a step.
  struct search {
    Slot bucket = none;
  };
  search begin_search() const { return {ends_->lowest}; }

  /// A free slot, or else the first in the order that was not offered since `step`, which leaves its list. none when there is neither.
  /// Between the calls of one search slots may be taken and nothing else.
  Slot take(search& where, std::uint64_t step) const {
    if (ends_->free_slot != none) {
      const Slot slot = ends_->free_slot;
      ends_->free_slot = at(slot).next;
      return slot;
    }
    while (where.bucket != none) {
      const bucket& here = list(where.bucket);
      const Slot slot = here.first, next = here.next;
      if (at(slot).offer < step) {
        if (here.first == here.last) where.bucket = next;
        unlink(slot);
        --ends_->size;
        return slot;
      }
      where.bucket = next;  // the newest offers stand last: the whole rest of a bucket is of this step
    }
    return none;
  }

  /// Frees a slot that is not free; the next take() gives it.
  void release(Slot slot) const {
    unlink(slot);
    at(slot).next = ends_->free_slot;
    ends_->free_slot = slot;
    --ends_->size;
  }

  /// Halves every frequency, rounding up: at most two buckets become one, and their slots keep the order of their offers.
  void age() const {
    for (Slot low = ends_ == nullptr ? none : ends_->lowest; low != none; low = list(low).next) {
      list(low).frequency -= list(low).frequency / 2;
      const Slot high = list(low).next;
      if (high != none && list(high).frequency - list(high).frequency / 2 == list(low).frequency) merge(low, high);
    }
  }

 private:
  struct entry {          // of a slot
    Slot previous, next;  // in its bucket; the free slots are a list by `next`
    Slot bucket;
    std::uint64_t offer;
  };
  struct bucket {
    Slot first, last;
    Slot previous, next;  // bucket; the free ones are a list by `next`
    std::uint32_t frequency;
  };
  struct ends {
    Slot free_slot, free_bucket, lowest;
    std::size_t size;
  };

  template <class T>
  static T& at(Slot index, T* array) {
    return array[static_cast<std::size_t>(index)];
  }
  entry& at(Slot slot) const { return at(slot, entries_); }
  bucket& list(Slot index) const { return at(index, buckets_); }

  Slot add_bucket(std::uint32_t frequency, Slot previous, Slot next) const {
    const Slot made = ends_->free_bucket;
    ends_->free_bucket = list(made).next;
    list(made) = {none, none, previous, next, frequency};
    (previous == none ? ends_->lowest : list(previous).next) = made;
    if (next != none) list(next).previous = made;
    return made;
  }
  void remove_bucket(Slot index) const {
    bucket& gone = list(index);
    (gone.previous == none ? ends_->lowest : list(gone.previous).next) = gone.next;
    if (gone.next != none) list(gone.next).previous = gone.previous;
    gone.next = ends_->free_bucket;
    ends_->free_bucket = index;
  }
  void append(Slot slot, Slot to) const {
    bucket& into = list(to);
    entry& added = at(slot);
    added.previous = into.last;
    added.next = none;
    added.bucket = to;
    (into.last == none ? into.first : at(into.last).next) = slot;
    into.last = slot;
  }
  /// Removes the bucket too when it is empty then.
  void unlink(Slot slot) const {
    const entry& gone = at(slot);
    bucket& from = list(gone.bucket);
    (gone.previous == none ? from.first : at(gone.previous).next) = gone.next;
    (gone.next == none ? from.last : at(gone.next).previous) = gone.previous;
    if (from.first == none) remove_bucket(gone.bucket);
  }
  /// Two lists, each by offers, into one.
  void merge(Slot low, Slot high) const {
    Slot one = list(low).first, other = list(high).first;
    list(low).first = list(low).last = none;
    while (one != none || other != none) {
      Slot& older = other == none || (one != none && at(one).offer < at(other).offer) ? one : other;
      const Slot slot = older;
      older = at(slot).next;
      append(slot, low);
    }
    remove_bucket(high);
  }

  std::size_t capacity_{};
  entry* entries_{};   // [capacity]
  bucket* buckets_{};  // [capacity]
  ends* ends_{};
  std::uint32_t max_frequency_{};
};

}  // namespace pqkv
