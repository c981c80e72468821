// SPDX-License-Identifier: Apache-2.0
// Kernels of attention in plain C++: the reference for what each computes. Not canonical: ISAs agree within rounding.
//
// A tile is a list of pointers to rows of keys or values, each contiguous, in their storage type. Queries and sums are floats in rows of
// `stride` elements, a multiple of tile_padding with zeros from the d-th on, in the order that split_lanes says.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// Rows of queries and sums are padded to a multiple of tile_padding elements. Lists of keys are padded to a multiple of tile_row_padding
/// tokens, by any valid rows.
inline constexpr std::size_t tile_padding = 32, tile_row_padding = 16;

/// Rows that a kernel prefetches while it computes: tile_dots the keys, tile_add the values. It prefetches each piece of them when it reads
/// the same piece of its own rows, so that the requests are evenly distributed.
template <class T>
struct rows_ahead {
  const T* const* keys;
  const T* const* values;
};

template <class Isa>
struct attention_kernels : attention_kernels<typename Isa::fallback> {};

template <>
struct attention_kernels<isa::scalar> {
  /// The order of elements in rows of queries and sums. 0 is the natural one. L means that of each 2 L elements those at even places come
  /// first: one shift and one mask turn a register of bfloat16 pairs into two of floats in this order.
  template <class T>
  static constexpr std::size_t split_lanes = 0;

  /// out[q * out_stride] = <query q, key>; queries [g, d]
  static void group_dots(const float* queries, std::size_t g, const float* key, std::size_t d, float* out, std::size_t out_stride) {
    for (std::size_t q = 0; q < g; ++q) {
      float acc = 0;
      for (std::size_t i = 0; i < d; ++i) acc += queries[q * d + i] * key[i];
      out[q * out_stride] = acc;
    }
  }

  /// out[q * out_stride + t] = <query q, key t>; out is written up to the padded count.
  template <class T>
  static void tile_dots(const float* queries, std::size_t stride, std::size_t g, const T* const* keys, std::size_t count, std::size_t d,
                        rows_ahead<T>, float* out, std::size_t out_stride) {
    for (std::size_t t = 0; t < count; ++t)
      for (std::size_t q = 0; q < g; ++q) {
        float acc = 0;
        for (std::size_t i = 0; i < d; ++i) acc += queries[q * stride + i] * static_cast<float>(keys[t][i]);
        out[q * out_stride + t] = acc;
      }
  }

  /// sums[q, i] += sum over t of weights[q * weight_stride + t] * values[t][i]; the tile is summed separately first
  template <class T>
  static void tile_add(float* sums, std::size_t stride, std::size_t g, const float* weights, std::size_t weight_stride,
                       const T* const* values, std::size_t count, std::size_t d, rows_ahead<T>) {
    for (std::size_t q = 0; q < g; ++q)
      for (std::size_t i = 0; i < d; ++i) {
        float acc = 0;
        for (std::size_t t = 0; t < count; ++t) acc += weights[q * weight_stride + t] * static_cast<float>(values[t][i]);
        sums[q * stride + i] += acc;
      }
  }

  /// Raises `top` to the largest of x; false if one of them is not finite.
  static bool tile_top(const float* x, std::size_t n, float& top) {
    bool finite = true;
    for (std::size_t i = 0; i < n; ++i) {
      finite &= is_finite(x[i]);
      top = std::max(top, x[i]);
    }
    return finite;
  }

  /// x[i] -= top
  static void tile_lower(float* x, std::size_t n, float top) {
    for (std::size_t i = 0; i < n; ++i) x[i] -= top;
  }

  /// The sum of up to a tile's weights.
  static float tile_total(const float* x, std::size_t n) {
    float total = 0;
    for (std::size_t i = 0; i < n; ++i) total += x[i];
    return total;
  }

  /// x[i] *= factor
  static void tile_scale(float* x, std::size_t n, float factor) {
    for (std::size_t i = 0; i < n; ++i) x[i] *= factor;
  }
};

}  // namespace pqkv::detail
