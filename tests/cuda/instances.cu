// SPDX-License-Identifier: Apache-2.0
// Instantiates every operation of the CUDA backend as an engine's own .cu file does for <pqkv/cuda_extern.hpp>, for a Hopper device
// and as PTX for older ones, which have no clusters.
#include <pqkv/cuda_extern.hpp>
#include <pqkv/device_pqcache.cuh>

namespace {
using device = pqkv::space::device;
using pqkv::bfloat16, pqkv::half, pqkv::view;
using pqkv::exec::cuda;
}  // namespace

namespace pqkv {
template void kernel<op::sync, backend::cuda>::run(const cuda&);
template void kernel<op::mean_row, backend::cuda>::run(const cuda&, view<const half, 3, device>, const stratified_sample&,
                                                       view<float, 2, device>);
template void kernel<op::kmeans, backend::cuda>::run(const cuda&, view<const half, 4, device>, view<const float, 3, device>,
                                                     view<float, 4, device>, view<std::uint8_t, 2, device>, const kmeans_params&,
                                                     view<float, 2, device>);
template void kernel<op::encode, backend::cuda>::run(const cuda&, view<const bfloat16, 3, device>, codebook_view<device>,
                                                     mutable_codes_view<device>);
template void kernel<op::inner_product_table, backend::cuda>::run(const cuda&, view<const float, 2, device>, codebook_view<device>,
                                                                  mutable_distance_table_view<device>, const head_map<device>&);
template void kernel<op::squared_l2_table, backend::cuda>::run(const cuda&, view<const float, 2, device>, codebook_view<device>,
                                                               mutable_distance_table_view<device>);
template void kernel<op::scan, backend::cuda>::run(const cuda&, distance_table_view<device>, codes_view<device>, view<float, 2, device>,
                                                   group_reduction, std::size_t, float);
template void kernel<op::top_k, backend::cuda>::run(const cuda&, view<const float, 2, device>, view<std::int32_t, 2, device>);
template void kernel<op::count_cells, backend::cuda>::run(const cuda&, codes_view<device>, std::size_t, std::size_t,
                                                          mutable_cell_index_view<device>);
template void kernel<op::merge_tails, backend::cuda>::run(const cuda&, codes_view<device>, mutable_cell_index_view<device>);
template void kernel<op::retrieve, backend::cuda>::run(const cuda&, distance_table_view<device>, codes_view<device>,
                                                       cell_index_view<device>, view<const middle_range, 1, device>,
                                                       view<std::int32_t, 2, device>, view<std::uint32_t, 1, device>,
                                                       const retrieve_params&, view<std::uint8_t, 1, device>, const head_map<device>&);
template void kernel<op::retrieve, backend::cuda>::run(const cuda&, distance_table_view<device>, codes_view<device>,
                                                       cell_index_view<device>, view<const middle_range, 1, device>,
                                                       view<std::int32_t, 2, device>, view<std::uint32_t, 1, device>,
                                                       const retrieve_params&, view<std::uint8_t, 1, device>, const head_map<device>&,
                                                       view<const attended_sum, 1, device>);
template void kernel<op::sum_attended, backend::cuda>::run(const cuda&, view<const float, 2, device>, const strided_store<half, device>&,
                                                           view<const token_span, 1, device>, view<attended_sum, 1, device>, float,
                                                           view<const middle_range, 1, device>);
template void kernel<op::exact_scores, backend::cuda>::run(const cuda&, view<const float, 2, device>, const strided_store<half, device>&,
                                                           view<const middle_range, 1, device>, group_reduction, view<float, 2, device>,
                                                           float);
template void kernel<op::list_best, backend::cuda>::run(const cuda&, view<const float, 2, device>, view<const middle_range, 1, device>,
                                                        view<std::int32_t, 2, device>, view<std::uint32_t, 1, device>);
template void kernel<op::store_rows, backend::cuda>::run(const cuda&, view<const float, 3, space::pinned>, view<half, 3, device>,
                                                         view<std::uint32_t, 1, device>);
template void kernel<op::attention, backend::cuda>::run(const cuda&, view<const float, 2, device>, const strided_store<bfloat16, device>&,
                                                        const token_set<device>&, view<float, 2, device>, view<float, 1, device>, float);
template void kernel<op::merge, backend::cuda>::run(const cuda&, view<float, 2, device>, view<float, 1, device>,
                                                    view<const float, 2, device>, view<const float, 1, device>);
template void kernel<op::decode, backend::cuda>::run(const cuda&, codes_view<device>, codebook_view<device>, view<half, 3, device>);
template void kernel<op::gather_keys, backend::cuda>::run(const cuda&, const strided_rows<half, device>&, std::size_t,
                                                          const stratified_sample&, std::size_t, const pair_axes<device>&,
                                                          view<half, 3, device>);
template void kernel<op::replace_centroids, backend::cuda>::run(const cuda&, const strided_rows<half, device>&, std::size_t,
                                                                const pq_index_view<device>&, const replaced_centroids&);
template void kernel<op::renew_replaced, backend::cuda>::run(const cuda&, const strided_rows<half, device>&, std::size_t,
                                                             const pq_index_view<device>&, const replaced_centroids&,
                                                             view<const half, 3, device>, std::size_t, std::uint64_t*);
template void kernel<op::observe_queries, backend::cuda>::run(const cuda&, view<const half, 3, device>, const pair_axes<device>&);
template void kernel<op::deal_pairs, backend::cuda>::run(const cuda&, const strided_rows<half, device>&, std::size_t,
                                                         const stratified_sample&, std::size_t, std::size_t, const pair_axes<device>&);
template void kernel<op::order_axes, backend::cuda>::run(const cuda&, view<const float, 2, device>, const axis_map&,
                                                         view<float, 2, device>);
template void kernel<op::order_axes, backend::cuda>::run(const cuda&, view<const float, 2, device>, const pair_axes<device>&,
                                                         const head_map<device>&, std::size_t, view<float, 2, device>);
template void kernel<op::encode_leaving, backend::cuda>::run(const cuda&, const pq_index_view<device>&, const strided_rows<half, device>&,
                                                             view<const leaving_tokens, 1, device>);
template void kernel<op::lookup_blocks, backend::cuda>::run(const cuda&, const block_cache_view<eviction::lfu, device>&,
                                                            const block_lookup<device>&, view<std::int32_t, 2, device>);
template void kernel<op::admit_blocks, backend::cuda>::run(const cuda&, const block_cache_view<eviction::tiny_lfu, device>&,
                                                           view<const std::uint32_t, 1, device>);
template void kernel<op::fill_blocks, backend::cuda>::run(const cuda&, const block_cache_view<eviction::lru, device>&);
template void kernel<op::abandon_blocks, backend::cuda>::run(const cuda&, const block_cache_view<eviction::lru, device>&);
template void kernel<op::truncate_blocks, backend::cuda>::run(const cuda&, const block_cache_view<eviction::lfu, device>&,
                                                              view<const std::uint32_t, 1, device>);
template bool kernel<op::rank_step, backend::cuda>::run(const cuda&, const ranked_step<device>&, const strided_rows<half, device>&);
template class pqcache<dense_rows<half, device>, selector::basic_pq<device>>;
template class pqcache<dense_rows<half, device>, selector::full>;
template class pqcache<paged_rows<half, device>, selector::streaming>;
template class pqcache<quantized_rows<device>, selector::basic_pq<device>>;

/// Every verb, with what an engine hands over: queries and keys in 16 bits, rows of its own pages.
template <class Cache>
void call_all(Cache& cache, const cuda& gpu, view<const bfloat16, 3, device> rows, view<bfloat16, 3, device> out,
              const basic_step<device>& step) {
  cache.prefill(gpu, 0, rows, rows);
  cache.append(gpu, rows, rows, step);
  cache.append(gpu, rows.extent(0), step);
  cache.attend(gpu, rows, out, {}, step);
  cache.retrieve(gpu, rows, view<std::int32_t, 3, device>{}, view<std::uint32_t, 2, device>{}, step);
  cache.truncate(gpu, view<const std::uint32_t, 1, device>{});
  cache.truncate(gpu, 0, 0);
  cache.fork(gpu, 0, 1);
  cache.reset(gpu, 1);
  cache.maintain(gpu);
}
using half_rows = view<const bfloat16, 3, device>;
template void call_all(device_pqcache<half>&, const cuda&, half_rows, view<bfloat16, 3, device>, const basic_step<device>&);
template void call_all(device_pqcache<half, selector::full>&, const cuda&, half_rows, view<bfloat16, 3, device>, const basic_step<device>&);
template void call_all(pqcache<tiered_rows<dense_rows<half, space::pinned>, device, eviction::lru>>&, const cuda&, half_rows,
                       view<bfloat16, 3, device>, const basic_step<device>&);
template void call_all(pqcache<paged_rows<half, device>, selector::basic_pq<device>>&, const cuda&, half_rows, view<bfloat16, 3, device>,
                       const basic_step<device>&);
}  // namespace pqkv
