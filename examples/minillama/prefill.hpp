// SPDX-License-Identifier: Apache-2.0
// Computes a whole prompt at once with dense attention, and keeps what decoding needs: keys and values of every layer, and the logits
// of the last position. One prefilled prompt serves any number of sessions.
#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "model.hpp"
#include "part_seconds.hpp"
#include "pool_runner.hpp"

namespace minillama {

/// What becomes of a prompt's queries: kept where a policy needs them (policy_settings::needs_queries).
enum class prompt_queries { dropped, kept };

struct prefilled_prompt {
  /// Keys, after rotary embedding, and values of one layer: [h, n, d] each. Queries, if they are kept: [n, hq, d].
  struct layer {
    std::vector<float> keys, values, queries;
  };
  std::size_t tokens = 0;  // n
  std::vector<layer> layers;
  std::vector<float> logits;  // [vocabulary], of the last position
  part_seconds parts;         // of the time it took
};

/// Is told the share of the work that is done, 0 to 1, from any thread but never from two at once.
using progress_report = std::function<void(double)>;

/// Runs all layers over the prompt with exact causal attention.
///
/// @pre    tokens is not empty
/// @cost   of one layer: the projections, and n*n/2 keys per query head by pqkv::prefill_attention; scratch of n * (hidden + 2*hq*d) floats
///         and the library's. The last layer attends for the last token alone: nobody reads the rest.
prefilled_prompt prefill(const model& llama, std::span<const token_id> tokens, pool_runner& runner, const progress_report& report = {},
                         prompt_queries keep = prompt_queries::dropped);

/// Bytes that prefill() takes beside its result, with `threads` tasks at once.
/// @param product_scratch  bytes of one product's buffer
std::size_t prefill_scratch_bytes(const model_config& config, std::size_t n, std::size_t threads, std::size_t product_scratch);

}  // namespace minillama
