// SPDX-License-Identifier: Apache-2.0
// Exact selection on the host by radix on order-preserving keys: three histogram passes find the k-th largest key, whatever the
// values; items may carry weights, so that cells that stand for many tokens are selected the same way.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../search/top_k.hpp"

namespace pqkv {
namespace detail {

/// Everything above `key` is selected, and `of_equal` of what equals it.
struct selection_threshold {
  std::uint32_t key = 0;
  std::uint64_t of_equal = 0;
};

/// @param weights  [n] how many tokens an item stands for; null: one each
/// @param k        at least 1, at most the sum of weights
inline selection_threshold find_threshold(const float* scores, const std::uint32_t* weights, std::size_t n, std::uint64_t k) {
  std::uint32_t prefix = 0, fixed_bits = 0;
  const unsigned digits[3] = {11, 11, 10};
  unsigned shift = 32;
  for (const unsigned width : digits) {
    shift -= width;
    std::uint64_t histogram[2048] = {};
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t key = canonical::order_key(scores[i]);
      if ((key & fixed_bits) == prefix) histogram[(key >> shift) & ((1u << width) - 1)] += weights != nullptr ? weights[i] : 1u;
    }
    std::uint32_t digit = (1u << width) - 1;
    while (digit > 0 && histogram[digit] < k) k -= histogram[digit--];
    prefix |= digit << shift;
    fixed_bits |= ((1u << width) - 1) << shift;
  }
  return {prefix, k};
}

/// Writes first + i, ascending, for every selected i; returns how many.
inline std::uint32_t emit_selected(const float* scores, std::size_t n, selection_threshold threshold, std::int32_t first,
                                   std::int32_t* out) {
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t key = canonical::order_key(scores[i]);
    if (key < threshold.key || (key == threshold.key && threshold.of_equal == 0)) continue;
    threshold.of_equal -= key == threshold.key ? 1 : 0;
    out[count++] = first + static_cast<std::int32_t>(i);
  }
  return count;
}

/// Pads a list with -1.
inline void pad(std::int32_t* list, std::size_t from, std::size_t to) {
  for (std::size_t i = from; i < to; ++i) list[i] = -1;
}

}  // namespace detail

template <>
struct kernel<op::top_k, backend::host> {
  template <class P>
  static void run(const P& policy, view<const float, 2> scores, view<std::int32_t, 2> indices) {
    const std::size_t n = scores.extent(1), k_max = indices.extent(1);
    policy.runner.run(scores.extent(0), [&](std::size_t row) {
      std::int32_t* out = indices.data + row * indices.stride(0);
      const float* in = scores.data + row * scores.stride(0);
      detail::selection_threshold threshold{0, n};  // all of them
      if (k_max < n && k_max > 0) threshold = detail::find_threshold(in, nullptr, n, k_max);
      detail::pad(out, k_max == 0 ? 0 : detail::emit_selected(in, n, threshold, 0, out), k_max);
    });
  }
};

}  // namespace pqkv
