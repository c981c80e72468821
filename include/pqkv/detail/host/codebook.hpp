// SPDX-License-Identifier: Apache-2.0
// The mean training row of each head, in fixed point, rounded to bfloat16.
#pragma once

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../quantize/codebook.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::mean_row, backend::host> {
  /// The mean over the sample's rows whose elements are all finite; zeros if there are none.
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, const stratified_sample& sample, view<float, 2> mean) {
    const std::size_t d = keys.extent(2);
    isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
      using kernels = detail::simd_kernels<decltype(isa)>;
      detail::run_tasks(policy, keys.extent(0), [&](std::size_t head) {
        alignas(cache_line_bytes) float copy[max_head_dim];
        float largest = 0;
        std::uint64_t used = 0;
        for (std::size_t i = 0; i < sample.count; ++i) {
          const float* x = detail::load_row<kernels>(row_of(keys, head, sample(i)), d, copy);
          if (!kernels::all_finite(x, d)) continue;
          ++used;
          for (std::size_t e = 0; e < d; ++e) largest = canonical::max(std::fabs(x[e]), largest);
        }
        const float scale = canonical::power_of_two(canonical::fixed_point_exponent(largest));
        std::int64_t sum[max_head_dim] = {};
        for (std::size_t i = 0; i < sample.count; ++i) {
          const float* x = detail::load_row<kernels>(row_of(keys, head, sample(i)), d, copy);
          if (kernels::all_finite(x, d)) kernels::accumulate(x, scale, d, sum);
        }
        for (std::size_t e = 0; e < d; ++e)
          mean(head, e) = used == 0 ? 0.0f : static_cast<float>(bfloat16(canonical::fixed_point_mean(sum[e], used, scale)));
      });
    });
  }
};

}  // namespace pqkv
