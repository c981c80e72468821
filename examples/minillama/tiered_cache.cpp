// SPDX-License-Identifier: Apache-2.0
// A file of its own: the three policies of eviction take as long to compile as all caches in memory of one kind.
#include "tiered_cache.hpp"

#include <algorithm>
#include <cstring>

#include "load_error.hpp"
#include "selector_cache.hpp"

namespace minillama {
namespace {

/// Query tokens that attend() works on at once: with rows in a file, scratch for more of them would be most of the memory.
constexpr std::size_t queries_at_once = 8;

template <class Eviction>
using rows_of = pqkv::tiered_rows<pqkv::file_rows<float>, pqkv::space::host, Eviction>;

/// Memory has all tokens that every step attends to: sinks, and the window at its largest.
template <class Rows>
auto tier_params(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config, std::size_t slots,
                 std::size_t capacity) {
  const tier_settings& tier = settings.tier;
  auto made = cache_params<Rows, pqkv::selector::pq>(settings.quantizer, rule, config, slots, capacity);
  made.step_queries = std::min(made.step_queries, queries_at_once);
  made.rows.slow.folder = tier.folder.c_str();
  made.rows.sink_tokens = std::min(rule.sinks, capacity);
  made.rows.recent_tokens = std::max<std::size_t>(std::min(rule.at(capacity).window, capacity), 1);
  made.rows.cache_tokens = tier.cache_tokens;
  made.rows.block_tokens = tier.block_tokens;
  made.rows.admit_blocks = std::min(tier.admit_blocks(), (capacity + tier.block_tokens - 1) / tier.block_tokens);
  return made;
}

/// Calls f with the rows that the settings name.
template <class F>
auto with_rows(const tier_settings& tier, F&& f) {
  switch (tier.eviction) {
    case eviction_name::lru:
      return f.template operator()<rows_of<pqkv::eviction::lru>>();
    case eviction_name::tiny_lfu:
      return f.template operator()<rows_of<pqkv::eviction::tiny_lfu>>();
    case eviction_name::lfu:
      break;
  }
  return f.template operator()<rows_of<pqkv::eviction::lfu>>();
}

}  // namespace

std::unique_ptr<layer_cache> make_tiered_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                               std::size_t slots, std::size_t capacity) {
  try {
    return with_rows(settings.tier, [&]<class Rows>() -> std::unique_ptr<layer_cache> {
      return std::make_unique<selector_cache<Rows, pqkv::selector::pq>>(tier_params<Rows>(settings, rule, config, slots, capacity));
    });
  } catch (const pqkv::storage_error& error) {
    throw load_error("--kv-tier", settings.tier.folder + ": no room for keys and values: " + std::strerror(error.error));
  }
}

pqkv::memory_plan plan_tiered_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                    std::size_t slots, std::size_t capacity) {
  return with_rows(settings.tier, [&]<class Rows>() {
    return pqkv::pqcache<Rows, pqkv::selector::pq>::plan(tier_params<Rows>(settings, rule, config, slots, capacity));
  });
}

std::size_t tier_file_bytes(const policy_settings& settings, const model_config& config, std::size_t slots, std::size_t capacity) {
  if (settings.tier.place() == row_place::memory) return 0;
  return pqkv::file_rows<float>::file_bytes(
      {.batch = slots, .kv_heads = config.kv_heads, .query_heads = config.query_heads, .head_dim = config.head_dim, .capacity = capacity});
}

}  // namespace minillama
