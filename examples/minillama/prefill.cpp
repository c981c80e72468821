// SPDX-License-Identifier: Apache-2.0
// Prefill, layer by layer: projections in blocks of rows, each a task for the pool; attention by the library.
#include "prefill.hpp"

#include <algorithm>
#include <mutex>
#include <pqkv/pqkv.hpp>
#include <utility>

#include "policy.hpp"

namespace minillama {
namespace {

// Tokens a projection task computes: its activations (two times the intermediate width) stay in a core's second-level cache.
constexpr std::size_t block_tokens = 128;
// Query tokens in one call of the library: enough tiles for many threads, and calls often enough for the progress bar.
constexpr std::size_t attention_tokens = 2048;

std::size_t tiles(std::size_t n, std::size_t tile) { return (n + tile - 1) / tile; }

/// Calls the user's report from whichever thread finished a task, one at a time.
class work_meter {
 public:
  work_meter(const progress_report& report, double total) : report_(report), total_(total) {}

  void add(double work) {
    if (!report_) return;
    const std::lock_guard lock(mutex_);
    done_ += work;
    report_(std::min(1.0, done_ / total_));
  }

 private:
  const progress_report& report_;
  std::mutex mutex_;
  double total_, done_ = 0;
};

std::size_t attention_scratch_bytes(const model_config& config, std::size_t n) {
  return pqkv::scratch_bytes<pqkv::op::prefill_attention>(
      pqkv::exec::host<>{}, {config.kv_heads, config.query_heads, std::min(n, attention_tokens), config.head_dim});
}

}  // namespace

prefilled_prompt prefill(const model& llama, std::span<const token_id> tokens, pool_runner& runner, const progress_report& report,
                         std::size_t kept_queries, const layer_taker& take) {
  const model_config& config = llama.config();
  const std::size_t n = tokens.size(), d = config.head_dim, blocks = tiles(n, block_tokens);
  const std::size_t query_width = config.query_width(), kv_width = config.kv_width();

  matrix x(index_of(n), index_of(config.hidden)), queries(index_of(n), index_of(query_width)),
      attention(index_of(n), index_of(query_width));
  llama.embed(tokens, x);

  prefilled_prompt prompt;
  prompt.tokens = n;
  prompt.layers.resize(config.layers);
  prompt.logits.resize(config.vocabulary);

  // Work in multiply-adds: the progress bar moves with time, not with layers. The last layer attends for the last token alone.
  const double linear = static_cast<double>(config.hidden * (config.qkv_width() + query_width + 3 * config.intermediate));
  const auto attention_work = [&](std::size_t first, std::size_t count) {
    return static_cast<double>(count) * (static_cast<double>(first) + 0.5 * static_cast<double>(count + 1)) *
           static_cast<double>(2 * query_width);
  };
  const double total = static_cast<double>((config.layers - 1) * n + 1) * linear +
                       static_cast<double>(config.layers - 1) * attention_work(0, n) + attention_work(n - 1, 1);
  work_meter meter(report, total);

  const pqkv::buffer<std::byte> scratch(attention_scratch_bytes(config, n));
  const host_policy cpu{runner, pqkv::arena(scratch)};
  // Heads before tokens, over memory that has tokens before heads.
  const auto by_head = [&](auto* data) {
    return pqkv::view<std::remove_pointer_t<decltype(data)>, 3>{data, {config.query_heads, n, d}, {d, query_width, 1}};
  };
  lap_clock clock;

  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    auto& keys = prompt.layers[layer].keys;  // not a structured binding: clang 14 cannot name those in a lambda
    auto& values = prompt.layers[layer].values;
    keys.resize(kv_width * n);
    values.resize(kv_width * n);

    runner.run(blocks, [&](std::size_t block) {
      const std::size_t first = block * block_tokens, count = std::min(block_tokens, n - first);
      matrix qkv(index_of(count), index_of(config.qkv_width()));
      llama.project_qkv(layer, x.middleRows(index_of(first), index_of(count)), first, qkv);
      queries.middleRows(index_of(first), index_of(count)) = qkv.leftCols(index_of(query_width));
      for (std::size_t i = 0; i < count; ++i) {
        const float* key = qkv.row(index_of(i)).data() + query_width;
        for (std::size_t head = 0; head < config.kv_heads; ++head) {
          std::copy_n(key + head * d, d, keys.data() + (head * n + first + i) * d);
          std::copy_n(key + kv_width + head * d, d, values.data() + (head * n + first + i) * d);
        }
      }
    });

    const std::size_t kept = std::min(kept_queries, n) * query_width;
    prompt.layers[layer].queries.assign(queries.data() + n * query_width - kept, queries.data() + n * query_width);

    prompt.parts.matrices += clock.lap();

    const std::size_t wanted = layer + 1 == config.layers ? n - 1 : 0;  // the first token whose output of this layer is read
    const auto store = pqkv::dense_kv(keys.data(), values.data(), config.kv_heads, n, d);
    for (std::size_t first = wanted, count = 0; first < n; first += count) {
      count = std::min(attention_tokens, n - first);
      pqkv::prefill_attention(cpu, by_head(std::as_const(queries).data()).slice(1, first, count), store, first,
                              by_head(attention.data()).slice(1, first, count), {}, config.softmax_scale());
      meter.add(attention_work(first, count));
    }
    prompt.parts.cache += clock.lap();
    if (take) {
      take(layer, std::exchange(prompt.layers[layer], {}));
      clock.lap();  // not prefill's
    }

    runner.run(tiles(n - wanted, block_tokens), [&](std::size_t block) {
      const std::size_t first = wanted + block * block_tokens, count = std::min(block_tokens, n - first);
      llama.finish_layer(layer, attention.middleRows(index_of(first), index_of(count)), x.middleRows(index_of(first), index_of(count)));
      meter.add(static_cast<double>(count) * linear);
    });
    prompt.parts.matrices += clock.lap();
  }
  if (take) prompt.layers.clear();
  llama.logits(x.bottomRows(1), prompt.logits);
  prompt.parts.matrices += clock.lap();
  return prompt;
}

std::size_t prefill_scratch_bytes(const model_config& config, std::size_t n, std::size_t threads, std::size_t product_scratch) {
  const std::size_t block = std::min(n, block_tokens), tasks = std::min(threads, tiles(n, block_tokens));
  const std::size_t project = block * (config.hidden + config.qkv_width());
  // Behind the last layer one token goes on.
  const std::size_t finish = (config.layers > 1 ? block : 1) * (config.hidden + 3 * config.intermediate);
  return (n * (config.hidden + 2 * config.query_width()) + tasks * std::max(project, finish)) * sizeof(float) + tasks * product_scratch +
         attention_scratch_bytes(config, n);
}

}  // namespace minillama
