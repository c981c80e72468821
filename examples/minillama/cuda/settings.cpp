// SPDX-License-Identifier: Apache-2.0
// Bounds that the library states itself are left to it: minillama::plan_footprint() asks the host's cache about the same settings.
#include "settings.hpp"

#include <algorithm>
#include <string>

#include "../command_line.hpp"
#include "../window.hpp"

namespace minillama::cuda {
namespace {

constexpr std::size_t most_block_tokens = 2048;
constexpr std::size_t most_attention_weights = std::size_t{1} << 28;  // floats

const char* const not_there = ": not with --device cuda";

}  // namespace

void require_offered(const policy_settings& settings) {
  if (settings.name == policy_name::oracle)
    throw usage_error("--policy", std::string("oracle scores every key, which only the host does") + not_there);
  if (is_compared_method(settings.name))
    throw usage_error("--policy", std::string("methods of other papers run only on the host") + not_there);
  if (settings.shown_queries() != 0)
    throw usage_error("--axes", std::string("weighted looks at the prompt's queries, which only the host keeps") + not_there);
  if (settings.quantizer.residual.used())
    throw usage_error("--residual", std::string("the second stage runs only on the host") + not_there);
  if (settings.rows == row_format::int8)
    throw usage_error("--rows", std::string("int8: on a GPU this program keeps rows as floats") + not_there);
  if (settings.tier.place() == row_place::file) throw usage_error("--kv-tier", std::string("is under the host's memory") + not_there);
  if (settings.index_threads != 0) throw usage_error("--index-threads", std::string("are the host's") + not_there);
  if (settings.preset == preset_name::paper)
    throw usage_error("--preset", std::string("paper: the overlap rule is the host's") + not_there);
}

cache_settings settings_for(const policy_settings& asked, std::size_t prompt, const model_config& config, std::size_t slots,
                            std::size_t capacity) {
  cache_settings made;
  if (config.biases.any()) throw usage_error("--device", "cuda: the model has biases, which only the host adds");
  const policy_settings settings = settings_of_layers(asked, config, capacity);
  made.shape = {slots, config.kv_heads, config.query_heads, config.head_dim, capacity};
  made.shape.softmax_scale = config.softmax_scale();
  made.budget = settings.budget_for(prompt, config.head_dim);
  if (settings.name == policy_name::streaming) {
    made.middle = pqkv::selector::coverage::nothing;
    return made;
  }
  made.selector = settings.quantizer;
  if (settings.name == policy_name::pq) return made;
  made.selector = {};  // the smallest that there is
  made.selector.subspaces = 1;
  made.selector.bits = 4;
  made.selector.path = pqkv::search_path::scan;
  made.selector.train.iterations = 1;
  made.selector.train.rows_per_centroid = 16;
  made.budget.sinks = capacity;
  made.budget.window = 1;
  made.budget.retrieve = 0;
  return made;
}

std::size_t prefill_block_tokens(const model_config& config, std::size_t n) {
  const std::size_t fitting = std::max<std::size_t>(most_attention_weights / (config.group() * n), 1);
  return std::min({fitting, most_block_tokens, n});
}

std::size_t prefill_scratch_bytes(const model_config& config, std::size_t n) {
  const std::size_t block = prefill_block_tokens(config, n);
  const std::size_t activations = config.hidden + std::max(config.qkv_width(), 2 * config.intermediate) + config.intermediate;
  const std::size_t block_rows = 2 * config.query_width() + activations;
  return (n * config.hidden + block * block_rows + config.group() * block * n + config.vocabulary) * sizeof(float) + n * sizeof(token_id);
}

footprint plan_footprint(const model_config& config, const policy_settings& settings, const run_shape& shape) {
  footprint planned = minillama::plan_footprint(config, settings, shape, plan_float_weights(config));
  settings_for(settings, shape.prompt, config, shape.slots, shape.capacity);
  planned.prefill_scratch = prefill_scratch_bytes(config, shape.prompt);
  planned.caches = {};
  planned.other_caches = planned.training_scratch = planned.step_scratch = planned.handed_over = 0;
  return planned;
}

}  // namespace minillama::cuda
