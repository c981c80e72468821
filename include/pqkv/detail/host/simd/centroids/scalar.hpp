// SPDX-License-Identifier: Apache-2.0
// Kernels of centroids in plain C++: the reference for what each computes. Those marked canonical give the same bits on every ISA; the
// others agree within rounding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

struct nearest_centroid {
  std::uint32_t index;
  float distance;
};

template <class Isa>
struct centroid_kernels : centroid_kernels<typename Isa::fallback> {};

template <>
struct centroid_kernels<isa::scalar> {
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

  /// Canonical. Moves y, in fixed point, from one sum to another.
  static void transfer(const float* y, float scale, std::size_t n, std::int64_t* from, std::int64_t* to) {
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t term = canonical::fixed_point(y[i], scale);
      from[i] -= term;
      to[i] += term;
    }
  }

  /// Canonical. out[x] = <q, centroid x>; centroids [ds, c]
  static void inner_products(const float* q, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; ++x) out[x] = canonical::dot(q, centroids + x, c, ds);
  }

  /// Canonical. out[x] = -|y - centroid x|^2
  static void negative_distances(const float* y, const float* centroids, std::size_t c, std::size_t ds, float* out) {
    for (std::size_t x = 0; x < c; ++x) out[x] = -canonical::squared_distance(y, centroids + x, c, ds);
  }
};

}  // namespace pqkv::detail
