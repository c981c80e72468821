// SPDX-License-Identifier: Apache-2.0
// Kernels of tokens' scores for four query heads at a time, in plain C++: the reference for what each computes. The four heads' tables are
// interleaved, so that one load finds the entries of all four; a gather would take as many loads as there are heads. Heads that are missing
// have entries of zero. All are canonical: each head's operations are those of score_leaf, in the same order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

inline constexpr std::size_t grouped_heads = 4;

template <class Isa>
struct group_leaf : group_leaf<typename Isa::fallback> {};

template <>
struct group_leaf<isa::scalar> {
  /// Whether these kernels are faster than score_leaf's, a head at a time, for tables of c entries.
  static constexpr bool prefers_groups(std::size_t) { return true; }

  /// out[t, q] = e[0, code 0, q] * e[1, code 1, q] * ..., j ascending, each product rounded. e [m, c, 4], codes in planes, out [n, 4]
  static void group_products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                             float* out) {
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) {
        float p = e[codes[t] * grouped_heads + q];
        for (std::size_t j = 1; j < m; ++j) p = canonical::mul(p, e[(j * c + codes[j * stride + t]) * grouped_heads + q]);
        out[t * grouped_heads + q] = p;
      }
  }

  /// The same with sums.
  static void group_sums(const float* u, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                         float* out) {
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) {
        float z = u[codes[t] * grouped_heads + q];
        for (std::size_t j = 1; j < m; ++j) z = canonical::add(z, u[(j * c + codes[j * stride + t]) * grouped_heads + q]);
        out[t * grouped_heads + q] = z;
      }
  }

  /// z[q] += sum over t of F(p[t, q]), modulo 2^64
  static void group_total(const float* p, std::size_t n, std::uint64_t* z) {
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) z[q] += canonical::to_fixed(p[t * grouped_heads + q]);
  }

  /// Raises best[q] to the largest z[t, q].
  static void group_largest(const float* z, std::size_t n, float* best) {
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) best[q] = canonical::max(z[t * grouped_heads + q], best[q]);
  }

  /// scores[t] = fma(p[t, q], r[q], scores[t]), q ascending
  static void group_add_scaled(const float* p, const float* r, std::size_t n, float* scores) {
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) scores[t] = canonical::fma(p[t * grouped_heads + q], r[q], scores[t]);
  }
};

}  // namespace pqkv::detail
