// SPDX-License-Identifier: Apache-2.0
// Encoding on the device: a CTA is 32 tokens of one head, all subspaces; the rows stay in shared memory.
#pragma once

#include "../../core/canonical.hpp"
#include "../../core/row.hpp"
#include "../../quantize/codes.hpp"
#include "block/nearest.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv {
namespace detail {

using encode_tile = block::nearest_tile<tuning::encode_tile_tokens>;

/// Runs of tokens are grid.x, heads grid.y.
template <class T, class Space>
PQKV_HIDDEN __global__ void __launch_bounds__(encode_tile::threads)
    encode_kernel(view<T, 3, Space> keys, codebook_view<space::device> book, mutable_codes_view<space::device> codes) {
  constexpr unsigned tokens = tuning::encode_tile_tokens, stride = encode_tile::row_stride;
  __shared__ encode_tile tile;
  __shared__ bool key_is_finite[tokens], norm_is_finite[tokens];
  const std::size_t head = blockIdx.y, first = std::size_t{blockIdx.x} * tokens, n = keys.extent(1);
  const unsigned here = static_cast<unsigned>(n - first < tokens ? n - first : tokens);
  const unsigned m = static_cast<unsigned>(book.subspaces()), ds = static_cast<unsigned>(book.sub_dim()),
                 width = static_cast<unsigned>(book.row_dim()), c = static_cast<unsigned>(book.size());
  const bool on_sphere = book.metric() == key_metric::inner_product;
  float* y = block::shared_memory().take<float>(std::size_t{m} * width * stride);  // [m * width, stride]

  if (threadIdx.x < tokens) key_is_finite[threadIdx.x] = norm_is_finite[threadIdx.x] = true;
  __syncthreads();
  for (unsigned j = 0; j < m; ++j)
    for (unsigned i = threadIdx.x % 32; i < ds; i += 32) {
      const unsigned e = j * ds + i;
      const float mean = book.mean(head, e);
#pragma unroll
      for (unsigned turn = 0; turn < tokens * 32 / encode_tile::threads; ++turn) {  // a warp is a row; all loads before the first use
        const unsigned t = turn * (encode_tile::threads / 32) + threadIdx.x / 32;
        const auto row = row_of(keys, head, first + (t < here ? t : 0));
        const float stored = static_cast<float>(row.data[e * row.stride]);
        if (!is_finite(stored)) key_is_finite[t] = false;
        y[(j * width + i) * stride + t] = t < here ? canonical::sub(stored, mean) : 0.0f;
      }
    }
  for (unsigned j = 0; j < m; ++j) {
    float* rows = y + std::size_t{j} * width * stride;
    __syncthreads();
    if (on_sphere && threadIdx.x < tokens) {
      float norm = 0;
      for (unsigned i = 0; i < ds; ++i) {
        const float x = rows[i * stride + threadIdx.x];
        norm = canonical::fma(x, x, norm);
      }
      rows[ds * stride + threadIdx.x] = canonical::sphere_coordinate(book.squared_radius(head, j), norm);
      norm_is_finite[threadIdx.x] = is_finite(norm);
    }
    __syncthreads();
    tile.find(rows, width, &book.centroids(head, j, 0, 0), c);
    if (threadIdx.x < here)
      codes(head, j, first + threadIdx.x) = key_is_finite[threadIdx.x] && norm_is_finite[threadIdx.x]
                                                ? static_cast<std::uint8_t>(tile.best[threadIdx.x] & 0xffu)
                                                : std::uint8_t{0};
  }
}

}  // namespace detail

template <>
struct kernel<op::encode, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codebook_view<space::device> book, mutable_codes_view<space::device> codes) {
    const detail::launcher launch(policy, "encode");
    const dim3 grid(detail::ceil_div(keys.extent(1), detail::tuning::encode_tile_tokens), static_cast<unsigned>(keys.extent(0)));
    const std::size_t shared =
        detail::block::shared_memory::bytes<float>(book.subspaces() * book.row_dim() * detail::encode_tile::row_stride);
    launch("encode_kernel", detail::encode_kernel<T, Space>, {grid, detail::encode_tile::threads, shared}, keys, book, codes);
  }
};

}  // namespace pqkv
