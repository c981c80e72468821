// SPDX-License-Identifier: Apache-2.0
// Selects from many tokens without writing their scores to memory, where retrieve_cluster.cuh does not: by logits, for one query head, with
// given normalisers, on devices before compute capability 9.0, or with tables that are too large. The scores of a sample give a bracket
// around the threshold. The CTAs that share a list score its tokens: they set bits for tokens above the bracket or at its ends, and keep
// those inside. The last CTA to finish finds the exact threshold among the few that were kept and writes the list. If the sample misled,
// that CTA scores the whole list again.
// Source: the sample and bracket of block/bracket.cuh.
#pragma once

#include <algorithm>

#include "block/bitmap.cuh"
#include "block/bracket.cuh"
#include "block/select.cuh"
#include "kernel.cuh"
#include "retrieve_cluster_shape.cuh"
#include "retrieve_lists.cuh"
#include "scan.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// What the CTAs of a list share: the bracket, and how many tokens are above it, at each of its ends, and inside.
struct list_filter {
  block::bracket limits;
  std::uint32_t above, at_high, inside, at_low;
  std::uint32_t finished;  // how many CTAs have finished
};

template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads) clear_words_kernel(std::uint32_t* words, unsigned count) {
  block::release_dependents();
  block::wait_for_last_kernel();
  for (unsigned i = threadIdx.x; i < count; i += Threads) words[i] = 0;
}

/// The scratch of a call.
struct filter_memory {
  list_filter* filters;                        // [lists]
  view<std::uint32_t, 3, space::device> maps;  // [lists, 2, words] both bits: above the bracket; first: at its high end; second: low end
  view<uint2, 2, space::device> kept;          // [lists, most kept] key and token of those inside the bracket
  // [lists, n] all scores, for lists whose bracket does not hold the threshold. In clusters also what rounded_of() returns, and then less
  view<std::uint32_t, 2, space::device> keys;
  bool keeps_keys = false;  // whether `keys` is to have the selected tokens' scores of every list, unless all its tokens are selected

  filter_memory(arena& memory, const block::scoring& call)
      : filter_memory(memory, call.lists, call.codes.extent(2), retrieve_device_words(call.codes.extent(2), call.g)) {}

  /// For spread_kernel, which uses none of the above but `keys`.
  /// @{
  spread_memory spread(std::uint32_t* arrived) const {
    return {arrived, reinterpret_cast<unsigned char*>(kept.data), kept.stride(0) * sizeof(uint2)};
  }
  std::uint32_t* arrivals() const { return reinterpret_cast<std::uint32_t*>(filters); }
  void clear_arrivals(const launcher& launch, std::size_t lists) const {
    static_assert(sizeof(list_filter) >= spread_memory::words * sizeof(std::uint32_t));
    const unsigned words = static_cast<unsigned>(lists) * spread_memory::words;
    launch("clear_words_kernel", clear_words_kernel<256>, {.grid = dim3(1), .threads = 256, .early = true}, arrivals(), words);
  }
  /// @}

 private:
  filter_memory(arena& memory, std::size_t lists, std::size_t n, std::size_t words)
      : filters(memory.take<list_filter>(lists)),
        maps(make_view<space::device>(memory.take<std::uint32_t>(lists * 2 * (n / 32 + 1)), lists, 2, n / 32 + 1)),
        kept(make_view<space::device>(memory.take<uint2>(lists * retrieve_device_kept(n)), lists, retrieve_device_kept(n))),
        keys{memory.take<std::uint32_t>(lists * words), {lists, n}, {words, 1}} {}
};

