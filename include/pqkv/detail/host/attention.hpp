// SPDX-License-Identifier: Apache-2.0
// Attention on the host: a task is one list, whose query heads share each K and V row. Online softmax over tiles of 64 tokens; a
// tile's weighted values are summed by themselves first, which keeps float sums over 10^5 tokens accurate.
#pragma once

#include <algorithm>

#include "../../attention.hpp"
#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "simd/rows.hpp"

namespace pqkv {
namespace detail {

/// Attention of up to max_queries query heads over one KV head.
template <class Leaf, class Store>
class online_attention {
 public:
  static constexpr std::size_t tile_tokens = 64, max_queries = 8;

  online_attention(const Store& store, std::size_t head, std::size_t queries)
      : store_(store), head_(head), g_(queries), d_(store.head_dim()), scale_(canonical::softmax_scale::of(d_)) {
    for (std::size_t q = 0; q < g_; ++q) {
      top_[q] = float_from_bits(0xff800000u);
      total_[q] = 0;
      broken_[q] = false;
      std::fill_n(sum_ + q * d_, d_, 0.0f);
    }
  }

  void load_query(std::size_t q, const float* query) { std::copy_n(query, d_, query_ + q * d_); }

  void add_range(std::size_t first, std::size_t last) {
    for (; first < last; first += tile_tokens) {
      const std::size_t count = std::min(tile_tokens, last - first);
      add_tile(count, [first](std::size_t i) { return first + i; });
    }
  }
  void add_list(const std::int32_t* tokens, std::size_t count) {
    for (std::size_t first = 0; first < count; first += tile_tokens)
      add_tile(std::min(tile_tokens, count - first),
               [tokens, first](std::size_t i) { return static_cast<std::size_t>(tokens[first + i]); });
  }

  /// Returns the log-sum-exp.
  float finish(std::size_t q, float* out) const {
    const float nan = float_from_bits(0x7fc00000u);
    for (std::size_t i = 0; i < d_; ++i)
      out[i] = broken_[q] ? nan : total_[q] == 0 ? 0.0f : static_cast<float>(static_cast<double>(sum_[q * d_ + i]) / total_[q]);
    if (broken_[q]) return nan;
    if (total_[q] == 0) return float_from_bits(0xff800000u);
    return static_cast<float>(static_cast<double>(top_[q]) / std::sqrt(static_cast<double>(d_)) + std::log(total_[q]));
  }

 private:
  template <class TokenAt>
  void add_tile(std::size_t count, TokenAt token_at) {
    for (std::size_t i = 0; i < count; ++i)
      Leaf::group_dots(query_, g_, load_row<Leaf>(store_.key(head_, token_at(i)), d_, row_), d_, weight_ + i, tile_tokens);
    for (std::size_t q = 0; q < g_; ++q) rescale(q, count);
    std::fill_n(tile_sum_, g_ * d_, 0.0f);
    for (std::size_t i = 0; i < count; ++i)
      Leaf::group_add(tile_sum_, g_, weight_ + i, tile_tokens, load_row<Leaf>(store_.value(head_, token_at(i)), d_, row_), d_);
    for (std::size_t i = 0; i < g_ * d_; ++i) sum_[i] += tile_sum_[i];
  }

  /// Turns a query's logits of the tile into weights under the running maximum.
  void rescale(std::size_t q, std::size_t count) {
    float* weight = weight_ + q * tile_tokens;
    float top = top_[q];
    for (std::size_t i = 0; i < count; ++i) {
      broken_[q] |= !is_finite(weight[i]);
      top = std::max(top, weight[i]);
    }
    if (broken_[q]) return;
    if (total_[q] != 0 && top != top_[q]) {
      const float shrink = canonical::exponential(top_[q] - top, scale_);
      total_[q] *= static_cast<double>(shrink);
      for (std::size_t i = 0; i < d_; ++i) sum_[q * d_ + i] *= shrink;
    }
    top_[q] = top;
    for (std::size_t i = 0; i < count; ++i) weight[i] -= top;
    Leaf::exponentials(weight, count, scale_, weight);
    for (std::size_t i = 0; i < count; ++i) total_[q] += static_cast<double>(weight[i]);
  }

  const Store& store_;
  std::size_t head_, g_, d_;
  canonical::softmax_scale scale_;
  float top_[max_queries];
  double total_[max_queries];
  bool broken_[max_queries];  // met a non-finite logit
  alignas(cache_line_bytes) float query_[max_queries * 256];
  alignas(cache_line_bytes) float sum_[max_queries * 256];
  alignas(cache_line_bytes) float tile_sum_[max_queries * 256];
  alignas(cache_line_bytes) float weight_[max_queries * tile_tokens];
  alignas(cache_line_bytes) float row_[256];
};

}  // namespace detail

template <>
struct kernel<op::attention, backend::host> {
  template <class P, class Store>
  static void run(const P& policy, view<const float, 2> query, const Store& store, const token_set<>& tokens, view<float, 2> out,
                  view<float, 1> lse) {
    const std::size_t hq = query.extent(0), lists = tokens.spans.extent(0), g = hq / lists, lists_per_head = lists / store.heads();
    isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
      using online = detail::online_attention<detail::leaf<decltype(isa)>, Store>;
      const std::size_t parts = (g + online::max_queries - 1) / online::max_queries;
      policy.runner.run(lists * parts, [&](std::size_t task) {
        const detail::float_environment rounding;
        const std::size_t list = task / parts, first = list * g + task % parts * online::max_queries;
        const std::size_t queries = std::min(online::max_queries, (list + 1) * g - first);
        online head(store, list / lists_per_head, queries);
        for (std::size_t q = 0; q < queries; ++q) head.load_query(q, &query(first + q, 0));
        const token_span span = tokens.spans(list);
        head.add_range(0, span.leading);
        if (tokens.indices.data != nullptr) head.add_list(tokens.indices.data + list * tokens.indices.stride(0), tokens.counts(list));
        head.add_range(span.window_begin, span.window_end);
        for (std::size_t q = 0; q < queries; ++q) {
          const float log_sum = head.finish(q, &out(first + q, 0));
          if (lse.data != nullptr) lse(first + q) = log_sum;
        }
      });
    });
  }
};

}  // namespace pqkv
