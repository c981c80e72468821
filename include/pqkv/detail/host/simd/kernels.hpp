// SPDX-License-Identifier: Apache-2.0
// The SIMD kernels of an instruction set (ISA): the innermost loops of every host operation, as static functions of one struct,
// `simd_kernels<Isa>`. There is a folder for each family of kernels. In it, each ISA that makes some of the family faster has a file; it
// inherits the rest from the next lower ISA. Target attributes are per function, so a baseline build runs what the CPU has.
#pragma once

#include "attention/scalar.hpp"
#include "cells/scalar.hpp"
#include "centroids/scalar.hpp"
#include "groups/scalar.hpp"
#include "matrix/scalar.hpp"
#include "nearest/scalar.hpp"
#include "rows/scalar.hpp"
#include "scores/scalar.hpp"
#include "select/scalar.hpp"
#include "shortlist/scalar.hpp"
#include "sums/scalar.hpp"
#if defined(__x86_64__)
#include "attention/avx2.hpp"
#include "attention/avx512.hpp"
#include "cells/avx2.hpp"
#include "cells/avx512.hpp"
#include "centroids/avx2.hpp"
#include "centroids/avx512.hpp"
#include "groups/avx2.hpp"
#include "groups/avx512.hpp"
#include "matrix/avx2.hpp"
#include "matrix/avx512.hpp"
#include "nearest/avx2.hpp"
#include "nearest/avx512.hpp"
#include "nearest/avx512_vbmi.hpp"
#include "rows/avx2.hpp"
#include "rows/avx512.hpp"
#include "scores/avx2.hpp"
#include "scores/avx512.hpp"
#include "scores/avx512_vbmi.hpp"
#include "select/avx2.hpp"
#include "select/avx512.hpp"
#include "select/avx512_vbmi.hpp"
#include "shortlist/avx2.hpp"
#include "shortlist/avx512.hpp"
#include "sums/avx2.hpp"
#include "sums/avx512.hpp"
#include "sums/avx512_vbmi.hpp"
#elif defined(__aarch64__)
#include "attention/neon.hpp"
#include "centroids/neon.hpp"
#include "rows/neon.hpp"
#include "scores/neon.hpp"
#endif

namespace pqkv::inline PQKV_MODE::detail {

template <class Isa>
struct simd_kernels : row_kernels<Isa>,
                      cell_kernels<Isa>,
                      centroid_kernels<Isa>,
                      nearest_kernels<Isa>,
                      score_kernels<Isa>,
                      group_kernels<Isa>,
                      select_kernels<Isa>,
                      shortlist_kernels<Isa>,
                      sum_kernels<Isa>,
                      attention_kernels<Isa>,
                      matrix_kernels<Isa> {};

}  // namespace pqkv::detail
