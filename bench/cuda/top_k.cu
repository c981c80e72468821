// SPDX-License-Identifier: Apache-2.0
// The k largest of n float scores, of many rows at once. Scores are normal. 8 rows of 131072 fit the L2 cache, and so do 64.
//
//   top_k [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/top_k.cuh>

#include "data.cuh"
#include "timing.cuh"

namespace {
using namespace bench;
constexpr std::size_t n = 131072;

void measure_all() {
  const auto name = [](std::size_t rows, std::size_t k) { return named("top_k", {{"rows", rows}, {"n", n}, {"k", k}}); };
  std::vector<std::string> names;
  for (const std::size_t rows : {8u, 64u})
    for (const std::size_t k : {2048u, 16384u}) names.push_back(name(rows, k));
  if (!is_any_wanted(names)) return;
  const pqkv::device_buffer<float> scores = normals<float>(64 * n);
  for (const std::size_t rows : {8u, 64u})
    for (const std::size_t k : {2048u, 16384u}) {
      const pqkv::device_buffer<std::int32_t> indices(rows * k, nullptr);
      const double bytes = static_cast<double>(rows * (n * sizeof(float) + k * sizeof(std::int32_t)));
      measure(name(rows, k), {.calls = 8, .bytes = bytes}, [&](void* stream, int) {
        pqkv::top_k(pqkv::exec::cuda{stream}, pqkv::as_const(pqkv::make_view<device>(scores.data(), rows, n)),
                    pqkv::make_view<device>(indices.data(), rows, k));
      });
    }
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
