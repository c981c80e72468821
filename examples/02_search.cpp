// SPDX-License-Identifier: Apache-2.0
// Step 2: score every token against a query by table look-ups, and take the best. Compares with exact inner products.
#include <algorithm>
#include <cstdio>
#include <pqkv/pqkv.hpp>

#include "example_data.hpp"

int main() {
  const std::size_t h = 1, hq = 1, n = 8192, d = 64, k = 64;
  const std::vector<float> keys = clustered_rows(n, d, 1), query = clustered_rows(hq, d, 2);
  const auto key_view = pqkv::make_view(keys.data(), h, n, d);
  const auto query_view = pqkv::make_view(query.data(), hq, d);

  const pqkv::exec::host<> cpu;
  const pqkv::pq_shape shape{.kv_heads = h, .head_dim = d, .subspaces = 8, .bits = 8};
  pqkv::codebook book(shape);
  if (pqkv::train(cpu, key_view, book) != pqkv::kmeans_outcome::trained) return 1;
  pqkv::codes codes(shape, n);
  pqkv::encode(cpu, key_view, book.view(), codes.mutable_view());

  pqkv::distance_table table(hq, shape);
  pqkv::inner_product_table(cpu, query_view, book.view(), table.mutable_view());  // [hq, m, c]
  std::vector<float> scores(n), exact(n);
  pqkv::scan(cpu, table.view(), codes.view(), pqkv::make_view(scores.data(), h, n), pqkv::group_reduction::logit_sum, d);

  for (std::size_t t = 0; t < n; ++t)
    for (std::size_t i = 0; i < d; ++i) exact[t] += query[i] * keys[t * d + i];

  std::vector<std::int32_t> found(k), best(k);
  pqkv::top_k(cpu, pqkv::make_view(std::as_const(scores).data(), 1, n), pqkv::make_view(found.data(), 1, k));
  pqkv::top_k(cpu, pqkv::make_view(std::as_const(exact).data(), 1, n), pqkv::make_view(best.data(), 1, k));
  std::vector<std::int32_t> both;  // lists come in ascending order
  std::set_intersection(found.begin(), found.end(), best.begin(), best.end(), std::back_inserter(both));
  std::printf("of the exact top %zu of %zu tokens, %zu found from %zu bytes a token\n", k, n, both.size(), shape.subspaces);
  return both.size() * 4 >= k ? 0 : 1;
}
