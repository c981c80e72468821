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
                                                                  mutable_distance_table_view<device>);
template void kernel<op::squared_l2_table, backend::cuda>::run(const cuda&, view<const float, 2, device>, codebook_view<device>,
                                                               mutable_distance_table_view<device>);
template void kernel<op::scan, backend::cuda>::run(const cuda&, distance_table_view<device>, codes_view<device>, view<float, 2, device>,
                                                   group_reduction, std::size_t);
template void kernel<op::top_k, backend::cuda>::run(const cuda&, view<const float, 2, device>, view<std::int32_t, 2, device>);
template void kernel<op::count_cells, backend::cuda>::run(const cuda&, codes_view<device>, std::size_t, std::size_t,
                                                          mutable_cell_index_view<device>);
template void kernel<op::merge_tails, backend::cuda>::run(const cuda&, codes_view<device>, mutable_cell_index_view<device>);
template void kernel<op::retrieve, backend::cuda>::run(const cuda&, distance_table_view<device>, codes_view<device>,
                                                       cell_index_view<device>, view<const middle_range, 1, device>,
                                                       view<std::int32_t, 2, device>, view<std::uint32_t, 1, device>,
                                                       const retrieve_params&, view<std::uint8_t, 1, device>);
template void kernel<op::store_rows, backend::cuda>::run(const cuda&, view<const float, 3, space::pinned>, view<half, 3, device>,
                                                         view<std::uint32_t, 1, device>);
template void kernel<op::attention, backend::cuda>::run(const cuda&, view<const float, 2, device>, const strided_store<bfloat16, device>&,
                                                        const token_set<device>&, view<float, 2, device>, view<float, 1, device>);
template void kernel<op::merge, backend::cuda>::run(const cuda&, view<float, 2, device>, view<float, 1, device>,
                                                    view<const float, 2, device>, view<const float, 1, device>);
template class device_pqcache<half>;
}  // namespace pqkv
