// SPDX-License-Identifier: Apache-2.0
// Prompts repeat all tokens in turn: times of products and tiles do not depend on what they hold, those of clustering hardly.
#include "calibration.hpp"

#include <chrono>
#include <vector>

#include "elapsed.hpp"
#include "prefill.hpp"

namespace minillama {
pqkv::overlap_model calibrate(const model& llama, pool_runner& runner, const policy_settings& settings) {
  const model_config& config = llama.config();
  const pqkv::pq_shape shape{config.kv_heads, config.head_dim, settings.quantizer.subspaces, settings.quantizer.bits,
                             settings.quantizer.metric};
  pqkv::codebook book(shape);
  const host_policy cpu{runner, {}};
  pqkv::overlap_calibration timings;
  for (const std::size_t n : {512u, 1024u, 2048u, 4096u}) {
    if (n > config.max_positions || n < 4 * shape.centroids()) continue;
    std::vector<token_id> tokens(n);
    for (std::size_t i = 0; i < n; ++i) tokens[i] = static_cast<token_id>(i * 2654435761u % config.vocabulary);
    auto start = std::chrono::steady_clock::now();
    const prefilled_prompt prompt = prefill(llama, tokens, runner);
    // The last layer attends for its last token alone.
    const double layers = static_cast<double>(config.layers > 1 ? config.layers - 1 : 1);
    timings.add_layer(n, seconds_since(start) / layers);
    const auto keys = pqkv::make_view(prompt.layers.back().keys.data(), config.kv_heads, n, config.head_dim);
    for (const std::size_t iterations : {2u, 6u}) {
      start = std::chrono::steady_clock::now();
      pqkv::train(cpu, keys, book, {.iterations = iterations, .seed = 0, .rows_per_centroid = 0});
      timings.add_clustering(n, iterations, seconds_since(start));
    }
  }
  return timings.fit();
}

}  // namespace minillama
