// SPDX-License-Identifier: Apache-2.0
// The CUDA backend for plain C++ files: declares what <pqkv/cuda.cuh> defines, so that g++ or clang compile calls on exec::cuda
// without a CUDA header. One file of the program that nvcc compiles includes <pqkv/cuda.cuh> and instantiates what is called:
//
//   template void pqkv::kernel<pqkv::op::top_k, pqkv::backend::cuda>::run(const pqkv::exec::cuda&, ...);
//
// with the types of the call; a missing one is a name that the linker does not find. Under nvcc this is <pqkv/cuda.cuh> itself.
#pragma once

#if defined(__CUDACC__)
#include "cuda.cuh"
#else

#include "pqkv.hpp"

namespace pqkv {

template <>
struct kernel<op::sync, backend::cuda> {
  template <class P>
  static void run(const P& policy);
};

template <>
struct kernel<op::mean_row, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, const stratified_sample& sample, view<float, 2, space::device> mean);
};

template <>
struct kernel<op::kmeans, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 4, Space> points, view<const float, 3, space::device> offset,
                  view<float, 4, space::device> centroids, view<std::uint8_t, 2, space::device> outcome, const kmeans_params& params,
                  view<float, 2, space::device> squared_radius);
};

template <>
struct kernel<op::encode, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codebook_view<space::device> book, mutable_codes_view<space::device> codes);
};

template <>
struct kernel<op::inner_product_table, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> query, codebook_view<space::device> book,
                  mutable_distance_table_view<space::device> table);
};

template <>
struct kernel<op::squared_l2_table, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> query, codebook_view<space::device> book,
                  mutable_distance_table_view<space::device> table);
};

template <>
struct kernel<op::scan, backend::cuda> {
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  view<float, 2, space::device> scores, group_reduction reduction, std::size_t head_dim);
};

template <>
struct kernel<op::top_k, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> scores, view<std::int32_t, 2, space::device> indices);
};

template <>
struct kernel<op::count_cells, backend::cuda> {
  template <class P>
  static void run(const P& policy, codes_view<space::device> codes, std::size_t first, std::size_t last,
                  mutable_cell_index_view<space::device> index);
};

template <>
struct kernel<op::merge_tails, backend::cuda> {
  template <class P>
  static void run(const P& policy, codes_view<space::device> codes, mutable_cell_index_view<space::device> index);
};

template <>
struct kernel<op::retrieve, backend::cuda> {
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  cell_index_view<space::device> index, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts,
                  const retrieve_params& params, view<std::uint8_t, 1, space::device> skipped);
};

template <>
struct kernel<op::store_rows, backend::cuda> {
  template <class P, class T, class U, class From, class To>
  static void run(const P& policy, view<T, 3, From> from, view<U, 3, To> to, view<std::uint32_t, 1, space::device> nonfinite);
};

template <>
struct kernel<op::attention, backend::cuda> {
  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store, const token_set<space::device>& tokens,
                  view<float, 2, space::device> out, view<float, 1, space::device> lse);
};

template <>
struct kernel<op::merge, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<float, 2, space::device> out, view<float, 1, space::device> lse,
                  view<const float, 2, space::device> other_out, view<const float, 1, space::device> other_lse);
};

}  // namespace pqkv

#endif
