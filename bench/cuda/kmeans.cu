// SPDX-License-Identifier: Apache-2.0
// Training of codebooks: 25 iterations over all of 16384 rows, for the sixteen problems of a layer and for 32 layers. Rows are normal, so
// no assignment settles early. Work counts as 2 n c ds operations an iteration.
//
//   kmeans [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/codebook.cuh>
#include <pqkv/detail/cuda/kmeans.cuh>

#include "codebook_memory.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

void measure_all() {
  for (const std::size_t h : {8u, 256u}) {  // a layer, and 32 of them
    constexpr std::size_t n = 16384, d = 128, m = 2;
    const std::string name = named("train", {{"problems", h * m}, {"n", n}, {"ds", d / m}, {"c", 64}, {"L", 25}});
    if (!is_wanted(name)) continue;
    const auto keys = normals<pqkv::bfloat16>(h * n * d);
    const codebook_memory book(h, d, m, 6);
    const pqkv::kmeans_params params{25, 1, 256};
    const pqkv::device_buffer<std::byte> scratch(book.training_scratch_bytes(n, params), nullptr);
    measure(name, {.calls = 1, .replays = 5, .cold_replays = 0, .flops = book.training_flops(n, params)}, [&](void* stream, int) {
      pqkv::train(pqkv::exec::cuda{stream, pqkv::arena(scratch)}, pqkv::as_const(pqkv::make_view<device>(keys.data(), h, n, d)),
                  book.view(), pqkv::make_view<device>(book.outcome.data(), h, m), params);
    });
  }
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
