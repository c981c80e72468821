// SPDX-License-Identifier: Apache-2.0
// Lists for a frequency index as views, and everything that an index says, to compare before and after a call.
#pragma once

#include <cstdint>
#include <vector>

#include <pqkv/cache/frequency_index.hpp>

namespace pqkv_cases {

template <class T>
pqkv::view<const T, 1> read(const std::vector<T>& list) {
  return pqkv::make_view(list.data(), list.size());
}
template <class T>
pqkv::view<T, 1> write(std::vector<T>& list) {
  return pqkv::make_view(list.data(), list.size());
}

struct frequency_contents {
  std::vector<std::int32_t> slots, keys;
  std::vector<std::uint32_t> frequencies;
  std::vector<std::uint64_t> counted;
  bool operator==(const frequency_contents&) const = default;
};
inline frequency_contents contents_of(const pqkv::frequency_index_view<>& index) {
  frequency_contents all;
  for (std::size_t key = 0; key < index.keys(); ++key) {
    all.slots.push_back(index.slot_of()(key));
    all.frequencies.push_back(index.frequency(static_cast<std::int32_t>(key)));
  }
  for (std::size_t slot = 0; slot < index.capacity(); ++slot) all.keys.push_back(index.key_of()(slot));
  const pqkv::frequency_statistics s = index.statistics();
  all.counted = {s.hits, s.misses, s.admissions, s.evictions};
  return all;
}

inline std::vector<std::int32_t> held(const pqkv::frequency_index_view<>& index) {
  std::vector<std::int32_t> keys;
  for (std::size_t key = 0; key < index.keys(); ++key)
    if (index.slot_of()(key) >= 0) keys.push_back(static_cast<std::int32_t>(key));
  return keys;
}
}  // namespace pqkv_cases
