// SPDX-License-Identifier: Apache-2.0
// Encoding on the host: a task is a run of tokens of one head.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../quantize/codes.hpp"
#include "kmeans.hpp"

namespace pqkv {

template <>
struct kernel<op::encode, backend::host> {
  static constexpr std::size_t run_tokens = 1024;  // a task: long enough to hide its start, short enough to spread one head

  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codebook_view<> book, mutable_codes_view<> codes) {
    const std::size_t n = keys.extent(1), runs = (n + run_tokens - 1) / run_tokens;
    isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
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
    using search = detail::nearest_search<Leaf>;
    const std::size_t d = keys.extent(2), m = book.subspaces(), ds = book.sub_dim();
    const bool on_sphere = book.metric() == key_metric::inner_product;
    alignas(cache_line_bytes) float copy[max_head_dim];
    bool finite[run_tokens], usable[search::tile_rows];
    for (std::size_t t = first; t < last; ++t)
      finite[t - first] = Leaf::all_finite(detail::load_row<Leaf>(row_of(keys, head, t), d, copy), d);
    detail::row_tile<search::tile_rows> y;
    std::uint32_t index[search::tile_rows];
    for (std::size_t j = 0; j < m; ++j) {
      const search nearest(&book.centroids(head, j, 0, 0), book.size(), book.row_dim(), last - first);
      for (std::size_t start = first; start < last; start += search::tile_rows) {
        const std::size_t rows = std::min(search::tile_rows, last - start);
        for (std::size_t r = 0; r < rows; ++r) {
          const auto whole = row_of(keys, head, start + r);
          const kv_row<std::remove_cv_t<T>> part{whole.data + j * ds * whole.stride, whole.stride};
          Leaf::centre(detail::load_row<Leaf>(part, ds, copy), &book.mean(head, j * ds), ds, y.row(r));
          usable[r] = finite[start + r - first];
          if (on_sphere) usable[r] &= detail::lift_to_sphere(y.row(r), ds, book.squared_radius(head, j));
        }
        nearest.find(y.pointers(rows), rows, index);
        for (std::size_t r = 0; r < rows; ++r)
          codes(head, j, start + r) = usable[r] ? static_cast<std::uint8_t>(index[r]) : std::uint8_t{0};
      }
    }
  }
};

}  // namespace pqkv
