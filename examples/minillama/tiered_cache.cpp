// SPDX-License-Identifier: Apache-2.0
// Tiers of floats, and the choice between these and those of 8-bit integers.
#include "tiered_cache.hpp"

#include "tiered_caches.hpp"

namespace minillama {

template struct tiered_caches<float>;

std::unique_ptr<layer_cache> make_tiered_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                               std::size_t slots, std::size_t capacity) {
  if (settings.rows == row_format::int8) return tiered_caches<pqkv::scaled_int8>::make(settings, rule, config, slots, capacity);
  return tiered_caches<float>::make(settings, rule, config, slots, capacity);
}

pqkv::memory_plan plan_tiered_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                    std::size_t slots, std::size_t capacity) {
  if (settings.rows == row_format::int8) return tiered_caches<pqkv::scaled_int8>::plan(settings, rule, config, slots, capacity);
  return tiered_caches<float>::plan(settings, rule, config, slots, capacity);
}

std::size_t tier_file_bytes(const policy_settings& settings, const model_config& config, std::size_t slots, std::size_t capacity) {
  if (settings.tier.place() == row_place::memory) return 0;
  const pqkv::cache_shape shape{
      .batch = slots, .kv_heads = config.kv_heads, .query_heads = config.query_heads, .head_dim = config.head_dim, .capacity = capacity};
  return settings.rows == row_format::int8 ? pqkv::file_rows<pqkv::scaled_int8>::file_bytes(shape)
                                           : pqkv::file_rows<float>::file_bytes(shape);
}

}  // namespace minillama
