// SPDX-License-Identifier: Apache-2.0
// AVX2 kernels of shortlists (with FMA). Lanes are query heads in the sums and tokens in the rest, so every lane repeats the scalar
// kernel's operations in their order. Codes are read as scalars: measured, a gather of table entries takes longer than one load a code.
#pragma once

#include <immintrin.h>

#include "../../../../config.hpp"
#include "../scores/avx2.hpp"
#include "scalar.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct shortlist_kernels<isa::avx2> : shortlist_kernels<isa::scalar> {
  using base = shortlist_kernels<isa::scalar>;

  PQKV_TARGET_AVX2 static void interleave_four(const float* const* rows, std::size_t n, float* out) {
    std::size_t x = 0;
    for (; x + 4 <= n; x += 4)
      transpose(_mm_loadu_ps(rows[0] + x), _mm_loadu_ps(rows[1] + x), _mm_loadu_ps(rows[2] + x), _mm_loadu_ps(rows[3] + x), out + 4 * x, 4);
    const float* const rest[4] = {rows[0] + x, rows[1] + x, rows[2] + x, rows[3] + x};
    base::interleave_four(rest, n - x, out + 4 * x);
  }

  PQKV_TARGET_AVX2 static void sums_of_four(const shortlist_tables& of, const shortlist_codes& codes, const std::int32_t* tokens,
                                            std::size_t n, float* z, std::size_t stride) {
    if (of.m == 2 && of.m2 == 2) return shape_sums<2, 2>(of, codes, tokens, n, z, stride);
    if (of.m == 2 && of.m2 == 4) return shape_sums<2, 4>(of, codes, tokens, n, z, stride);
    if (of.m == 2 && of.m2 == 8) return shape_sums<2, 8>(of, codes, tokens, n, z, stride);
    shape_sums<0, 0>(of, codes, tokens, n, z, stride);
  }

  PQKV_TARGET_AVX2 static float_bounds bounds(const float* z, std::size_t n) {
    if (n < 8) return base::bounds(z, n);
    __m256 least = _mm256_loadu_ps(z), greatest = least;
    std::size_t i = 8;
    for (; i + 8 <= n; i += 8) {
      least = _mm256_min_ps(least, _mm256_loadu_ps(z + i));
      greatest = _mm256_max_ps(greatest, _mm256_loadu_ps(z + i));
    }
    alignas(32) float lanes[16];
    _mm256_store_ps(lanes, least);
    _mm256_store_ps(lanes + 8, greatest);
    float_bounds found{base::bounds(lanes, 8).least, base::bounds(lanes + 8, 8).greatest};
    for (; i < n; ++i) {
      found.greatest = z[i] > found.greatest ? z[i] : found.greatest;
      found.least = z[i] < found.least ? z[i] : found.least;
    }
    return found;
  }

  PQKV_TARGET_AVX2 static std::uint64_t weights(float* z, std::size_t n, float top, canonical::softmax_scale s) {
    const std::size_t whole = n / 8 * 8;
    for (std::size_t i = 0; i < whole; i += 8) _mm256_storeu_ps(z + i, _mm256_sub_ps(_mm256_loadu_ps(z + i), _mm256_set1_ps(top)));
    score_kernels<isa::avx2>::exponentials(z, whole, s, z);
    return score_kernels<isa::avx2>::total(z, nullptr, whole) + base::weights(z + whole, n - whole, top, s);
  }

 protected:
  static constexpr std::size_t tokens_ahead = 24;

  /// Rows a to d become columns: out[i * stride + r] = row r [i]
  PQKV_TARGET_AVX2 static PQKV_INLINE void transpose(__m128 a, __m128 b, __m128 c, __m128 d, float* out, std::size_t stride) {
    const __m128 low = _mm_unpacklo_ps(a, b), high = _mm_unpackhi_ps(a, b), low2 = _mm_unpacklo_ps(c, d), high2 = _mm_unpackhi_ps(c, d);
    _mm_storeu_ps(out, _mm_movelh_ps(low, low2));
    _mm_storeu_ps(out + stride, _mm_movehl_ps(low2, low));
    _mm_storeu_ps(out + 2 * stride, _mm_movelh_ps(high, high2));
    _mm_storeu_ps(out + 3 * stride, _mm_movehl_ps(high2, high));
  }

  /// The sums of one token. M and M2 are m and m2; 0: read from the tables
  template <std::size_t M, std::size_t M2>
  PQKV_TARGET_AVX2 static PQKV_INLINE __m128 sum(const shortlist_tables& of, const shortlist_codes& codes, std::int32_t token) {
    const std::size_t m = M != 0 ? M : of.m, m2 = M2 != 0 ? M2 : of.m2;
    const std::uint8_t* coarse = codes.coarse + static_cast<std::size_t>(token);
    const std::uint8_t* fine = codes.fine + static_cast<std::size_t>(token) * codes.row;
    __m128 z = _mm_loadu_ps(of.coarse + 4 * std::size_t{*coarse});
    for (std::size_t j = 1; j < m; ++j) z = _mm_add_ps(z, _mm_loadu_ps(of.coarse + 4 * (j * of.c + coarse[j * codes.plane])));
    for (std::size_t j = 0; j < m2; ++j) z = _mm_add_ps(z, _mm_loadu_ps(of.fine + 4 * (j * of.c2 + fine[j])));
    return z;
  }

  template <std::size_t M, std::size_t M2>
  PQKV_TARGET_AVX2 static PQKV_INLINE void shape_sums(const shortlist_tables& of, const shortlist_codes& codes, const std::int32_t* tokens,
                                                      std::size_t n, float* z, std::size_t stride) {
    const std::size_t m = M != 0 ? M : of.m;
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) {
      for (std::size_t later = i + tokens_ahead; later < i + tokens_ahead + 4 && later < n; ++later) {
        const auto t = static_cast<std::size_t>(tokens[later]);
        __builtin_prefetch(codes.fine + t * codes.row);
        for (std::size_t j = 0; j < m; ++j) __builtin_prefetch(codes.coarse + j * codes.plane + t);
      }
      transpose(sum<M, M2>(of, codes, tokens[i]), sum<M, M2>(of, codes, tokens[i + 1]), sum<M, M2>(of, codes, tokens[i + 2]),
                sum<M, M2>(of, codes, tokens[i + 3]), z + i, stride);
    }
    base::sums_of_four(of, codes, tokens + i, n - i, z + i, stride);
  }
};

}  // namespace pqkv::detail
