// SPDX-License-Identifier: Apache-2.0
// The memory that a run takes, from the model's shape and the settings alone: known before a weight is read.
#pragma once
#include <cstddef>
#include <pqkv/cache/sequence.hpp>

#include "config.hpp"
#include "model.hpp"
#include "policy.hpp"

namespace minillama {

/// How long a run's sequences are, and how many it holds at once.
struct run_shape {
  std::size_t prompt = 0;    // tokens that are prefilled
  std::size_t capacity = 0;  // tokens of a slot: the prompt and what follows it
  std::size_t slots = 1;
  std::size_t threads = 1;
  std::size_t sessions = 1;  // one after the other that start from the prompt; the last takes its rows. Of two, one is dense
  std::size_t at_once = 1;   // tokens after the prompt that go through the layers together
};

/// Bytes. Left out is what is small beside the rest: threads' stacks, what Eigen copies to multiply, logits that a comparison keeps; and
/// the prompts that calibrate() makes up.
struct footprint {
  std::size_t program = 0;           // resident when the plan was made: code, libraries, tokenizer, the prompt's text
  std::size_t weights = 0;           // as weight_footprint says
  std::size_t prompt_rows = 0;       // keys, values and queries that prefill hands to sessions
  pqkv::memory_plan caches{};        // of all layers
  std::size_t other_caches = 0;      // the same of the dense session, where there are two
  std::size_t prefill_scratch = 0;   // gone before the first step
  std::size_t training_scratch = 0;  // of one layer's index
  std::size_t step_scratch = 0;      // of a step, logits included
  std::size_t handed_over = 0;       // layers whose rows go to their caches during prefill and are gone then; 0: all rows stay
  std::size_t rows_at_once = 1;      // of these layers, those whose rows are in memory together
  std::size_t tier_file = 0;         // on the disk; pages of it that the system keeps in memory are not counted anywhere

  std::size_t most() const;  // at one time
};

/// All weights as floats, for who does not know how a file stores them. @throws std::length_error above 2^53 bytes
weight_footprint plan_float_weights(const model_config& config);

/// `program` is left to the caller.
///
/// @throws pqkv::shape_error, pqkv::value_error when model and settings do not fit; std::length_error above 2^53 bytes
footprint plan_footprint(const model_config& config, const policy_settings& settings, const run_shape& shape,
                         const weight_footprint& weights);

/// The settings of the dense session that another is compared with.
policy_settings dense(policy_settings settings);

/// Prints a line for each part on stderr.
void print_footprint(const footprint& planned, const run_shape& shape);

}  // namespace minillama
