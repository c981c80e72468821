// SPDX-License-Identifier: Apache-2.0
// Attention of one query head in double, straight from the formula: all logits, one softmax, one weighted sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <pqkv/cache/kv_store.hpp>

namespace pqkv_cases {

struct plain_result {
  std::vector<double> out;
  double lse = -HUGE_VAL;
  double magnitude = 0;  // largest sum of |q_i k_i| * scale of a token: float logits err relative to it

  /// 1e-5, or what rounding a float dot product costs on keys with large offsets.
  double tolerance() const { return std::max(1e-5, 0x1p-22 * magnitude); }
};

/// What logits are scaled by. @param scale  0: 1 / sqrt(d)
inline double plain_scale(std::size_t d, float scale) {
  return scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : static_cast<double>(scale);
}

/// <query, key of token> * scale
template <class Store>
double plain_logit(const float* query, const Store& store, std::size_t head, std::size_t token, float scale = 0) {
  const auto key = store.key(head, token);
  double sum = 0;
  for (std::size_t i = 0; i < store.head_dim(); ++i) sum += static_cast<double>(query[i]) * static_cast<double>(key[i]);
  return sum * plain_scale(store.head_dim(), scale);
}

template <class Store>
plain_result plain_attention(const float* query, const Store& store, std::size_t head, const std::vector<std::size_t>& tokens,
                             float scale = 0) {
  plain_result result;
  result.out.assign(store.head_dim(), 0.0);
  if (tokens.empty()) return result;
  std::vector<double> logits;
  for (const std::size_t t : tokens) {
    logits.push_back(plain_logit(query, store, head, t, scale));
    const auto key = store.key(head, t);
    double sum = 0;
    for (std::size_t i = 0; i < store.head_dim(); ++i) sum += std::fabs(static_cast<double>(query[i]) * static_cast<double>(key[i]));
    result.magnitude = std::max(result.magnitude, sum * plain_scale(store.head_dim(), scale));
  }
  const double top = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const double z : logits) total += std::exp(z - top);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto value = store.value(head, tokens[i]);
    const double weight = std::exp(logits[i] - top) / total;
    for (std::size_t e = 0; e < store.head_dim(); ++e) result.out[e] += weight * static_cast<double>(value[e]);
  }
  result.lse = top + std::log(total);
  return result;
}

/// |got - wanted| / |wanted|; 0 for two zero vectors, infinity for a non-finite element.
inline double relative_error(const float* got, const std::vector<double>& wanted) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (!std::isfinite(got[i])) return HUGE_VAL;
    difference += (static_cast<double>(got[i]) - wanted[i]) * (static_cast<double>(got[i]) - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace pqkv_cases
