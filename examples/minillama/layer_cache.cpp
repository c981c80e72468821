// SPDX-License-Identifier: Apache-2.0
// Caches over rows of floats in memory, and the choice between these, those over 8-bit integers, and those of a tier.
#include "layer_cache.hpp"

#include <cstring>

#include "load_error.hpp"
#include "tiered_cache.hpp"

namespace minillama {

template struct caches_over<pqkv::dense_rows<float>>;

namespace {

/// Memory has all tokens that attend in every step: sinks, and the window at its largest.
template <class Cache>
typename Cache::params tier_params(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                   std::size_t slots, std::size_t capacity) {
  auto made = cache_params<typename Cache::rows, pqkv::selector::pq>(settings.quantizer, rule, config, slots, capacity);
  made.rows.slow.folder = settings.tier.folder.c_str();
  made.rows.sink_tokens = std::min(rule.sinks, capacity);
  made.rows.recent_tokens = std::max<std::size_t>(std::min(rule.at(capacity).window, capacity), 1);
  made.rows.cache_tokens = settings.tier.cache_tokens;
  made.rows.block_tokens = settings.tier.block_tokens;
  made.rows.admit_blocks = std::min(settings.tier.admit_blocks(), (capacity + settings.tier.block_tokens - 1) / settings.tier.block_tokens);
  return made;
}

/// Calls f with the kind of cache that the settings name.
template <class F>
auto with_tier(const tier_settings& tier, F&& f) {
  switch (tier.eviction) {
    case eviction_name::lru:
      return f.template operator()<tiered_cache<pqkv::eviction::lru>>();
    case eviction_name::tiny_lfu:
      return f.template operator()<tiered_cache<pqkv::eviction::tiny_lfu>>();
    case eviction_name::lfu:
      break;
  }
  return f.template operator()<tiered_cache<pqkv::eviction::lfu>>();
}

}  // namespace

std::unique_ptr<layer_cache> make_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                              std::size_t slots, std::size_t capacity) {
  if (settings.tier.place() == row_place::file) {
    try {
      return with_tier(settings.tier,
                       [&]<class Cache>() { return Cache::make(tier_params<Cache>(settings, rule, config, slots, capacity)); });
    } catch (const pqkv::storage_error& error) {
      throw load_error("--kv-tier", settings.tier.folder + ": no room for keys and values: " + std::strerror(error.error));
    }
  }
  if (settings.rows == row_format::int8) return caches_over<pqkv::quantized_rows<>>::make(settings, rule, config, slots, capacity);
  return caches_over<pqkv::dense_rows<float>>::make(settings, rule, config, slots, capacity);
}

pqkv::memory_plan plan_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                   std::size_t slots, std::size_t capacity) {
  if (settings.tier.place() == row_place::file)
    return with_tier(settings.tier,
                     [&]<class Cache>() { return Cache::plan(tier_params<Cache>(settings, rule, config, slots, capacity)); });
  if (settings.rows == row_format::int8) return caches_over<pqkv::quantized_rows<>>::plan(settings, rule, config, slots, capacity);
  return caches_over<pqkv::dense_rows<float>>::plan(settings, rule, config, slots, capacity);
}

std::size_t tier_file_bytes(const policy_settings& settings, const model_config& config, std::size_t slots, std::size_t capacity) {
  if (settings.tier.place() == row_place::memory) return 0;
  return pqkv::file_rows<float>::file_bytes(
      {.batch = slots, .kv_heads = config.kv_heads, .query_heads = config.query_heads, .head_dim = config.head_dim, .capacity = capacity});
}

}  // namespace minillama
