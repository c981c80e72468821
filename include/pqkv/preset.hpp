// SPDX-License-Identifier: Apache-2.0
// Settings that belong together. The library's defaults are its own choice; `paper` is what the paper describes, for comparisons. Source:
// PQCache, SIGMOD 2025, sections 3.2 and 3.3; the window and the frozen budget follow its published code.
#pragma once

#include "pqcache.hpp"

namespace pqkv::inline PQKV_MODE::preset {

/// PQCache as published: 2 x 6 bits and 32 sinks. It trains on all rows but the sinks. The budget stays that of the prompt's length,
/// however long the answer grows, and half of it is the window. It clusters once, with as many iterations (at most 300) as fit behind the
/// model's own work.
///
/// @param shape    of the cache
/// @param ratio    share of the prompt's tokens that attend
/// @param machine  from calibrate_overlap() on the machine that runs: the bits of codebooks depend on its speed
template <class Rows = dense_rows<float>>
typename pqcache<Rows>::params paper(const cache_shape& shape, double ratio, const overlap_model& machine) {
  typename pqcache<Rows>::params p{shape};
  p.budget.ratio = ratio;
  p.budget.sinks = 32;
  p.budget.window_share = 0.5;
  p.budget.growth = budget_growth::frozen_at_prompt;
  p.selector.subspaces = 2;
  p.selector.bits = 6;
  p.selector.axes = axis_order::contiguous;
  p.selector.train.rows_per_centroid = 0;
  p.selector.refresh = 0;
  p.selector.overlap = machine;
  p.selector.overlap_most = overlap_model::most_in_paper;
  return p;
}

}  // namespace pqkv::preset
