// SPDX-License-Identifier: Apache-2.0
// Copies of rows into a store on the device, converting the type: what prefill does with keys and values. Bytes read and written.
//
//   store_rows [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/kv_store.cuh>

#include "data.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

template <class From, class To>
void measure_types(const char* from, const char* to) {
  constexpr std::size_t h = 8, n = 131072, d = 128;
  const std::string name = named("store_rows", {{"h", h}, {"n", n}, {"d", d}}) + "/from:" + from + "/to:" + to;
  if (!is_wanted(name)) return;
  const auto rows = normals<From>(h * n * d);
  const pqkv::device_buffer<To> store(h * n * 2 * d, nullptr);
  const pqkv::device_buffer<std::uint32_t> nonfinite(h, nullptr);
  measure(name, {.calls = 4, .replays = 20, .bytes = static_cast<double>(h * n * d * (sizeof(From) + sizeof(To)))}, [&](void* stream, int) {
    pqkv::store_rows(pqkv::exec::cuda{stream}, pqkv::make_view<device>(rows.data(), h, n, d),
                     pqkv::view<To, 3, device>{store.data(), {h, n, d}, {n * 2 * d, 2 * d, 1}},
                     pqkv::make_view<device>(nonfinite.data(), h));
  });
}

void measure_all() {
  measure_types<float, pqkv::bfloat16>("f32", "bf16");
  measure_types<pqkv::bfloat16, pqkv::bfloat16>("bf16", "bf16");
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
