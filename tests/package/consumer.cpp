// SPDX-License-Identifier: Apache-2.0
// A consumer's first unit: trains a codebook on keys, encodes them and retrieves the best tokens for a query. The second unit
// does the same through pqcache. Both instantiate the same templates; the program must link and both must agree.
#include "consumer.hpp"

#include <cstdio>

std::vector<std::int32_t> retrieve_by_parts(const keys_and_query& data) {
  const pqkv::exec::host<> cpu;
  const pqkv::pq_shape shape{.kv_heads = heads, .head_dim = head_dim, .subspaces = 2, .bits = 6};
  const auto keys = pqkv::make_view(data.keys.data(), heads, tokens, head_dim);

  pqkv::codebook book(shape);
  if (pqkv::train(cpu, keys.slice(1, sinks, tokens - sinks), book) != pqkv::kmeans_outcome::trained) return {};
  pqkv::codes codes(shape, tokens);
  pqkv::encode(cpu, keys, book.view(), codes.mutable_view());
  pqkv::distance_table table(heads, shape);
  pqkv::inner_product_table(cpu, pqkv::make_view(data.query.data(), heads, head_dim), book.view(), table.mutable_view());

  const std::vector<pqkv::middle_range> ranges(heads, {sinks, tokens - window, retrieved});
  std::vector<std::int32_t> indices(heads * retrieved);
  std::vector<std::uint32_t> counts(heads);
  pqkv::retrieve(cpu, table.view(), codes.view(), {}, pqkv::make_view(ranges.data(), heads),
                 pqkv::make_view(indices.data(), heads, retrieved), pqkv::make_view(counts.data(), heads),
                 {.head_dim = head_dim, .path = pqkv::search_path::scan});
  return indices;
}

int main() {
  const keys_and_query data = make_data();
  const std::vector<std::int32_t> by_parts = retrieve_by_parts(data), by_policy = retrieve_by_pqcache(data);
  if (detected_isa_here() != detected_isa_there()) return std::puts("consumer: two copies of one inline function"), 1;
  if (by_parts.empty() || by_parts != by_policy) return std::puts("consumer: parts and pqcache select differently"), 1;
  for (std::size_t i = 0; i < by_parts.size(); ++i) {
    const bool first = i % retrieved == 0;
    if (by_parts[i] < static_cast<int>(first ? sinks : static_cast<std::uint32_t>(by_parts[i - 1]) + 1) ||
        by_parts[i] >= static_cast<int>(tokens - window))
      return std::puts("consumer: positions are not ascending in the middle"), 1;
  }
  return 0;
}
