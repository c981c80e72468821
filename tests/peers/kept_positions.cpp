// SPDX-License-Identifier: Apache-2.0
// What a selector attends to at a prompt's end, for comparison with another program. Reads from standard input eleven uint32: method (0
// snapkv, 1 h2o, 2 streaming), h, hq, d, n, sinks, window, k, observed, pool_tokens, pooling (0 average, 1 maximum); then floats: keys
// [h, n, d], and queries [observed, hq, d] of the last tokens. Writes for each KV head the positions, int32 [h, sinks + k + window],
// ascending. snapkv's observation window is as long as the queries that are observed.
#include <cstdio>
#include <numeric>
#include <vector>

#include <pqkv/pqkv.hpp>

namespace {
template <class T>
std::vector<T> read(std::size_t count) {
  std::vector<T> all(count);
  if (std::fread(all.data(), sizeof(T), count, stdin) != count) {
    std::fprintf(stderr, "kept_positions: the input ends too early\n");
    std::exit(2);
  }
  return all;
}

struct prompt {
  std::size_t h, hq, d, n, sinks, window, k, observed, pool_tokens;
  pqkv::selector::vote_pooling pooling;
  std::vector<float> keys, queries;
};

/// [h, sinks + k + window]
template <class Selector>
std::vector<std::int32_t> attended(const prompt& of, const typename Selector::params& settings) {
  using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, Selector>;
  typename cache_type::params p;
  p.batch = 1, p.kv_heads = of.h, p.query_heads = of.hq, p.head_dim = of.d, p.capacity = of.n;
  p.budget.sinks = of.sinks, p.budget.window = of.window, p.budget.retrieve = of.k;
  p.selector = settings;
  cache_type cache(p);
  const pqkv::exec::host<> cpu;
  const auto rows = pqkv::make_view(of.keys.data(), of.h, of.n, of.d);
  if constexpr (requires { Selector::can_observe(settings); })
    cache.observe(cpu, 0, pqkv::make_view(of.queries.data(), of.observed, of.hq, of.d));
  cache.prefill(cpu, 0, rows, rows);
  const std::size_t lists = std::max<std::size_t>(cache.retrieve_capacity(0), 1);
  std::vector<std::int32_t> listed(of.h * lists), all;
  std::vector<std::uint32_t> counts(of.h);
  const std::vector<float> query(of.hq * of.d);  // any: the prompt's queries alone decide
  cache.retrieve(cpu, pqkv::make_view(query.data(), 1, of.hq, of.d), pqkv::make_view(listed.data(), 1, of.h, lists),
                 pqkv::make_view(counts.data(), 1, of.h));
  const pqkv::middle_range middle = cache.middle(0);
  for (std::size_t head = 0; head < of.h; ++head) {
    for (std::uint32_t t = 0; t < middle.begin; ++t) all.push_back(static_cast<std::int32_t>(t));
    for (std::uint32_t i = 0; i < counts[head]; ++i) all.push_back(listed[head * lists + i]);
    for (std::size_t t = middle.end; t < of.n; ++t) all.push_back(static_cast<std::int32_t>(t));
  }
  return all;
}
}  // namespace

int main() {
  const std::vector<std::uint32_t> sizes = read<std::uint32_t>(11);
  prompt of{sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
            sizes[6], sizes[7], sizes[8], sizes[9], static_cast<pqkv::selector::vote_pooling>(sizes[10]),
            {},       {}};
  of.keys = read<float>(of.h * of.n * of.d);
  of.queries = read<float>(of.observed * of.hq * of.d);
  try {
    const std::vector<std::int32_t> all = sizes[0] == 0   ? attended<pqkv::selector::snapkv>(of, {of.observed, of.pool_tokens, of.pooling})
                                          : sizes[0] == 1 ? attended<pqkv::selector::h2o>(of, {})
                                                          : attended<pqkv::selector::streaming>(of, {});
    if (std::fwrite(all.data(), sizeof(std::int32_t), all.size(), stdout) != all.size()) return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kept_positions: %s\n", error.what());
    return 1;
  }
}
