// SPDX-License-Identifier: Apache-2.0
// The order of a key's axes on the device: queries are observed, and pairs of coordinates are dealt to the subspaces by their weight. All
// sums are of integers, so they have the host's bits whatever the order of the terms.
#pragma once

#include "../../core/canonical.hpp"
#include "../../core/row.hpp"
#include "../../core/random.hpp"
#include "../../quantize/axes.hpp"
#include "../../quantize/shape.hpp"
#include "arena.cuh"
#include "block/reduce.cuh"
#include "kernel.cuh"
#include "memory.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// A row of up to max_head_dim elements in the registers of one warp: lane l has elements l, l + 32, and so on.
struct warp_row {
  static constexpr unsigned elements = max_head_dim / 32;
  float x[elements];

  /// By all lanes. Returns whether all elements are finite. @param element  element(i), for i below d
  template <class Element>
  __device__ bool load(unsigned d, const Element& element) {
    bool finite = true;
#pragma unroll
    for (unsigned k = 0; k < elements; ++k) {
      const unsigned i = threadIdx.x % 32 + 32 * k;
      x[k] = i < d ? static_cast<float>(element(i)) : 0.0f;
      finite &= is_finite(x[k]);
    }
    return __all_sync(block::all_lanes, finite ? 1 : 0) != 0;
  }
};

__device__ inline void add_atomically(unsigned long long* to, unsigned long long x) {
  if (x != 0) atomicAdd(to, x);
}
/// Adds to a sum that other threads add to at the same time. Each carry out of the fraction is seen by the thread that causes it.
__device__ inline void add_atomically(square_sum* to, const square_sum& x) {
  unsigned long long carry = 0;
  if (x.fraction != 0) {
    const unsigned long long before = atomicAdd(reinterpret_cast<unsigned long long*>(&to->fraction), x.fraction);
    carry = before + x.fraction < before ? 1 : 0;
  }
  add_atomically(reinterpret_cast<unsigned long long*>(&to->whole), x.whole + carry);
}

/// grid.x: query heads; grid.y: CTAs that share the tokens, a warp for each token.
/// @param energy  [h, d] of the slot's heads
template <class Q>
__global__ void __launch_bounds__(256)
    observe_queries_kernel(view<Q, 3, space::device> queries, view<square_sum, 2, space::device> energy) {
  const std::size_t q = blockIdx.x, head = q / (queries.extent(1) / energy.extent(0));
  const unsigned d = static_cast<unsigned>(queries.extent(2)), warps = gridDim.y * blockDim.x / 32;
  square_sum sum[warp_row::elements];
  warp_row row;
  for (std::size_t t = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32; t < queries.extent(0); t += warps) {
    if (!row.load(d, [&](unsigned i) { return queries(t, q, i); })) continue;
#pragma unroll
    for (unsigned k = 0; k < warp_row::elements; ++k) sum[k].add(row.x[k]);
  }
#pragma unroll
  for (unsigned k = 0; k < warp_row::elements; ++k)
    if (const unsigned i = threadIdx.x % 32 + 32 * k; i < d) add_atomically(&energy(head, i), sum[k]);
}

/// What is found out about the sampled keys of each head before its pairs are dealt. Zero at the start.
struct key_moments {
  view<square_sum, 2, space::device> squares;          // [h, d] of the keys minus their mean
  view<unsigned long long, 2, space::device> sums;     // [h, d] in fixed point, two's complement
  view<unsigned long long, 1, space::device> rows;     // [h] keys that are finite
  view<unsigned long long, 1, space::device> largest;  // [h] bits of their largest magnitude

