// SPDX-License-Identifier: Apache-2.0
// Kernels of quantized scans in plain C++: the reference for what each computes. Integers, so every ISA gives the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../../../exec/isa.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// The most subspaces that a kernel has room for.
inline constexpr std::size_t max_summed_subspaces = 16;

template <class Isa>
struct sum_kernels : sum_kernels<typename Isa::fallback> {};

template <>
struct sum_kernels<isa::scalar> {
  /// out[q * out_stride + t] = table[q][0][code 0] + table[q][1][code 1] + ..., modulo 2^16
  ///
  /// @param table  [queries, m, c] uint8 or uint16, contiguous
  /// @param codes  in planes, n tokens, each below c
  template <class Entry>
  static void quantized_sums(const Entry* table, std::size_t queries, std::size_t m, std::size_t c, const std::uint8_t* codes,
                             std::size_t stride, std::size_t n, std::uint16_t* out, std::size_t out_stride) {
    for (std::size_t q = 0; q < queries; ++q)
      for (std::size_t t = 0; t < n; ++t) {
        unsigned sum = 0;
        for (std::size_t j = 0; j < m; ++j) sum += table[(q * m + j) * c + codes[j * stride + t]];
        out[q * out_stride + t] = static_cast<std::uint16_t>(sum);
      }
  }
};

}  // namespace pqkv::detail
