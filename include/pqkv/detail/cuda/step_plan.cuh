// SPDX-License-Identifier: Apache-2.0
// The plan of a step on the device: a thread takes one list of a query.
#pragma once

#include "../../cache/step_plan.hpp"
#include "block/cluster.cuh"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// A thread takes one list of a query token; tokens follow one another.
/// @param lists  lists of a token; at least as many as it has heads
template <class Queries, class Plan>
PQKV_HIDDEN __global__ void __launch_bounds__(256) plan_step_kernel(Queries queries, Plan plan, unsigned lists, unsigned h) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x, i = at / lists, list = at - i * lists;
  if (i >= plan.slots.extent(0)) return;
  const std::size_t batch = queries.sequences.extent(0);
  const step_token token = locate(queries.step, batch, queries.first + i);
  const bool is_query = token.count != 0 && token.slot < batch;
  query_plan one{};
  if (is_query) one = plan_query(queries.sequences(token.slot), queries.query(token), queries.rule, queries.covers);
  if (!queries.has_own_list(token, i)) one.range = {};
  plan.spans(at) = one.span;
  plan.counts(at) = 0;
  if (list < h) plan.ranges(i * h + list) = one.range;
  if (list == 0) plan.slots(i) = is_query ? token.slot : 0;
}

}  // namespace detail

template <>
struct kernel<op::plan_step, backend::cuda> {
  /// @return true: only the device knows which queries have lists
  template <class P>
  static bool run(const P& policy, const planned_queries<space::device>& queries, const step_plan<space::device>& plan) {
    const std::size_t tokens = plan.slots.extent(0), all = plan.spans.extent(0);
    if (tokens == 0) return false;
    const auto kernel = detail::plan_step_kernel<planned_queries<space::device>, step_plan<space::device>>;
    const detail::launcher launch(policy, "plan_step");
    launch("plan_step_kernel", kernel,
           {.grid = dim3(detail::ceil_div(all, 256)), .threads = 256, .early = launch.is_built_for_hopper(kernel)}, queries, plan,
           static_cast<unsigned>(all / tokens), static_cast<unsigned>(plan.ranges.extent(0) / tokens));
    return true;
  }
};

}  // namespace pqkv
