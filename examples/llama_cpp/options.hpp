// SPDX-License-Identifier: Apache-2.0
// The command line.
#pragma once

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"

namespace llama_example {

struct usage_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct options {
  std::string model, prompt, file, system, floats, session;
  std::size_t answer = 128, context = 0, threads = 1;
  std::optional<policy> which = policy::pq;  // none: llama.cpp as it is
  pqkv::budget_rule budget;
  pqkv::selector::pq::params pq;
  ggml_type cache_type = GGML_TYPE_F16;
  bool flash_attention = true, raw = false, chat = false, help = false;
  bool compare = false, check = false;
  std::vector<std::size_t> bench, quality;  // lengths of prompts
  std::size_t steps = 32, rounds = 5, prompts = 1, sequences = 1, needles = 10;

  /// For the engine; `context` tokens where the command line does not say.
  engine_settings engine_of(std::size_t wanted_context) const;
};

extern const char* const usage;

/// @throws usage_error naming the option, what it takes and what came
options read_options(int count, char** words);

}  // namespace llama_example