  /// @param memory  deal_pairs_device_words()
  static key_moments in(std::uint64_t* memory, std::size_t h, std::size_t d) {
    auto* const word = reinterpret_cast<unsigned long long*>(memory);
    return {make_view<space::device>(reinterpret_cast<square_sum*>(word), h, d), make_view<space::device>(word + 2 * h * d, h, d),
            make_view<space::device>(word + 3 * h * d, h), make_view<space::device>(word + 3 * h * d + h, h)};
  }
  __device__ float scale(std::size_t head) const {
    return canonical::power_of_two(canonical::fixed_point_exponent(float_from_bits(static_cast<std::uint32_t>(largest(head)))));
  }
  __device__ float mean(std::size_t head, std::size_t i) const {
    return canonical::fixed_point_mean(static_cast<std::int64_t>(sums(head, i)), rows(head), scale(head));
  }
};

/// One pass over a head's keys: a warp has a `Pass` and shows it every finite key of its share. grid.x: heads; grid.y: CTAs of a head.
template <class Pass, class Rows>
__global__ void __launch_bounds__(256)
    measure_keys_kernel(Rows rows, std::size_t first_head, stratified_sample sample, std::size_t first, key_moments moments) {
  const unsigned d = static_cast<unsigned>(moments.sums.extent(1)), warps = gridDim.y * blockDim.x / 32;
  Pass pass(moments, blockIdx.x, d);
  warp_row row;
  for (std::size_t i = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32; i < sample.count; i += warps) {
    const auto key = rows.key(first_head + blockIdx.x, first + sample(i));
    if (row.load(d, [&](unsigned e) { return key[e]; })) pass.add(row);
  }
  pass.end(moments, blockIdx.x, d);
}

/// Counts the keys and finds their largest magnitude.
struct largest_pass {
  std::uint32_t largest = 0;  // magnitudes as bits have the order of the floats
  unsigned long long rows = 0;

  __device__ largest_pass(const key_moments&, std::size_t, unsigned) {}
  __device__ void add(const warp_row& row) {
#pragma unroll
    for (unsigned k = 0; k < warp_row::elements; ++k) {
      const std::uint32_t magnitude = float_bits(row.x[k]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    ++rows;
  }
  __device__ void end(const key_moments& moments, std::size_t head, unsigned) {
    largest = block::warp_max(largest);
    if (threadIdx.x % 32 != 0 || rows == 0) return;
    atomicMax(&moments.largest(head), static_cast<unsigned long long>(largest));
    atomicAdd(&moments.rows(head), rows);
  }
};

struct sum_pass {
  unsigned long long sum[warp_row::elements] = {};
  float scale;

  __device__ sum_pass(const key_moments& moments, std::size_t head, unsigned) : scale(moments.scale(head)) {}
  __device__ void add(const warp_row& row) {
#pragma unroll
    for (unsigned k = 0; k < warp_row::elements; ++k) sum[k] += static_cast<unsigned long long>(canonical::fixed_point(row.x[k], scale));
  }
  __device__ void end(const key_moments& moments, std::size_t head, unsigned d) {
#pragma unroll
    for (unsigned k = 0; k < warp_row::elements; ++k)
      if (const unsigned i = threadIdx.x % 32 + 32 * k; i < d) add_atomically(&moments.sums(head, i), sum[k]);
  }
};

struct square_pass {
  square_sum squares[warp_row::elements];
  float mean[warp_row::elements];

  __device__ square_pass(const key_moments& moments, std::size_t head, unsigned d) {
#pragma unroll
    for (unsigned k = 0; k < warp_row::elements; ++k) {
      const unsigned i = threadIdx.x % 32 + 32 * k;
      mean[k] = i < d ? moments.mean(head, i) : 0.0f;
    }
  }
  __device__ void add(const warp_row& row) {
#pragma unroll
    for (unsigned k = 0; k < warp_row::elements; ++k) squares[k].add(canonical::sub(row.x[k], mean[k]));
  }
  __device__ void end(const key_moments& moments, std::size_t head, unsigned d) {
#pragma unroll
    for (unsigned k = 0; k < warp_row::elements; ++k)
      if (const unsigned i = threadIdx.x % 32 + 32 * k; i < d) add_atomically(&moments.squares(head, i), squares[k]);
  }
};

/// One CTA for each head: a thread takes a pair and counts how many matter more.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    deal_pairs_kernel(key_moments moments, pair_axes<space::device> axes, unsigned subspaces) {
  __shared__ float energy[max_head_dim], matter[max_head_dim / 2], mean;
  const std::size_t head = blockIdx.x;
  const unsigned d = static_cast<unsigned>(axes.energy.extent(1)), pairs = d / 2, pair = threadIdx.x;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) energy[i] = axes.energy(head, i).value();
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < d; ++i) sum = canonical::add(sum, energy[i]);
    mean = canonical::div(sum, static_cast<float>(d));
    axes.is_dealt(head) = mean > 0 ? 1 : 0;
  }
  __syncthreads();
  if (!(mean > 0)) return;
  float share = 0;
  if (pair < pairs) {
    share = pair_dealing::share(energy[pair], energy[pair + pairs], mean);
    const float spread = canonical::add(moments.squares(head, pair).value(), moments.squares(head, pair + pairs).value());
    matter[pair] = canonical::mul(spread, share);
  }
  __syncthreads();
  if (pair >= pairs) return;
  unsigned rank = 0;
  for (unsigned other = 0; other < pairs; ++other)
    rank += matter[other] > matter[pair] || (matter[other] == matter[pair] && other < pair) ? 1 : 0;
  pair_dealing::place({&axes.source(head, 0), &axes.weight(head, 0)}, d, subspaces, rank, pair, share);
}

}  // namespace detail

