// SPDX-License-Identifier: Apache-2.0
// A block of tokens goes through a layer at once: its keys join those of the blocks before it, then it attends and is finished.
#include "prefill.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "settings.hpp"

namespace minillama::cuda {
namespace {

/// Scratch of one prompt; the sum of it is prefill_scratch_bytes().
struct workspace {
  array<token_id> tokens;
  array<float> x;                   // [n, hidden]
  array<float> queries, attention;  // [block, hq*d]
  array<float> weights;             // [g, block, n]
  array<float> logits;              // [vocabulary]
  activations room;

  workspace(const model_config& config, std::size_t n, std::size_t block)
      : tokens(n),
        x(n * config.hidden),
        queries(block * config.query_width()),
        attention(block * config.query_width()),
        weights(config.group() * block * n),
        logits(config.vocabulary),
        room(config, block) {}
};

/// Attention of tokens first .. first + count, of which the queries are given, to all up to themselves, or to the model's window of these.
///
/// @param cached   of n tokens
/// @param queries  [count, hq, d]
/// @param weights  [g, count, first + count], written
/// @param out      [count, hq, d], written
void attend(const device_model& llama, const device_prompt::layer& cached, std::size_t n, const float* queries, std::size_t first,
            std::size_t count, float* weights, float* out) {
  const model_config& config = llama.config();
  const std::size_t window = config.outgrows_window(n) ? config.sliding_window : n, begin = first + 1 > window ? first + 1 - window : 0;
  const std::size_t d = config.head_dim, g = config.group(), keys = first + count - begin, row = config.query_width();
  const float own = config.softmax_scale(), scale = own != 0 ? own : 1.0f / std::sqrt(static_cast<float>(d));
  for (std::size_t head = 0; head < config.kv_heads; ++head) {
    const std::size_t rows = (head * n + begin) * d, group = head * g * d;
    llama.multiply().score(queries + group, row, g, count, d, cached.keys.data() + rows, keys, scale, weights);
    causal_softmax(llama.on(), weights, g, count, keys, first - begin, window);
    llama.multiply().gather(weights, g, count, keys, cached.values.data() + rows, d, out + group, row);
  }
}

}  // namespace

device_prompt prefill(const device_model& llama, std::span<const token_id> tokens, const progress_report& report, std::size_t block) {
  const model_config& config = llama.config();
  for (const token_id token : tokens)
    if (token >= config.vocabulary)
      throw std::out_of_range("prefill: token " + std::to_string(token) + " in a vocabulary of " + std::to_string(config.vocabulary));
  const std::size_t n = tokens.size(), d = config.head_dim, hidden = config.hidden;
  if (block == 0) block = prefill_block_tokens(config, n);
  device_prompt prompt;
  prompt.tokens = n;
  prompt.logits.resize(config.vocabulary);
  const workspace work(config, n, block);
  copy(llama.on(), work.tokens.data(), tokens.data(), n);
  llama.embed(work.tokens.data(), n, work.x.data());

  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    prompt.layers.push_back({array<float>(config.kv_width() * n), array<float>(config.kv_width() * n)});
    const device_prompt::layer& cached = prompt.layers.back();
    const bool last_layer = layer + 1 == config.layers;
    for (std::size_t first = 0, count = 0; first < n; first += count) {
      count = std::min(block, n - first);
      float* x = work.x.data() + first * hidden;
      split_projection to{};
      to.queries = work.queries.data();
      to.keys = cached.keys.data() + first * d;
      to.values = cached.values.data() + first * d;
      to.head_stride = n * d;
      to.first_position = first;
      llama.project_qkv(layer, x, count, to, work.room);
      if (report) {
        llama.on().wait();
        report((static_cast<double>(layer) + static_cast<double>(first + count) / static_cast<double>(n)) /
               static_cast<double>(config.layers));
      }
      if (last_layer && first + count < n) continue;  // nobody reads the output of the last layer, except for the last token
      const std::size_t left_out = last_layer ? count - 1 : 0, kept = count - left_out;
      attend(llama, cached, n, work.queries.data() + left_out * config.query_width(), first + left_out, kept, work.weights.data(),
             work.attention.data());
      llama.finish_layer(layer, work.attention.data(), kept, x + left_out * hidden, work.room);
    }
  }
  llama.logits(work.x.data() + (n - 1) * hidden, work.logits.data(), work.room);
  copy(llama.on(), prompt.logits.data(), work.logits.data(), prompt.logits.size());
  llama.on().wait();
  return prompt;
}

}  // namespace minillama::cuda
