// SPDX-License-Identifier: Apache-2.0
// The caches of a tier (tier_settings.hpp): product quantization over a file, with copies of some rows in memory, for each eviction policy.
#pragma once
#include "selector_cache.hpp"

namespace minillama {

template <class Eviction>
struct tiered_cache {
  using rows = pqkv::tiered_rows<pqkv::file_rows<float>, pqkv::space::host, Eviction>;
  using params = typename pqkv::pqcache<rows, pqkv::selector::pq>::params;

  static std::unique_ptr<layer_cache> make(const params& p) { return std::make_unique<selector_cache<rows, pqkv::selector::pq>>(p); }
  static pqkv::memory_plan plan(const params& p) { return pqkv::pqcache<rows, pqkv::selector::pq>::plan(p); }
};

extern template struct tiered_cache<pqkv::eviction::lfu>;
extern template struct tiered_cache<pqkv::eviction::lru>;
extern template struct tiered_cache<pqkv::eviction::tiny_lfu>;

}  // namespace minillama
