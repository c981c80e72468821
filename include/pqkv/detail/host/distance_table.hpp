// SPDX-License-Identifier: Apache-2.0
// Distance tables on the host. A task is one query head.
#pragma once

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../search/distance_table.hpp"
#include "simd/kernels.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::inner_product_table, backend::host> {
  template <class P>
  static void run(const P& policy, view<const float, 2> query, codebook_view<> book, mutable_distance_table_view<> table,
                  const head_map<>& map);
};

template <class P>
void kernel<op::inner_product_table, backend::host>::run(const P& policy, view<const float, 2> query, codebook_view<> book,
                                                         mutable_distance_table_view<> table, const head_map<>& map) {
  const std::size_t m = book.subspaces(), ds = book.sub_dim(), c = book.size(), g = query.extent(0) / map.heads(book.heads());
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    detail::run_tasks(policy, query.extent(0), [&](std::size_t q) {
      const std::size_t head = map.head(q / g);
      for (std::size_t j = 0; j < m; ++j)
        kernels::inner_products(&query(q, j * ds), &book.centroids(head, j, 0, 0), c, ds, &table.entries(q, j, 0));
      table.bias(q) = canonical::dot(&query(q, 0), &book.mean(head, 0), book.mean.stride(1), book.head_dim());
    });
  });
}

template <>
struct kernel<op::squared_l2_table, backend::host> {
  template <class P>
  static void run(const P& policy, view<const float, 2> query, codebook_view<> book, mutable_distance_table_view<> table);
};

template <class P>
void kernel<op::squared_l2_table, backend::host>::run(const P& policy, view<const float, 2> query, codebook_view<> book,
                                                      mutable_distance_table_view<> table) {
  const std::size_t m = book.subspaces(), ds = book.sub_dim(), c = book.size(), g = query.extent(0) / book.heads();
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    detail::run_tasks(policy, query.extent(0), [&](std::size_t q) {
      const std::size_t head = q / g;
      alignas(cache_line_bytes) float y[max_head_dim];
      for (std::size_t i = 0; i < book.head_dim(); ++i) y[i] = canonical::sub(query(q, i), book.mean(head, i));
      for (std::size_t j = 0; j < m; ++j)
        kernels::negative_distances(y + j * ds, &book.centroids(head, j, 0, 0), c, ds, &table.entries(q, j, 0));
      table.bias(q) = 0;
    });
  });
}

PQKV_HOST_OPERATION(op::inner_product_table, view<const float, 2>, codebook_view<>, mutable_distance_table_view<>, const head_map<>&)
PQKV_HOST_OPERATION(op::squared_l2_table, view<const float, 2>, codebook_view<>, mutable_distance_table_view<>)

}  // namespace pqkv
