// SPDX-License-Identifier: Apache-2.0
// The joint-code index on the device. Counting uses atomic adds. Merging is a stable counting sort: runs of tokens count their cells in
// parallel, a prefix sum over cells and runs gives each run its places, and one warp for each run fills them in token order.
#pragma once

#include "../../search/cell_index.hpp"
#include "arena.cuh"
#include "block/reduce.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE {
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
  /// Reads the cells of tokens t + a * step, at least one of which is below `last`; those not below it get 0xffffffff. All codes of a
  /// subspace are loaded before the first is used.
  template <unsigned Count>
  __device__ void read(std::size_t head, std::size_t t, std::size_t step, std::size_t last, std::uint32_t (&cell)[Count]) const {
#pragma unroll
    for (unsigned a = 0; a < Count; ++a) cell[a] = t + a * step < last ? 0 : 0xffffffffu;
#pragma unroll 1
    for (std::size_t j = 0; j < codes.extent(1); ++j) {
      std::uint32_t code[Count];
#pragma unroll
      for (unsigned a = 0; a < Count; ++a) code[a] = codes(head, j, t + a * step < last ? t + a * step : last - 1);
#pragma unroll
      for (unsigned a = 0; a < Count; ++a) cell[a] = t + a * step < last ? cell[a] << bits | code[a] : cell[a];
    }
  }
};

/// grid.x: tokens; grid.y: heads.
template <class Cell>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    count_cells_kernel(Cell cell, std::size_t first, std::size_t last, mutable_cell_index_view<space::device> index) {
  const std::size_t t = first + std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t < last) atomicAdd(&index.counts(blockIdx.y, cell(blockIdx.y, t)), 1u);
}

/// Counts the cells of a head's tokens [first, last) into counts[cell] in shared memory. By a CTA; ends with a barrier.
template <class Cell>
__device__ void count_in_shared(Cell cell, std::size_t head, std::size_t first, std::size_t last, std::uint32_t* counts,
                                std::size_t cells) {
  constexpr unsigned at_once = 8;  // tokens that a thread loads together
  for (std::size_t i = threadIdx.x; i < cells; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  for (std::size_t t = first + threadIdx.x; t < last; t += at_once * blockDim.x) {
    std::uint32_t own[at_once];
    cell.read(head, t, blockDim.x, last, own);
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a)
      if (t + a * blockDim.x < last) atomicAdd(&counts[own[a]], 1u);
  }
  __syncthreads();
}

/// Like count_cells_kernel, for many tokens in each cell. A CTA counts a run of `share` tokens, then adds to memory once for each cell.
template <class Cell>
PQKV_HIDDEN __global__ void __launch_bounds__(1024)
    count_many_cells_kernel(Cell cell, std::size_t first, std::size_t last, std::size_t share,
                            mutable_cell_index_view<space::device> index) {
  const std::size_t head = blockIdx.y, cells = index.cells(), begin = first + blockIdx.x * share;
  std::uint32_t* counts = block::shared_memory().take<std::uint32_t>(cells);
  count_in_shared(cell, head, begin, last - begin < share ? last : begin + share, counts, cells);
  for (std::size_t i = threadIdx.x; i < cells; i += blockDim.x)
    if (counts[i] != 0) atomicAdd(&index.counts(head, i), counts[i]);
}

/// After tokens [first, last) have been counted, one thread extends the head's range of tokens, or begins it if there was none.
__device__ inline void grow_range(const mutable_cell_index_view<space::device>& index, std::size_t head, std::uint32_t first,
                                  std::uint32_t last) {
  if (index.first(head) == index.last(head)) index.first(head) = index.merged(head) = first;
  index.last(head) = last;
}
/// The reverse: after tokens from `first` on have been removed from the counts, one thread cuts the range.
__device__ inline void cut_range(const mutable_cell_index_view<space::device>& index, std::size_t head, std::uint32_t first) {
  index.last(head) = first;
  if (index.merged(head) > first) index.merged(head) = first;
}

