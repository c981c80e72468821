// SPDX-License-Identifier: Apache-2.0
// Encoding on the host: a task is a run of tokens of one head.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../quantize/codes.hpp"
#include "simd/rows.hpp"

namespace pqkv {

template <>
struct kernel<op::encode, backend::host> {
  static constexpr std::size_t run_tokens = 1024;  // a task: long enough to hide its start, short enough to spread one head

  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codebook_view<> book, mutable_codes_view<> codes) {
    const std::size_t n = keys.extent(1), runs = (n + run_tokens - 1) / run_tokens;
    isa::with<typename P::isa_type>([&](auto isa) {
      policy.runner.run(keys.extent(0) * runs, [&](std::size_t task) {
        const detail::float_environment rounding;
        const std::size_t first = task % runs * run_tokens;
        encode_run<detail::leaf<decltype(isa)>>(keys, book, codes, task / runs, first, std::min(n, first + run_tokens));
      });
    });
  }

 private:
  template <class Leaf, class T, class Space>
  static void encode_run(view<T, 3, Space> keys, codebook_view<> book, mutable_codes_view<> codes, std::size_t head, std::size_t first,
                         std::size_t last) {
    const std::size_t d = keys.extent(2), m = book.subspaces(), ds = book.sub_dim(), c = book.size();
    const bool on_sphere = book.metric() == key_metric::inner_product;
    alignas(cache_line_bytes) float copy[max_head_dim], y[max_head_dim], lifted[max_head_dim + 1];
    for (std::size_t t = first; t < last; ++t) {
      const float* x = detail::load_row<Leaf>(row_of(keys, head, t), d, copy);
      const bool finite = detail::all_finite(x, d);
      for (std::size_t i = 0; i < d && finite; ++i) y[i] = canonical::sub(x[i], book.mean(head, i));
      for (std::size_t j = 0; j < m; ++j) {
        const float* row = y + j * ds;
        bool usable = finite;
        if (on_sphere && finite) {
          std::copy_n(row, ds, lifted);
          usable = detail::lift_to_sphere(lifted, ds, book.squared_radius(head, j));
          row = lifted;
        }
        codes(head, j, t) = usable ? static_cast<std::uint8_t>(Leaf::nearest(row, &book.centroids(head, j, 0, 0), c, book.row_dim()).index)
                                   : std::uint8_t{0};
      }
    }
  }
};

}  // namespace pqkv