/// One CTA for each list: computes its normalisers, then its bracket.
template <unsigned Threads, unsigned Pack>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    bracket_kernel(block::scoring call, scan_shape shape, retrieved_lists out, std::uint8_t* skipped, filter_memory own) {
  constexpr unsigned sampled = block::bracket_sample;
  __shared__ block::list_select<Threads> select;
  block::release_dependents();
  const unsigned list = blockIdx.x;
  const block::scored_items items = call.items(list);
  const std::uint32_t k = out.selected(call.range(list));
  // Without a sample the bracket is open, so every token is inside. If these are too many to keep, the list's last CTA selects alone.
  const bool all_are_kept = items.n <= own.kept.extent(1) / 2, has_room = call.m <= max_subspaces;
  static_assert(retrieve_device_kept(0) / 2 >= sampled);  // only lists with more tokens than that are sampled
  const std::uint32_t samples = all_are_kept || !has_room || k == 0 || k == items.n ? 0 : sampled;
  block::shared_memory memory;
  std::uint32_t* keys = memory.take<std::uint32_t>(sampled);
  static_assert(max_subspaces * sampled <= retrieve_device_kept(0) * sizeof(uint2));
  std::uint8_t* codes = reinterpret_cast<std::uint8_t*>(&own.kept(list, 0));  // of the sample; nothing has been kept here yet
  for (unsigned j = 0; samples != 0 && j < call.m; ++j)
#pragma unroll
    for (std::uint32_t which = threadIdx.x; which < sampled; which += Threads)
      codes[j * sampled + which] = items.codes[j * items.stride + block::sample_place(which, items.n)];
  const block::scored_items sample{codes, sampled, nullptr, samples, call.m, call.bits};
  settle_list<Threads, Pack>(call, shape, list, skipped, memory, [&](const auto& scorer) { scorer.score(sample, 0, samples, keys); });
  __syncthreads();
  block::bracket limits{0, 0xffffffffu};
  if (samples != 0) limits = block::bracket_of_sample(select, keys, {items.n, k, static_cast<std::uint32_t>(own.kept.extent(1))}, 0);
  if (threadIdx.x == 0) own.filters[list] = {limits, 0, 0, 0, 0, 0};
}

/// The selected tokens of one list, found by its last CTA from the maps and the kept tokens.
template <unsigned Threads>
struct filtered_list {
  union {
    block::list_select<Threads> select;
    block::radix_select<Threads> radix;
  };
  block::reduction<std::uint64_t, Threads> sums;

  /// Writes the list. If the bracket does not hold the threshold, writes nothing and returns false.
  /// @param bitmap  [2, words] in shared memory; a list with more tokens is processed in parts
  __device__ bool write(const list_filter& found, unsigned which, const filter_memory& own, std::uint32_t n, std::uint32_t k,
                        std::int32_t first, std::int32_t* out, std::uint32_t* bitmap, std::uint32_t words) {
    const std::uint32_t kept = found.inside, most_kept = static_cast<std::uint32_t>(own.kept.extent(1));
    if (kept > most_kept || found.above >= k || k - found.above > found.at_high + kept + found.at_low) return false;
    const uint2* inside = &own.kept(which, 0);
    std::uint32_t rest = k - found.above;
    const bool is_high = rest <= found.at_high;
    rest -= is_high ? 0 : found.at_high;
    const bool is_low = !is_high && rest > kept;
    block::threshold limit{is_high ? 0xffffffffu : 0, is_low ? rest - kept : rest};  // of those inside, none or all are selected
    if (!is_high && !is_low)
      limit = select.find(
          kept, rest, found.limits.high, block::list_select<Threads>::shift_of(found.limits.low, found.limits.high),
          [&](std::uint32_t i) { return inside[i].x; }, [](std::uint32_t) { return 1u; });
    std::uint32_t *chosen = bitmap, *equal = bitmap + words;
    std::uint64_t before = 0;  // marked tokens of earlier parts
    for (std::uint32_t begin = 0; begin < n; begin += words * 32) {
      const std::uint32_t tokens = n - begin < words * 32 ? n - begin : words * 32, used = (tokens + 31) / 32;
#pragma unroll 4
      for (std::uint32_t w = threadIdx.x; w < used; w += Threads) {
        const std::uint32_t upper = own.maps(which, 0, begin / 32 + w), lower = own.maps(which, 1, begin / 32 + w);
        chosen[w] = is_high ? upper & lower : upper;
        equal[w] = is_high ? upper & ~lower : is_low ? lower & ~upper : 0;
      }
      __syncthreads();
      for (std::uint32_t i = threadIdx.x; !is_high && i < kept; i += Threads) {
        const uint2 token = inside[i];
        const std::uint32_t t = token.y - begin;
        if (token.x >= limit.key && t < tokens) atomicOr(&(token.x > limit.key ? chosen : equal)[t / 32], 1u << t % 32);
      }
      __syncthreads();
      block::bitmap_emission<Threads> emission(sums);
      const std::uint64_t here = emission.count(chosen, equal, used);
      emission.emit(before, limit.of_equal, first + static_cast<std::int32_t>(begin), out, k);
      before += here;
      __syncthreads();  // the bitmaps are about to be reused
    }
    return true;
  }
};

