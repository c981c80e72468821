// SPDX-License-Identifier: Apache-2.0
// What the files of the mixed program share: declarations, and one call of the library, compiled in each.
#pragma once
#include <pqkv/pqkv.hpp>

bool aborting_part();  // a file without exceptions that uses the library rightly
void handling_part();  // another, with PQKV_ON_ERROR of its own, that does not

namespace {

/// Whether the four largest of eight numbers are found. @throws shape_error when rows is not 1, where there are exceptions
inline bool select_largest(std::size_t rows) {
  const float scores[8] = {0, 7, 1, 6, 2, 5, 3, 4};
  std::int32_t indices[8] = {};
  pqkv::top_k(pqkv::exec::host<>{}, pqkv::make_view(scores, 1, 8), pqkv::make_view(indices, rows, 4));
  return indices[0] == 1 && indices[1] == 3;
}

}  // namespace
