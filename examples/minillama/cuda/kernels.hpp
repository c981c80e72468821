// SPDX-License-Identifier: Apache-2.0
// The decoder's own kernels, for files without nvcc: everything between the products. Each call is one launch on the stream; pointers
// are to device memory. Rows are tokens.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "memory.hpp"

namespace minillama::cuda {

/// x[i, hidden] = embedding[tokens[i], hidden]; tokens are within the vocabulary
void embed(const stream& on, const float* embedding, const token_id* tokens, std::size_t n, std::size_t hidden, float* x);

/// out[i, .] = x[i, .] / sqrt(mean(x[i, .]^2) + epsilon) * weight
void normalise(const stream& on, const float* x, const float* weight, float epsilon, std::size_t n, std::size_t hidden, float* out);

/// Where the rows of a stacked projection go.
struct split_projection {
  const float* qkv;          // [n, hq*d + 2*h*d]: queries, keys, values
  const float* frequencies;  // [d/2]
  float* queries;            // [n, hq, d], written
  float *keys, *values;      // [h, n, d], heads `head_stride` apart, written
  std::size_t head_stride;
  const std::uint32_t* position;  // of the first row, beside first_position: in device memory; or null: 0
  std::size_t first_position;
  std::size_t query_heads, kv_heads, head_dim;  // hq, h, d
};

/// Takes a projection apart; queries and keys with rotary embedding, as rotary.hpp has it.
void split(const stream& on, const split_projection& rows, std::size_t n);

/// weights[a, i, t] = softmax over the last `window` of the tokens t <= first + i of scores[a, i, t]; 0 elsewhere. In place.
///
/// @param scores  [heads, n, tokens]
/// @param window  at least 1
void causal_softmax(const stream& on, float* scores, std::size_t heads, std::size_t n, std::size_t tokens, std::size_t first,
                    std::size_t window);

/// out[i, .] = silu(gate[i, .]) * up[i, .]
///
/// @param gate_up  [n, 2*intermediate]: gate, then up
/// @param out      [n, intermediate]
void activate(const stream& on, const float* gate_up, std::size_t n, std::size_t intermediate, float* out);

/// ++*position
void advance(const stream& on, std::uint32_t* position);

}  // namespace minillama::cuda
