// SPDX-License-Identifier: Apache-2.0
// The CUDA backend for plain C++ files. Declares what <pqkv/cuda.cuh> defines, so that g++ or clang can compile calls on exec::cuda without
// a CUDA header. One file of the program is compiled by nvcc, includes <pqkv/cuda.cuh> and instantiates what is called, with the types of
// the call:
//
//   template void pqkv::kernel<pqkv::op::top_k, pqkv::backend::cuda>::run(const pqkv::exec::cuda&, ...);
//
// The linker reports a missing instantiation as an undefined name. Build both files for the same instructions (nvcc:
// -Xcompiler=-march=...), because the linker's names contain them. Under nvcc this header is <pqkv/cuda.cuh> itself.
#pragma once

#if defined(__CUDACC__)
#include "cuda.cuh"
#else

#include "pqkv.hpp"

#include "detail/cuda/cuda_absent.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::allocate, backend::cuda> {
  template <class P>
  static memory_block run(const P& policy, std::size_t bytes);
};

template <>
struct kernel<op::copy_bytes, backend::cuda> {
  template <class P>
  static void run(const P& policy, void* to, const void* from, std::size_t bytes);
};

template <>
struct kernel<op::zero_bytes, backend::cuda> {
  template <class P>
  static void run(const P& policy, void* to, std::size_t bytes);
};

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
  static constexpr std::size_t scratch_bytes(const op::kmeans::sizes& sizes) { return detail::kmeans_device_scratch_bytes(sizes); }

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
struct kernel<op::decode, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, codes_view<space::device> codes, codebook_view<space::device> book, view<T, 3, Space> keys);
};

template <>
struct kernel<op::inner_product_table, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> query, codebook_view<space::device> book,
                  mutable_distance_table_view<space::device> table, const head_map<space::device>& map);
};

template <>
struct kernel<op::squared_l2_table, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> query, codebook_view<space::device> book,
                  mutable_distance_table_view<space::device> table);
};

template <>
struct kernel<op::scan, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::scan::sizes& sizes) { return detail::scan_device_scratch_bytes(sizes.query_heads); }

  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  view<float, 2, space::device> scores, group_reduction reduction, std::size_t head_dim, float scale);
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
  static constexpr std::size_t scratch_bytes(const op::merge_tails::sizes& sizes) {
    return detail::merge_tails_device_scratch_bytes(sizes);
  }

  template <class P>
  static void run(const P& policy, codes_view<space::device> codes, mutable_cell_index_view<space::device> index);
};

template <>
struct kernel<op::retrieve, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::retrieve::sizes& sizes) { return detail::retrieve_device_scratch_bytes(sizes); }

  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  cell_index_view<space::device> index, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts, const retrieve_params& params,
                  view<std::uint8_t, 1, space::device> skipped, const head_map<space::device>& map);
  template <class P>
  static void run(const P& policy, distance_table_view<space::device> table, codes_view<space::device> codes,
                  cell_index_view<space::device> index, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts, const retrieve_params& params,
                  view<std::uint8_t, 1, space::device> skipped, const head_map<space::device>& map,
                  view<const attended_sum, 1, space::device> attended);
};

template <>
struct kernel<op::sum_attended, backend::cuda> {
  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store,
                  view<const token_span, 1, space::device> spans, view<attended_sum, 1, space::device> sums, float scale,
                  view<const middle_range, 1, space::device> ranges);
};

template <>
struct kernel<op::store_rows, backend::cuda> {
  template <class P, class T, class U, class From, class To>
  static void run(const P& policy, view<T, 3, From> from, view<U, 3, To> to, view<std::uint32_t, 1, space::device> nonfinite);
};

template <>
struct kernel<op::attention, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::attention::sizes& sizes) { return detail::attention_device_scratch_bytes(sizes); }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store, const token_set<space::device>& tokens,
                  view<float, 2, space::device> out, view<float, 1, space::device> lse, float scale);
};

template <>
struct kernel<op::merge, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<float, 2, space::device> out, view<float, 1, space::device> lse,
                  view<const float, 2, space::device> other_out, view<const float, 1, space::device> other_lse);
};

template <>
struct kernel<op::exact_scores, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::exact_scores::sizes& sizes) {
    return detail::exact_scores_device_scratch_bytes(sizes);
  }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store,
                  view<const middle_range, 1, space::device> ranges, group_reduction reduction, view<float, 2, space::device> scores,
                  float softmax_scale);
};

template <>
struct kernel<op::list_best, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> scores, view<const middle_range, 1, space::device> ranges,
                  view<std::int32_t, 2, space::device> indices, view<std::uint32_t, 1, space::device> counts);
};

