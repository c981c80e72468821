// SPDX-License-Identifier: Apache-2.0
// Encoding on the device, in one of three ways that give the same codes. Few tokens: one CTA for each key, a warp for each subspace. Many
// keys of half or bfloat16 in runs of 16 bytes: warps load them straight into matrix products, which shortlist the nearest centroids; where
// that leaves doubt, the canonical distance decides. All other keys: a CTA takes 32 tokens of one head, in all subspaces, by canonical
// distances alone.
#pragma once

#include "../../core/canonical.hpp"
#include "../../core/row.hpp"
#include "../../quantize/codes.hpp"
#include "block/nearest.cuh"
#include "block/shared.cuh"
#include "block/shortlist.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

using encode_tile = block::nearest_tile<tuning::encode_tile_tokens>;

/// grid.x: runs of tokens; grid.y: heads.
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
      for (unsigned turn = 0; turn < tokens * 32 / encode_tile::threads; ++turn) {  // a warp takes a row; loads come before uses
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

/// grid.x: tokens; grid.y: heads. Each warp takes subspaces in turn.
template <class T, class Space>
PQKV_HIDDEN __global__ void __launch_bounds__(tuning::encode_few_threads)
    encode_few_kernel(view<T, 3, Space> keys, codebook_view<space::device> book, mutable_codes_view<space::device> codes) {
  const std::size_t head = blockIdx.y, t = blockIdx.x;
  const unsigned m = static_cast<unsigned>(book.subspaces()), ds = static_cast<unsigned>(book.sub_dim()), d = m * ds,
                 width = static_cast<unsigned>(book.row_dim()), c = static_cast<unsigned>(book.size()), lane = threadIdx.x % 32;
  const bool on_sphere = book.metric() == key_metric::inner_product;
  float* y = block::shared_memory().take<float>(std::size_t{m} * width);  // [m, width]
  bool finite = true;
  const auto row = row_of(keys, head, t);
  for (unsigned e = threadIdx.x; e < d; e += blockDim.x) {
    const float stored = static_cast<float>(row.data[e * row.stride]);
    finite &= is_finite(stored);
    y[e / ds * width + e % ds] = canonical::sub(stored, book.mean(head, e));
  }
  const bool key_is_finite = __syncthreads_and(finite ? 1 : 0) != 0;
  for (unsigned j = threadIdx.x / 32; j < m; j += blockDim.x / 32) {
    float* mine = y + j * width;
    bool norm_is_finite = true;
    if (on_sphere) {
      const float norm = canonical::dot(mine, mine, 1, ds);
      norm_is_finite = is_finite(norm);
      __syncwarp();
      if (lane == 0) mine[ds] = canonical::sphere_coordinate(book.squared_radius(head, j), norm);
      __syncwarp();
    }
    const float* centroids = &book.centroids(head, j, 0, 0);
    std::uint64_t best = ~0ull;
    for (unsigned x = lane; x < c; x += 32) {
      float distance = 0;
#pragma unroll 16
      for (unsigned i = 0; i < width; ++i) {  // loads run ahead of the sums
        const float e = canonical::sub(mine[i], centroids[std::size_t{i} * c + x]);
        distance = canonical::fma(e, e, distance);
      }
      const std::uint64_t key = block::nearest_key(distance, x);
      best = key < best ? key : best;
    }
    for (int step = 16; step > 0; step /= 2) {
      const std::uint64_t other = __shfl_xor_sync(block::all_lanes, best, step);
      best = other < best ? other : best;
    }
    if (lane == 0) codes(head, j, t) = key_is_finite && norm_is_finite ? static_cast<std::uint8_t>(best & 0xffu) : std::uint8_t{0};
  }
}

/// grid.x: runs of `tuning::encode_run_tokens`; grid.y: heads. Subspaces are encoded one after the other.
/// @tparam Groups  ds / 32
template <class T, class Space, unsigned Groups>
PQKV_HIDDEN __global__ void __launch_bounds__(tuning::encode_run_threads, 2)
    encode_run_kernel(view<T, 3, Space> keys, codebook_view<space::device> book, mutable_codes_view<space::device> codes) {
  using value = std::remove_cv_t<T>;
  using list = block::shortlist<value, Groups>;
  constexpr unsigned threads = tuning::encode_run_threads, run = tuning::encode_run_tokens, ds = list::ds;
  __shared__ typename list::bounds bounds;
  __shared__ block::reduction<std::uint32_t, threads> reduction;
  __shared__ std::uint32_t broken[run / 32];  // one bit for each key, set if it is not finite
  const std::size_t head = blockIdx.y, n = keys.extent(1), first = std::size_t{blockIdx.x} * run;
  const unsigned here = static_cast<unsigned>(n - first < run ? n - first : run), m = static_cast<unsigned>(book.subspaces()),
                 c = static_cast<unsigned>(book.size()), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  block::shared_memory memory;
  list nearest(memory, bounds, c);
  for (unsigned w = threadIdx.x; w < run / 32; w += threads) broken[w] = 0;
  for (unsigned j = 0; j < m; ++j) {
    const float *centroids = &book.centroids(head, j, 0, 0), *mean = &book.mean(head, j * ds);
    std::uint32_t most = 0;
    for (unsigned at = threadIdx.x; at < c * ds; at += threads) {
      const std::uint32_t magnitude = float_bits(centroids[at]) & 0x7fffffffu;
      most = magnitude > most ? magnitude : most;
    }
    double square = 0;
    for (unsigned e = lane; e < ds; e += 32) square = ::fma(static_cast<double>(mean[e]), static_cast<double>(mean[e]), square);
    const float mean_norm = static_cast<float>(sqrt(block::warp_sum(square)) * 1.0001);
    nearest.template stage<threads>(centroids, mean, mean_norm, float_from_bits(reduction.max(most)));
    const auto row = [&](unsigned r) { return keys.data + head * keys.stride(0) + (first + r) * keys.stride(1) + j * ds; };
    for (unsigned base = warp * list::tile_rows; base < here; base += threads / 32 * list::tile_rows) {
      const auto at = [&](unsigned r) { return row(base + r < here ? base + r : 0); };
      typename list::rows x;
      x.load(at);
      const auto measure = x.own_measure();
      const unsigned own = base + list::own_row();
      const bool is_there = list::own_row() < list::tile_rows && own < here;
      const auto found = nearest.find(x, measure.norm);
      unsigned code = found.centroid;
      for (unsigned unsure = __ballot_sync(block::all_lanes, is_there && !found.sure); unsure != 0; unsure &= unsure - 1) {
        const int who = __ffs(static_cast<int>(unsure)) - 1;
        const unsigned decided = block::nearest_by_warp<Groups>(row(__shfl_sync(block::all_lanes, own, who)), mean, centroids, c);
        if (lane == static_cast<unsigned>(who)) code = decided;
      }
      if (!is_there) continue;
      codes(head, j, first + own) = static_cast<std::uint8_t>(code);
      if (!measure.finite) atomicOr(&broken[own / 32], 1u << own % 32);
    }
    __syncthreads();  // the next subspace's centroids overwrite these
  }
  for (unsigned t = threadIdx.x; t < here; t += threads)
    for (unsigned j = 0; j < m && (broken[t / 32] >> t % 32 & 1u) != 0; ++j) codes(head, j, first + t) = 0;
}

/// One warp for each row.
template <class T, class Space>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    decode_kernel(codes_view<space::device> codes, codebook_view<space::device> book, view<T, 3, Space> keys) {
  const std::size_t row = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32, n = codes.extent(2);
  if (row >= codes.extent(0) * n) return;
  const std::size_t head = row / n, t = row - head * n;
  const unsigned ds = static_cast<unsigned>(book.sub_dim()), d = static_cast<unsigned>(codes.extent(1)) * ds;
  for (unsigned e = threadIdx.x % 32; e < d; e += 32) {
    const unsigned j = e / ds;
    keys(head, t, e) = static_cast<T>(canonical::add(book.mean(head, e), book.centroids(head, j, e - j * ds, codes(head, j, t))));
  }
}

}  // namespace detail

