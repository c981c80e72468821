// SPDX-License-Identifier: Apache-2.0
// What a context_parallel in device memory takes and tells (scale/device_context_state.hpp), by the backend that queues.
#include <doctest/doctest.h>

#include "cases/queued_shares.hpp"

namespace {
using namespace pqkv_cases;
using cache_type = pqkv::scale::context_parallel<pqkv::dense_rows<float, pqkv::space::device>, queued_ranks>;

cache_type::params good() {
  cache_type::params p;
  p.kv_heads = 1, p.query_heads = 2, p.head_dim = 16, p.capacity = 100;
  return p;
}
}  // namespace

TEST_CASE("device_context_state: memory is the queue's, and a new slot is empty") {
  queue work;
  pqkv::scale::in_process_group group(1);
  const queued_policy policy{&work, {}};
  const cache_type cache(policy, queued_ranks(group, 0), good());
  CHECK(work.holds(cache.rows().view().keys.data));
  CHECK(work.holds(cache.index().view().codes.data));
  CHECK(cache.size(policy, 0) == 0);
  CHECK(cache.middle(policy, 0).size() == 0);
  CHECK(cache.layout().ranks == 1);
  CHECK(cache.parameters().selector.refresh_iterations == 0);
}

TEST_CASE("device_context_state: more query tokens at once than a grid has rows are refused") {
  queue work;
  pqkv::scale::in_process_group group(1);
  auto p = good();
  p.step_queries = 40000;
  CHECK_THROWS_WITH_AS(cache_type(queued_policy{&work, {}}, queued_ranks(group, 0), p),
                       doctest::Contains("step_queries must be at most 32767"), pqkv::value_error);
}
