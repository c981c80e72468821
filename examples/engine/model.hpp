// SPDX-License-Identifier: Apache-2.0
// Random weights for a few attention layers with residuals. Queries resemble the keys of tokens like their own, so that attention has
// something to find; there is no feed-forward part, no rotary embedding (pqkv would see keys after it) and no output layer.
#pragma once

#include "memory.hpp"
#include "team.hpp"

namespace engine {

struct model_shape {
  std::size_t layers = 3, width = 64, vocabulary = 64;
  std::size_t kv_heads = 2, query_heads = 4, head_dim = 32;

  std::size_t query_width() const { return query_heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
};

struct layer_weights {
  float *query, *key, *value;  // [hq * d, width], [h * d, width] twice
  float* out;                  // [width, hq * d]
};

class model {
 public:
  model(const model_shape& shape, slab& memory);
  static std::size_t bytes(const model_shape& shape);

  const model_shape& shape() const { return shape_; }
  const layer_weights& layer(std::size_t l) const { return layers_[l]; }
  /// The hidden state that a token begins with, a little different at every position; [width], written.
  void embed(unsigned token, std::size_t position, float* x) const;

 private:
  model_shape shape_;
  float* embedding_;       // [vocabulary, width]
  layer_weights* layers_;  // [layers]
};

/// y[t] = W x[t] for rows t of x [n, from] and y [n, to]; W [to, from]. The team shares the outputs; the caller waits.
void multiply(const worker& me, const float* weights, const float* x, std::size_t n, std::size_t from, std::size_t to, float* y);
/// x[t] / rms(x[t]) of this worker's rows.
void normalise(const worker& me, const float* x, std::size_t n, std::size_t width, float* y);
/// x += y of this worker's rows.
void add(const worker& me, const float* y, std::size_t n, std::size_t width, float* x);

}  // namespace engine
