// SPDX-License-Identifier: Apache-2.0
// A whole decode step of one layer with keys and values on the device, append and attend in one CUDA graph, against the dense step:
// 8 KV heads, 32 query heads, head dimension 128, bfloat16; 1024 tokens retrieved, 1024 sinks and window. With the default codes also over
// rows of 8-bit integers, so many more retrieved as have the same bytes; there also normalised over sinks and window, with weighted axes,
// and with preset::accurate's codes. At 128 K tokens also with a tenth of them attended. Keys lie around 512 directions a head, so that
// codes differ. Bytes are those of the attended rows.
//
//   pqcache_step [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/device_pqcache.cuh>
#include <pqkv/preset.hpp>

#include "data.cuh"
#include "timing.cuh"

namespace {
using namespace bench;
constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, room = 4096, sinks = 64, window = 960, usual = sinks + window + 1024;

/// With 4 x 8 bits: also over sinks and window; also with axes weighted by queries. preset::accurate is that with 8 x 8 bits.
enum class policy { dense, pq_2x6, pq_4x8, over_attended, weighted, accurate };

const char* name_of(policy which) {
  switch (which) {
    case policy::dense:
      return "dense";
    case policy::pq_2x6:
      return "pq_2x6";
    case policy::pq_4x8:
      return "pq_4x8";
    case policy::over_attended:
      return "pq_4x8_over_attended";
    case policy::weighted:
      return "pq_4x8_weighted_over_attended";
    case policy::accurate:
      break;
  }
  return "accurate";
}

/// @param attended_rows  of 16 bits, or so many rows of 8 bits as have the same bytes
template <class Rows>
void step(std::size_t batch, std::size_t n, policy which, std::size_t attended_rows = usual) {
  using cache_type = pqkv::pqcache<Rows>;
  const bool dense = which == policy::dense;
  constexpr bool is_quantized = std::is_same_v<Rows, pqkv::quantized_rows<device>>;
  const std::size_t token_bytes = is_quantized ? pqkv::quantized_store<device>::token_bytes(d) : 2 * d * sizeof(pqkv::bfloat16);
  const std::size_t sparse = attended_rows * 2 * d * sizeof(pqkv::bfloat16) / token_bytes, attended = dense ? n : sparse;
  const std::string of = std::string(name_of(which)) + (is_quantized ? "_int8" : "");
  const std::string name = named(dense ? "decode_step/dense" : "decode_step/" + of + "/attended:" + std::to_string(attended),
                                 {{"batch", batch}, {"h", h}, {"g", g}, {"d", d}, {"n", n}});
  if (!is_wanted(name)) return;
  typename cache_type::params p{};
  p.batch = batch;
  p.kv_heads = h;
  p.query_heads = hq;
  p.head_dim = d;
  p.capacity = n + room;
  p.budget.sinks = sinks;
  p.budget.window = window;
  p.budget.retrieve = dense ? n + room : attended - sinks - window;
  if (which == policy::accurate) p.selector = pqkv::preset::accurate<Rows>(p, 0.1).selector;
  if (which == policy::dense || which == policy::pq_2x6) p.selector.subspaces = 2, p.selector.bits = 6;
  const bool is_over_attended = which >= policy::over_attended, is_weighted = which >= policy::weighted;
  p.selector.over = is_over_attended ? pqkv::selector::normalisation::attended : pqkv::selector::normalisation::middle;
  p.selector.axes = is_weighted ? pqkv::axis_order::weighted_pairs : pqkv::axis_order::rotary_halves;
  p.selector.train = {.iterations = 10, .seed = 1, .rows_per_centroid = 256};
  const pqkv::exec::cuda gpu;
  cache_type cache(gpu, p);
  {
    const auto keys = clustered<pqkv::bfloat16>(h, n, d), values = normals<pqkv::bfloat16>(h * n * d);
    const auto rows = [n](const pqkv::device_buffer<pqkv::bfloat16>& of) { return pqkv::make_view<device>(of.data(), h, n, d); };
    const auto shown = normals<float>(256 * hq * d, 3);
    if (is_weighted) cache.observe(gpu, 0, pqkv::as_const(pqkv::make_view<device>(shown.data(), std::size_t{256}, hq, d)));
    cache.prefill(gpu, 0, rows(keys), rows(values));
    pqkv::sync(gpu);
  }
  for (std::size_t slot = 1; slot < batch; ++slot) cache.fork(gpu, 0, slot);
  const auto key = normals<float>(batch * h * d), value = normals<float>(batch * h * d), query = normals<float>(batch * hq * d, 2);
  const pqkv::device_buffer<float> out(batch * hq * d, nullptr);
  pqkv::sync(gpu);
  const timing how{.calls = 1, .replays = 100, .bytes = static_cast<double>(batch * h * attended * token_bytes)};
  measure(name, how, [&](void* stream, int) {
    const pqkv::exec::cuda on{stream, {}};
    cache.append(on, pqkv::make_view<device>(key.data(), batch, h, d), pqkv::make_view<device>(value.data(), batch, h, d));
    cache.attend(on, pqkv::make_view<device>(query.data(), batch, hq, d), pqkv::make_view<device>(out.data(), batch, hq, d));
  });
}

void measure_all() {
  using rows = pqkv::dense_rows<pqkv::bfloat16, device>;
  for (const std::size_t n : {32768u, 131072u, 524288u, 2097152u}) {
    for (const policy which : {policy::pq_2x6, policy::pq_4x8, policy::dense}) step<rows>(1, n, which);
    for (const policy which : {policy::pq_4x8, policy::over_attended, policy::weighted, policy::accurate})
      step<pqkv::quantized_rows<device>>(1, n, which);
  }
  for (const policy which : {policy::pq_2x6, policy::dense}) step<rows>(7, 120000, which);
  constexpr std::size_t tenth = 13107;
  for (const policy which : {policy::pq_2x6, policy::pq_4x8}) step<rows>(1, 131072, which, tenth);
  for (const policy which : {policy::weighted, policy::accurate}) step<pqkv::quantized_rows<device>>(1, 131072, which, tenth);
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
