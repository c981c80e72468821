// SPDX-License-Identifier: Apache-2.0
// Sums of the extents that model.cpp, prefill.cpp and pqcache allocate.
#include "footprint.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "decoder.hpp"
#include "index_worker.hpp"
#include "layer_cache.hpp"
#include "prefill.hpp"
#include "tiered_cache.hpp"
#include "window.hpp"

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

/// What the library takes from the heap while it trains one layer: the keys it learns from, as it orders them, or a part of the keys that
/// are encoded, whichever is more; and of every problem in progress the rows once more, in 16 bits, with 9 bytes a row.
///
/// @pre  the library has such codes
std::size_t training_bytes(const model_config& config, const policy_settings& settings, const run_shape& shape) {
  if (settings.name == policy_name::h2o || settings.name == policy_name::snapkv) {
    // The queries that were shown, sums in double of up to five parts, and logits of up to four blocks of queries.
    const std::size_t shown = std::min(shape.prompt, settings.shown_queries()), rows = std::max<std::size_t>(32, config.group());
    const std::size_t lists = settings.name == policy_name::h2o ? config.kv_heads * 4 : config.query_heads;
    return config.query_width() * shown * sizeof(float) + lists * shape.prompt * (2 * sizeof(double) + rows * sizeof(float));
  }
  if (settings.name != policy_name::pq) return 0;
  const auto& quantizer = settings.quantizer;
  const std::size_t most = quantizer.train.rows_per_centroid << quantizer.bits;
  const std::size_t sample = most == 0 ? shape.prompt : std::min(shape.prompt, most), encoded = std::min<std::size_t>(shape.prompt, 4096);
  const std::size_t keys = quantizer.residual.used() ? shape.prompt : std::max(sample, encoded);
  const std::size_t threads = settings.index_threads != 0 ? settings.index_threads : shape.threads;
  const std::size_t problems = std::min(threads, config.kv_heads * quantizer.subspaces);
  return config.kv_width() * keys * sizeof(float) + problems * sample * (2 * (config.head_dim / quantizer.subspaces) + 9);
}

pqkv::memory_plan plan_caches(const model_config& config, const policy_settings& settings, const run_shape& shape) {
  const auto layers = static_cast<double>(config.layers);
  const pqkv::memory_plan layer =
      plan_layer_cache(settings, settings.budget_for(shape.prompt, config.head_dim), config, shape.slots, shape.capacity);
  return {bytes_of("KV cache", layers, layer.kv_bytes), bytes_of("index", layers, layer.index_bytes),
          bytes_of("scratch", layers, layer.scratch_bytes)};
}

}  // namespace

std::size_t footprint::most() const {
  const std::size_t prefilled = prompt_rows + prefill_scratch, all = caches.total_bytes();
  const std::size_t decoding = std::max(all, other_caches) + prompt_rows + std::max(training_scratch, step_scratch);
  if (handed_over != 0)  // the last layer's rows, beside all caches and what prefill works with
    return program + weights +
           std::max(prefill_scratch + prompt_rows / handed_over * rows_at_once + all + training_scratch, all + step_scratch);
  return program + weights + std::max(prefilled, decoding);
}

weight_footprint plan_float_weights(const model_config& config) {
  return {.bytes = bytes_of("weights", weight_count(config), sizeof(float))};
}

footprint plan_footprint(const model_config& config, const policy_settings& asked, const run_shape& shape,
                         const weight_footprint& weights) {
  const policy_settings settings = settings_of_layers(asked, config, shape.capacity);
  footprint planned;
  planned.weights = weights.bytes;
  const double shown = static_cast<double>(config.query_width()) * static_cast<double>(std::min(shape.prompt, settings.shown_queries()));
  planned.prompt_rows = bytes_of(
      "prefilled rows",
      static_cast<double>(config.layers) * (2 * static_cast<double>(config.kv_width()) * static_cast<double>(shape.prompt) + shown),
      sizeof(float));
  planned.prefill_scratch = prefill_scratch_bytes(config, shape.prompt, shape.threads, weights.product_scratch);
  planned.step_scratch = host_session::step_scratch_bytes(config, shape.at_once) + config.vocabulary * sizeof(float) +
                         (shape.at_once > 1 ? weights.product_scratch : weights.token_scratch);
  planned.caches = plan_caches(config, settings, shape);  // refuses settings that do not fit
  planned.training_scratch = training_bytes(config, settings, shape);
  if (shape.sessions > 1)
    planned.other_caches = plan_caches(config, settings_of_layers(dense(asked), config, shape.capacity), shape).total_bytes();
  if (shape.sessions == 1) planned.handed_over = config.layers;
  if (settings.index_threads != 0) planned.rows_at_once = std::min(config.layers, index_worker::layers_at_once);
  planned.tier_file =
      bytes_of("tier's files", static_cast<double>(config.layers), tier_file_bytes(settings, config, shape.slots, shape.capacity));
  return planned;
}

policy_settings dense(policy_settings settings) {
  settings.name = policy_name::full;
  settings.rows = row_format::float32;
  settings.tier = {};
  return settings;
}

void print_footprint(const footprint& planned, const run_shape& shape) {
  std::fprintf(stderr, "context               %12zu tokens, %zu held at once\n", shape.capacity, shape.slots);
  std::fprintf(stderr, "program               %12zu bytes, before the weights\n", planned.program);
  std::fprintf(stderr, "weights               %12zu bytes\n", planned.weights);
  std::fprintf(stderr, "KV cache              %12zu bytes\n", planned.caches.kv_bytes);
  std::fprintf(stderr, "index                 %12zu bytes\n", planned.caches.index_bytes);
  std::fprintf(stderr, "scratch               %12zu bytes\n", planned.caches.scratch_bytes);
  if (planned.tier_file) std::fprintf(stderr, "files of the tier     %12zu bytes, on the disk\n", planned.tier_file);
  std::fprintf(stderr, "prefilled rows        %12zu bytes\n", planned.prompt_rows);
  std::fprintf(stderr, "prefill scratch       %12zu bytes\n", planned.prefill_scratch);
  std::fprintf(stderr, "training scratch      %12zu bytes\n", planned.training_scratch);
  std::fprintf(stderr, "step scratch          %12zu bytes\n", planned.step_scratch);
  std::fprintf(stderr, "most at one time      %12zu bytes\n", planned.most());
}

}  // namespace minillama
