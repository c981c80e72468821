// SPDX-License-Identifier: Apache-2.0
#include "tiered_cache.hpp"

namespace minillama {

template struct tiered_cache<pqkv::eviction::lfu>;

}  // namespace minillama
