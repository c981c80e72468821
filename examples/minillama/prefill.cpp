// SPDX-License-Identifier: Apache-2.0
// Prefill, layer by layer: projections in blocks of rows, each a task for the pool; attention by the library.
#include "prefill.hpp"

#include <algorithm>
#include <cmath>
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

// Queries after the first w that attend in one product, over a window and as many tokens more.
constexpr std::size_t window_queries = 64;

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

/// Attention of some queries of one head, each to the last `window` tokens up to its own: two products over all that any of them attends
/// to, with weights of 0 in between.
///
/// @param keys, values  [n, d] of the head
/// @param first         position of the first query, at least window - 1
/// @param queries, out  [count, d]
void attend_in_window(Eigen::Map<const matrix> keys, Eigen::Map<const matrix> values, std::size_t first, std::size_t window, float scale,
                      const_rows_view queries, rows_view out) {
  const Eigen::Index count = queries.rows(), attended = index_of(window), begin = index_of(first + 1 - window);
  matrix weights = queries * keys.middleRows(begin, attended + count - 1).transpose();
  row_vector totals(count);
  for (Eigen::Index i = 0; i < count; ++i) {
    auto row = weights.row(i);
    auto own = row.segment(i, attended);
    const float largest = own.maxCoeff();
    own = ((own.array() - largest) * scale).exp();
    totals[i] = own.sum();
    row.head(i).setZero();
    row.tail(count - 1 - i).setZero();
  }
  out.noalias() = weights * values.middleRows(begin, attended + count - 1);
  for (Eigen::Index i = 0; i < count; ++i) out.row(i) /= totals[i];
}

std::size_t window_scratch_bytes(const model_config& config, std::size_t n, std::size_t threads) {
  if (!config.outgrows_window(n)) return 0;
  const std::size_t after = n - config.sliding_window, count = std::min(after, window_queries);
  const std::size_t tasks = std::min(threads, config.query_heads * tiles(after, window_queries));
  return tasks * count * (config.sliding_window + count) * sizeof(float);
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
    const double attended = static_cast<double>(first) + 0.5 * static_cast<double>(count + 1);
    const double most = config.sliding_window != 0 ? static_cast<double>(config.sliding_window) : attended;
    return static_cast<double>(count) * std::min(attended, most) * static_cast<double>(2 * query_width);
  };
  const std::size_t within = config.outgrows_window(n) ? config.sliding_window : n;  // of these tokens each attends to all before it
  const double total = static_cast<double>((config.layers - 1) * n + 1) * linear +
                       static_cast<double>(config.layers - 1) * (attention_work(0, within) + attention_work(within, n - within)) +
                       attention_work(n - 1, 1);
  work_meter meter(report, total);

  const pqkv::buffer<std::byte> scratch(attention_scratch_bytes(config, n));
  const host_policy cpu{runner, pqkv::arena(scratch)};
  // Heads before tokens, over memory that has tokens before heads.
  const auto by_head = [&](auto* data) {
    return pqkv::view<std::remove_pointer_t<decltype(data)>, 3>{data, {config.query_heads, n, d}, {d, query_width, 1}};
  };
  const float attention_scale =
      config.softmax_scale() != 0 ? config.softmax_scale() : static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
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
    for (std::size_t first = wanted, count = 0; first < within; first += count) {
      count = std::min(attention_tokens, within - first);
      pqkv::prefill_attention(cpu, by_head(std::as_const(queries).data()).slice(1, first, count), store, first,
                              by_head(attention.data()).slice(1, first, count), {}, config.softmax_scale());
      meter.add(attention_work(first, count));
    }
    const std::size_t after = std::max(wanted, within), blocks_after = tiles(n - after, window_queries);
    runner.run(config.query_heads * blocks_after, [&](std::size_t task) {
      const std::size_t head = task / blocks_after, kv = head / config.group();
      const std::size_t first = after + task % blocks_after * window_queries, count = std::min(window_queries, n - first);
      const auto of_head = [&](const std::vector<float>& rows) {
        return Eigen::Map<const matrix>(rows.data() + kv * n * d, index_of(n), index_of(d));
      };
      attend_in_window(of_head(keys), of_head(values), first, within, attention_scale,
                       queries.block(index_of(first), index_of(head * d), index_of(count), index_of(d)),
                       attention.block(index_of(first), index_of(head * d), index_of(count), index_of(d)));
      meter.add(attention_work(first, count) / static_cast<double>(config.query_heads));
    });
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
         attention_scratch_bytes(config, n) + window_scratch_bytes(config, n, threads);
}

}  // namespace minillama
