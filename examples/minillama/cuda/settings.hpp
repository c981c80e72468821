// SPDX-License-Identifier: Apache-2.0
// What of the program's settings a GPU has, and what they are there. Plain C++ that needs no toolkit: refusals are the same in every
// build.
#pragma once
#include <cstddef>

#include "../footprint.hpp"
#include "../policy.hpp"
#include "layer_caches.hpp"

namespace minillama::cuda {

/// @throws usage_error that names the option which asks for what is on the host alone
void require_offered(const policy_settings& settings);

/// The cache of one layer.
///
/// full       all tokens are sinks: there is no middle to rank, and no codebook is ever trained
/// pq         as on the host
/// streaming  nothing is retrieved, and nothing is trained. So is every policy where tokens leave the model's window (window.hpp)
///
/// @param prompt    tokens of it
/// @param capacity  tokens of a slot
/// @throws usage_error when the model's projections have biases
cache_settings settings_for(const policy_settings& settings, std::size_t prompt, const model_config& config, std::size_t slots,
                            std::size_t capacity);

/// Tokens that prefill computes at once: as many as keep the attention weights of one KV head's queries below 1 GiB, at most 2048.
std::size_t prefill_block_tokens(const model_config& config, std::size_t n);

/// Bytes of device memory that prefill takes beside its result.
std::size_t prefill_scratch_bytes(const model_config& config, std::size_t n);

/// The memory of a run on the device, but for the caches, which are known when they are made (session::memory()); the step's own rows and
/// cuBLAS's workspace are left out. @throws as settings_for()
footprint plan_footprint(const model_config& config, const policy_settings& settings, const run_shape& shape);

}  // namespace minillama::cuda
