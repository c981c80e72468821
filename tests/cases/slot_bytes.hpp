// SPDX-License-Identifier: Apache-2.0
// A saved slot in memory, for tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <pqkv/cache/slot_file.hpp>

namespace pqkv_cases {

/// Gives a file away in pieces of at most `most` bytes.
struct file_source {
  const std::vector<std::byte>& file;
  std::size_t most = 1u << 30, at = 0;

  std::size_t operator()(std::byte* data, std::size_t bytes) {
    const std::size_t count = std::min({bytes, most, file.size() - at});
    std::copy_n(file.data() + at, count, data);
    at += count;
    return count;
  }
};

template <class Policy, class Cache>
std::vector<std::byte> saved(const Policy& policy, const Cache& cache, std::size_t slot,
                             pqkv::slot_contents contents = pqkv::slot_contents::index_and_rows) {
  std::vector<std::byte> file;
  cache.save(
      policy, slot, [&](const std::byte* data, std::size_t bytes) { file.insert(file.end(), data, data + bytes); }, contents);
  return file;
}

template <class Policy, class Cache>
void load(const Policy& policy, Cache& cache, std::size_t slot, const std::vector<std::byte>& file,
          pqkv::slot_contents contents = pqkv::slot_contents::index_and_rows, std::size_t most = 1u << 30) {
  cache.load(policy, slot, file_source{file, most}, contents);
}

}  // namespace pqkv_cases
