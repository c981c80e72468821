// SPDX-License-Identifier: Apache-2.0
// The entries of a list's items in shared memory, joined over the subspaces: products of exponentials, or sums. A thread of a CTA takes
// every Threads-th item.
#pragma once

#include <type_traits>

#include "scan.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// One number for each of `Pack` query heads; one look-up reads them together.
template <unsigned Pack>
struct alignas(Pack * sizeof(float)) query_pack {
  float of[Pack];
};

/// @tparam Pack  query heads of an entry; Products says whether entries are multiplied or added
template <unsigned Threads, unsigned Pack, bool Products>
class item_entries {
  using pack = query_pack<Pack>;

 public:
  /// Calls take(i, weight, value) for this thread's items of [begin, end): value has, for each query head of a pack, the product or sum of
  /// entries. Several items' entries are read before take() is called for the first.
  /// @param table  [m, c] of the pack
  /// @param begin  a multiple of c where the items are cells
  template <class Take>
  __device__ static void for_each(const pack* table, const scored_items& items, std::uint32_t begin, std::uint32_t end, Take take) {
    const unsigned m = items.m, bits = items.bits, c = 1u << bits;
    const auto join = [](const pack& a, const pack& b) {
      pack both;
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) both.of[q] = Products ? canonical::mul(a.of[q], b.of[q]) : canonical::add(a.of[q], b.of[q]);
      return both;
    };
    const std::uint32_t first = begin + threadIdx.x;
    if (items.are_cells() && m == 2) {  // the usual case; the lower digit of all cells of a thread is the same
      const pack lower = table[c + (threadIdx.x & (c - 1))];
      const auto take_some = [&]<unsigned Count>(std::uint32_t base, std::integral_constant<unsigned, Count>) {
        pack upper[Count];
        std::uint32_t weight[Count];
#pragma unroll
        for (unsigned a = 0; a < Count; ++a) {
          upper[a] = table[(base + a * Threads) >> bits];
          weight[a] = items.counts[base + a * Threads];
        }
#pragma unroll
        for (unsigned a = 0; a < Count; ++a) take(base + a * Threads, weight[a], join(upper[a], lower));
      };
      constexpr unsigned at_once = 4;
      std::uint32_t base = first;
#pragma unroll 1
      for (; base + (at_once - 1) * Threads < end; base += at_once * Threads) take_some(base, std::integral_constant<unsigned, at_once>{});
#pragma unroll 1
      for (; base < end; base += Threads) take_some(base, std::integral_constant<unsigned, 1>{});
      return;
    }
    if (items.are_cells()) {
#pragma unroll 1
      for (std::uint32_t i = first; i < end; i += Threads) {
        pack value = table[items.code(0, i)];
        for (unsigned j = 1; j < m; ++j) value = join(value, table[(j << bits) + items.code(j, i)]);
        take(i, items.counts[i], value);
      }
      return;
    }
    constexpr unsigned at_once = Pack == 1 ? 8 : 4;  // items whose codes are read together; codes of the next subspace are read ahead
#pragma unroll 1
    for (std::uint32_t base = first; base < end; base += at_once * Threads) {
      const std::uint8_t* plane = items.codes + base;
      std::uint32_t code[at_once];
      pack value[at_once];
      const auto read = [&] {
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) code[a] = base + a * Threads < end ? plane[a * Threads] : 0;
      };
      read();
#pragma unroll 1
      for (unsigned j = 0; j < m; ++j) {
        std::uint32_t now[at_once];
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) now[a] = (j << bits) + code[a];
        plane += items.stride;
        if (j + 1 < m) read();
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) value[a] = j == 0 ? table[now[a]] : join(value[a], table[now[a]]);
      }
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a)
        if (base + a * Threads < end) take(base + a * Threads, 1u, value[a]);
    }
  }
};

}  // namespace pqkv::detail::block
