// SPDX-License-Identifier: Apache-2.0
// Computes a whole prompt on the device with dense causal attention, to the model's window where it has one, in blocks of tokens, and keeps
// keys and values of every layer there.
#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "../prefill.hpp"
#include "model.hpp"

namespace minillama::cuda {

struct device_prompt {
  /// Keys, after rotary embedding, and values of one layer: [h, n, d] each.
  struct layer {
    array<float> keys, values;
  };
  std::size_t tokens = 0;  // n
  std::vector<layer> layers;
  std::vector<float> logits;  // [vocabulary], of the last position, in host memory
};

/// Runs all layers over the prompt with exact causal attention, by products with all keys that a block's queries attend to and a softmax
/// that leaves out those outside of a query's own. Waits for the device.
///
/// @param report  waits for every block; without one, nothing waits before the end
/// @param block   tokens of one; 0: prefill_block_tokens()
/// @pre    tokens is not empty, all in the vocabulary
/// @throws std::out_of_range when a token is not; pqkv::cuda_error
/// @cost   as on the host, plus half a block's keys for every query, or with a window a block's; scratch of prefill_scratch_bytes(). The
///         last layer attends for the last token alone
device_prompt prefill(const device_model& llama, std::span<const token_id> tokens, const progress_report& report = {},
                      std::size_t block = 0);

}  // namespace minillama::cuda
