// SPDX-License-Identifier: Apache-2.0
// The caches of a tier over rows of one type. Included by one file for each type: the three policies of eviction take as long to compile as
// all caches in memory of one kind.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>

#include "load_error.hpp"
#include "selector_cache.hpp"

namespace minillama {

/// Query tokens that attend() works on at once: with rows in a file, scratch for more of them would be most of the memory.
inline constexpr std::size_t tier_queries_at_once = 8;

/// @tparam T  float, or pqkv::scaled_int8
template <class T>
struct tiered_caches {
  template <class Eviction>
  using rows_of = pqkv::tiered_rows<pqkv::file_rows<T>, pqkv::space::host, Eviction>;

  static std::unique_ptr<layer_cache> make(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                           std::size_t slots, std::size_t capacity) {
    try {
      return with_cache(settings, rule, config, slots, capacity,
                        []<class Rows, class Selector>(const auto& params) -> std::unique_ptr<layer_cache> {
                          return std::make_unique<selector_cache<Rows, Selector>>(params);
                        });
    } catch (const pqkv::storage_error& error) {
      throw load_error("--kv-tier", settings.tier.folder + ": no room for keys and values: " + std::strerror(error.error));
    }
  }
  static pqkv::memory_plan plan(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                std::size_t slots, std::size_t capacity) {
    return with_cache(settings, rule, config, slots, capacity,
                      []<class Rows, class Selector>(const auto& params) { return pqkv::pqcache<Rows, Selector>::plan(params); });
  }

 private:
  /// Memory has all tokens that every step attends to: sinks, and the window at its largest.
  template <class Rows, class Selector>
  static auto params(const typename Selector::params& selector, const tier_settings& tier, const pqkv::budget_rule& rule,
                     const model_config& config, std::size_t slots, std::size_t capacity) {
    auto made = cache_params<Rows, Selector>(selector, rule, config, slots, capacity);
    made.step_queries = std::min(made.step_queries, tier_queries_at_once);
    made.rows.slow.folder = tier.folder.c_str();
    made.rows.sink_tokens = std::min(rule.sinks, capacity);
    made.rows.recent_tokens = std::max<std::size_t>(std::min(rule.at(capacity).window, capacity), 1);
    made.rows.cache_tokens = tier.cache_tokens;
    made.rows.block_tokens = tier.block_tokens;
    made.rows.scope = tier.scope;
    made.rows.admit_blocks = std::min(tier.admit_blocks(), (capacity + tier.block_tokens - 1) / tier.block_tokens);
    return made;
  }

  /// Calls f with the parameters of the cache that the settings name: product quantization, or streaming attention for a model's window.
  template <class F>
  static auto with_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config, std::size_t slots,
                         std::size_t capacity, F&& f) {
    const auto made = [&]<class Eviction, class Selector>(const typename Selector::params& selector) {
      using rows = rows_of<Eviction>;
      return f.template operator()<rows, Selector>(params<rows, Selector>(selector, settings.tier, rule, config, slots, capacity));
    };
    // Without retrieval no block enters, and which one would leave makes no difference.
    if (settings.name == policy_name::streaming) return made.template operator()<pqkv::eviction::lfu, pqkv::selector::streaming>({});
    using pqkv::selector::pq;
    switch (settings.tier.eviction) {
      case eviction_name::lru:
        return made.template operator()<pqkv::eviction::lru, pq>(settings.quantizer);
      case eviction_name::tiny_lfu:
        return made.template operator()<pqkv::eviction::tiny_lfu, pq>(settings.quantizer);
      case eviction_name::lfu:
        break;
    }
    return made.template operator()<pqkv::eviction::lfu, pq>(settings.quantizer);
  }
};

extern template struct tiered_caches<float>;
extern template struct tiered_caches<pqkv::scaled_int8>;

}  // namespace minillama
