// SPDX-License-Identifier: Apache-2.0
// Kernels of cells in plain C++: the reference for what each computes. The cells of all codes are a grid: prefix [x] times the last
// subspace's row [y]. So their products need no look-up, and no memory if they are used as they are computed. All are canonical.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../core/canonical.hpp"
#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// The factors of the products of up to `most` query heads over one grid of cells.
struct cell_grid {
  static constexpr std::size_t most = 4;

  std::size_t g, prefixes, c;  // c a multiple of 16
  const float* prefix;         // of query head q at prefix + q * prefix_stride, [prefixes]
  std::size_t prefix_stride;
  const float* row;  // of query head q at row + q * row_stride, [c]
  std::size_t row_stride;
};

template <class Isa>
struct cell_kernels : cell_kernels<typename Isa::fallback> {};

template <>
struct cell_kernels<isa::scalar> {
  /// Sum over x, y of weight[x, y] * F(prefix[x] * row[y]) of the grid's first query head, modulo 2^64.
  /// @param weight_sum  of all cells, modulo 2^64
  static std::uint64_t cell_total(const cell_grid& grid, const std::uint32_t* weights, std::uint64_t weight_sum) {
    static_cast<void>(weight_sum);
    std::uint64_t z = 0;
    for (std::size_t x = 0; x < grid.prefixes; ++x)
      for (std::size_t y = 0; y < grid.c; ++y)
        z += canonical::to_fixed(canonical::mul(grid.prefix[x], grid.row[y])) * weights[x * grid.c + y];
    return z;
  }

  /// scores[x, y] = fma(prefix[x] * row[y], factor[q], scores[x, y]), q ascending.
  static void add_cells(const cell_grid& grid, const float* factor, float* scores) {
    for (std::size_t x = 0; x < grid.prefixes; ++x)
      for (std::size_t y = 0; y < grid.c; ++y)
        for (std::size_t q = 0; q < grid.g; ++q)
          scores[x * grid.c + y] =
              canonical::fma(canonical::mul(grid.prefix[q * grid.prefix_stride + x], grid.row[q * grid.row_stride + y]), factor[q],
                             scores[x * grid.c + y]);
  }

  /// One code of each cell: codes[i] = (cells[i] >> shift) & mask.
  static void digits(const std::int32_t* cells, std::size_t n, unsigned shift, unsigned mask, std::uint8_t* codes) {
    for (std::size_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(static_cast<unsigned>(cells[i]) >> shift & mask);
  }
};

}  // namespace pqkv::detail
