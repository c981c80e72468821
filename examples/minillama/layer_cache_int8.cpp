// SPDX-License-Identifier: Apache-2.0
// Caches over rows of 8-bit integers.
#include "selector_cache.hpp"

namespace minillama {

template struct caches_over<pqkv::quantized_rows<>>;

}  // namespace minillama
