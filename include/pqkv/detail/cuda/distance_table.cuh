// SPDX-License-Identifier: Apache-2.0
// Distance tables on the device: a CTA takes one query head and subspace, a thread one centroid.
#pragma once

#include "../../core/canonical.hpp"
#include "../../search/distance_table.hpp"
#include "block/cluster.cuh"
#include "block/copy.cuh"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

enum class table_entry { inner_product, negative_distance };

/// grid.x: subspaces, and after them the bias; grid.y: query heads.
/// @param g  query heads of a row head
template <table_entry Entry>
PQKV_HIDDEN __global__ void __launch_bounds__(max_centroids)
    distance_table_kernel(view<const float, 2, space::device> query, codebook_view<space::device> book,
                          mutable_distance_table_view<space::device> table, head_map<space::device> map, unsigned g) {
  __shared__ float y[max_head_dim], mean[max_head_dim];
  block::wait_for_last_kernel();
  const std::size_t q = blockIdx.y, j = blockIdx.x, m = book.subspaces(), c = book.size(), head = map.head(blockIdx.y / g);
  const bool is_bias = j == m;
  const std::size_t first = is_bias ? 0 : j * book.sub_dim(), dims = is_bias ? book.head_dim() : book.sub_dim();
  for (std::size_t i = threadIdx.x; i < dims; i += blockDim.x) {
    const float x = query(q, first + i);
    mean[i] = book.mean(head, first + i);
    y[i] = Entry == table_entry::negative_distance ? canonical::sub(x, mean[i]) : x;
  }
  __syncthreads();
  if (is_bias) {
    if (threadIdx.x == 0) table.bias(q) = Entry == table_entry::negative_distance ? 0.0f : canonical::dot(y, mean, 1, dims);
    return;
  }
  const std::size_t x = threadIdx.x;  // blockDim.x == c
  const float* centroid = &book.centroids(head, j, 0, x);
  float sum = 0;
  block::for_strided<16>(centroid, c, dims, [&](std::size_t i, float of_centroid) {  // as canonical::dot or squared_distance
    if constexpr (Entry == table_entry::inner_product) {
      sum = canonical::fma(y[i], of_centroid, sum);
    } else {
      const float e = canonical::sub(y[i], of_centroid);
      sum = canonical::fma(e, e, sum);
    }
  });
  table.entries(q, j, x) = Entry == table_entry::inner_product ? sum : -sum;
}

template <table_entry Entry>
void build_table(const launcher& launch, view<const float, 2, space::device> query, codebook_view<space::device> book,
                 mutable_distance_table_view<space::device> table, const head_map<space::device>& map) {
  const unsigned g = static_cast<unsigned>(query.extent(0) / map.heads(book.heads()));
  const dim3 grid(static_cast<unsigned>(book.subspaces() + 1), static_cast<unsigned>(query.extent(0)));
  const auto kernel = distance_table_kernel<Entry>;
  launch("distance_table_kernel", kernel,
         {.grid = grid, .threads = static_cast<unsigned>(book.size()), .early = launch.is_built_for_hopper(kernel)}, query, book, table,
         map, g);
}

}  // namespace detail

template <>
struct kernel<op::inner_product_table, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> query, codebook_view<space::device> book,
                  mutable_distance_table_view<space::device> table, const head_map<space::device>& map) {
    detail::build_table<detail::table_entry::inner_product>({policy, "inner_product_table"}, query, book, table, map);
  }
};

template <>
struct kernel<op::squared_l2_table, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> query, codebook_view<space::device> book,
                  mutable_distance_table_view<space::device> table) {
    detail::build_table<detail::table_entry::negative_distance>({policy, "squared_l2_table"}, query, book, table, {});
  }
};

}  // namespace pqkv
