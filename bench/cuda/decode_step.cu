// SPDX-License-Identifier: Apache-2.0
// A whole decode step of one layer with keys and values on the device, append and attend in one CUDA graph, against the dense step:
// 8 KV heads, 32 query heads, head dimension 128, bfloat16; 1024 tokens retrieved, 1024 sinks and window. Keys lie around 512
// directions a head, so that codes differ.
//
//   decode_step [name prefix]    exit code 77 where there is no GPU
#include "graph_time.cuh"

#include <pqkv/device_pqcache.cuh>

namespace {
using namespace bench;
constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, room = 4096;

/// Rows [h, n, d], each a direction with noise.
std::vector<pqkv::bfloat16> shaped_keys(std::size_t n) {
  const auto directions = gaussians(h * 512 * d, 1);
  std::vector<float> noise = gaussians(65537, 0.5f);
  std::vector<pqkv::bfloat16> keys(h * n * d);
  for (std::size_t row = 0; row < h * n; ++row) {
    const float* direction = directions.data() + (row / n * 512 + word() % 512) * d;
    const std::size_t at = word() % (noise.size() - d);
    for (std::size_t i = 0; i < d; ++i) keys[row * d + i] = pqkv::bfloat16(direction[i] + noise[at + i]);
  }
  return keys;
}

void step(std::size_t batch, std::size_t n, bool dense) {
  char name[128];
  std::snprintf(name, sizeof name, "decode_step/%s/batch:%zu/h:8/g:4/d:128/n:%zu", dense ? "dense" : "pq_2x6/attended:2048", batch, n);
  if (!is_wanted(name)) return;
  pqkv::device_pqcache<pqkv::bfloat16>::params p{};
  p.batch = batch;
  p.kv_heads = h;
  p.query_heads = hq;
  p.head_dim = d;
  p.capacity = n + room;
  p.budget.sinks = 64;
  p.budget.window = 960;
  p.budget.retrieve = dense ? n + room : 1024;
  p.selector.train = {.iterations = 10, .seed = 1, .rows_per_centroid = 256};
  const pqkv::exec::cuda gpu;
  pqkv::device_pqcache<pqkv::bfloat16> cache(gpu, p);
  {
    const auto keys = upload(shaped_keys(n)), values = upload(many_rows(h * n * d));
    const auto rows = [n](const pqkv::device_buffer<pqkv::bfloat16>& of) { return pqkv::make_view<device>(of.data(), h, n, d); };
    cache.prefill(gpu, 0, rows(keys), rows(values));
    pqkv::sync(gpu);
  }
  for (std::size_t slot = 1; slot < batch; ++slot) cache.fork(gpu, 0, slot);
  const auto key = upload(gaussians(batch * h * d)), value = upload(gaussians(batch * h * d)), query = upload(gaussians(batch * hq * d, 2));
  const pqkv::device_buffer<float> out(batch * hq * d, nullptr);
  pqkv::sync(gpu);
  measure(name, 1, 100, [&](void* stream, int) {
    cache.append({stream}, pqkv::make_view<device>(key.data(), batch, h, d), pqkv::make_view<device>(value.data(), batch, h, d));
    cache.attend({stream}, pqkv::as_const(pqkv::make_view<device>(query.data(), batch, hq, d)),
                 pqkv::make_view<device>(out.data(), batch, hq, d));
  });
}
}  // namespace

int main(int argc, char** argv) {
  if (!begin(argc, argv)) return 77;
  for (const std::size_t n : {32768u, 131072u, 524288u})
    for (const bool dense : {false, true}) step(1, n, dense);
  for (const bool dense : {false, true}) step(7, 120000, dense);
}
