// SPDX-License-Identifier: Apache-2.0
// Step 3: from table to selected tokens in one call, by the two paths that give the same set: a scan of all tokens, or the cells
// of a joint-code index. The scratch is the caller's, so nothing is allocated.
#include <cstdio>
#include <pqkv/pqkv.hpp>

#include "example_data.hpp"

int main() {
  const std::size_t h = 2, hq = 8, n = 32768, d = 64, k = 512;
  const std::vector<float> keys = clustered_rows(h * n, d, 1), query = clustered_rows(hq, d, 2);
  const auto key_view = pqkv::make_view(keys.data(), h, n, d);

  pqkv::exec::host<> cpu;
  const pqkv::pq_shape shape{.kv_heads = h, .head_dim = d, .subspaces = 2, .bits = 6};
  pqkv::codebook book(shape);
  if (pqkv::train(cpu, key_view, book) != pqkv::kmeans_outcome::trained) return 1;
  pqkv::codes codes(shape, n);
  pqkv::encode(cpu, key_view, book.view(), codes.mutable_view());

  const std::size_t first = 32, last = n - 256;  // the middle: neither sinks nor window
  pqkv::cell_index index(shape, n);
  pqkv::count_cells(cpu, codes.view(), first, last, index.mutable_view());
  pqkv::merge_tails(cpu, codes.view(), index.mutable_view());

  pqkv::distance_table table(hq, shape);
  pqkv::inner_product_table(cpu, pqkv::make_view(query.data(), hq, d), book.view(), table.mutable_view());

  pqkv::buffer<std::byte> scratch(pqkv::scratch_bytes<pqkv::op::retrieve>(cpu, {.lists = h,
                                                                                .query_heads = hq,
                                                                                .subspaces = shape.subspaces,
                                                                                .centroids = shape.centroids(),
                                                                                .tokens = last - first,
                                                                                .cells = shape.cells()}));
  cpu.scratch = pqkv::arena(scratch);
  const std::vector<pqkv::middle_range> middle(h, {first, last, k});
  std::vector<std::int32_t> joint(h * k), scanned(h * k);
  std::vector<std::uint32_t> counts(h);
  for (const auto path : {pqkv::search_path::joint, pqkv::search_path::scan})
    pqkv::retrieve(cpu, table.view(), codes.view(), index.view(), pqkv::make_view(middle.data(), h),
                   pqkv::make_view(path == pqkv::search_path::joint ? joint.data() : scanned.data(), h, k),
                   pqkv::make_view(counts.data(), h), {.head_dim = d, .path = path});
  std::printf("head 0: %u tokens, first %d, last %d; the two paths %s\n", counts[0], joint[0], joint[k - 1],
              joint == scanned ? "agree" : "DIFFER");
  return joint == scanned ? 0 : 1;
}
