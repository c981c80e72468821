// SPDX-License-Identifier: Apache-2.0
// Kernels of tokens' scores for four query heads at a time, in plain C++: the reference for what each computes. The four heads' tables are
// interleaved, so that one load finds the entries of all four; a gather would take as many loads as there are heads. Heads that are missing
// have entries of zero. All are canonical: each head's operations are those of score_kernels, in the same order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

inline constexpr std::size_t grouped_heads = 4;

template <class Isa>
struct group_kernels : group_kernels<typename Isa::fallback> {};

template <>
struct group_kernels<isa::scalar> {
  /// Whether these kernels are faster than score_kernels's, a head at a time, for g query heads and tables of c entries.
  static constexpr bool prefers_groups(std::size_t, std::size_t) { return false; }

  /// z[q] += sum over t of F(p[t, q]), modulo 2^64; p[t, q] = e[0, code 0, q] * e[1, code 1, q] * ..., j ascending, each product rounded.
  ///
  /// @param e        [m, c, 4]
  /// @param codes    [m, n], planes `stride` apart
  /// @param partial  [n, 4], scratch
  static void group_total(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                          float* partial, std::uint64_t* z) {
    join<look_up_step::multiply>(e, m, c, codes, stride, n, partial);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) z[q] += canonical::to_fixed(partial[t * grouped_heads + q]);
  }

  /// scores[t] = fma(p[t, q], r[q], scores[t]), q ascending; p as above
  static void group_add_scaled(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                               float* partial, const float* r, float* scores) {
    join<look_up_step::multiply>(e, m, c, codes, stride, n, partial);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) scores[t] = canonical::fma(partial[t * grouped_heads + q], r[q], scores[t]);
  }

  /// Raises best[q] to the largest u[0, code 0, q] + u[1, code 1, q] + ..., j ascending.
  static void group_largest(const float* u, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                            float* partial, float* best) {
    join<look_up_step::add>(u, m, c, codes, stride, n, partial);
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) best[q] = canonical::max(partial[t * grouped_heads + q], best[q]);
  }

 protected:
  enum class look_up_step { multiply, add };

 private:
  template <look_up_step Step>
  static void join(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride, std::size_t n,
                   float* out) {
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t q = 0; q < grouped_heads; ++q) {
        float found = table[codes[t] * grouped_heads + q];
        for (std::size_t j = 1; j < m; ++j) {
          const float entry = table[(j * c + codes[j * stride + t]) * grouped_heads + q];
          found = Step == look_up_step::multiply ? canonical::mul(found, entry) : canonical::add(found, entry);
        }
        out[t * grouped_heads + q] = found;
      }
  }
};

}  // namespace pqkv::detail
