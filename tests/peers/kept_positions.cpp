// SPDX-License-Identifier: Apache-2.0
// What selector::snapkv keeps at a prompt's end, for comparison with another program. Reads from standard input eight uint32: h, hq, d, n,
// voters (observation window), pool_tokens, pooling (0 average, 1 maximum), k; then floats: keys [h, n, d], queries [voters, hq, d] of the
// last tokens. Writes for each KV head the k kept positions before the observation window, int32 [h, k], ascending.
#include <cstdio>
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
}  // namespace

int main() {
  const std::vector<std::uint32_t> sizes = read<std::uint32_t>(8);
  const std::size_t h = sizes[0], hq = sizes[1], d = sizes[2], n = sizes[3], voters = sizes[4], k = sizes[7];
  const std::vector<float> keys = read<float>(h * n * d), queries = read<float>(voters * hq * d);
  try {
    pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::snapkv>::params p;
    p.batch = 1, p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = n;
    p.budget.sinks = 0, p.budget.window = voters, p.budget.retrieve = k;
    p.selector = {voters, sizes[5], static_cast<pqkv::selector::vote_pooling>(sizes[6])};
    pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::snapkv> cache(p);
    const pqkv::exec::host<> cpu;
    const auto rows = pqkv::make_view(keys.data(), h, n, d);
    cache.observe(cpu, 0, pqkv::make_view(queries.data(), voters, hq, d));
    cache.prefill(cpu, 0, rows, rows);
    std::vector<std::int32_t> kept(h * k);
    std::vector<std::uint32_t> counts(h);
    const std::vector<float> query(hq * d);  // any: votes alone decide
    cache.retrieve(cpu, pqkv::make_view(query.data(), 1, hq, d), pqkv::make_view(kept.data(), 1, h, k),
                   pqkv::make_view(counts.data(), 1, h));
    std::fwrite(kept.data(), sizeof(std::int32_t), kept.size(), stdout);
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "%s\n", problem.what());
    return 2;
  }
}
