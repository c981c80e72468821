// SPDX-License-Identifier: Apache-2.0
// The decoder's products by cuBLAS, in float32 without TF32. Matrices are row by row, as everywhere in this program; cuBLAS, which
// counts by columns, is told of their transposes.
#pragma once
#include <cublas_v2.h>

#include <cstddef>

#include "memory.hpp"

namespace minillama::cuda {

/// Whether a product replaces what it is written to.
enum class written { replaced, added };

/// One handle with a workspace of its own on one stream, so that a stream that is being captured takes every call.
class products {
 public:
  /// @param on  outlives it
  /// @throws pqkv::cuda_error
  explicit products(const stream& on);
  products(const products&) = delete;
  products& operator=(const products&) = delete;
  ~products();

  /// y[i, o] = sum over j of x[i, j] weights[o, j], or added to it.
  ///
  /// @param x        [n, inputs]
  /// @param weights  [outputs, inputs]
  /// @param y        [n, outputs], written
  void project(const float* x, std::size_t n, std::size_t inputs, const float* weights, std::size_t outputs, float* y,
               written how = written::replaced) const;

  /// scores[a, i, t] = scale * sum over j of queries[i, a, j] keys[t, j], for the g query heads of one KV head.
  ///
  /// @param queries    [n, g, d], rows of a token `query_row` apart
  /// @param keys       [tokens, d]
  /// @param scores     [g, n, tokens], written
  void score(const float* queries, std::size_t query_row, std::size_t g, std::size_t n, std::size_t d, const float* keys,
             std::size_t tokens, float scale, float* scores) const;

  /// out[i, a, j] = sum over t of weights[a, i, t] values[t, j]
  ///
  /// @param weights  [g, n, tokens]
  /// @param values   [tokens, d]
  /// @param out      [n, g, d], rows of a token `out_row` apart, written
  void gather(const float* weights, std::size_t g, std::size_t n, std::size_t tokens, const float* values, std::size_t d, float* out,
              std::size_t out_row) const;

 private:
  cublasHandle_t handle_{};
  array<std::byte> workspace_;
};

}  // namespace minillama::cuda
