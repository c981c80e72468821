// SPDX-License-Identifier: Apache-2.0
// Step 1: train a codebook on keys and encode them. Prints how much smaller the codes are and how far they are off.
#include <cmath>
#include <cstdio>
#include <pqkv/pqkv.hpp>

#include "example_data.hpp"

int main() {
  const std::size_t h = 2, n = 4096, d = 64;
  const std::vector<float> keys = clustered_rows(h * n, d, 1);
  const auto key_view = pqkv::make_view(keys.data(), h, n, d);

  const pqkv::exec::host<> cpu;
  const pqkv::pq_shape shape{.kv_heads = h, .head_dim = d, .subspaces = 2, .bits = 6};
  pqkv::codebook book(shape);
  if (pqkv::train(cpu, key_view, book, {.iterations = 10, .seed = 7}) != pqkv::kmeans_outcome::trained) return 1;

  pqkv::codes codes(shape, n);
  pqkv::encode(cpu, key_view, book.view(), codes.mutable_view());

  // Decode by hand, to see what the codes keep: mean + centroid of each subspace.
  const auto centroids = book.view().centroids;
  const auto mean = book.view().mean;
  double error = 0, energy = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) {
        const std::size_t j = i / shape.sub_dim();
        const float decoded = mean(head, i) + centroids(head, j, i % shape.sub_dim(), codes.view()(head, j, t));
        error += std::pow(key_view(head, t, i) - decoded, 2);
        energy += std::pow(key_view(head, t, i), 2);
      }
  std::printf("%zu keys of %zu floats in %zu bytes of codes each; relative error %.3f\n", h * n, d, shape.subspaces,
              std::sqrt(error / energy));
  return error < energy ? 0 : 1;
}
