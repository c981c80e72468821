// SPDX-License-Identifier: Apache-2.0
// The paper's overlap rule on this machine: how long clustering takes, how long the model's own layers take.
#pragma once
#include <filesystem>
#include <optional>

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

/// The same, kept in a file: read from it if it is there, otherwise calibrated and written to it. The file has the model's and the
/// quantizer's shapes and the number of threads; one for others is refused. That it comes from this machine it cannot tell.
///
/// @throws load_error naming the file when it cannot be read or written, is no calibration, or is one for something else
pqkv::overlap_model kept_calibration(const std::filesystem::path& file, const model& llama, pool_runner& runner,
                                     const policy_settings& settings);

}  // namespace minillama