/// One thread for each head.
template <class Index>
PQKV_HIDDEN __global__ void __launch_bounds__(256) grow_range_kernel(Index index, std::uint32_t first, std::uint32_t last) {
  const std::size_t head = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (head >= index.counts.extent(0)) return;
  grow_range(index, head, first, last);
}

/// The tokens that run `run` sorts of a head's range; a multiple of 32 except at the end. Empty if every token is in the id lists already.
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

/// grid.x: runs; grid.y: heads.
/// @param counts     [h, runs, cells] written; must be zeros unless counts go through shared memory
/// @param in_shared  whether a run's counts fit in shared memory
template <class Cell>
PQKV_HIDDEN __global__ void __launch_bounds__(256) count_runs_kernel(Cell cell, mutable_cell_index_view<space::device> index,
                                                                     view<std::uint32_t, 3, space::device> counts, bool in_shared) {
  const std::size_t head = blockIdx.y, cells = index.cells();
  if (index.merged(head) == index.last(head)) return;
  const sorted_run run(index, head, blockIdx.x, gridDim.x);
  std::uint32_t* of_run = &counts(head, blockIdx.x, 0);
  if (!in_shared) {
    for (std::size_t t = run.first + threadIdx.x; t < run.last; t += blockDim.x) atomicAdd(&of_run[cell(head, t)], 1u);
    return;
  }
  std::uint32_t* shared = block::shared_memory().take<std::uint32_t>(cells);
  count_in_shared(cell, head, run.first, run.last, shared, cells);
  for (std::size_t i = threadIdx.x; i < cells; i += blockDim.x) of_run[i] = shared[i];
}

/// grid.x: groups of `Threads` cells; grid.y: heads. Writes the cells' offsets, and replaces each run's counts by the places of its tokens.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    place_runs_kernel(mutable_cell_index_view<space::device> index, view<std::uint32_t, 3, space::device> counts) {
  constexpr unsigned at_once = 16;  // loads that a thread issues together
  __shared__ block::reduction<std::uint32_t, Threads> reduction;
  const std::size_t head = blockIdx.y, cells = index.cells(), base = std::size_t{blockIdx.x} * Threads, cell = base + threadIdx.x,
                    runs = counts.extent(1);
  if (index.merged(head) == index.last(head)) return;
  std::uint32_t before = 0;
#pragma unroll 4
  for (std::size_t i = threadIdx.x; i < base; i += Threads) before += index.counts(head, i);
  before = reduction.sum(before);
  std::uint32_t here = 0, next = before + reduction.prefix(cell < cells ? index.counts(head, cell) : 0, here);
  if (threadIdx.x == 0 && base + Threads >= cells) index.offsets(head, cells) = before + here;
  if (cell >= cells) return;
  index.offsets(head, cell) = next;
  for (std::size_t first = 0; first < runs; first += at_once) {
    std::uint32_t of_run[at_once];
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a) of_run[a] = first + a < runs ? counts(head, first + a, cell) : 0;
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a) {
      if (first + a < runs) counts(head, first + a, cell) = next;
      next += of_run[a];
    }
  }
}

/// One warp for each run. It takes 32 tokens at a time and numbers those of the same cell in token order.
/// @tparam InShared  whether a run's places fit in shared memory
/// @param places  for each cell, the place of the run's next token
template <bool InShared, class Cell>
PQKV_HIDDEN __global__ void __launch_bounds__(32)
    sort_runs_kernel(Cell cell, mutable_cell_index_view<space::device> index, view<std::uint32_t, 3, space::device> places) {
  constexpr unsigned at_once = 8;  // tokens that a lane loads together
  const std::size_t head = blockIdx.y, cells = index.cells();
  const sorted_run run(index, head, blockIdx.x, gridDim.x);
  if (run.first == run.last) return;
  std::uint32_t *of_run = &places(head, blockIdx.x, 0), *next = InShared ? block::shared_memory().take<std::uint32_t>(cells) : of_run;
  if constexpr (InShared) {
#pragma unroll 16
    for (std::size_t i = threadIdx.x; i < cells / 4; i += 32)  // there are at least 16 cells, and their number is a power of two
      reinterpret_cast<uint4*>(next)[i] = reinterpret_cast<const uint4*>(of_run)[i];
    __syncwarp();
  }
  for (std::size_t base = run.first; base < run.last; base += at_once * 32) {
    std::uint32_t own[at_once], peers[at_once];
    cell.read(head, base + threadIdx.x, 32, run.last, own);
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a) peers[a] = __match_any_sync(block::all_lanes, own[a]);
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a) {
      const std::size_t t = base + a * 32 + threadIdx.x;
      const bool live = t < run.last;
      const unsigned below = peers[a] & ((1u << threadIdx.x) - 1);
      std::uint32_t place = 0;
      if (live) place = next[own[a]] + static_cast<std::uint32_t>(__popc(below));
      __syncwarp();
      if (live && below == 0) next[own[a]] = place + static_cast<std::uint32_t>(__popc(peers[a]));
      __syncwarp();
      if (live && place < index.ids.extent(1)) index.ids(head, place) = static_cast<std::int32_t>(t);
    }
  }
}

