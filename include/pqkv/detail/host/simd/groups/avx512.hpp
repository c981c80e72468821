// SPDX-License-Identifier: Apache-2.0
// When AVX-512 scores tokens for four query heads at a time, by the kernels of AVX2.
#pragma once

#include "../../../../config.hpp"
#include "avx2.hpp"

namespace pqkv::inline PQKV_MODE::detail {

template <>
struct group_kernels<isa::avx512> : group_kernels<isa::avx2> {
  // Tables of up to 64 floats are looked up in registers as fast.
  // measured: bench/retrieve.cpp with random tables, 131072 tokens, in times of permutes for each head, a Xeon with VBMI, 2026-11-30. 8 x 8
  // bits: 8 heads 0.5 (VBMI's own permutes 0.6), 4 heads 0.5 (0.5), 3 heads 0.7 (0.7), 2 heads 1.0 (1.1). 2 x 6 bits, 4 heads: 1.1 (0.9)
  static constexpr bool prefers_groups(std::size_t g, std::size_t c) { return g > 2 && c > 64; }
};

}  // namespace pqkv::detail
