// SPDX-License-Identifier: Apache-2.0
// Sums of the extents that model.cpp, prefill.cpp and pqcache allocate.
#include "footprint.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "layer_cache.hpp"
#include "prefill.hpp"

namespace minillama {
namespace {

double weight_count(const model_config& config) {
  const auto hidden = static_cast<double>(config.hidden), layers = static_cast<double>(config.layers);
  const auto projections = static_cast<double>(config.qkv_width() + config.query_width() + 3 * config.intermediate);
  const auto biases = static_cast<double>((config.biases.qkv ? config.qkv_width() : 0) + (config.biases.attention_out ? config.hidden : 0) +
                                          (config.biases.mlp ? 2 * config.intermediate + config.hidden : 0));
  return (config.tied_embeddings ? 1 : 2) * static_cast<double>(config.vocabulary) * hidden + hidden +
         layers * (hidden * (projections + 2) + biases);
}

/// Bytes of so many elements; a shape may be written down that no machine holds.
std::size_t bytes_of(const char* what, double elements, std::size_t element_bytes) {
  const double bytes = elements * static_cast<double>(element_bytes);
  if (bytes > 0x1p53) throw std::length_error(std::string("memory: the ") + what + " would take " + std::to_string(bytes) + " bytes");
  return static_cast<std::size_t>(bytes);
}

}  // namespace

std::size_t footprint::most() const { return weights + prompt_rows + std::max(prefill_scratch, caches.total_bytes()); }

footprint plan_footprint(const model_config& config, const policy_settings& settings, const run_shape& shape) {
  const auto layers = static_cast<double>(config.layers);
  footprint planned;
  planned.weights = bytes_of("weights", weight_count(config), sizeof(float));
  planned.prompt_rows =
      bytes_of("prefilled rows", layers * 2 * static_cast<double>(config.kv_width()) * static_cast<double>(shape.prompt), sizeof(float));
  planned.prefill_scratch = prefill_scratch_bytes(config, shape.prompt, shape.threads);
  const pqkv::memory_plan layer =
      plan_layer_cache(settings, settings.budget_for(shape.prompt, config.head_dim), config, shape.slots, shape.capacity);
  planned.caches = {bytes_of("KV cache", layers, layer.kv_bytes), bytes_of("index", layers, layer.index_bytes),
                    bytes_of("scratch", layers, layer.scratch_bytes)};
  return planned;
}

void print_footprint(const footprint& planned, const run_shape& shape) {
  std::fprintf(stderr, "context               %12zu tokens, %zu held at once\n", shape.capacity, shape.slots);
  std::fprintf(stderr, "weights               %12zu bytes\n", planned.weights);
  std::fprintf(stderr, "KV cache              %12zu bytes\n", planned.caches.kv_bytes);
  std::fprintf(stderr, "index                 %12zu bytes\n", planned.caches.index_bytes);
  std::fprintf(stderr, "scratch               %12zu bytes\n", planned.caches.scratch_bytes);
  std::fprintf(stderr, "prefilled rows        %12zu bytes\n", planned.prompt_rows);
  std::fprintf(stderr, "prefill scratch       %12zu bytes\n", planned.prefill_scratch);
  std::fprintf(stderr, "most at one time      %12zu bytes\n", planned.most());
}

}  // namespace minillama
