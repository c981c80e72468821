// SPDX-License-Identifier: Apache-2.0
// Settings that belong together. `accurate` loses the fewest answers; `paper` is what the paper describes, for comparisons. The library's
// defaults are faster than the first and find more than the second. Source of `paper`: PQCache, SIGMOD 2025, sections 3.2 and 3.3; the
// window and the frozen budget follow its published code.
#pragma once

#include "cache/quantized_rows.hpp"
#include "pqcache.hpp"

namespace pqkv::inline PQKV_MODE::preset {

/// PQCache as published: 2 x 6 bits and 32 sinks. It trains on all rows but the sinks. The budget stays that of the prompt's length,
/// however long the answer grows, and half of it is the window. It clusters once, with as many iterations (at most 300) as fit into the
/// time that the model works on the next layer.
///
/// @param shape    of the cache
/// @param ratio    share of the prompt's tokens that is attended to
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
  p.selector.over = selector::normalisation::middle;
  p.selector.train.rows_per_centroid = 0;
  p.selector.refresh = 0;
  p.selector.overlap = machine;
  p.selector.overlap_most = overlap_model::most_in_paper;
  return p;
}

/// What kept most answers of a real model at equal bytes (docs/quality.md): 8 x 8 bits over 8-bit rows. A step takes about twice as long as
/// with 2 x 6 bits over 16-bit rows. Show the prompt's queries to observe() before the last chunk of prefill(): codes follow the axes that
/// matter to them. In device memory: accurate<quantized_rows<space::device>>().
///
/// @param shape  of the cache; head_dim is a multiple of 16
/// @param ratio  bytes of the rows that a query attends to, as a share of those of all tokens in 16 bits
template <class Rows = quantized_rows<>>
typename pqcache<Rows>::params accurate(const cache_shape& shape, double ratio) {
  typename pqcache<Rows>::params p{shape};
  p.budget.ratio = ratio;
  if constexpr (requires { Rows::equal_bytes_ratio(ratio, shape.head_dim); })
    p.budget.ratio = Rows::equal_bytes_ratio(ratio, shape.head_dim);
  p.selector.subspaces = 8;
  p.selector.bits = 8;
  p.selector.axes = axis_order::weighted_pairs;
  p.selector.over = selector::normalisation::attended;
  return p;
}

}  // namespace pqkv::preset
