// SPDX-License-Identifier: Apache-2.0
// What one slot of a cache owns, as a list of runs of bytes. Their lengths follow from the sequence's length. Copying, saving and loading a
// slot all use this list, on the host and on a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE {

/// One array of a cache: for every slot `segments` runs of fixed_bytes + n * token_bytes bytes.
struct slot_part {
  std::byte* data = nullptr;      // of slot 0
  std::size_t slot_bytes = 0;     // from one slot to the next
  std::size_t segments = 1;       // runs of a slot, e.g. KV heads
  std::size_t segment_bytes = 0;  // from one run to the next
  std::size_t fixed_bytes = 0;    // of a run
  std::size_t token_bytes = 0;    // of a run, for each token
  std::size_t limit = 0;          // every byte is below it, which is checked when a file is loaded; 0: no limit

  PQKV_HD constexpr std::byte* segment(std::size_t slot, std::size_t which) const {
    return data + slot * slot_bytes + which * segment_bytes;
  }
  /// Bytes of a run of a sequence of n tokens.
  PQKV_HD constexpr std::size_t bytes(std::size_t n) const { return fixed_bytes + n * token_bytes; }
};

/// The parts of a slot, passed to kernels by value.
struct slot_parts {
  static constexpr std::size_t most = 20;
  slot_part part[most]{};
  std::size_t count = 0;

  /// An array [slots, segments, size] of T that does not grow with the sequence.
  template <class T>
  constexpr void add_fixed(T* data, std::size_t segments, std::size_t size, std::size_t limit = 0) {
    add(data, segments, size, {.fixed_bytes = size * sizeof(T), .limit = limit});
  }
  /// An array [slots, segments, capacity] of `size` T a token.
  template <class T>
  constexpr void add_tokens(T* data, std::size_t segments, std::size_t capacity, std::size_t size, std::size_t limit = 0) {
    add(data, segments, capacity * size, {.token_bytes = size * sizeof(T), .limit = limit});
  }
  constexpr void add(const slot_parts& others) {
    for (std::size_t i = 0; i < others.count; ++i) part[count++] = others.part[i];
  }
  /// Bytes of a slot of n tokens.
  constexpr std::size_t bytes(std::size_t n) const {
    std::size_t all = 0;
    for (std::size_t i = 0; i < count; ++i) all += part[i].segments * part[i].bytes(n);
    return all;
  }

 private:
  template <class T>
  constexpr void add(T* data, std::size_t segments, std::size_t stride, slot_part made) {
    if (data == nullptr || segments == 0) return;
    made.data = reinterpret_cast<std::byte*>(data);
    made.segments = segments;
    made.segment_bytes = stride * sizeof(T);
    made.slot_bytes = segments * made.segment_bytes;
    part[count++] = made;
  }
};

}  // namespace pqkv
