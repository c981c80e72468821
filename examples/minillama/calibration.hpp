// SPDX-License-Identifier: Apache-2.0
// The paper's overlap rule on this machine: how long clustering takes, how long the model's own layers take.
#pragma once
#include "model.hpp"
#include "policy.hpp"
#include "pool_runner.hpp"

namespace minillama {

/// Prefills prompts of 512 to 4096 tokens, and clusters their keys as the quantizer would.
///
/// @returns what policy_settings::quantizer.overlap takes
/// @throws pqkv::value_error when the timings determine nothing, or the model's heads do not fit the quantizer
/// @cost   about twice the prefill of 4096 tokens
pqkv::overlap_model calibrate(const model& llama, pool_runner& runner, const policy_settings& settings);

}  // namespace minillama
