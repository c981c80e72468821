// SPDX-License-Identifier: Apache-2.0
// Inner-product tables of one query of every query head, as a decode step makes them: of a layer, and of 32 sequences.
//
//   distance_table [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/distance_table.cuh>

#include "codebook_memory.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

void measure_all() {
  for (const std::size_t h : {8u, 256u}) {
    constexpr std::size_t d = 128, m = 2, g = 4;
    const std::size_t hq = h * g;
    const std::string name = named("table", {{"hq", hq}, {"d", d}, {"m", m}, {"b", 6}});
    if (!is_wanted(name)) continue;
    const codebook_memory book(h, d, m, 6);
    const auto query = normals<float>(hq * d);
    const pqkv::device_buffer<float> entries(hq * m * book.c, nullptr), bias(hq, nullptr);
    const double bytes = static_cast<double>((h * d * book.c + hq * d + entries.size() + hq) * sizeof(float));
    measure(name, {.calls = 16, .replays = 20, .bytes = bytes, .flops = 2.0 * static_cast<double>(hq * d * book.c)},
            [&](void* stream, int) {
              pqkv::inner_product_table(pqkv::exec::cuda{stream}, pqkv::as_const(pqkv::make_view<device>(query.data(), hq, d)),
                                        pqkv::codebook_view<device>(book.view()),
                                        {pqkv::make_view<device>(entries.data(), hq, m, book.c), pqkv::make_view<device>(bias.data(), hq)});
            });
  }
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
