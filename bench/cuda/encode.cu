// SPDX-License-Identifier: Apache-2.0
// Encoding of bfloat16 keys: of a prompt, and of the one token of a decode step. Work counts as 2 n c d operations.
//
//   encode [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/codes.cuh>

#include "codebook_memory.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

void measure_lengths(std::size_t h, std::initializer_list<std::size_t> lengths) {  // the first is the longest
  constexpr std::size_t d = 128, m = 2;
  const auto name = [&](std::size_t tokens) { return named("encode", {{"h", h}, {"n", tokens}, {"d", d}, {"m", m}, {"b", 6}}); };
  std::vector<std::string> names;
  for (const std::size_t length : lengths) names.push_back(name(length));
  if (!is_any_wanted(names)) return;
  const std::size_t n = *lengths.begin();
  const auto keys = normals<pqkv::bfloat16>(h * n * d);
  const codebook_memory book(h, d, m, 6);
  const pqkv::device_buffer<std::uint8_t> codes(h * m * n, nullptr);
  for (const std::size_t length : lengths) {
    const std::size_t first = length == 1 ? 5 : 0;
    timing how{.calls = 16, .replays = 20};
    if (length != 1) how = {.calls = 1, .replays = 10, .cold_replays = 10};
    how.bytes = static_cast<double>(h * length * (d * sizeof(pqkv::bfloat16) + m));
    how.flops = 2.0 * static_cast<double>(h * length * d * book.c);
    measure(name(length), how, [&](void* stream, int) {
      pqkv::encode(pqkv::exec::cuda{stream}, pqkv::as_const(pqkv::make_view<device>(keys.data(), h, n, d)).slice(1, first, length),
                   pqkv::codebook_view<device>(book.view()), pqkv::make_view<device>(codes.data(), h, m, n).slice(2, first, length));
    });
  }
}

void measure_all() {
  measure_lengths(8, {16384, 1});
  measure_lengths(256, {16384, 1});
  measure_lengths(8, {131072});
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
