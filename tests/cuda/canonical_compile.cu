// SPDX-License-Identifier: Apache-2.0
// Compiles, with nvcc and without a GPU, everything of the public headers that is marked for host and device: the canonical
// arithmetic, the random streams, the 16-bit scalars, views and the small views made of them. It is what a CUDA backend will be
// built on; canonical_bits.cu compares the bits. An instantiation for each storage type, so that no template stays unread.
#include <pqkv/pqkv.hpp>

#include <cstddef>
#include <cstdint>

namespace {

namespace canonical = pqkv::canonical;
using device = pqkv::space::device;

/// Adds the bits of what it is given, so that nothing can be left out as unused.
struct bit_sum {
  std::uint64_t total{};

  PQKV_HD void add(std::uint64_t bits) { total += bits; }
  PQKV_HD void add(float x) { total += pqkv::float_bits(x); }
};

PQKV_HD void use_arithmetic(const float* a, const float* b, std::size_t stride, std::size_t n, canonical::softmax_scale scale,
                            bit_sum& sum) {
  const float x = a[0], y = b[0];
  sum.add(canonical::fma(x, y, x));
  sum.add(canonical::add(x, y));
  sum.add(canonical::sub(x, y));
  sum.add(canonical::mul(x, y));
  sum.add(canonical::div(x, y));
  sum.add(canonical::max(x, y));
  sum.add(canonical::sqrt(x));
  sum.add(canonical::sphere_coordinate(x, y));
  sum.add(canonical::dot(a, b, stride, n));
  sum.add(canonical::squared_distance(a, b, stride, n));
  sum.add(canonical::exponential(x, scale));
  sum.add(canonical::recentring(x, scale));
  sum.add(canonical::exp2_c0 + canonical::exp2_c6);
  const std::uint64_t z = canonical::to_fixed(y);
  sum.add(z);
  sum.add(std::uint64_t{canonical::needs_recentring(z, n)});
  sum.add(canonical::inverse_normaliser(z));
  sum.add(std::uint64_t{canonical::order_key(x)});
  const float power = canonical::power_of_two(canonical::fixed_point_exponent(x));
  const std::int64_t fixed = canonical::fixed_point(y, power);
  sum.add(static_cast<std::uint64_t>(fixed));
  sum.add(canonical::fixed_point_mean(fixed, n, power));
}

PQKV_HD void use_random(std::uint64_t seed, std::uint32_t i, bit_sum& sum) {
  const pqkv::philox_block block = pqkv::philox4x32(seed, {{i, 1, 2, 3}});
  for (const std::uint32_t word : block.word) sum.add(std::uint64_t{word});
  const pqkv::random_stream stream{seed, i};
  sum.add(std::uint64_t{stream(i)});
  sum.add(std::uint64_t{stream.below(i, 100)});
  const pqkv::stratified_sample sample = pqkv::training_rows({.iterations = 10, .seed = seed, .rows_per_centroid = 256}, 1u << 20, 64);
  sum.add(std::uint64_t{sample(i % sample.count)});
}

PQKV_HD void use_scalars(float x, bit_sum& sum) {
  sum.add(std::uint64_t{pqkv::half(x).bits});
  sum.add(static_cast<float>(pqkv::half(x)));
  sum.add(std::uint64_t{pqkv::bfloat16(x).bits});
  sum.add(static_cast<float>(pqkv::bfloat16(x)));
  sum.add(pqkv::float_from_bits(pqkv::float_bits(x) ^ 1u));
  sum.add(std::uint64_t{pqkv::is_finite(x)});
}

template <class T>
PQKV_HD void use_views(pqkv::view<T, 3, device> rows, bit_sum& sum) {
  const pqkv::view<const T, 3, device> read_only = rows;
  const auto middle = read_only.slice(1, 1, rows.extent(1) - 2);
  sum.add(static_cast<float>(middle(0, 1, 2)));
  sum.add(static_cast<float>(pqkv::as_const(rows)[0][1](2)));
  const auto made = pqkv::make_view<device>(rows.data, rows.extent(0), rows.extent(1), rows.extent(2));
  sum.add(static_cast<float>(pqkv::flatten(made)(1, 2)));
  sum.add(std::uint64_t{made.size() + made.stride(1) + made.extent(2) + made.rank()});
  sum.add(std::uint64_t{made.empty()});
  const pqkv::strided_store<T, device> store{read_only, middle};
  const pqkv::kv_row<T> key = store.key(0, 1), value = store.value(0, 0);
  sum.add(static_cast<float>(key.data[key.stride]) + static_cast<float>(value.data[value.stride]));
  sum.add(std::uint64_t{store.heads() + store.tokens() + store.head_dim()});
}

PQKV_HD void use_index_views(pqkv::mutable_codebook_view<device> book, pqkv::mutable_distance_table_view<device> table,
                             pqkv::mutable_cell_index_view<device> index, bit_sum& sum) {
  const pqkv::codebook_view<device> trained = book;
  sum.add(std::uint64_t{trained.heads() + trained.subspaces() + trained.sub_dim() + trained.size() + trained.head_dim()});
  const pqkv::distance_table_view<device> built = table;
  sum.add(built.entries(0, 0, 0));
  const pqkv::cell_index_view<device> cells = index.heads(0, 1);
  sum.add(std::uint64_t{cells.empty() ? 0 : cells.cells()});
  const pqkv::middle_range middle{32, 96, 8};
  sum.add(std::uint64_t{middle.size() + middle.selected()});
  const pqkv::pq_shape shape{8, 128, 2, 6};
  sum.add(std::uint64_t{shape.sub_dim() + shape.centroids() + shape.joint_bits() + shape.cells()});
  sum.add(std::uint64_t{pqkv::code_plane_stride(100) + pqkv::score_lists(pqkv::group_reduction::none, 8, 32)});
  sum.add(static_cast<std::uint64_t>(pqkv::resolve_path(pqkv::search_path::automatic, cells.cells(), middle.size())));
}

/// @param rows   [h, n, d] of any storage type
/// @param words  [threads] written: a sum over everything above
template <class T>
__global__ void everything_kernel(pqkv::view<T, 3, device> rows, pqkv::view<const float, 2, device> pairs, canonical::softmax_scale scale,
                                  pqkv::mutable_codebook_view<device> book, pqkv::mutable_distance_table_view<device> table,
                                  pqkv::mutable_cell_index_view<device> index, pqkv::view<std::uint64_t, 1, device> words) {
  const std::uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= words.extent(0)) return;
  bit_sum sum;
  use_arithmetic(&pairs(0, thread), &pairs(1, thread), 1, 4, scale, sum);
  use_random(17, thread, sum);
  use_scalars(pairs(0, thread), sum);
  use_views(rows, sum);
  use_index_views(book, table, index, sum);
  float out[8] = {}, other[8] = {}, lse = 0;
  pqkv::merge(out, lse, other, pairs(1, thread), 8);
  sum.add(out[0]);
  words(thread) = sum.total;
}

template __global__ void everything_kernel(pqkv::view<float, 3, device>, pqkv::view<const float, 2, device>, canonical::softmax_scale,
                                           pqkv::mutable_codebook_view<device>, pqkv::mutable_distance_table_view<device>,
                                           pqkv::mutable_cell_index_view<device>, pqkv::view<std::uint64_t, 1, device>);
template __global__ void everything_kernel(pqkv::view<pqkv::half, 3, device>, pqkv::view<const float, 2, device>, canonical::softmax_scale,
                                           pqkv::mutable_codebook_view<device>, pqkv::mutable_distance_table_view<device>,
                                           pqkv::mutable_cell_index_view<device>, pqkv::view<std::uint64_t, 1, device>);
template __global__ void everything_kernel(pqkv::view<pqkv::bfloat16, 3, device>, pqkv::view<const float, 2, device>,
                                           canonical::softmax_scale, pqkv::mutable_codebook_view<device>,
                                           pqkv::mutable_distance_table_view<device>, pqkv::mutable_cell_index_view<device>,
                                           pqkv::view<std::uint64_t, 1, device>);

}  // namespace
