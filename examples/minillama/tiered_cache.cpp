// SPDX-License-Identifier: Apache-2.0
// The caches of a tier. A file of its own: they take as long to compile as those with all rows in memory.
#include "tiered_cache.hpp"

namespace minillama {

template struct tiered_cache<pqkv::eviction::lfu>;
template struct tiered_cache<pqkv::eviction::lru>;
template struct tiered_cache<pqkv::eviction::tiny_lfu>;

}  // namespace minillama