/// grid.x: CTAs of a list; grid.y: lists.
/// @param words  of each of the last CTA's two bitmaps
template <unsigned Threads, unsigned Pack>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    filter_kernel(block::scoring call, scan_shape shape, retrieved_lists out, filter_memory own, std::uint32_t words) {
  constexpr std::uint32_t tile = tuning::filter_tile_tokens, turns = tile / Threads;
  __shared__ filtered_list<Threads> writer;
  __shared__ list_filter of_cta;
  const unsigned list = blockIdx.y, lane = threadIdx.x % 32;
  const middle_range range = call.range(list);
  const std::uint32_t k = out.selected(range), first_token = range.begin;
  const block::scored_items items = call.items(list);
  const auto run = shape.of(items, blockIdx.x);
  if (blockIdx.x == 0) out.finish<Threads>(list, k);
  // Earlier kernels may still write to scratch, and kernels after this one must run after those too. So this one waits for them.
  if (k == 0 || k == range.size()) block::wait_for_last_kernel();
  if (k == 0) return;
  if (k == range.size()) {
    for (std::uint32_t i = run.begin + threadIdx.x; i < run.end; i += Threads)
      out.list(list)[i] = static_cast<std::int32_t>(first_token + i);
    return;
  }
  block::shared_memory memory;
  std::uint32_t* keys = memory.take<std::uint32_t>(tile);
  if (threadIdx.x == 0) of_cta = {};
  list_filter& found = own.filters[list];
  std::uint32_t above = 0, at_high = 0, at_low = 0;  // set bits in the words of this thread
  block::bracket limits{};
  for (std::uint32_t begin = run.begin; begin < run.end; begin += tile) {
    const std::uint32_t end = run.end - begin < tile ? run.end : begin + tile;
    score_items<Threads, Pack>(call, shape, list, items, memory, begin == run.begin, begin, end, keys);
    if (begin == run.begin) limits = found.limits;  // valid now, since score_items() has waited for the kernel that writes it
    __syncthreads();
    // From here on a warp has `turns` consecutive words, one for each of its first `turns` lanes.
    const std::uint32_t low_end = limits.low < limits.high ? limits.low : 0xffffffffu;  // equals no key
    const std::uint32_t first = threadIdx.x / 32 * turns * 32 + lane;
    std::uint32_t upper = 0, lower = 0;
    unsigned insides = 0;
#pragma unroll
    for (unsigned a = 0; a < turns; ++a) {
      const std::uint32_t i = first + a * 32, key = i < end - begin ? keys[i] : 0;
      const bool live = i < end - begin;
      const unsigned uppers = __ballot_sync(block::all_lanes, live && key >= limits.high),
                     lowers = __ballot_sync(block::all_lanes, live && (key > limits.high || key == low_end));
      if (lane == a) upper = uppers, lower = lowers;
      if (live && key > limits.low && key < limits.high) insides |= 1u << a;
      if (own.keeps_keys && live && key >= limits.low) own.keys(list, begin + i) = key;
    }
    const std::uint32_t word = (begin + threadIdx.x / 32 * turns * 32) / 32 + lane;
    if (lane < turns && word * 32 < end) own.maps(list, 0, word) = upper, own.maps(list, 1, word) = lower;
    above += static_cast<std::uint32_t>(__popc(upper & lower));
    at_high += static_cast<std::uint32_t>(__popc(upper & ~lower));
    at_low += static_cast<std::uint32_t>(__popc(lower & ~upper));
    const std::uint32_t count = static_cast<std::uint32_t>(__popc(insides)), below = block::warp_prefix(count);
    std::uint32_t place = 0;
    if (lane == 31 && below + count != 0) place = atomicAdd(&found.inside, below + count);
    place = __shfl_sync(block::all_lanes, place, 31) + below;
    for (; insides != 0; insides &= insides - 1, ++place) {
      const std::uint32_t i = first + static_cast<std::uint32_t>(__ffs(static_cast<int>(insides)) - 1) * 32;
      if (place < own.kept.extent(1)) own.kept(list, place) = {keys[i], begin + i};
    }
    __syncthreads();
  }
  __threadfence();
  __syncthreads();
  above = __reduce_add_sync(block::all_lanes, above);
  at_high = __reduce_add_sync(block::all_lanes, at_high);
  at_low = __reduce_add_sync(block::all_lanes, at_low);
  if (lane == 0) {
    atomicAdd(&of_cta.above, above);
    atomicAdd(&of_cta.at_high, at_high);
    atomicAdd(&of_cta.at_low, at_low);
  }
  __syncthreads();
  if (run.begin == run.end) block::wait_for_last_kernel();  // which writes the zeros that are added to below
  bool is_last = false;
  if (threadIdx.x == 0) {
    atomicAdd(&found.above, of_cta.above);
    atomicAdd(&found.at_high, of_cta.at_high);
    atomicAdd(&found.at_low, of_cta.at_low);
    __threadfence();
    is_last = atomicAdd(&found.finished, 1u) == gridDim.x - 1;
    __threadfence();
  }
  if (__syncthreads_or(is_last ? 1 : 0) == 0) return;
  __threadfence();
  const list_filter complete = found;
  std::uint32_t* bitmap = block::shared_memory(memory).take<std::uint32_t>(2 * words);  // reuses the memory of the exponentials
  if (writer.write(complete, list, own, items.n, k, static_cast<std::int32_t>(first_token), out.list(list), bitmap, words)) return;
  std::uint32_t* all = &own.keys(list, 0);
  score_items<Threads, Pack>(call, shape, list, items, memory, true, 0, items.n, all);
  __syncthreads();
  const block::cluster_team alone(1);
  const auto key_at = [&](std::uint32_t i) { return all[i]; };
  const block::threshold limit = writer.radix.find(alone, items.n, k, key_at, [](std::uint32_t) { return 1u; });
  writer.radix.emit(alone, items.n, limit, key_at, static_cast<std::int32_t>(first_token), out.list(list), k);
}

