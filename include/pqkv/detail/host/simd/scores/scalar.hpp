// SPDX-License-Identifier: Apache-2.0
// Kernels of scores in plain C++: the reference for what each computes. Those marked canonical give the same bits on every ISA; the others
// agree within rounding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <class Isa>
struct score_kernels : score_kernels<typename Isa::fallback> {};

template <>
struct score_kernels<isa::scalar> {
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

  /// Canonical. The maximum of the z[i] that have a weight (null: of all); -infinity if there are none
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
};

}  // namespace pqkv::detail
