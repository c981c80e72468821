// SPDX-License-Identifier: Apache-2.0
// What the command line of minillama asks for.
#pragma once
#include <CLI/CLI.hpp>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "conversation.hpp"
#include "engine.hpp"
#include "policy.hpp"
#include "sampling.hpp"

namespace minillama {

struct options {
  std::string model;
  std::optional<std::string> tokenizer;
  std::optional<std::string> chat;  // name of a template
  std::size_t threads;
  device_name device = device_name::host;

  std::optional<std::string> prompt, prompt_file, ids_file;
  std::vector<std::string> turns;
  std::optional<std::string> turns_file;
  turn_start start = turn_start::continued;
  std::size_t tokens = 64;
  end_rule ends = end_rule::heeded;
  std::optional<std::size_t> context;
  sampling_settings sampling;

  policy_settings policy;

  bool dry_run = false, quality = false, compare_full = false;
  std::optional<std::string> perplexity_file;
  std::size_t perplexity_tokens = 512;
  std::optional<std::size_t> perplexity_prompt;  // none: all before the scored ones
  std::size_t perplexity_turn = 512;
  std::optional<std::string> json_file;
  std::optional<std::string> calibration;  // a file that keeps what --preset paper finds out about the machine

  /// Longest sequence of a model. @throws usage_error when more is asked than the model's positions
  std::size_t context_for(const model_config& config) const;
};

/// Adds --device to a program.
CLI::Option* declare_device(CLI::App& app, device_name& device);

/// Adds the options, in groups, to a program.
void declare(CLI::App& app, options& o);

/// Reads the turns, and refuses combinations that mean nothing and what the device does not have. @pre the program has parsed its arguments
/// @throws usage_error, load_error
void complete(const CLI::App& app, options& o);

}  // namespace minillama