template <>
struct kernel<op::observe_queries, backend::cuda> {
  template <class P, class T>
  static void run(const P& policy, view<T, 3, space::device> queries, const pair_axes<space::device>& axes) {
    const unsigned ctas = detail::ceil_div(queries.extent(0), 256);  // 32 tokens for each warp, and at most 64 CTAs for a query head
    detail::launcher(policy, "observe")("observe_queries_kernel", detail::observe_queries_kernel<T>,
                                        {dim3(static_cast<unsigned>(queries.extent(1)), ctas < 64 ? ctas : 64), 256}, queries, axes.energy);
  }
};

template <>
struct kernel<op::deal_pairs, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::deal_pairs::sizes& sizes) { return detail::deal_pairs_device_scratch_bytes(sizes); }

  template <class P, class Rows>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  std::size_t subspaces, const pair_axes<space::device>& axes) {
    using namespace detail;
    const launcher launch(policy, "deal_pairs");
    const std::size_t h = axes.energy.extent(0), d = axes.energy.extent(1), words = deal_pairs_device_words({h, d});
    arena memory = device_scratch(policy.scratch, scratch_bytes({h, d}), "deal_pairs");
    std::uint64_t* const block = memory.take<std::uint64_t>(words);
    zero_bytes(policy, block, words * sizeof *block);
    const key_moments moments = key_moments::in(block, h, d);
    const unsigned ctas = ceil_div(sample.count, 256), shared = tuning::multiprocessors * 4 / static_cast<unsigned>(h) + 1;
    const launcher::shape whole{dim3(static_cast<unsigned>(h), ctas < shared ? ctas : shared), 256};
    launch("measure_keys_kernel", measure_keys_kernel<largest_pass, Rows>, whole, rows, head, sample, first, moments);
    launch("measure_keys_kernel", measure_keys_kernel<sum_pass, Rows>, whole, rows, head, sample, first, moments);
    launch("measure_keys_kernel", measure_keys_kernel<square_pass, Rows>, whole, rows, head, sample, first, moments);
    launch("deal_pairs_kernel", deal_pairs_kernel<max_head_dim / 2>, {dim3(static_cast<unsigned>(h)), max_head_dim / 2}, moments, axes,
           static_cast<unsigned>(subspaces));
  }
};

}  // namespace pqkv
