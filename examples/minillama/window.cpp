// SPDX-License-Identifier: Apache-2.0
// A window is streaming attention without sinks.
#include "window.hpp"

namespace minillama {

policy_settings settings_of_layers(const policy_settings& asked, const model_config& config, std::size_t capacity) {
  if (!config.outgrows_window(capacity)) return asked;
  policy_settings settings = asked;
  settings.name = policy_name::streaming;
  settings.budget = {};
  settings.budget.sinks = 0;
  settings.budget.window = config.sliding_window;
  settings.budget.retrieve = 0;
  settings.tier.cache_tokens = 0;
  return settings;
}

}  // namespace minillama
