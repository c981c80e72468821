// SPDX-License-Identifier: Apache-2.0
// Tiers of 8-bit integers.
#include "tiered_caches.hpp"

namespace minillama {

template struct tiered_caches<pqkv::scaled_int8>;

}  // namespace minillama