template <>
struct kernel<op::decode, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, codes_view<space::device> codes, codebook_view<space::device> book, view<T, 3, Space> keys) {
    detail::launcher(policy, "decode")("decode_kernel", detail::decode_kernel<T, Space>,
                                       {dim3(detail::ceil_div(codes.extent(0) * codes.extent(2), 8)), 256}, codes, book, keys);
  }
};

template <>
struct kernel<op::encode, backend::cuda> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codebook_view<space::device> book, mutable_codes_view<space::device> codes) {
    namespace tuning = detail::tuning;
    const detail::launcher launch(policy, "encode");
    const std::size_t n = keys.extent(1), width = book.row_dim(), floats = book.subspaces() * width;
    const unsigned h = static_cast<unsigned>(keys.extent(0));
    if (n <= tuning::encode_few_tokens) {
      const std::size_t shared = detail::block::shared_memory::bytes<float>(floats);
      launch("encode_few_kernel", detail::encode_few_kernel<T, Space>,
             {dim3(static_cast<unsigned>(n), h), tuning::encode_few_threads, shared}, keys, book, codes);
      return;
    }
    if constexpr (sizeof(T) == 2) {
      const auto dense = [](std::size_t stride) { return stride % 8 == 0; };  // runs of 16 bytes
      if (book.metric() == key_metric::squared_l2 && keys.stride(2) == 1 && dense(keys.stride(0)) && dense(keys.stride(1)) &&
          reinterpret_cast<std::uintptr_t>(keys.data) % 16 == 0) {
        if (width == 32) return run_long<1>(launch, keys, book, codes);
        if (width == 64) return run_long<2>(launch, keys, book, codes);
        if (width == 128 && book.size() <= 128) return run_long<4>(launch, keys, book, codes);
      }
    }
    const std::size_t shared = detail::block::shared_memory::bytes<float>(floats * detail::encode_tile::row_stride);
    launch("encode_kernel", detail::encode_kernel<T, Space>,
           {dim3(detail::ceil_div(n, tuning::encode_tile_tokens), h), detail::encode_tile::threads, shared}, keys, book, codes);
  }

 private:
  template <unsigned Groups, class T, class Space>
  static void run_long(const detail::launcher& launch, view<T, 3, Space> keys, codebook_view<space::device> book,
                       mutable_codes_view<space::device> codes) {
    launch("encode_run_kernel", detail::encode_run_kernel<T, Space, Groups>,
           {dim3(detail::ceil_div(keys.extent(1), detail::tuning::encode_run_tokens), static_cast<unsigned>(keys.extent(0))),
            detail::tuning::encode_run_threads, detail::block::shortlist<std::remove_cv_t<T>, Groups>::shared_bytes(book.size())},
           keys, book, codes);
  }
};

}  // namespace pqkv
