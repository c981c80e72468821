// SPDX-License-Identifier: Apache-2.0
// An engine's plain C++ on the CUDA backend. Without a GPU it says so and ends with 0: that it compiles and links is the test then.
#include <pqkv/cuda_extern.hpp>

#include <cstdio>

#include "memory.hpp"

int main() {
  using device = pqkv::space::device;
  if (!has_device()) {
    std::puts("no CUDA device");
    return 0;
  }
  const float scores[] = {1, 4, 2, 3};
  std::int32_t indices[] = {-7, -7};
  void* scores_there = to_device(scores, sizeof scores);
  void* indices_there = to_device(indices, sizeof indices);
  if (scores_there == nullptr || indices_there == nullptr) return 1;
  const pqkv::exec::cuda gpu;
  pqkv::top_k(gpu, pqkv::make_view<device>(static_cast<const float*>(scores_there), 1, 4),
              pqkv::make_view<device>(static_cast<std::int32_t*>(indices_there), 1, 2));
  pqkv::sync(gpu);
  if (!to_host(indices, indices_there, sizeof indices)) return 1;
  std::printf("%d %d\n", indices[0], indices[1]);
  return indices[0] == 1 && indices[1] == 3 ? 0 : 1;
}
