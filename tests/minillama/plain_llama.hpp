// SPDX-License-Identifier: Apache-2.0
// The plain oracle of minillama's tests: a Llama in double precision, three loops at a time, with every token recomputed from the start
// and attention over all that came before, or the last tokens of a window. Slow on purpose; shares no code with the program but the name of
// its tokens.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "config.hpp"
#include "tiny_model.hpp"

namespace minillama_test {

using numbers = std::vector<double>;

/// What rotary embedding turns together: (i, i + d/2) as in Hugging Face's files, or (2i, 2i + 1) as in llama2.c's.
enum class pairs { halves, adjacent };

/// What a test says of rotary embedding where it is not plain.
struct oracle_rotary {
  numbers frequencies{};        // of the pairs; empty: powers of theta
  double attention_factor = 1;  // of queries and of keys
  pairs turned = pairs::halves;
};

/// bias: of the outputs, or null
inline numbers product(const tensor& weights, const numbers& x, const tensor* bias = nullptr) {
  numbers y(weights.shape[0], 0.0);
  if (bias)
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = static_cast<double>(bias->values[i]);
  for (std::size_t i = 0; i < y.size(); ++i)
    for (std::size_t j = 0; j < x.size(); ++j) y[i] += static_cast<double>(weights.values[i * x.size() + j]) * x[j];
  return y;
}

inline numbers normalised(const numbers& x, const tensor& weight, double epsilon) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  numbers y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    y[i] = x[i] / std::sqrt(squares / static_cast<double>(x.size()) + epsilon) * static_cast<double>(weight.values[i]);
  return y;
}

inline void rotate_heads(numbers& x, std::size_t head_dim, std::size_t position, double theta, const oracle_rotary& how) {
  const std::size_t half = head_dim / 2;
  for (std::size_t head = 0; head < x.size(); head += head_dim) {
    for (std::size_t i = 0; i < half; ++i) {
      const double plain = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      const double angle = static_cast<double>(position) * (how.frequencies.empty() ? plain : how.frequencies[i]);
      const std::size_t first = how.turned == pairs::halves ? head + i : head + 2 * i;
      const std::size_t second = how.turned == pairs::halves ? first + half : first + 1;
      const double a = x[first], b = x[second];
      x[first] = how.attention_factor * (a * std::cos(angle) - b * std::sin(angle));
      x[second] = how.attention_factor * (b * std::cos(angle) + a * std::sin(angle));
    }
  }
}

/// logits[n][vocabulary], one row for each token. Biases are added where there are any.
inline std::vector<numbers> plain_logits(const tiny_shape& shape, const tensors& weights, std::span<const std::uint32_t> tokens,
                                         const oracle_rotary& rotary = {}) {
  const std::size_t d = shape.head_dim, group = shape.query_heads / shape.kv_heads;
  const tensor& embedding = weights.at("model.embed_tokens.weight");
  std::vector<numbers> x(tokens.size(), numbers(shape.hidden));
  for (std::size_t t = 0; t < tokens.size(); ++t)
    for (std::size_t i = 0; i < shape.hidden; ++i) x[t][i] = static_cast<double>(embedding.values[tokens[t] * shape.hidden + i]);

  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto weight = [&](const char* name) -> const tensor& { return weights.at(prefix + name + ".weight"); };
    const auto projected = [&](const char* name, const numbers& in) {
      const auto bias = weights.find(prefix + name + ".bias");
      return product(weight(name), in, bias == weights.end() ? nullptr : &bias->second);
    };
    std::vector<numbers> queries, keys, values;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const numbers normal = normalised(x[t], weight("input_layernorm"), shape.epsilon);
      queries.push_back(projected("self_attn.q_proj", normal));
      keys.push_back(projected("self_attn.k_proj", normal));
      values.push_back(projected("self_attn.v_proj", normal));
      rotate_heads(queries.back(), d, t, shape.theta, rotary);
      rotate_heads(keys.back(), d, t, shape.theta, rotary);
    }
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      numbers gathered(shape.query_heads * d, 0.0);
      for (std::size_t head = 0; head < shape.query_heads; ++head) {
        const std::size_t kv = head / group * d;
        numbers p(t + 1);
        double largest = -1e300, sum = 0;
        const std::size_t first = shape.sliding_window != 0 && t >= shape.sliding_window ? t - shape.sliding_window + 1 : 0;
        for (std::size_t s = first; s <= t; ++s) {
          for (std::size_t i = 0; i < d; ++i) p[s] += queries[t][head * d + i] * keys[s][kv + i];
          p[s] /= std::sqrt(static_cast<double>(d));
          largest = std::max(largest, p[s]);
        }
        for (std::size_t s = first; s <= t; ++s) sum += p[s] = std::exp(p[s] - largest);
        for (std::size_t s = first; s <= t; ++s)
          for (std::size_t i = 0; i < d; ++i) gathered[head * d + i] += p[s] / sum * values[s][kv + i];
      }
      const numbers attended = projected("self_attn.o_proj", gathered);
      for (std::size_t i = 0; i < shape.hidden; ++i) x[t][i] += attended[i];

      const numbers normal = normalised(x[t], weight("post_attention_layernorm"), shape.epsilon);
      numbers gate = projected("mlp.gate_proj", normal);
      const numbers up = projected("mlp.up_proj", normal);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
      const numbers down = projected("mlp.down_proj", gate);
      for (std::size_t i = 0; i < shape.hidden; ++i) x[t][i] += down[i];
    }
  }
  std::vector<numbers> logits;
  for (const numbers& row : x)
    logits.push_back(
        product(shape.tied ? embedding : weights.at("lm_head.weight"), normalised(row, weights.at("model.norm.weight"), shape.epsilon)));
  return logits;
}

inline std::vector<minillama::token_id> random_tokens(std::size_t length, std::uint64_t seed, std::size_t vocabulary = 256) {
  std::mt19937_64 bits(seed);
  std::vector<minillama::token_id> tokens(length);
  for (auto& token : tokens) token = static_cast<minillama::token_id>((bits() >> 32) % vocabulary);
  return tokens;
}

/// Largest difference, in units of the oracle's largest logit; infinite where a logit is not finite.
inline double difference(std::span<const float> logits, const numbers& wanted) {
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - wanted[i]));
    if (!std::isfinite(logits[i])) worst = HUGE_VAL;
    scale = std::max(scale, std::abs(wanted[i]));
  }
  return worst / scale;
}

}  // namespace minillama_test
