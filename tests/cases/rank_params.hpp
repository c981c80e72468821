// SPDX-License-Identifier: Apache-2.0
// Random parameters of a context-parallel cache, and those of the one cache that holds everything.
#pragma once

#include "rank_lives.hpp"

namespace pqkv_cases {

/// @tparam Cache  a context_parallel, in host or in device memory
template <class Cache>
typename Cache::params random_rank_params(random_source& random) {
  typename Cache::params p;
  const std::size_t groups[] = {1, 2, 4};
  p.batch = 1 + random.below(3);
  p.kv_heads = 1 + random.below(2);
  p.query_heads = p.kv_heads * groups[random.below(3)];
  p.head_dim = 16 * (1 + random.below(2));
  p.capacity = 150 + random.below(450);
  p.step_queries = random.below(3) == 0 ? 0 : 1 + random.below(9);
  p.selection = static_cast<pqkv::draft_selection>(random.below(4) == 0);
  p.softmax_scale = random.below(4) == 0 ? 0.5f : 0.0f;
  p.budget.sinks = random.below(9);
  p.budget.min_tokens = p.budget.sinks + 1 + random.below(60);
  p.budget.ratio = 0.05 * static_cast<double>(random.below(10));
  p.budget.window_share = 0.1 * static_cast<double>(random.below(6));
  if (random.below(4) == 0) p.budget.window = 1 + random.below(50);
  if (random.below(4) == 0) p.budget.retrieve = random.below(200);
  p.selector.bits = 4 + static_cast<unsigned>(random.below(3));
  p.selector.subspaces = std::size_t{1} << random.below(3);
  p.selector.train.iterations = 1 + random.below(3);
  p.selector.train.seed = random.bits();
  p.selector.train.rows_per_centroid = random.below(2) == 0 ? 256 : 2 + random.below(5);
  p.selector.tail_tokens = 1 + random.below(30);
  p.selector.reduction = static_cast<pqkv::group_reduction>(random.below(5));
  p.selector.path =
      p.selector.subspaces * p.selector.bits <= 12 ? static_cast<pqkv::search_path>(random.below(3)) : pqkv::search_path::automatic;
  p.selector.metric = static_cast<pqkv::key_metric>(random.below(3) == 0);
  p.selector.axes = static_cast<pqkv::axis_order>(random.below(2));
  p.selector.refresh = 1.3;
  p.selector.refresh_iterations = 0;
  const std::size_t blocks[] = {1, 7, 16, 64};
  p.block = blocks[random.below(4)];
  p.run = random.below(2) == 0 ? 0 : 1 + random.below(100);
  p.agreement = static_cast<pqkv::scale::agreement_mode>(random.below(3) == 0);
  return p;
}

/// @tparam Whole  the one cache; RankParams: of a context_parallel
template <class Whole, class RankParams>
typename Whole::params whole_params(const RankParams& p) {
  typename Whole::params whole{p};
  whole.budget = p.budget;
  whole.selector = p.selector;
  return whole;
}

}  // namespace pqkv_cases
