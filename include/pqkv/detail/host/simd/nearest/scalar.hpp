// SPDX-License-Identifier: Apache-2.0
// Kernels of the search for nearest centroids in plain C++: products of 16-bit integers, which every CPU adds exactly and faster than
// floats. Rows are stored in blocks, and lanes are rows: element [p * block_rows + r] of a block is the pair (2p, 2p + 1) of coordinates of
// row r, the first in the low half. simd/nearest.hpp says how far these values can be from distances.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// The numbers that decide a row's scale.
struct row_extent {
  float largest;       // of |y_i|; not finite when an element is not
  float squared_norm;  // within ds + 1 roundings; meaningless when `largest` is not finite
};

/// Two coordinates as one 32-bit element.
inline std::int32_t coordinate_pair(std::int32_t first, std::int32_t second) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(first) & 0xffffu) | static_cast<std::uint32_t>(second) << 16);
}

template <class Isa>
struct nearest_kernels : nearest_kernels<typename Isa::fallback> {};

template <>
struct nearest_kernels<isa::scalar> {
  static constexpr std::size_t block_rows = 32;
  static constexpr std::size_t row_step = 32;  // rows of floats are padded with zeros to a multiple of this

  static row_extent measure(const float* y, std::size_t n) {
    std::uint32_t bits = 0;
    float squared_norm = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t magnitude = float_bits(y[i]) & 0x7fffffffu;
      bits = magnitude > bits ? magnitude : bits;
      squared_norm += y[i] * y[i];
    }
    return {float_from_bits(bits), squared_norm};
  }

  /// out[x] = |centroid x|^2, within ds roundings; centroids [ds, c].
  static void squared_norms(const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; ++x) out[x] = 0;
    for (std::size_t i = 0; i < ds; ++i)
      for (std::size_t x = 0; x < c; ++x) out[x] += centroids[i * c + x] * centroids[i * c + x];
  }

  /// Writes a block of rows y[r * stride], multiplied by the scale and rounded. stride is a multiple of row_step, and the products fit in
  /// 16 bits.
  static void write_block(const float* y, std::size_t stride, std::size_t ds, float scale, std::int32_t* block) {
    for (std::size_t p = 0; p < (ds + 1) / 2; ++p)
      for (std::size_t r = 0; r < block_rows; ++r)
        block[p * block_rows + r] = coordinate_pair(rounded(y[r * stride + 2 * p] * scale), rounded(y[r * stride + 2 * p + 1] * scale));
  }

  /// Writes pairs[p * count + x] for the first `count` of c centroids [ds, c], multiplied by the scale and rounded.
  static void write_centroids(const float* centroids, std::size_t c, std::size_t count, std::size_t ds, float scale, std::int32_t* pairs) {
    for (std::size_t p = 0; p < (ds + 1) / 2; ++p)
      for (std::size_t x = 0; x < count; ++x) {
        const float second = 2 * p + 1 < ds ? centroids[(2 * p + 1) * c + x] * scale : 0.0f;
        pairs[p * count + x] = coordinate_pair(rounded(centroids[2 * p * c + x] * scale), rounded(second));
      }
  }

  /// Let value = start[x] + <row, centroid x>, with its low byte replaced by first + x. Finds the least and the second least value of every
  /// row, going on from those in `least` and `second`; [block_rows] each.
  static void two_least(const std::int32_t* block, const std::int32_t* pairs, const std::int32_t* start, std::size_t count,
                        std::size_t pair_count, std::size_t first, std::int32_t* least, std::int32_t* second) {
    for (std::size_t x = 0; x < count; ++x) {
      std::int32_t value[block_rows];
      for (std::int32_t& one : value) one = start[x];
      for (std::size_t p = 0; p < pair_count; ++p) {
        const std::int32_t a = low(pairs[p * count + x]), b = high(pairs[p * count + x]);
        for (std::size_t r = 0; r < block_rows; ++r) value[r] += low(block[p * block_rows + r]) * a + high(block[p * block_rows + r]) * b;
      }
      for (std::size_t r = 0; r < block_rows; ++r) {
        const std::int32_t marked = (value[r] & ~0xff) | static_cast<std::int32_t>(first + x);
        const std::int32_t larger = marked > least[r] ? marked : least[r];
        second[r] = larger < second[r] ? larger : second[r];
        least[r] = marked < least[r] ? marked : least[r];
      }
    }
  }

  /// out[r] = the value, as in two_least(), of row r and centroid index[r] of `count`, with its low byte replaced by `mark`.
  static void values_of(const std::int32_t* block, const std::int32_t* pairs, const std::int32_t* start, std::size_t count,
                        std::size_t pair_count, const std::uint8_t* index, std::uint8_t mark, std::int32_t* out) {
    for (std::size_t r = 0; r < block_rows; ++r) {
      std::int32_t value = start[index[r]];
      for (std::size_t p = 0; p < pair_count; ++p) {
        const std::int32_t row = block[p * block_rows + r], centroid = pairs[p * count + index[r]];
        value += low(row) * low(centroid) + high(row) * high(centroid);
      }
      out[r] = (value & ~0xff) | mark;
    }
  }

  /// index[r] = the low byte of least[r]. Bit r of the result is set if the second least value is not above the least by more than the
  /// slack.
  static std::uint32_t close_calls(const std::int32_t* least, const std::int32_t* second, std::int32_t slack, std::uint8_t* index) {
    std::uint32_t close = 0;
    for (std::size_t r = 0; r < block_rows; ++r) {
      index[r] = static_cast<std::uint8_t>(least[r] & 0xff);
      close |= static_cast<std::uint32_t>(second[r] - least[r] <= slack) << r;
    }
    return close;
  }

 private:
  static std::int32_t rounded(float x) { return static_cast<std::int32_t>(std::lrint(x)); }
  static std::int32_t low(std::int32_t pair) { return static_cast<std::int16_t>(pair & 0xffff); }
  static std::int32_t high(std::int32_t pair) { return pair >> 16; }
};

}  // namespace pqkv::detail