template <>
struct kernel<op::gather_keys, backend::cuda> {
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  const pair_axes<space::device>& axes, view<T, 3, space::device> out);
};

template <>
struct kernel<op::replace_centroids, backend::cuda> {
  template <class P, class Rows>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<space::device>& index,
                  const replaced_centroids& call);
};

template <>
struct kernel<op::renew_replaced, backend::cuda> {
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<space::device>& index,
                  const replaced_centroids& call, view<const T, 3, space::device> keys, std::size_t iterations, std::uint64_t* work);
};

template <>
struct kernel<op::observe_queries, backend::cuda> {
  template <class P, class T>
  static void run(const P& policy, view<T, 3, space::device> queries, const pair_axes<space::device>& axes);
};

template <>
struct kernel<op::deal_pairs, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::deal_pairs::sizes& sizes) { return detail::deal_pairs_device_scratch_bytes(sizes); }

  template <class P, class Rows>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  std::size_t subspaces, const pair_axes<space::device>& axes);
};

template <>
struct kernel<op::order_axes, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> rows, const axis_map& axes, view<float, 2, space::device> out);
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> queries, const pair_axes<space::device>& axes,
                  const head_map<space::device>& map, std::size_t heads, view<float, 2, space::device> out);
};

template <>
struct kernel<op::encode_leaving, backend::cuda> {
  template <class P, class Rows>
  static void run(const P& policy, const pq_index_view<space::device>& index, const Rows& rows,
                  view<const leaving_tokens, 1, space::device> leaving);
};

template <>
struct kernel<op::lookup_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache, const block_lookup<space::device>& tokens,
                  view<std::int32_t, 2, space::device> places);
};

template <>
struct kernel<op::admit_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache, view<const std::uint32_t, 1, space::device> lengths);
};

template <>
struct kernel<op::fill_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache);
};

template <>
struct kernel<op::abandon_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache);
};

template <>
struct kernel<op::truncate_blocks, backend::cuda> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E, space::device>& cache, view<const std::uint32_t, 1, space::device> lengths);
};

template <>
struct kernel<op::plan_step, backend::cuda> {
  template <class P>
  static bool run(const P& policy, const planned_queries<space::device>& queries, const step_plan<space::device>& plan);
};

template <>
struct kernel<op::rank_step, backend::cuda> {
  template <class P, class Rows>
  static bool run(const P& policy, const ranked_step<space::device>& step, const Rows& rows);
};

template <>
struct kernel<op::store_tokens, backend::cuda> {
  template <class P, class Rows, class K, class V, class From>
  static void run(const P& policy, const Rows& rows, const stored_tokens<space::device>& call, view<K, 3, From> keys,
                  view<V, 3, From> values);
};

template <>
struct kernel<op::append_tokens, backend::cuda> {
  template <class P, class Rows, class Index, class K, class V, class From>
  static void run(const P& policy, const Rows& rows, const Index& index, const appended_tokens<space::device>& call, view<K, 3, From> keys,
                  view<V, 3, From> values);
};

template <>
struct kernel<op::commit_prompt, backend::cuda> {
  template <class P>
  static void run(const P& policy, const slot_table<space::device>& slots, const committed_prompt<space::device>& call);
};

template <>
struct kernel<op::truncate_tokens, backend::cuda> {
  template <class P, class Index>
  static void run(const P& policy, const Index& index, const truncated_tokens<space::device>& call);
};

template <>
struct kernel<op::copy_slot, backend::cuda> {
  template <class P>
  static void run(const P& policy, const slot_parts& parts, const slot_table<space::device>& slots, std::size_t from, std::size_t to);
};

template <>
struct kernel<op::count_attended, backend::cuda> {
  template <class P, class Traffic>
  static void run(const P& policy, const slot_table<space::device>& slots, const attended_queries<space::device>& call,
                  const Traffic& traffic);
};

template <>
struct kernel<op::share_lists, backend::cuda> {
  template <class P>
  static void run(const P& policy, const planned_queries<space::device>& queries, const step_plan<space::device>& plan,
                  view<std::int32_t, 2, space::device> found);
};

template <>
struct kernel<op::write_lists, backend::cuda> {
  template <class P>
  static void run(const P& policy, const planned_queries<space::device>& queries, const step_plan<space::device>& plan,
                  view<const std::int32_t, 2, space::device> found, const view<std::int32_t, 3, space::device>& indices,
                  const view<std::uint32_t, 2, space::device>& counts);
};

}  // namespace pqkv

#endif
