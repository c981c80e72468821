// SPDX-License-Identifier: Apache-2.0
// Keys and values in a file, with copies of some in memory (pqkv::tiered_rows): where the file is, and what memory has.
#pragma once
#include <algorithm>
#include <cstddef>
#include <map>
#include <pqkv/cache/tiered_rows.hpp>
#include <string>

namespace minillama {

/// Which block leaves a full cache (pqkv::eviction).
enum class eviction_name { lfu, lru, tiny_lfu };

inline const std::map<std::string, eviction_name>& eviction_names() {
  static const std::map<std::string, eviction_name> names{
      {"lfu", eviction_name::lfu}, {"lru", eviction_name::lru}, {"tiny_lfu", eviction_name::tiny_lfu}};
  return names;
}

inline const std::map<std::string, pqkv::block_scope>& block_scope_names() {
  static const std::map<std::string, pqkv::block_scope> names{{"layer", pqkv::block_scope::layer}, {"head", pqkv::block_scope::head}};
  return names;
}

/// Where all keys and values are.
enum class row_place { memory, file };

struct tier_settings {
  std::string folder;               // empty: keys and values are in memory
  std::size_t cache_tokens = 4096;  // of the middle, in memory; rounded down to blocks
  std::size_t block_tokens = 16;
  eviction_name eviction = eviction_name::lfu;
  pqkv::block_scope scope = pqkv::block_scope::layer;

  row_place place() const { return folder.empty() ? row_place::memory : row_place::file; }
  /// Blocks offered in a step: 4096 tokens' worth, as the paper's 32 of 128 are; as many as the library has room for.
  std::size_t admit_blocks() const { return std::clamp<std::size_t>(4096 / std::max<std::size_t>(block_tokens, 1), 32, 1024); }
};

}  // namespace minillama