/// Launches the kernels of a call none of whose lists has cells as items.
template <unsigned Pack>
void filter_lists(const launcher& launch, const block::scoring& call, const retrieved_lists& out, std::uint8_t* skipped,
                  const filter_memory& memory) {
  constexpr unsigned threads = tuning::select_threads;
  const std::size_t n = call.codes.extent(2);
  const spread_launches<Pack> scanning(launch, call, n);
  const scan_shape shape = scanning.shape();
  scanning.normalisers();
  const std::size_t sample = block::shared_memory::bytes<std::uint32_t>(block::bracket_sample);
  launch("bracket_kernel", bracket_kernel<threads, Pack>,
         {.grid = dim3(call.lists), .threads = threads, .shared_bytes = sample + scanning.table_bytes(), .early = scanning.is_early()},
         call, shape, out, skipped, memory);
  const auto kernel = filter_kernel<threads, Pack>;
  const std::size_t keys = block::shared_memory::bytes<std::uint32_t>(tuning::filter_tile_tokens),
                    room = (launch.shared_limit(kernel) - keys) / (2 * sizeof(std::uint32_t)) / 4 * 4,
                    words = std::min({n / 128 * 4 + 4, room, std::size_t{tuning::filter_bitmap_words}}),
                    bitmaps = block::shared_memory::bytes<std::uint32_t>(2 * words);
  launch("filter_kernel", kernel,
         {.grid = dim3(shape.runs, call.lists),
          .threads = threads,
          .shared_bytes = keys + std::max(scanning.table_bytes(), bitmaps),
          .early = scanning.is_early_after_first()},
         call, shape, out, memory, static_cast<std::uint32_t>(words));
}

}  // namespace detail
}  // namespace pqkv
