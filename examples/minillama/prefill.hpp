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

struct prefilled_prompt {
  /// Keys, after rotary embedding, and values of one layer: [h, n, d] each; queries of the last tokens, as many as were asked for.
  struct layer {
    std::vector<float> keys, values;
    std::vector<float> queries;  // [.., hq, d], after rotary embedding
  };
  std::size_t tokens = 0;  // n
  std::vector<layer> layers;
  std::vector<float> logits;  // [vocabulary], of the last position
  part_seconds parts;         // of the time it took
};

/// Is told the share of the work that is done, 0 to 1, from any thread but never from two at once.
using progress_report = std::function<void(double)>;

/// Is given a layer's rows once the layer has attended; they are gone from the result. Called in the order of the layers.
using layer_taker = std::function<void(std::size_t layer, prefilled_prompt::layer&& rows)>;

/// Runs all layers over the prompt with exact causal attention, to the model's window where it has one.
///
/// @param  take          where given, the result has no layers
/// @param  kept_queries  of how many last tokens the result has queries (policy_settings::shown_queries)
/// @pre    tokens is not empty
/// @cost   of one layer: the projections, and n*n/2 keys per query head by pqkv::prefill_attention, or with a window of w < n
///         tokens w*w/2, and (n - w)*w by Eigen's products; scratch of n * (hidden + 2*hq*d) floats, of 64 * (w + 64) floats a thread with
///         a window, and the library's. The last layer attends for the last token alone: nobody reads the rest.
prefilled_prompt prefill(const model& llama, std::span<const token_id> tokens, pool_runner& runner, const progress_report& report = {},
                         std::size_t kept_queries = 0, const layer_taker& take = {});

/// Bytes that prefill() takes beside its result, with `threads` tasks at once.
/// @param product_scratch  bytes of one product's buffer
std::size_t prefill_scratch_bytes(const model_config& config, std::size_t n, std::size_t threads, std::size_t product_scratch);

}  // namespace minillama
