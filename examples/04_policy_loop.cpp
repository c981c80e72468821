// SPDX-License-Identifier: Apache-2.0
// Step 4: the policy in a decode loop. Prefill once, then append and attend for every generated token; next to it dense attention
// from the same class, so that the comparison is one type.
#include <cmath>
#include <cstdio>
#include <pqkv/pqkv.hpp>

#include "example_data.hpp"

template <class Selector>
std::vector<float> decode(const char* name) {
  const std::size_t h = 2, hq = 8, d = 64, prompt = 8192, steps = 64;
  const std::vector<float> keys = clustered_rows(h * prompt, d, 1), values = keys;  // like keys have like values
  const pqkv::exec::host<> cpu;

  using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, Selector>;
  typename cache_type::params params;
  params.kv_heads = h, params.query_heads = hq, params.head_dim = d, params.capacity = prompt + steps;
  params.budget.ratio = 0.1;
  cache_type cache(params);
  cache.prefill(cpu, 0, pqkv::make_view(keys.data(), h, prompt, d), pqkv::make_view(values.data(), h, prompt, d));

  std::vector<float> out(hq * d);
  for (unsigned step = 0; step < steps; ++step) {  // an engine's layer would make these rows from the token
    const std::vector<float> k = clustered_rows(h, d, 100 + step), v = k, q = clustered_rows(hq, d, 300 + step);
    cache.append(cpu, pqkv::make_view(k.data(), 1, h, d), pqkv::make_view(v.data(), 1, h, d));
    cache.attend(cpu, pqkv::make_view(q.data(), 1, hq, d), pqkv::make_view(out.data(), 1, hq, d));
    cache.maintain(cpu);
  }
  const pqkv::slot_statistics& read = cache.statistics(0);
  std::printf("%-5s %llu tokens attended a step, %llu KB of rows and %llu KB of index read\n", name,
              static_cast<unsigned long long>(read.tokens_attended / read.steps),
              static_cast<unsigned long long>(read.attended_bytes / read.steps / 1024),
              static_cast<unsigned long long>((read.index_bytes + read.selector_bytes) / read.steps / 1024));
  return out;
}

int main() {
  const std::vector<float> dense = decode<pqkv::selector::full>("full"), sparse = decode<pqkv::selector::pq>("pq");
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < dense.size(); ++i) difference += std::pow(dense[i] - sparse[i], 2), size += std::pow(dense[i], 2);
  std::printf("relative difference of the last output: %.3f\n", std::sqrt(difference / size));
  return difference < size ? 0 : 1;
}
