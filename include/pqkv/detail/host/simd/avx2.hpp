// SPDX-License-Identifier: Apache-2.0
// AVX2 leaves (with FMA and F16C). The target attribute is per function: a baseline build runs them where the CPU has them. Lanes
// are centroids or tokens, never the axis that is summed, so every lane repeats the scalar leaf's operations in its order.
#pragma once

#include <immintrin.h>

#include "../../../config.hpp"
#include "scalar.hpp"

namespace pqkv::detail {

template <>
struct leaf<isa::avx2> : leaf<isa::scalar> {
  using base = leaf<isa::scalar>;
  using base::widen;

  PQKV_TARGET_AVX2 static void widen(const half* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
    base::widen(src + i, n - i, dst + i);
  }
  PQKV_TARGET_AVX2 static void widen(const bfloat16* src, std::size_t n, float* dst) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i)));
      _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
    }
    base::widen(src + i, n - i, dst + i);
  }

  PQKV_TARGET_AVX2 static bool all_finite(const float* x, std::size_t n) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256i broken = _mm256_setzero_si256();
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256i bits = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), exponent);
      broken = _mm256_or_si256(broken, _mm256_cmpeq_epi32(bits, exponent));
    }
    return _mm256_testz_si256(broken, broken) != 0 && base::all_finite(x + i, n - i);
  }

  PQKV_TARGET_AVX2 static void centre(const float* x, const float* mean, std::size_t n, float* out) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(mean + i)));
    base::centre(x + i, mean + i, n - i, out + i);
  }

  static constexpr std::size_t tile_rows = 6;

  /// out[r * c + x] = half_norms[x] - <y[r], centroid x> for tile_rows rows y of ds floats, one chain of fused multiply-adds each.
  PQKV_TARGET_AVX2 static void half_distances(const float* const* y, const float* centroids, const float* half_norms, std::size_t c,
                                              std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m256 acc[tile_rows][2];
      for (auto& row : acc) row[0] = _mm256_loadu_ps(half_norms + x), row[1] = _mm256_loadu_ps(half_norms + x + 8);
      for (std::size_t i = 0; i < ds; ++i) {
        const __m256 low = _mm256_loadu_ps(centroids + i * c + x), high = _mm256_loadu_ps(centroids + i * c + x + 8);
        for (std::size_t r = 0; r < tile_rows; ++r) {
          const __m256 element = _mm256_broadcast_ss(y[r] + i);
          acc[r][0] = _mm256_fnmadd_ps(element, low, acc[r][0]);
          acc[r][1] = _mm256_fnmadd_ps(element, high, acc[r][1]);
        }
      }
      for (std::size_t r = 0; r < tile_rows; ++r) {
        _mm256_storeu_ps(out + r * c + x, acc[r][0]);
        _mm256_storeu_ps(out + r * c + x + 8, acc[r][1]);
      }
    }
  }

  /// The index of the smallest value, or c when another value is not above it by more than the slack (NaNs included).
  PQKV_TARGET_AVX2 static std::size_t only_closest(const float* values, std::size_t c, float slack) {
    __m256 least = _mm256_loadu_ps(values);
    for (std::size_t x = 8; x < c; x += 8) least = _mm256_min_ps(least, _mm256_loadu_ps(values + x));
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(least), _mm256_extractf128_ps(least, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    four = _mm_min_ss(four, _mm_movehdup_ps(four));
    const __m256 reach = _mm256_set1_ps(_mm_cvtss_f32(four) + slack);
    std::size_t found = c;
    for (std::size_t x = 0; x < c; x += 8) {
      const auto near = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + x), reach, _CMP_NGT_UQ)));
      if (near == 0) continue;
      if (found != c || (near & (near - 1)) != 0) return c;
      found = x + static_cast<std::size_t>(__builtin_ctz(near));
    }
    return found;
  }

  PQKV_TARGET_AVX2 static nearest_centroid nearest(const float* y, const float* centroids, std::size_t c, std::size_t ds) {
    __m256 best = _mm256_set1_ps(0), block = _mm256_set1_ps(0);
    const std::size_t width = c < 32 ? 16 : 32;  // c is a power of two, at least 16
    for (std::size_t x = 0; x < c; x += width) {
      __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
      if (width == 32)
        distances<4>(y, centroids + x, c, ds, acc);
      else
        distances<2>(y, centroids + x, c, ds, acc);
      for (std::size_t v = 0; v < width / 8; ++v) {
        const __m256 number = _mm256_set1_ps(static_cast<float>(x / 8 + v));  // exact: at most 32 blocks
        const __m256 closer = x + v == 0 ? _mm256_castsi256_ps(_mm256_set1_epi32(-1)) : _mm256_cmp_ps(acc[v], best, _CMP_LT_OQ);
        best = _mm256_blendv_ps(best, acc[v], closer);
        block = _mm256_blendv_ps(block, number, closer);
      }
    }
    alignas(32) float distance[8], number[8];
    _mm256_store_ps(distance, best);
    _mm256_store_ps(number, block);
    nearest_centroid found{static_cast<std::uint32_t>(number[0]) * 8, distance[0]};
    for (std::uint32_t lane = 1; lane < 8; ++lane) {
      const std::uint32_t index = static_cast<std::uint32_t>(number[lane]) * 8 + lane;
      if (distance[lane] < found.distance || (distance[lane] == found.distance && index < found.index)) found = {index, distance[lane]};
    }
    return found;
  }

  PQKV_TARGET_AVX2 static void accumulate(const float* y, float scale, std::size_t n, std::int64_t* sum) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      // The product with a power of two is exact, so this rounds once, as the scalar leaf does.
      const __m256i fixed = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(scale)));
      add64(sum + i, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(fixed)));
      add64(sum + i + 4, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(fixed, 1)));
    }
    base::accumulate(y + i, scale, n - i, sum + i);
  }

  PQKV_TARGET_AVX2 static void inner_products(const float* q, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
      for (std::size_t i = 0; i < ds; ++i) {
        const __m256 element = _mm256_set1_ps(q[i]);
        low = _mm256_fmadd_ps(element, _mm256_loadu_ps(centroids + i * c + x), low);
        high = _mm256_fmadd_ps(element, _mm256_loadu_ps(centroids + i * c + x + 8), high);
      }
      _mm256_storeu_ps(out + x, low);
      _mm256_storeu_ps(out + x + 8, high);
    }
  }

  PQKV_TARGET_AVX2 static void negative_distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; x += 16) {
      __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      distances<2>(y, centroids + x, c, ds, acc);
      _mm256_storeu_ps(out + x, _mm256_xor_ps(acc[0], _mm256_set1_ps(-0.0f)));
      _mm256_storeu_ps(out + x + 8, _mm256_xor_ps(acc[1], _mm256_set1_ps(-0.0f)));
    }
  }

  PQKV_TARGET_AVX2 static void exponentials(const float* u, std::size_t n, canonical::softmax_scale s, float* out) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, exponential(_mm256_loadu_ps(u + i), s));
    base::exponentials(u + i, n - i, s, out + i);
  }

  PQKV_TARGET_AVX2 static void products(const float* e, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                        std::size_t n, float* out) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) {
      __m256 p = look_up(e, codes + t);
      for (std::size_t j = 1; j < m; ++j) p = _mm256_mul_ps(p, look_up(e + j * c, codes + j * stride + t));
      _mm256_storeu_ps(out + t, p);
    }
    base::products(e, m, c, codes + t, stride, n - t, out + t);
  }

  PQKV_TARGET_AVX2 static void sums(const float* table, std::size_t m, std::size_t c, const std::uint8_t* codes, std::size_t stride,
                                    std::size_t n, float* out) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) {
      __m256 z = look_up(table, codes + t);
      for (std::size_t j = 1; j < m; ++j) z = _mm256_add_ps(z, look_up(table + j * c, codes + j * stride + t));
      _mm256_storeu_ps(out + t, z);
    }
    base::sums(table, m, c, codes + t, stride, n - t, out + t);
  }

  PQKV_TARGET_AVX2 static void multiples(float factor, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 8) _mm256_storeu_ps(out + x, _mm256_mul_ps(_mm256_set1_ps(factor), _mm256_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX2 static void offsets(float term, const float* e, std::size_t n, float* out) {
    for (std::size_t x = 0; x < n; x += 8) _mm256_storeu_ps(out + x, _mm256_add_ps(_mm256_set1_ps(term), _mm256_loadu_ps(e + x)));
  }

  PQKV_TARGET_AVX2 static std::uint64_t total(const float* p, const std::uint32_t* weights, std::size_t n) {
    const __m256d magic = _mm256_set1_pd(0x1.8p52);
    __m256i z = _mm256_setzero_si256();
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) {
      __m256i low = fixed(_mm_loadu_ps(p + t), magic), high = fixed(_mm_loadu_ps(p + t + 4), magic);
      if (weights != nullptr) {
        const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + t));
        low = times(low, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(weight)));
        high = times(high, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(weight, 1)));
      }
      z = _mm256_add_epi64(z, _mm256_add_epi64(low, high));
    }
    alignas(32) std::uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), z);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3] + base::total(p + t, weights != nullptr ? weights + t : nullptr, n - t);
  }

  PQKV_TARGET_AVX2 static void add_scaled(const float* p, float r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8)
      _mm256_storeu_ps(scores + t, _mm256_fmadd_ps(_mm256_loadu_ps(p + t), _mm256_set1_ps(r), _mm256_loadu_ps(scores + t)));
    base::add_scaled(p + t, r, n - t, scores + t);
  }

  PQKV_TARGET_AVX2 static void max_scaled(const float* p, float r, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8)
      _mm256_storeu_ps(scores + t, _mm256_max_ps(_mm256_mul_ps(_mm256_loadu_ps(p + t), _mm256_set1_ps(r)), _mm256_loadu_ps(scores + t)));
    base::max_scaled(p + t, r, n - t, scores + t);
  }

  PQKV_TARGET_AVX2 static void add(const float* z, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8) _mm256_storeu_ps(scores + t, _mm256_add_ps(_mm256_loadu_ps(scores + t), _mm256_loadu_ps(z + t)));
    base::add(z + t, n - t, scores + t);
  }

  PQKV_TARGET_AVX2 static void max_shifted(const float* z, float bias, std::size_t n, float* scores) {
    std::size_t t = 0;
    for (; t + 8 <= n; t += 8)
      _mm256_storeu_ps(scores + t, _mm256_max_ps(_mm256_add_ps(_mm256_loadu_ps(z + t), _mm256_set1_ps(bias)), _mm256_loadu_ps(scores + t)));
    base::max_shifted(z + t, bias, n - t, scores + t);
  }

  PQKV_TARGET_AVX2 static void group_dots(const float* queries, std::size_t g, const float* key, std::size_t d, float* out,
                                          std::size_t out_stride) {
    for (std::size_t q = 0; q < g; ++q) {
      __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      std::size_t i = 0;
      for (; i + 16 <= d; i += 16) {
        acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i), _mm256_loadu_ps(key + i), acc[0]);
        acc[1] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i + 8), _mm256_loadu_ps(key + i + 8), acc[1]);
      }
      for (; i + 8 <= d; i += 8) acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + q * d + i), _mm256_loadu_ps(key + i), acc[0]);
      const __m256 both = _mm256_add_ps(acc[0], acc[1]);
      __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
      four = _mm_add_ps(four, _mm_movehl_ps(four, four));
      float total = _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
      for (; i < d; ++i) total += queries[q * d + i] * key[i];
      out[q * out_stride] = total;
    }
  }

  PQKV_TARGET_AVX2 static void group_add(float* acc, std::size_t g, const float* weight, std::size_t weight_stride, const float* value,
                                         std::size_t d) {
    for (std::size_t q = 0; q < g; ++q) {
      const __m256 w = _mm256_set1_ps(weight[q * weight_stride]);
      float* row = acc + q * d;
      std::size_t i = 0;
      for (; i + 8 <= d; i += 8) _mm256_storeu_ps(row + i, _mm256_fmadd_ps(w, _mm256_loadu_ps(value + i), _mm256_loadu_ps(row + i)));
      for (; i < d; ++i) row[i] += weight[q * weight_stride] * value[i];
    }
  }

 private:
  template <std::size_t Vectors>
  PQKV_TARGET_AVX2 static PQKV_INLINE void distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, __m256* acc) {
    for (std::size_t i = 0; i < ds; ++i) {
      const __m256 element = _mm256_set1_ps(y[i]);
      for (std::size_t v = 0; v < Vectors; ++v) {
        const __m256 e = _mm256_sub_ps(element, _mm256_loadu_ps(centroids + i * c + v * 8));
        acc[v] = _mm256_fmadd_ps(e, e, acc[v]);
      }
    }
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE void add64(std::int64_t* sum, __m256i term) {
    __m256i* at = reinterpret_cast<__m256i*>(sum);
    _mm256_storeu_si256(at, _mm256_add_epi64(_mm256_loadu_si256(at), term));
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256 exponential(__m256 u, canonical::softmax_scale s) {
    const __m256 scale = _mm256_set1_ps(s.scale), magic = _mm256_set1_ps(canonical::round_magic);
    const __m256 t = _mm256_fmadd_ps(u, scale, magic);
    const __m256 r = _mm256_fmsub_ps(u, scale, _mm256_sub_ps(t, magic));
    __m256 p = _mm256_set1_ps(canonical::exp2_c6);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(canonical::exp2_c0));
    const __m256i exponent = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic)), 23);
    const __m256 power = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    return _mm256_andnot_ps(_mm256_cmp_ps(u, _mm256_set1_ps(s.floor), _CMP_LT_OQ), power);
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256 look_up(const float* table, const std::uint8_t* code) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(code));
    return _mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(eight), 4);
  }
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i fixed(__m128 p, __m256d magic) {
    const __m256d shifted = _mm256_fmadd_pd(_mm256_cvtps_pd(p), _mm256_set1_pd(0x1p40), magic);
    return _mm256_sub_epi64(_mm256_castpd_si256(shifted), _mm256_castpd_si256(magic));
  }
  /// 64-bit value times 32-bit weight, modulo 2^64
  PQKV_TARGET_AVX2 static PQKV_INLINE __m256i times(__m256i value, __m256i weight) {
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(value, 32), weight);
    return _mm256_add_epi64(_mm256_mul_epu32(value, weight), _mm256_slli_epi64(high, 32));
  }
};

}  // namespace pqkv::detail
