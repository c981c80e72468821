// SPDX-License-Identifier: Apache-2.0
// Prefill, layer by layer: projections in blocks of rows, attention in tiles, every block and tile a task for the pool.
#include "prefill.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

namespace minillama {
namespace {

// Tokens a projection task computes: its activations (two times the intermediate width) stay in a core's second-level cache.
constexpr std::size_t block_tokens = 128;
// Query tokens and keys of an attention tile. The g query heads of a KV head are stacked, so a tile has g * query_tile rows.
constexpr std::size_t query_tile = 64;
constexpr std::size_t key_tile = 256;

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

using const_tile = Eigen::Map<const matrix>;

/// Causal attention of one tile of query tokens, all g heads of one KV head, by online softmax.
///
/// @param queries  [query_tile_tokens, g*d], read from rows of the stride given
/// @param first    position of the tile's first token
/// @param out      [query_tile_tokens, g*d], written
void attend_tile(const const_rows_view& queries, std::size_t group, std::size_t first, const float* keys, const float* values,
                 rows_view out) {
  const Eigen::Index tokens = queries.rows(), g = index_of(group), d = queries.cols() / g;
  const std::size_t end = first + static_cast<std::size_t>(tokens);
  matrix q(tokens * g, d), gathered = matrix::Zero(tokens * g, d), scores(tokens * g, index_of(key_tile));
  for (Eigen::Index t = 0; t < tokens; ++t)
    for (Eigen::Index i = 0; i < g; ++i) q.row(t * g + i) = queries.row(t).segment(i * d, d) / std::sqrt(static_cast<float>(d));
  Eigen::ArrayXf largest = Eigen::ArrayXf::Constant(tokens * g, std::numeric_limits<float>::lowest());
  Eigen::ArrayXf sum = Eigen::ArrayXf::Zero(tokens * g);

  for (std::size_t start = 0; start < end; start += key_tile) {
    const Eigen::Index width = index_of(std::min(key_tile, end - start));
    auto tile = scores.leftCols(width);
    tile.noalias() = q * const_tile(keys + start * static_cast<std::size_t>(d), width, d).transpose();
    for (Eigen::Index row = 0; row < tile.rows(); ++row) {
      const Eigen::Index last = index_of(first) + row / g - index_of(start);  // the token sees itself and all before it
      const Eigen::Index visible = std::clamp<Eigen::Index>(last + 1, 0, width);
      tile.row(row).tail(width - visible).setZero();
      if (visible == 0) continue;
      auto weights = tile.row(row).head(visible).array();
      const float before = largest[row];
      largest[row] = std::max(before, weights.maxCoeff());
      weights = (weights - largest[row]).exp();
      const float correction = std::exp(before - largest[row]);
      sum[row] = sum[row] * correction + weights.sum();
      if (correction != 1.0f) gathered.row(row) *= correction;
    }
    gathered.noalias() += tile * const_tile(values + start * static_cast<std::size_t>(d), width, d);
  }
  for (Eigen::Index t = 0; t < tokens; ++t)
    for (Eigen::Index i = 0; i < g; ++i) out.row(t).segment(i * d, d) = gathered.row(t * g + i) / sum[t * g + i];
}

}  // namespace

prefilled_prompt prefill(const model& llama, std::span<const token_id> tokens, pool_runner& runner, const progress_report& report) {
  const model_config& config = llama.config();
  const std::size_t n = tokens.size(), d = config.head_dim, blocks = tiles(n, block_tokens), query_tiles = tiles(n, query_tile);
  const std::size_t query_width = config.query_width(), kv_width = config.kv_width(), group_width = config.group() * d;

  matrix x(index_of(n), index_of(config.hidden)), queries(index_of(n), index_of(query_width)),
      attention(index_of(n), index_of(query_width));
  llama.embed(tokens, x);

  prefilled_prompt prompt;
  prompt.tokens = n;
  prompt.layers.resize(config.layers);
  prompt.logits.resize(config.vocabulary);

  // Work in multiply-adds: the progress bar moves with time, not with layers. The last layer attends for the last tile alone.
  const std::size_t last_block = (query_tiles - 1) * query_tile / block_tokens;
  const double linear = static_cast<double>(config.hidden * (config.qkv_width() + query_width + 3 * config.intermediate));
  const auto attention_work = [&](std::size_t tile) {
    return static_cast<double>(query_tile * (tile + 1)) * static_cast<double>(query_tile * 2 * group_width);
  };
  double total = static_cast<double>((config.layers - 1) * n + n - last_block * block_tokens) * linear;
  for (std::size_t tile = 0; tile < query_tiles; ++tile)
    total += static_cast<double>((tile + 1 == query_tiles ? config.layers : config.layers - 1) * config.kv_heads) * attention_work(tile);
  work_meter meter(report, total);

  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    auto& [keys, values] = prompt.layers[layer];
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

    const bool last_layer = layer + 1 == config.layers;
    const std::size_t wanted = last_layer ? 1 : query_tiles;
    runner.run(wanted * config.kv_heads, [&](std::size_t task) {
      const std::size_t tile = query_tiles - 1 - task / config.kv_heads, head = task % config.kv_heads;  // the longest first
      const std::size_t first = tile * query_tile, count = std::min(query_tile, n - first);
      const auto block = [&](matrix& of) {
        return of.block(index_of(first), index_of(head * group_width), index_of(count), index_of(group_width));
      };
      attend_tile(block(queries), config.group(), first, keys.data() + head * n * d, values.data() + head * n * d, block(attention));
      meter.add(attention_work(tile));
    });

    const std::size_t first_block = last_layer ? last_block : 0;
    runner.run(blocks - first_block, [&](std::size_t task) {
      const std::size_t first = (first_block + task) * block_tokens, count = std::min(block_tokens, n - first);
      llama.finish_layer(layer, attention.middleRows(index_of(first), index_of(count)), x.middleRows(index_of(first), index_of(count)));
      meter.add(static_cast<double>(count) * linear);
    });
  }
  llama.logits(x.bottomRows(1), prompt.logits);
  return prompt;
}

std::size_t prefill_scratch_bytes(const model_config& config, std::size_t n, std::size_t threads) {
  const std::size_t block = std::min(n, block_tokens), rows = std::min(n, query_tile) * config.group();
  const std::size_t project = block * (config.hidden + config.qkv_width());
  const std::size_t attend = rows * (2 * config.head_dim + key_tile + 2);
  const std::size_t finish = block * (config.hidden + 3 * config.intermediate);
  return (n * (config.hidden + 2 * config.query_width()) + threads * std::max({project, attend, finish})) * sizeof(float);
}

}  // namespace minillama
