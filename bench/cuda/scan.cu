// SPDX-License-Identifier: Apache-2.0
// Scores of every token of 8 KV heads, by group reduction. Bytes: codes read and scores written once.
//
//   scan [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/scan.cuh>

#include "search_case.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

struct reduction {
  pqkv::group_reduction which;
  const char* name;
};
constexpr reduction reductions[] = {{pqkv::group_reduction::probability_sum, "probability_sum"},
                                    {pqkv::group_reduction::logit_sum, "logit_sum"}};

void measure_shape(std::size_t m, unsigned bits) {
  constexpr std::size_t h = 8, g = 4, n = 131072;
  const auto name = [&](const reduction& r) {
    return named("scan", {{"h", h}, {"g", g}, {"m", m}, {"b", bits}, {"n", n}}) + "/reduction:" + r.name;
  };
  std::vector<std::string> names;
  for (const reduction& r : reductions) names.push_back(name(r));
  if (!is_any_wanted(names)) return;
  const search_case data(h, g, m, bits, n);
  const pqkv::device_buffer<float> scores(h * n, nullptr);
  const pqkv::device_buffer<std::byte> scratch(device_bytes<pqkv::op::scan>({.query_heads = h * g}), nullptr);
  for (const reduction& r : reductions)
    measure(name(r), {.calls = 8, .replays = 30, .bytes = static_cast<double>(h * n * (m + sizeof(float)))}, [&](void* stream, int turn) {
      pqkv::scan(pqkv::exec::cuda{stream, pqkv::arena(scratch)}, data.table(turn), data.codes_view(),
                 pqkv::make_view<device>(scores.data(), h, n), r.which, 128);
    });
}

void measure_all() {
  measure_shape(2, 6);
  measure_shape(4, 8);
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
