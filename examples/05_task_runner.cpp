// SPDX-License-Identifier: Apache-2.0
// Step 5: the engine's own threads. A task runner is any type with run(count, f); here a few lines over std::jthread stand for an
// engine's pool. The results do not depend on it.
#include <atomic>
#include <cstdio>
#include <pqkv/pqkv.hpp>
#include <thread>

#include "example_data.hpp"

struct my_pool {
  unsigned threads = 2;

  template <class F>
  void run(std::size_t count, F&& f) {
    std::atomic<std::size_t> next{0};
    std::vector<std::jthread> team;
    for (unsigned i = 0; i < threads; ++i)
      team.emplace_back([&] {
        for (std::size_t task = next++; task < count; task = next++) f(task);
      });
  }  // joins
};

int main() {
  const std::size_t h = 8, n = 2048, d = 64;
  const std::vector<float> keys = clustered_rows(h * n, d, 1);
  const auto key_view = pqkv::make_view(keys.data(), h, n, d);
  const pqkv::pq_shape shape{.kv_heads = h, .head_dim = d, .subspaces = 2, .bits = 6};

  my_pool pool;
  const pqkv::exec::host<pqkv::isa::best, my_pool&> threaded{pool};
  const pqkv::exec::host<pqkv::isa::scalar> plain;
  pqkv::codebook by_pool(shape), by_one(shape);
  if (pqkv::train(threaded, key_view, by_pool) != pqkv::kmeans_outcome::trained) return 1;
  if (pqkv::train(plain, key_view, by_one) != pqkv::kmeans_outcome::trained) return 1;

  bool same = true;
  const auto a = by_pool.view().centroids, b = by_one.view().centroids;
  for (std::size_t i = 0; i < a.size(); ++i) same &= a.data[i] == b.data[i];
  std::printf("two threads with the best instruction set and one without any: %s bits\n", same ? "the same" : "DIFFERENT");
  return same ? 0 : 1;
}
