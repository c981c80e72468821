// SPDX-License-Identifier: Apache-2.0
// What one rank sends in one step of one query token, by the formulas of docs/scale.md: for tests that count it
// (unit/exact_selection_test.cpp, unit/device_context_parallel_test.cpp), and for bench/scale_model.py, whose bytes
// tests/bench/scale_model_test.py compares with this table.
#pragma once

#include <pqkv/scale/context_parallel.hpp>

namespace pqkv_cases {

struct sent_in_a_step {
  std::size_t exchanges, bytes;  // bytes of this rank's own messages
};
struct step_bytes {
  std::size_t h, hq, d, k, ranks;
  sent_in_a_step host_exact, host_local, nccl_exact, nccl_local;
};
inline constexpr step_bytes every_step_bytes[] = {
    {2, 4, 32, 200, 4, {3, 3240}, {1, 536}, {4, 3872}, {1, 536}},
    {1, 32, 256, 100, 8, {4, 38088}, {2, 37080}, {4, 34504}, {1, 32904}},
    {1, 3, 16, 50, 3, {3, 680}, {1, 216}, {4, 720}, {1, 216}}  // the second shares the merging of outputs in host memory
};
inline constexpr std::size_t step_bytes_tokens = 500;

/// Parameters of such a layer, without votes. Tokens are dealt in turn, so that no rank has most of a list's best.
template <class Params>
Params params_of(const step_bytes& of, pqkv::scale::selection_mode mode) {
  Params p;
  p.kv_heads = of.h, p.query_heads = of.hq, p.head_dim = of.d, p.capacity = step_bytes_tokens, p.block = 4;
  p.budget.sinks = 4, p.budget.window = 36, p.budget.retrieve = of.k;
  p.selector.subspaces = 2, p.selector.bits = 4, p.selector.train.iterations = 1, p.selector.train.rows_per_centroid = 8;
  p.selection_over_ranks = mode, p.agreement = pqkv::scale::agreement_mode::with_exchange;
  return p;
}

}  // namespace pqkv_cases
