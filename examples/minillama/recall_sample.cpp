// SPDX-License-Identifier: Apache-2.0
#include "recall_sample.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "layer_cache.hpp"

namespace minillama {
namespace {

constexpr std::size_t least_drawn = 256, wanted_of_drawn = 16;

/// One token of each of `count` equal parts of [begin, begin + size), ascending.
std::vector<std::size_t> draw_tokens(std::size_t begin, std::size_t size, std::size_t count, random_source& random) {
  std::vector<std::size_t> drawn(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t first = i * size / count, last = (i + 1) * size / count;
    drawn[i] = begin + first + random.below(last - first);
  }
  return drawn;
}

}  // namespace

std::optional<double> sample_recall(const host_policy& cpu, const layer_step& step, const model_config& config, random_source& random) {
  const pqkv::middle_range middle = step.cache.middle(step.slot);
  const std::size_t h = config.kv_heads, d = config.head_dim, n = middle.size(), k = middle.selected();
  if (k == 0 || k >= n) return std::nullopt;
  const std::size_t count = std::min(n, std::max(least_drawn, (wanted_of_drawn * n + k - 1) / k));
  const std::size_t wanted = std::clamp<std::size_t>((count * k + n / 2) / n, 1, count);

  const std::vector<std::size_t> drawn = draw_tokens(middle.begin, n, count, random);
  const pqkv::strided_store<float> all = step.cache.store(step.slot);
  std::vector<float> keys(h * count * d);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t i = 0; i < count; ++i)
      for (std::size_t x = 0; x < d; ++x) keys[(head * count + i) * d + x] = all.keys(head, drawn[i], x);
  const auto drawn_keys = pqkv::dense_kv(std::as_const(keys).data(), std::as_const(keys).data(), h, count, d);

  std::vector<float> scores(h * count);
  std::vector<std::int32_t> best(h * wanted);
  const auto in_drawn = static_cast<std::uint32_t>(count);
  const std::vector<pqkv::middle_range> ranges(h, {.begin = 0, .end = in_drawn, .retrieve = static_cast<std::uint32_t>(wanted)});
  const auto score_view = pqkv::make_view(scores.data(), h, count);
  pqkv::exact_scores(cpu, step.query[0], drawn_keys, pqkv::make_view(ranges.data(), h), pqkv::group_reduction::probability_sum, score_view,
                     config.softmax_scale());
  pqkv::top_k(cpu, score_view, pqkv::make_view(best.data(), h, wanted));

  const std::size_t most = step.cache.retrieve_capacity(step.slot);
  std::vector<std::int32_t> selected(h * most);
  std::vector<std::uint32_t> counts(h);
  step.cache.retrieve(cpu, step.query, pqkv::make_view(selected.data(), 1, h, most), pqkv::make_view(counts.data(), 1, h), step.token);
  std::size_t found = 0;
  for (std::size_t head = 0; head < h; ++head) {
    const std::int32_t* const first = selected.data() + head * most;
    for (std::size_t i = 0; i < wanted; ++i) {
      const auto token = static_cast<std::int32_t>(drawn[static_cast<std::size_t>(best[head * wanted + i])]);
      found += std::binary_search(first, first + counts[head], token) ? 1 : 0;
    }
  }
  return static_cast<double>(found) / static_cast<double>(h * wanted);
}

}  // namespace minillama
