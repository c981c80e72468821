// SPDX-License-Identifier: Apache-2.0
// A window is streaming attention without sinks.
#include "window.hpp"

#include <string>

#include "command_line.hpp"

namespace minillama {

policy_settings settings_of_layers(const policy_settings& asked, const model_config& config, std::size_t capacity) {
  if (!config.outgrows_window(capacity)) return asked;
  const std::string window = std::to_string(config.sliding_window);
  if (asked.tier.place() == row_place::file)
    throw usage_error("--kv-tier", "the model attends to the last " + window +
                                       " tokens (sliding_window in config.json), all of which are in memory: " +
                                       "not with sequences of more, got up to " + std::to_string(capacity));
  policy_settings settings = asked;
  settings.name = policy_name::streaming;
  settings.budget = {};
  settings.budget.sinks = 0;
  settings.budget.window = config.sliding_window;
  settings.budget.retrieve = 0;
  return settings;
}

}  // namespace minillama
