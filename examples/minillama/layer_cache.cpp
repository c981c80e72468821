// SPDX-License-Identifier: Apache-2.0
// Caches over rows of floats in memory, and the choice between these, those over 8-bit integers, and those of a tier.
#include "layer_cache.hpp"

#include "selector_cache.hpp"
#include "tiered_cache.hpp"

namespace minillama {

template struct caches_over<pqkv::dense_rows<float>>;

std::unique_ptr<layer_cache> make_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                              std::size_t slots, std::size_t capacity) {
  if (settings.tier.place() == row_place::file) return make_tiered_cache(settings, rule, config, slots, capacity);
  if (settings.rows == row_format::int8) return caches_over<pqkv::quantized_rows<>>::make(settings, rule, config, slots, capacity);
  return caches_over<pqkv::dense_rows<float>>::make(settings, rule, config, slots, capacity);
}

pqkv::memory_plan plan_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                   std::size_t slots, std::size_t capacity) {
  if (settings.tier.place() == row_place::file) return plan_tiered_cache(settings, rule, config, slots, capacity);
  if (settings.rows == row_format::int8) return caches_over<pqkv::quantized_rows<>>::plan(settings, rule, config, slots, capacity);
  return caches_over<pqkv::dense_rows<float>>::plan(settings, rule, config, slots, capacity);
}

}  // namespace minillama
