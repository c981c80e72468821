// SPDX-License-Identifier: Apache-2.0
// The numbers that fix a product quantizer, in the symbols of docs/notation.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../config.hpp"
#include "../core/error.hpp"

namespace pqkv::inline PQKV_MODE {

/// By which measure the centroid of a sub-vector y is the nearest.
enum class key_metric : std::uint8_t {
  squared_l2,    // the squared distance of y and the centroid
  inner_product  // of both with one coordinate more, sqrt(R - |y|^2), R the largest |y|^2 in training: on that sphere the nearest
                 // in L2 has the largest product with a query, whose own added coordinate is 0
};

/// The sizes of codebooks, codes and tables.
struct pq_shape {
  std::size_t kv_heads = 0;   // h
  std::size_t head_dim = 0;   // d
  std::size_t subspaces = 2;  // m
  unsigned bits = 6;          // b
  key_metric metric = key_metric::squared_l2;

  PQKV_HD constexpr std::size_t sub_dim() const { return head_dim / subspaces; }  // ds = d / m
  /// Coordinates of a centroid: ds, or ds + 1 under key_metric::inner_product.
  PQKV_HD constexpr std::size_t row_dim() const { return sub_dim() + (metric == key_metric::inner_product ? 1 : 0); }
  PQKV_HD constexpr std::size_t centroids() const { return std::size_t{1} << bits; }      // c = 2^b
  PQKV_HD constexpr std::size_t joint_bits() const { return subspaces * bits; }           // m b
  PQKV_HD constexpr std::size_t cells() const { return std::size_t{1} << joint_bits(); }  // c^m, for joint_bits() < 64
  constexpr bool operator==(const pq_shape&) const = default;
};

inline constexpr std::size_t max_head_dim = 256;   // d
inline constexpr std::size_t max_subspaces = 16;   // m
inline constexpr std::size_t max_centroids = 256;  // c

/// The bounds of every quantizer: m in {1, 2, 4, 8, 16}, b in 4..8, d a multiple of 8 and of m, at most 256.
constexpr status can_quantize(const pq_shape& shape, const char* function = "pq_shape") noexcept {
  const std::size_t m = shape.subspaces, d = shape.head_dim;
  const bool power = m != 0 && (m & (m - 1)) == 0 && m <= max_subspaces;
  return detail::checks(function)
      .at_least("kv_heads", shape.kv_heads, 1, "h")
      .that(power, status::code::value, "subspaces", relation::stated, "1, 2, 4, 8 or 16", 2, m)
      .at_least("bits", shape.bits, 4, "b")
      .at_most("bits", shape.bits, 8, "b")
      .that(d > 0 && d % 8 == 0, status::code::value, "head_dim", relation::multiple_of, "", 8, d)
      .at_most("head_dim", d, max_head_dim, "d")
      .that(power && d % m == 0, status::code::value, "head_dim", relation::multiple_of, "m", m, d);
}

}  // namespace pqkv
