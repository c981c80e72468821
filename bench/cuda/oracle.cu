// SPDX-License-Identifier: Apache-2.0
// Exact selection: the logits of every key, their probabilities summed over a group, and the k largest sums. Keys are normal, and larger
// than the L2 cache.
//
//   oracle [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/oracle.cuh>

#include "data.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

void measure_all() {
  constexpr std::size_t h = 8, g = 4, d = 128, n = 131072, k = 2048;
  const std::string name = named("exact_selection", {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"k", k}});
  if (!is_any_wanted(std::vector<std::string>{name})) return;
  const pqkv::device_buffer<pqkv::bfloat16> keys = normals<pqkv::bfloat16>(h * n * d);
  const pqkv::device_buffer<float> query = normals<float>(h * g * d), scores(h * n, nullptr);
  const pqkv::device_buffer<std::int32_t> indices(h * k, nullptr);
  const pqkv::device_buffer<std::uint32_t> counts(h, nullptr);
  const std::vector<pqkv::middle_range> all(h, pqkv::middle_range{0, n, k});
  const pqkv::device_buffer<pqkv::middle_range> ranges(h, nullptr);
  ranges.upload(all.data(), nullptr);
  const pqkv::device_buffer<std::byte> scratch(
      pqkv::scratch_bytes<pqkv::op::exact_scores>(pqkv::exec::cuda{}, {.query_heads = h * g, .tokens = n}), nullptr);
  pqkv::sync(pqkv::exec::cuda{});
  const auto rows = pqkv::make_view<device>(static_cast<const pqkv::bfloat16*>(keys.data()), h, n, d);
  const auto of_tokens = pqkv::make_view<device>(scores.data(), h, n);
  const auto which = pqkv::as_const(pqkv::make_view<device>(ranges.data(), h));
  measure(name, {.calls = 2, .bytes = static_cast<double>(h * n * d * sizeof(pqkv::bfloat16))}, [&](void* stream, int) {
    const pqkv::exec::cuda gpu{stream, pqkv::arena(scratch)};
    pqkv::exact_scores(gpu, pqkv::as_const(pqkv::make_view<device>(query.data(), h * g, d)),
                       pqkv::strided_store<pqkv::bfloat16, device>{rows, rows}, which, pqkv::group_reduction::probability_sum, of_tokens);
    pqkv::detail::run_operation<pqkv::op::list_best>(gpu, pqkv::as_const(of_tokens), which, pqkv::make_view<device>(indices.data(), h, k),
                                                     pqkv::make_view<device>(counts.data(), h));
  });
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
