// SPDX-License-Identifier: Apache-2.0
// The memory that a run takes, from the model's shape and the settings alone: known before a weight is read.
#pragma once
#include <cstddef>
#include <pqkv/cache/sequence.hpp>

#include "config.hpp"
#include "policy.hpp"

namespace minillama {

/// How long a run's sequences are, and how many it holds at once.
struct run_shape {
  std::size_t prompt = 0;    // tokens that are prefilled
  std::size_t capacity = 0;  // tokens of a slot: the prompt and what follows it
  std::size_t slots = 1;
  std::size_t threads = 1;
};

/// Bytes; what Eigen, k-means and the C library take for a moment is left out.
struct footprint {
  std::size_t weights = 0;          // float, however the file stores them
  std::size_t prompt_rows = 0;      // keys and values that prefill hands to sessions
  pqkv::memory_plan caches{};       // of all layers
  std::size_t prefill_scratch = 0;  // gone before the caches are made

  std::size_t most() const;  // at one time
};

/// @throws pqkv::shape_error, pqkv::value_error when model and settings do not fit; std::length_error above 2^53 bytes
footprint plan_footprint(const model_config& config, const policy_settings& settings, const run_shape& shape);

/// Prints a line for each part on stderr.
void print_footprint(const footprint& planned, const run_shape& shape);

}  // namespace minillama
