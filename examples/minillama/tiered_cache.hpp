// SPDX-License-Identifier: Apache-2.0
// The caches of a tier (tier_settings.hpp): product quantization over a file, or a model's window, with copies of some rows in memory.
#pragma once
#include "layer_cache.hpp"

namespace minillama {

/// make_layer_cache() and plan_layer_cache() of settings with a tier.
/// @{
std::unique_ptr<layer_cache> make_tiered_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                               std::size_t slots, std::size_t capacity);
pqkv::memory_plan plan_tiered_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                    std::size_t slots, std::size_t capacity);
/// @}

/// Bytes of one layer's file where the settings have a tier, otherwise 0.
std::size_t tier_file_bytes(const policy_settings& settings, const model_config& config, std::size_t slots, std::size_t capacity);

}  // namespace minillama
