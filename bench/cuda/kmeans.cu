// SPDX-License-Identifier: Apache-2.0
// Training of codebooks: 25 iterations over all rows. Of bfloat16, 16384 rows for the sixteen problems of a layer and for 32 layers; of
// float the same 32 layers, and a layer of 32768 rows. Rows are normal, so no assignment settles early; once they are in clusters. Work
// counts as 2 n c ds operations an iteration.
//
//   kmeans [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/codebook.cuh>
#include <pqkv/detail/cuda/kmeans.cuh>

#include "codebook_memory.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

constexpr std::size_t d = 128, m = 2;

template <class T, class Make>
void measure_training(const std::string& suffix, std::size_t h, std::size_t n, Make make) {
  const std::string name = named("train", {{"problems", h * m}, {"n", n}, {"ds", d / m}, {"c", 64}, {"L", 25}}) + suffix;
  if (!is_wanted(name)) return;
  const pqkv::device_buffer<T> keys = make(h, n);
  const codebook_memory book(h, d, m, 6);
  const pqkv::kmeans_params params{25, 1, n / 64};
  const pqkv::device_buffer<std::byte> scratch(book.training_scratch_bytes(n, params), nullptr);
  measure(name, {.calls = 1, .replays = 5, .cold_replays = 0, .flops = book.training_flops(n, params)}, [&](void* stream, int) {
    pqkv::train(pqkv::exec::cuda{stream, pqkv::arena(scratch)}, pqkv::as_const(pqkv::make_view<device>(keys.data(), h, n, d)), book.view(),
                pqkv::make_view<device>(book.outcome.data(), h, m), params);
  });
}

template <class T>
pqkv::device_buffer<T> normal_rows(std::size_t h, std::size_t n) {
  return normals<T>(h * n * d);
}

void measure_all() {
  for (const std::size_t h : {8u, 256u}) measure_training<pqkv::bfloat16>("", h, 16384, normal_rows<pqkv::bfloat16>);
  measure_training<float>("/type:f32", 256, 16384, normal_rows<float>);
  measure_training<float>("/type:f32", 8, 32768, normal_rows<float>);
  measure_training<float>("/type:f32/rows:clustered", 256, 16384, [](std::size_t h, std::size_t n) { return clustered<float>(h, n, d); });
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
