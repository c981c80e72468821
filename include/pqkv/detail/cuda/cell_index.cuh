// SPDX-License-Identifier: Apache-2.0
// The joint-code index on the device. Counting is atomic adds. Merging is a stable counting sort: runs of tokens count their cells
// side by side, a prefix over cells and runs gives each run its places, and a warp a run fills them in token order.
#pragma once

#include "../../search/cell_index.hpp"
#include "arena.cuh"
#include "block/reduce.cuh"
#include "kernel.cuh"

namespace pqkv {
namespace detail {

struct cell_of_token {
  codes_view<space::device> codes;
  unsigned bits;

  cell_of_token(codes_view<space::device> from, std::size_t cells) : codes(from), bits(0) {
    unsigned joint = 0;
    while ((std::size_t{1} << joint) < cells) ++joint;
    bits = joint / static_cast<unsigned>(from.extent(1));
  }
  __device__ std::uint32_t operator()(std::size_t head, std::size_t t) const {
    std::uint32_t cell = 0;
    for (std::size_t j = 0; j < codes.extent(1); ++j) cell = cell << bits | codes(head, j, t);
    return cell;
  }
};

/// Tokens are grid.x, heads grid.y.
template <class Cell>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    count_cells_kernel(Cell cell, std::size_t first, std::size_t last, mutable_cell_index_view<space::device> index) {
  const std::size_t t = first + std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t < last) atomicAdd(&index.counts(blockIdx.y, cell(blockIdx.y, t)), 1u);
}

/// A thread is a head: its range grows, or begins where there was none.
template <class Index>
PQKV_HIDDEN __global__ void __launch_bounds__(256) grow_range_kernel(Index index, std::uint32_t first, std::uint32_t last) {
  const std::size_t head = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (head >= index.counts.extent(0)) return;
  if (index.first(head) == index.last(head)) index.first(head) = index.merged(head) = first;
  index.last(head) = last;
}

/// The tokens of run `run` of a head's range, a multiple of 32 long except at the end; empty where there is no tail.
struct sorted_run {
  std::size_t first, last;

  template <class Index>
  __device__ sorted_run(const Index& index, std::size_t head, std::size_t run, std::size_t runs) : first(0), last(0) {
    if (index.merged(head) == index.last(head)) return;
    const std::size_t begin = index.first(head), end = index.last(head), share = ((end - begin) / runs + 32) / 32 * 32;
    first = begin + run * share < end ? begin + run * share : end;
    last = end - first < share ? end : first + share;
  }
};

/// Runs are grid.x, heads grid.y.
/// @param counts  [h, runs, cells] zeros; written
template <class Cell>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    count_runs_kernel(Cell cell, mutable_cell_index_view<space::device> index, view<std::uint32_t, 3, space::device> counts) {
  const sorted_run run(index, blockIdx.y, blockIdx.x, gridDim.x);
  for (std::size_t t = run.first + threadIdx.x; t < run.last; t += blockDim.x)
    atomicAdd(&counts(blockIdx.y, blockIdx.x, cell(blockIdx.y, t)), 1u);
}

/// A CTA is a head: offsets of its cells, and in the place of each run's counts where its tokens go.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    place_runs_kernel(mutable_cell_index_view<space::device> index, view<std::uint32_t, 3, space::device> counts) {
  __shared__ block::reduction<std::uint32_t, Threads> reduction;
  const std::size_t head = blockIdx.x, cells = index.cells();
  if (index.merged(head) == index.last(head)) return;
  std::uint32_t total = 0;
  for (std::size_t base = 0; base < cells; base += Threads) {
    const std::size_t cell = base + threadIdx.x;
    const std::uint32_t own = cell < cells ? index.counts(head, cell) : 0;
    std::uint32_t here = 0;
    std::uint32_t next = total + reduction.prefix(own, here);
    total += here;
    if (cell >= cells) continue;
    index.offsets(head, cell) = next;
    for (std::size_t run = 0; run < counts.extent(1); ++run) {
      const std::uint32_t of_run = counts(head, run, cell);
      counts(head, run, cell) = next;
      next += of_run;
    }
  }
  if (threadIdx.x == 0) index.offsets(head, cells) = total;
}

