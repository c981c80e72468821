// SPDX-License-Identifier: Apache-2.0
// Leaves in plain C++: the innermost loops of every host kernel, and the plain statement of what each computes. Other ISAs
// override only what they make faster. Leaves marked canonical give the same bits on every ISA; the others agree within rounding.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../../core/canonical.hpp"
#include "../../../exec/isa.hpp"

namespace pqkv::detail {

struct nearest_centroid {
  std::uint32_t index;
  float distance;
};

template <class Isa>
struct leaf;

template <>
struct leaf<isa::scalar> {
  /// dst[i] = float(src[i])
  template <class T>
  static void widen(const T* src, std::size_t n, float* dst) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = static_cast<float>(src[i]);
  }

  /// Canonical. argmin over x of the squared distance of y and centroid x, ties to the lower index; centroids [ds, c].
  static nearest_centroid nearest(const float* y, const float* centroids, std::size_t c, std::size_t ds) {
    nearest_centroid best{0, canonical::squared_distance(y, centroids, c, ds)};
    for (std::size_t x = 1; x < c; ++x) {
      const float distance = canonical::squared_distance(y, centroids + x, c, ds);
      if (distance < best.distance) best = {static_cast<std::uint32_t>(x), distance};
    }
    return best;
  }

  /// Canonical. sum[i] += y[i] in fixed point
  static void accumulate(const float* y, float scale, std::size_t n, std::int64_t* sum) {
    for (std::size_t i = 0; i < n; ++i) sum[i] += canonical::fixed_point(y[i], scale);
  }

  /// Canonical. out[x] = <q, centroid x>; centroids [ds, c]
  static void inner_products(const float* q, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; ++x) out[x] = canonical::dot(q, centroids + x, c, ds);
  }

  /// Canonical. out[x] = -|y - centroid x|^2
  static void negative_distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; ++x) out[x] = -canonical::squared_distance(y, centroids + x, c, ds);
  }

  /// Canonical. out[i] = 2^(u[i] * scale), u finite
  static void exponentials(const float* u, std::size_t n, canonical::softmax_scale s, float* out) {
    for (std::size_t i = 0; i < n; ++i) out[i] = canonical::exponential(u[i], s);
  }

  /// Canonical. Sum over items t of weight[t] * F(P(t)); items are tokens (weights null: 1) or cells. e [m, c].
  static std::uint64_t normaliser(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                  std::size_t n, const std::uint32_t* weights) {
    std::uint64_t z = 0;
    for (std::size_t t = 0; t < n; ++t) {
      if (weights != nullptr && weights[t] == 0) continue;
      z += canonical::to_fixed(product(e, m, c, codes + t, stride)) * (weights != nullptr ? weights[t] : 1u);
    }
    return z;
  }

  /// Canonical. Maximum over items with a weight of the sum over j of u[j, code], j ascending; -infinity without any. u [m, c].
  static float best_sum(const float* u, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                        const std::uint32_t* weights) {
    float best = float_from_bits(0xff800000u);
    for (std::size_t t = 0; t < n; ++t)
      if (weights == nullptr || weights[t] != 0) best = canonical::max(sum(u, m, c, codes + t, stride), best);
    return best;
  }

  /// Canonical. scores[t] = fma(P_q(t), r[q], acc) over q ascending. e [g, m, c]
  static void probability_sum(const float* e, const float* r, std::size_t g, std::size_t m, std::size_t c, const std::uint8_t* codes,
                              std::size_t stride, std::size_t n, float* scores) {
    for (std::size_t t = 0; t < n; ++t) {
      float acc = 0;
      for (std::size_t q = 0; q < g; ++q) acc = canonical::fma(product(e + q * m * c, m, c, codes + t, stride), r[q], acc);
      scores[t] = acc;
    }
  }

  /// Canonical. scores[t] = maximum over q of P_q(t) * r[q]
  static void probability_max(const float* e, const float* r, std::size_t g, std::size_t m, std::size_t c, const std::uint8_t* codes,
                              std::size_t stride, std::size_t n, float* scores) {
    for (std::size_t t = 0; t < n; ++t) {
      float best = 0;
      for (std::size_t q = 0; q < g; ++q)
        best = canonical::max(canonical::mul(product(e + q * m * c, m, c, codes + t, stride), r[q]), best);
      scores[t] = best;
    }
  }

  /// Canonical. scores[t] = sum over q of (sum over j of table[q, j, code]), both ascending, from +0. table [g, m, c]
  static void logit_sum(const float* table, std::size_t g, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                        std::size_t n, float* scores) {
    for (std::size_t t = 0; t < n; ++t) {
      float acc = 0;
      for (std::size_t q = 0; q < g; ++q) acc = canonical::add(acc, sum(table + q * m * c, m, c, codes + t, stride));
      scores[t] = acc;
    }
  }

  /// Canonical. scores[t] = maximum over q of (sum over j of table[q, j, code]) + bias[q]
  static void logit_max(const float* table, const float* bias, std::size_t g, std::size_t m, std::size_t c, const std::uint8_t* codes,
                        std::size_t stride, std::size_t n, float* scores) {
    for (std::size_t t = 0; t < n; ++t) {
      float best = float_from_bits(0xff800000u);
      for (std::size_t q = 0; q < g; ++q)
        best = canonical::max(canonical::add(sum(table + q * m * c, m, c, codes + t, stride), bias[q]), best);
      scores[t] = best;
    }
  }

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

 private:
  static float product(const float* e, std::size_t m, std::size_t c, const std::uint8_t* code, std::size_t stride) {
    float p = e[code[0]];
    for (std::size_t j = 1; j < m; ++j) p = canonical::mul(p, e[j * c + code[j * stride]]);
    return p;
  }
  static float sum(const float* table, std::size_t m, std::size_t c, const std::uint8_t* code, std::size_t stride) {
    float z = table[code[0]];
    for (std::size_t j = 1; j < m; ++j) z = canonical::add(z, table[j * c + code[j * stride]]);
    return z;
  }
};

}  // namespace pqkv::detail
