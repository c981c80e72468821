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

  /// Whether no element is an infinity or a NaN, on the bits, whatever the compiler assumes.
  static bool all_finite(const float* x, std::size_t n) {
    bool finite = true;
    for (std::size_t i = 0; i < n; ++i) finite &= is_finite(x[i]);
    return finite;
  }

  /// Canonical. out[i] = x[i] - mean[i]
  static void centre(const float* x, const float* mean, std::size_t n, float* out) {
    for (std::size_t i = 0; i < n; ++i) out[i] = canonical::sub(x[i], mean[i]);
  }

  /// Rows that half_distances() takes at once; 1: it does not exist, and nearest() decides every row.
  static constexpr std::size_t tile_rows = 1;

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

  /// Canonical. out[t] = e[0][code 0] * e[1][code 1] * ..., j ascending, each product rounded. e [m, c], codes in planes, n tokens
  static void products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                       float* out) {
    for (std::size_t t = 0; t < n; ++t) {
      float p = e[codes[t]];
      for (std::size_t j = 1; j < m; ++j) p = canonical::mul(p, e[j * c + codes[j * stride + t]]);
      out[t] = p;
    }
  }

  /// Canonical. The same with sums.
  static void sums(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                   float* out) {
    for (std::size_t t = 0; t < n; ++t) {
      float z = table[codes[t]];
      for (std::size_t j = 1; j < m; ++j) z = canonical::add(z, table[j * c + codes[j * stride + t]]);
      out[t] = z;
    }
  }

  /// Canonical. out[x] = factor * e[x]; n a multiple of 16. Out may be e.
  static void multiples(float factor, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; ++x) out[x] = canonical::mul(factor, e[x]);
  }

  /// Canonical. out[x] = term + e[x]; n a multiple of 16
  static void offsets(float term, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; ++x) out[x] = canonical::add(term, e[x]);
  }

  /// Canonical. Sum over i of weight[i] * F(p[i]), modulo 2^64; null weights: 1
  static std::uint64_t total(const float* p, const std::uint32_t* weights, std::size_t n) {
    std::uint64_t z = 0;
    for (std::size_t i = 0; i < n; ++i) z += canonical::to_fixed(p[i]) * (weights != nullptr ? weights[i] : 1u);
    return z;
  }

  /// Canonical. Maximum of those z[i] that have a weight (null: all); -infinity without any
  static float largest(const float* z, const std::uint32_t* weights, std::size_t n) {
    float best = float_from_bits(0xff800000u);
    for (std::size_t i = 0; i < n; ++i)
      if (weights == nullptr || weights[i] != 0) best = canonical::max(z[i], best);
    return best;
  }

  /// Canonical. scores[i] = fma(p[i], r, scores[i])
  static void add_scaled(const float* p, float r, std::size_t n, float* scores) {
    for (std::size_t i = 0; i < n; ++i) scores[i] = canonical::fma(p[i], r, scores[i]);
  }

  /// Canonical. scores[i] = max(p[i] * r, scores[i])
  static void max_scaled(const float* p, float r, std::size_t n, float* scores) {
    for (std::size_t i = 0; i < n; ++i) scores[i] = canonical::max(canonical::mul(p[i], r), scores[i]);
  }

  /// Canonical. scores[i] = scores[i] + z[i]
  static void add(const float* z, std::size_t n, float* scores) {
    for (std::size_t i = 0; i < n; ++i) scores[i] = canonical::add(scores[i], z[i]);
  }

  /// Canonical. scores[i] = max(z[i] + bias, scores[i])
  static void max_shifted(const float* z, float bias, std::size_t n, float* scores) {
    for (std::size_t i = 0; i < n; ++i) scores[i] = canonical::max(canonical::add(z[i], bias), scores[i]);
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
};

}  // namespace pqkv::detail