/// A warp is a run: 32 tokens at a time, ranked among those of the same cell.
template <class Cell>
PQKV_HIDDEN __global__ void __launch_bounds__(32)
    sort_runs_kernel(Cell cell, mutable_cell_index_view<space::device> index, view<std::uint32_t, 3, space::device> places) {
  const std::size_t head = blockIdx.y;
  const sorted_run run(index, head, blockIdx.x, gridDim.x);
  for (std::size_t base = run.first; base < run.last; base += 32) {
    const std::size_t t = base + threadIdx.x;
    const bool live = t < run.last;
    const std::uint32_t own = live ? cell(head, t) : 0xffffffffu;
    const unsigned peers = __match_any_sync(block::all_lanes, own), below = peers & ((1u << threadIdx.x) - 1);
    std::uint32_t place = 0;
    if (live) place = places(head, blockIdx.x, own) + static_cast<std::uint32_t>(__popc(below));
    __syncwarp();
    if (live && below == 0) places(head, blockIdx.x, own) = place + static_cast<std::uint32_t>(__popc(peers));
    __syncwarp();
    if (live && place < index.ids.extent(1)) index.ids(head, place) = static_cast<std::int32_t>(t);
  }
}

/// A thread is a head: all its tokens are in the lists.
template <class Index>
PQKV_HIDDEN __global__ void __launch_bounds__(256) end_merge_kernel(Index index) {
  const std::size_t head = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (head < index.counts.extent(0)) index.merged(head) = index.last(head);
}

}  // namespace detail

template <>
struct kernel<op::count_cells, backend::cuda> {
  template <class P>
  static void run(const P& policy, codes_view<space::device> codes, std::size_t first, std::size_t last,
                  mutable_cell_index_view<space::device> index) {
    const detail::launcher launch(policy, "count_cells");
    const unsigned h = static_cast<unsigned>(codes.extent(0));
    const detail::cell_of_token cell(codes, index.cells());
    launch("count_cells_kernel", detail::count_cells_kernel<detail::cell_of_token>, {dim3(detail::ceil_div(last - first, 256), h), 256},
           cell, first, last, index);
    launch("grow_range_kernel", detail::grow_range_kernel<mutable_cell_index_view<space::device>>, {dim3(detail::ceil_div(h, 256)), 256},
           index, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last));
  }
};

template <>
struct kernel<op::merge_tails, backend::cuda> {
  template <class P>
  static void run(const P& policy, codes_view<space::device> codes, mutable_cell_index_view<space::device> index) {
    const detail::launcher launch(policy, "merge_tails");
    const std::size_t h = codes.extent(0), n = codes.extent(2), cells = index.cells(), runs = merge_tails_runs(n);
    arena memory = detail::device_scratch(policy.scratch, merge_tails_device_scratch_bytes(h, n, cells), "merge_tails");
    const auto counts = make_view<space::device>(memory.take<std::uint32_t>(h * runs * cells), h, runs, cells);
    detail::check_cuda(cudaMemsetAsync(counts.data, 0, counts.size() * sizeof(std::uint32_t), launch.stream), "merge_tails",
                       "cudaMemsetAsync");
    const detail::cell_of_token cell(codes, cells);
    const dim3 grid(static_cast<unsigned>(runs), static_cast<unsigned>(h));
    launch("count_runs_kernel", detail::count_runs_kernel<detail::cell_of_token>, {grid, 256}, cell, index, counts);
    launch("place_runs_kernel", detail::place_runs_kernel<512>, {dim3(grid.y), 512}, index, counts);
    launch("sort_runs_kernel", detail::sort_runs_kernel<detail::cell_of_token>, {grid, 32}, cell, index, counts);
    launch("end_merge_kernel", detail::end_merge_kernel<mutable_cell_index_view<space::device>>, {dim3(detail::ceil_div(h, 256)), 256},
           index);
  }
};

}  // namespace pqkv
