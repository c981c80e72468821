// SPDX-License-Identifier: Apache-2.0
// A consumer's second unit: the same retrieval through the policy that composes the parts.
#include "consumer.hpp"

detect_function detected_isa_there() { return &pqkv::isa::detected; }

std::vector<std::int32_t> retrieve_by_pqcache(const keys_and_query& data) {
  const pqkv::exec::host<> cpu;
  pqkv::pqcache<>::params params;
  params.kv_heads = params.query_heads = heads;
  params.head_dim = head_dim;
  params.capacity = tokens;
  params.budget.sinks = sinks;
  params.budget.window = window;
  params.budget.retrieve = retrieved;
  params.selector.subspaces = 2, params.selector.bits = 6;  // those of the parts
  params.selector.axes = pqkv::axis_order::contiguous;
  pqkv::pqcache<> cache(params);
  const auto keys = pqkv::make_view(data.keys.data(), heads, tokens, head_dim);
  cache.prefill(cpu, 0, keys, keys);

  std::vector<std::int32_t> indices(heads * retrieved);
  std::vector<std::uint32_t> counts(heads);
  cache.retrieve(cpu, pqkv::make_view(data.query.data(), 1, heads, head_dim), pqkv::make_view(indices.data(), 1, heads, retrieved),
                 pqkv::make_view(counts.data(), 1, heads));
  return indices;
}
