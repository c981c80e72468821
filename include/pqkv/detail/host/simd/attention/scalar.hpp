// SPDX-License-Identifier: Apache-2.0
// Leaves of attention in plain C++: the plain statement of what each computes. Those marked canonical give the same bits on every ISA; the
// others agree within rounding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::detail {

template <class Isa>
struct attention_leaf : attention_leaf<typename Isa::fallback> {};

template <>
struct attention_leaf<isa::scalar> {
  /// out[q * out_stride] = <query q, key>; queries [g, d]
  static void group_dots(const float* queries, std::size_t g, const float* key, std::size_t d, float* out, std::size_t out_stride) {
    for (std::size_t q = 0; q < g; ++q) {
      float acc = 0;
      for (std::size_t i = 0; i < d; ++i) acc += queries[q * d + i] * key[i];
      out[q * out_stride] = acc;
    }
  }

  /// acc[q, i] += weight[q * weight_stride] * value[i]; acc [g, d]
  static void group_add(float* acc, std::size_t g, const float* weight, std::size_t weight_stride, const float* value, std::size_t d) {
    for (std::size_t q = 0; q < g; ++q)
      for (std::size_t i = 0; i < d; ++i) acc[q * d + i] += weight[q * weight_stride] * value[i];
  }
};

}  // namespace pqkv::detail
