// SPDX-License-Identifier: Apache-2.0
// What group_scorer scores: tokens, whose table entries are looked up, or the cells of a joint-code index, whose products are expanded from
// the table. A product has the same factors in the same order for both.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../config.hpp"
#include "../../core/owner.hpp"
#include "simd/kernels.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// Items to score: tokens, or cells that each stand for several tokens, given by planes of codes. A tile of products fits in the
/// first-level cache.
struct token_items {
  static constexpr std::size_t tile = 2048;
  const std::uint8_t* codes;
  std::size_t stride, n;
  const std::uint32_t* weights = nullptr;  // [n] how many tokens each item stands for; null: one

  /// Calls use(i, values, weights, count) for every tile of products of entries [m, c]; i is the tile's first item.
  template <class Kernels, class Use>
  void products(const float* entries, std::size_t m, std::size_t c, Use use) const {
    alignas(cache_line_bytes) float values[tile];
    for (std::size_t first = 0; first < n; first += tile) {
      const std::size_t count = std::min(tile, n - first);
      Kernels::products(entries, m, c, codes + first, stride, count, values);
      use(first, static_cast<const float*>(values), weights == nullptr ? nullptr : weights + first, count);
    }
  }
  /// The sum of F over the products of entries [m, c].
  template <class Kernels>
  std::uint64_t total(const float* entries, std::size_t m, std::size_t c) const {
    std::uint64_t z = 0;
    products<Kernels>(entries, m, c, [&](std::size_t, const float* p, const std::uint32_t* weight, std::size_t count) {
      z += Kernels::total(p, weight, count);
    });
    return z;
  }
  /// scores[t] = fma(product, factor[q], scores[t]) for the products of entries [g, m, c], q ascending.
  template <class Kernels>
  void add_scaled(const float* entries, const float* factor, std::size_t g, std::size_t m, std::size_t c, float* scores) const {
    for (std::size_t q = 0; q < g; ++q)
      products<Kernels>(entries + q * m * c, m, c, [&](std::size_t at, const float* p, const std::uint32_t*, std::size_t count) {
        Kernels::add_scaled(p, factor[q], count, scores + at);
      });
  }
  /// Whether four query heads of g are scored together, from entries [m, c, 4].
  template <class Kernels>
  bool grouped(std::size_t g, std::size_t c) const {
    return weights == nullptr && Kernels::prefers_groups(g, c);
  }
  /// z[q] += the sum of F over the products of head q.
  template <class Kernels>
  void add_group_totals(const float* entries, std::size_t m, std::size_t c, std::uint64_t* z) const {
    group_tiles([&](std::size_t first, std::size_t count, float* values) {
      Kernels::group_total(entries, m, c, codes + first, stride, count, values, z);
    });
  }
  /// Raises best[q] to the largest sum of head q.
  template <class Kernels>
  void raise_group_largest(const float* entries, std::size_t m, std::size_t c, float* best) const {
    group_tiles([&](std::size_t first, std::size_t count, float* values) {
      Kernels::group_largest(entries, m, c, codes + first, stride, count, values, best);
    });
  }
  /// scores[t] = fma(product, factor[q], scores[t]) for the products of the four heads, q ascending.
  template <class Kernels>
  void add_group_scaled(const float* entries, const float* factor, std::size_t m, std::size_t c, float* scores) const {
    group_tiles([&](std::size_t first, std::size_t count, float* values) {
      Kernels::group_add_scaled(entries, m, c, codes + first, stride, count, values, factor, scores + first);
    });
  }

  template <class Kernels, class Use>
  void sums(const float* entries, std::size_t m, std::size_t c, Use use) const {
    alignas(cache_line_bytes) float values[tile];
    for (std::size_t first = 0; first < n; first += tile) {
      const std::size_t count = std::min(tile, n - first);
      Kernels::sums(entries, m, c, codes + first, stride, count, values);
      use(first, static_cast<const float*>(values), weights == nullptr ? nullptr : weights + first, count);
    }
  }

 private:
  /// Calls use(first, count, values [count, 4]) for every tile.
  template <class Use>
  void group_tiles(Use use) const {
    constexpr std::size_t group_tile = tile / grouped_heads;  // products of as many bytes
    alignas(cache_line_bytes) float values[tile];
    for (std::size_t first = 0; first < n; first += group_tile) use(first, std::min(group_tile, n - first), values);
  }
};

/// All c^m cells in ascending order; each stands for weights[cell] tokens. The first code is the most significant digit.
struct cell_items {
  const std::uint32_t* weights;
  std::uint64_t weight_sum;
  std::size_t n;
  float* values;  // [n], scratch

  template <class Kernels, class Use>
  void products(const float* entries, std::size_t m, std::size_t c, Use use) const {
    expand_products<Kernels>(entries, m, c, values);
    use(std::size_t{0}, static_cast<const float*>(values), weights, n);
  }
  template <class Kernels>
  std::uint64_t total(const float* entries, std::size_t m, std::size_t c) const {
    return Kernels::cell_total(grid<Kernels>(entries, 1, m, c), weights, weight_sum);
  }
  template <class Kernels>
  void add_scaled(const float* entries, const float* factor, std::size_t g, std::size_t m, std::size_t c, float* scores) const {
    for (std::size_t q = 0; q < g; q += cell_grid::most)
      Kernels::add_cells(grid<Kernels>(entries + q * m * c, std::min(g - q, cell_grid::most), m, c), factor + q, scores);
  }
  template <class Kernels, class Use>
  void sums(const float* entries, std::size_t m, std::size_t c, Use use) const {
    expand(
        entries, m, c, [](float prefix, const float* row, std::size_t count, float* out) { Kernels::offsets(prefix, row, count, out); },
        values);
    use(std::size_t{0}, static_cast<const float*>(values), weights, n);
  }

 private:
  template <class Kernels>
  static void expand_products(const float* entries, std::size_t m, std::size_t c, float* out) {
    expand(
        entries, m, c, [](float prefix, const float* row, std::size_t count, float* to) { Kernels::multiples(prefix, row, count, to); },
        out);
  }
  /// Extends the prefixes by one subspace after the other, in place. Prefixes are taken from the last to the first, so that a prefix's
  /// products are written where no other one is still to be read.
  template <class Extend>
  static void expand(const float* entries, std::size_t m, std::size_t c, Extend extend, float* out) {
    std::copy_n(entries, c, out);
    std::size_t width = c;
    for (std::size_t j = 1; j < m; ++j, width *= c)
      for (std::size_t prefix = width; prefix-- > 0;) extend(out[prefix], entries + j * c, c, out + prefix * c);
  }
  /// The products of entries [g, m, c], g up to cell_grid::most, as prefixes and rows. Prefixes of a long code go to `values`, which is
  /// large enough: there are at least 16 times as many cells as prefixes.
  template <class Kernels>
  cell_grid grid(const float* entries, std::size_t g, std::size_t m, std::size_t c) const {
    static constexpr float one = 1;
    const std::size_t prefixes = n / c;
    if (m == 1) return {g, prefixes, c, &one, 0, entries, c};
    if (m == 2) return {g, prefixes, c, entries, m * c, entries + c, m * c};
    for (std::size_t q = 0; q < g; ++q) expand_products<Kernels>(entries + q * m * c, m - 1, c, values + q * prefixes);
    return {g, prefixes, c, values, prefixes, entries + (m - 1) * c, m * c};
  }
};

}  // namespace pqkv::detail
