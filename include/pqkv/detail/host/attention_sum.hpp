// SPDX-License-Identifier: Apache-2.0
// The running softmax of attention on the host: of up to eight query heads, their tops, totals and weighted sums of values.
#pragma once

#include <algorithm>
#include <cmath>

#include "../../attention.hpp"
#include "simd/kernels.hpp"

namespace pqkv::inline PQKV_MODE::detail {

inline constexpr std::size_t attention_max_queries = 8;

/// Attention of some query heads to some tokens, not yet divided by the total weight. Elements are in the order of the SIMD kernels.
template <class Kernels, class T>
class attention_sum {
 public:
  attention_sum(std::size_t queries, std::size_t d) : g_(queries), d_(d), stride_(attention_row_floats(d)) {
    std::fill_n(top_, attention_max_queries, float_from_bits(0xff800000u));
    std::fill_n(sum_, g_ * stride_, 0.0f);
  }

  /// Adds the attention to other tokens that write() left; query heads are `query_floats` apart.
  void add(const float* partial, std::size_t query_floats, canonical::softmax_scale scale) {
    for (std::size_t q = 0; q < g_; ++q, partial += query_floats) {
      const float top = partial[0], total = partial[1];
      broken_[q] |= !is_finite(total);
      if (broken_[q] || total == 0) continue;
      raise(q, std::max(top, top_[q]), scale);
      const float shrink = canonical::exponential(top - top_[q], scale);
      total_[q] += static_cast<double>(shrink) * static_cast<double>(total);
      for (std::size_t i = 0; i < stride_; ++i) sum_[q * stride_ + i] += shrink * partial[2 + i];
    }
  }
  void write(float* partial, std::size_t query_floats) const {
    for (std::size_t q = 0; q < g_; ++q, partial += query_floats) {
      partial[0] = top_[q];
      partial[1] = broken_[q] ? float_from_bits(0x7fc00000u) : static_cast<float>(total_[q]);
      std::copy_n(sum_ + q * stride_, stride_, partial + 2);
    }
  }

  /// Turns a query's logits of a tile into weights under the running maximum.
  void weigh(std::size_t q, float* weight, std::size_t count, canonical::softmax_scale scale) {
    float top = top_[q];
    broken_[q] |= !Kernels::tile_top(weight, count, top);
    if (broken_[q]) return;
    raise(q, top, scale);
    Kernels::tile_lower(weight, count, top);
    Kernels::exponentials(weight, count, scale, weight);
    total_[q] += static_cast<double>(Kernels::tile_total(weight, count));
  }

  float* sums() { return sum_; }

  /// Writes a query's output and returns its log-sum-exp.
  float finish(std::size_t q, float* out, double factor) const {
    const float nan = float_from_bits(0x7fc00000u);
    for (std::size_t i = 0; i < d_; ++i)
      out[i] = broken_[q] ? nan : total_[q] == 0 ? 0.0f : static_cast<float>(static_cast<double>(sum_[q * stride_ + place(i)]) / total_[q]);
    if (broken_[q]) return nan;
    if (total_[q] == 0) return float_from_bits(0xff800000u);
    return static_cast<float>(static_cast<double>(top_[q]) * factor + std::log(total_[q]));
  }

  /// The place of element i in the order of the SIMD kernels.
  static constexpr std::size_t place(std::size_t i) {
    constexpr std::size_t lanes = Kernels::template split_lanes<T>;
    if constexpr (lanes == 0) {
      return i;
    } else {
      const std::size_t within = i % (2 * lanes);
      return i - within + within / 2 + within % 2 * lanes;
    }
  }

 private:
  void raise(std::size_t q, float top, canonical::softmax_scale scale) {
    if (total_[q] != 0 && top != top_[q]) {
      const float shrink = canonical::exponential(top_[q] - top, scale);
      total_[q] *= static_cast<double>(shrink);
      Kernels::tile_scale(sum_ + q * stride_, stride_, shrink);
    }
    top_[q] = top;
  }

  std::size_t g_, d_, stride_;
  float top_[attention_max_queries];
  double total_[attention_max_queries] = {};
  bool broken_[attention_max_queries] = {};  // whether a logit was not finite
  alignas(cache_line_bytes) float sum_[attention_max_queries * 256];
};

}  // namespace pqkv::detail