/// One thread for each head: records that all its tokens are in the lists.
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
    const std::size_t cells = index.cells(), tokens = last - first, shared = cells * sizeof(std::uint32_t);
    const auto many = detail::count_many_cells_kernel<detail::cell_of_token>;
    if (tokens >= detail::tuning::count_run_tokens && cells <= detail::tuning::count_run_tokens && shared <= launch.shared_limit(many))
      launch("count_many_cells_kernel", many, {dim3(detail::ceil_div(tokens, detail::tuning::count_run_tokens), h), 1024, shared}, cell,
             first, last, std::size_t{detail::tuning::count_run_tokens}, index);
    else
      launch("count_cells_kernel", detail::count_cells_kernel<detail::cell_of_token>, {dim3(detail::ceil_div(tokens, 256), h), 256}, cell,
             first, last, index);
    launch("grow_range_kernel", detail::grow_range_kernel<mutable_cell_index_view<space::device>>, {dim3(detail::ceil_div(h, 256)), 256},
           index, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last));
  }
};

template <>
struct kernel<op::merge_tails, backend::cuda> {
  static constexpr std::size_t scratch_bytes(const op::merge_tails::sizes& sizes) {
    return detail::merge_tails_device_scratch_bytes(sizes);
  }

  template <class P>
  static void run(const P& policy, codes_view<space::device> codes, mutable_cell_index_view<space::device> index) {
    const detail::launcher launch(policy, "merge_tails");
    const std::size_t h = codes.extent(0), n = codes.extent(2), cells = index.cells(), runs = detail::merge_tails_runs(n);
    arena memory = detail::device_scratch(policy.scratch, scratch_bytes({h, n, cells}), "merge_tails");
    const auto counts = make_view<space::device>(memory.take<std::uint32_t>(h * runs * cells), h, runs, cells);
    const detail::cell_of_token cell(codes, cells);
    const dim3 grid(static_cast<unsigned>(runs), static_cast<unsigned>(h));
    const std::size_t of_run = cells * sizeof(std::uint32_t);
    const bool in_shared = of_run <= detail::tuning::merge_shared_bytes;
    if (!in_shared)
      detail::check_cuda(cudaMemsetAsync(counts.data, 0, counts.size() * sizeof(std::uint32_t), launch.stream), "merge_tails",
                         "cudaMemsetAsync");
    launch("count_runs_kernel", detail::count_runs_kernel<detail::cell_of_token>, {grid, 256, in_shared ? of_run : 0}, cell, index, counts,
           in_shared);
    launch("place_runs_kernel", detail::place_runs_kernel<512>, {dim3(detail::ceil_div(cells, 512), grid.y), 512}, index, counts);
    launch("sort_runs_kernel",
           in_shared ? detail::sort_runs_kernel<true, detail::cell_of_token> : detail::sort_runs_kernel<false, detail::cell_of_token>,
           {grid, 32, in_shared ? of_run : 0}, cell, index, counts);
    launch("end_merge_kernel", detail::end_merge_kernel<mutable_cell_index_view<space::device>>, {dim3(detail::ceil_div(h, 256)), 256},
           index);
  }
};

}  // namespace pqkv
