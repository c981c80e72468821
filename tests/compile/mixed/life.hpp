// SPDX-License-Identifier: Apache-2.0
// A cache's life in few lines, compiled in each of two files: its functions are those that the linker must keep apart.
#pragma once
#include <pqkv/pqkv.hpp>

namespace {

/// A number that depends on all tokens that were selected.
inline int attended_tokens() {
  pqkv::pqcache<>::params p;
  p.batch = 1, p.kv_heads = 1, p.query_heads = 2, p.head_dim = 8, p.capacity = 300;
  p.budget.sinks = 2, p.budget.window = 8, p.budget.retrieve = 20;
  p.selector.bits = 4;
  pqkv::pqcache<> cache(p);
  pqkv::buffer<float> rows(300 * 8);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 37 % 101) / 64 - 0.75f;
  const auto keys = pqkv::make_view(static_cast<const float*>(rows.data()), 1, 299, 8);
  const pqkv::exec::host<> cpu;
  cache.prefill(cpu, 0, keys, keys);
  const auto token = pqkv::make_view(static_cast<const float*>(rows.data()), 1, 1, 8);
  cache.append(cpu, token, token);
  std::int32_t indices[20] = {};
  std::uint32_t count = 0;
  const auto query = pqkv::make_view(static_cast<const float*>(rows.data()), 1, 2, 8);
  cache.retrieve(cpu, query, pqkv::make_view(indices, 1, 1, 20), pqkv::make_view(&count, 1, 1));
  float out[2 * 8] = {};
  cache.attend(cpu, query, pqkv::make_view(out, 1, 2, 8));
  std::int32_t sum = out[0] == out[0] ? 1 : 0;
  for (std::uint32_t i = 0; i < count; ++i) sum = sum * 31 % 65521 + indices[i];
  return sum;
}

}  // namespace
