// SPDX-License-Identifier: Apache-2.0
#include "model.hpp"

#include <cmath>

namespace engine {
namespace {

constexpr float sharpness = 2.0f;  // of attention: scales queries

/// Fills with numbers of mean 0 and the given deviation.
void randomise(float* x, std::size_t count, float deviation, std::uint64_t stream) {
  const pqkv::random_stream draws{7, stream};
  for (std::size_t i = 0; i < count; ++i) x[i] = (static_cast<float>(draws(i)) * 0x1p-31f - 1.0f) * 1.7320508f * deviation;
}

}  // namespace

std::size_t model::bytes(const model_shape& s) {
  const std::size_t floats = s.vocabulary * s.width + s.layers * s.width * (2 * s.query_width() + 2 * s.kv_width());
  return floats * sizeof(float) + s.layers * (sizeof(layer_weights) + 5 * 64) + 128;
}

model::model(const model_shape& shape, slab& memory) : shape_(shape) {
  const std::size_t width = shape.width, d = shape.head_dim, group = shape.query_heads / shape.kv_heads;
  const float deviation = 1 / std::sqrt(static_cast<float>(width));
  embedding_ = memory.take<float>(shape.vocabulary * width);
  randomise(embedding_, shape.vocabulary * width, 1, 1);
  layers_ = memory.take<layer_weights>(shape.layers);
  for (std::size_t l = 0; l < shape.layers; ++l) {
    layer_weights& w = layers_[l];
    w = {memory.take<float>(shape.query_width() * width), memory.take<float>(shape.kv_width() * width),
         memory.take<float>(shape.kv_width() * width), memory.take<float>(width * shape.query_width())};
    randomise(w.key, shape.kv_width() * width, deviation, 10 * l + 2);
    randomise(w.value, shape.kv_width() * width, deviation, 10 * l + 3);
    randomise(w.out, width * shape.query_width(), 0.5f / std::sqrt(static_cast<float>(shape.query_width())), 10 * l + 4);
    randomise(w.query, shape.query_width() * width, 0.4f * deviation, 10 * l + 5);
    for (std::size_t q = 0; q < shape.query_heads; ++q)
      for (std::size_t i = 0; i < d * width; ++i) {
        float& x = w.query[q * d * width + i];
        x = sharpness * (x + w.key[q / group * d * width + i]);
      }
  }
}

void model::embed(unsigned token, std::size_t position, float* x) const {
  randomise(x, shape_.width, 0.3f, 1000 + position);
  for (std::size_t i = 0; i < shape_.width; ++i) x[i] += embedding_[token % shape_.vocabulary * shape_.width + i];
}

void multiply(const worker& me, const float* weights, const float* x, std::size_t n, std::size_t from, std::size_t to, float* y) {
  for (std::size_t task = me.ith; task < n * to; task += me.nth) {
    const float *row = x + task / to * from, *w = weights + task % to * from;
    float sum = 0;
    for (std::size_t i = 0; i < from; ++i) sum += w[i] * row[i];
    y[task] = sum;
  }
}

void normalise(const worker& me, const float* x, std::size_t n, std::size_t width, float* y) {
  for (std::size_t t = me.ith; t < n; t += me.nth) {
    float sum = 1e-6f;
    for (std::size_t i = 0; i < width; ++i) sum += x[t * width + i] * x[t * width + i];
    const float scale = std::sqrt(static_cast<float>(width) / sum);
    for (std::size_t i = 0; i < width; ++i) y[t * width + i] = x[t * width + i] * scale;
  }
}

void add(const worker& me, const float* y, std::size_t n, std::size_t width, float* x) {
  for (std::size_t t = me.ith; t < n; t += me.nth)
    for (std::size_t i = 0; i < width; ++i) x[t * width + i] += y[t * width + i];
}

}  // namespace engine
