// SPDX-License-Identifier: Apache-2.0
// Quantized tables and scans on the host. For tables a task is one query head; for scans it is a run of tokens of one KV head.
#pragma once

#include <algorithm>
#include <limits>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../search/quantized_scan.hpp"
#include "simd/kernels.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Tokens of a task; and tokens of a tile, whose codes stay in the first-level cache while all query heads of the group look them up.
inline constexpr std::size_t quantized_run_tokens = 32768, quantized_tile_tokens = 2048;
static_assert(max_quantized_subspaces <= max_summed_subspaces);

/// Quantizes the table [m, c] of one query head.
template <class Entry>
table_quantization quantize_entries(const float* table, std::size_t stride, std::size_t m, std::size_t c, Entry* out) {
  double low[max_quantized_subspaces], widest = 0, total = 0, offset = 0, magnitude = 0;
  std::uint32_t nonfinite = 0;
  for (std::size_t j = 0; j < m; ++j) {
    float least = table[j * stride], most = least;
    for (std::size_t x = 0; x < c; ++x) {
      const float entry = table[j * stride + x];
      nonfinite |= is_finite(entry) ? 0u : 1u;
      least = entry < least ? entry : least;
      most = entry > most ? entry : most;
    }
    low[j] = static_cast<double>(least);
    const double range = static_cast<double>(most) - low[j];
    widest = std::max(widest, range);
    total += range;
    offset += low[j];
    magnitude += std::max(static_cast<double>(most), -low[j]);
  }
  if (nonfinite != 0) {
    std::fill_n(out, m * c, Entry{0});
    return {};
  }
  // Each subspace rounds up by half a step at most; 65535 - m leaves room for twice that.
  const double step = sizeof(Entry) == 1 ? widest / 255.0 : total / (65535.0 - static_cast<double>(m));
  const double per_step = step > 0 ? 1 / step : 0, magic = 0x1.8p52;
  for (std::size_t j = 0; j < m; ++j)
    for (std::size_t x = 0; x < c; ++x) {
      const double rounded = (static_cast<double>(table[j * stride + x]) - low[j]) * per_step + magic;
      out[j * c + x] = static_cast<Entry>(__builtin_bit_cast(std::uint64_t, rounded));
    }
  // Half a step for each subspace, with room for the rounding of the doubles; and m - 1 float additions, each within 2^-24 of its sum.
  const double subspaces = static_cast<double>(m);
  double bound = subspaces * step * (0.5 + 0x1p-30) + magnitude * (subspaces - 1) * 0x1.001p-24 + magnitude * 0x1p-44;
  if (magnitude * 1.001 > static_cast<double>(std::numeric_limits<float>::max())) bound = std::numeric_limits<double>::infinity();
  return {step, offset, bound};
}

}  // namespace detail

template <>
struct kernel<op::quantize_table, backend::host> {
  template <class P, class Entry>
  static void run(const P& policy, distance_table_view<> table, basic_quantized_table_view<Entry, table_quantization> out);
};

template <class P, class Entry>
void kernel<op::quantize_table, backend::host>::run(const P& policy, distance_table_view<> table,
                                                    basic_quantized_table_view<Entry, table_quantization> out) {
  const std::size_t m = table.entries.extent(1), c = table.entries.extent(2);
  detail::run_tasks(policy, table.entries.extent(0), [&](std::size_t q) {
    out.scaling(q) = detail::quantize_entries(table.entries.data + q * table.entries.stride(0), table.entries.stride(1), m, c,
                                              out.entries.data + q * m * c);
  });
}

template <>
struct kernel<op::quantized_scan, backend::host> {
  template <class P, class Entry>
  static void run(const P& policy, basic_quantized_table_view<Entry, const table_quantization> table, codes_view<> codes,
                  view<std::uint16_t, 2> sums);
};

template <class P, class Entry>
void kernel<op::quantized_scan, backend::host>::run(const P& policy, basic_quantized_table_view<Entry, const table_quantization> table,
                                                    codes_view<> codes, view<std::uint16_t, 2> sums) {
  const std::size_t h = codes.extent(0), n = codes.extent(2), g = table.entries.extent(0) / h;
  const std::size_t m = codes.extent(1), c = table.entries.extent(2);
  const std::size_t runs = (n + detail::quantized_run_tokens - 1) / detail::quantized_run_tokens;
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    policy.runner.run(h * runs, [&](std::size_t task) {
      const std::size_t head = task / runs, begin = task % runs * detail::quantized_run_tokens;
      const std::size_t end = std::min(n, begin + detail::quantized_run_tokens);
      for (std::size_t t = begin; t < end; t += detail::quantized_tile_tokens)
        kernels::quantized_sums(table.entries.data + head * g * m * c, g, m, c, codes.data + head * codes.stride(0) + t, codes.stride(1),
                                std::min(end - t, detail::quantized_tile_tokens), sums.data + head * g * sums.stride(0) + t,
                                sums.stride(0));
    });
  });
}

PQKV_HOST_OPERATION(op::quantized_scan, basic_quantized_table_view<const std::uint16_t, const table_quantization>, codes_view<>,
                    view<std::uint16_t, 2>)
PQKV_HOST_OPERATION(op::quantized_scan, basic_quantized_table_view<const std::uint8_t, const table_quantization>, codes_view<>,
                    view<std::uint16_t, 2>)

}  // namespace pqkv
