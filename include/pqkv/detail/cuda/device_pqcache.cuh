// SPDX-License-Identifier: Apache-2.0
// Kernels of the cache on the device: what the host's pqcache does between the library's functions. Where a sequence stands is kept on
// the device, a copy for every KV head, so that no block waits for another and a captured step needs nothing from the host.
#pragma once

#include "../../attention.hpp"
#include "../../core/canonical.hpp"
#include "../../search/cell_index.hpp"
#include "../../selector/concept.hpp"
#include "kernel.cuh"

namespace pqkv {

/// One KV head of one sequence, on the device.
struct device_slot {
  slot_extent extent{};
  std::uint32_t trained = 0;         // 1 with a codebook; without one attention takes every token
  std::uint32_t refused = 0;         // tokens that append() had no room for
  std::uint32_t nonfinite_keys = 0;  // rows stored with an infinity or a NaN
  std::uint32_t nonfinite_values = 0;
};

namespace detail {

/// Everything that the kernels of one cache work on; heads are batch * h, slot by slot.
template <class T>
struct device_cache_views {
  view<T, 3, space::device> keys, values;  // [batch * h, capacity, d]
  mutable_codebook_view<space::device> book;
  mutable_codes_view<space::device> codes;
  mutable_cell_index_view<space::device> index;  // or empty
  view<device_slot, 1, space::device> slots;     // [batch * h]
  view<middle_range, 1, space::device> ranges;   // [batch * h]
  view<token_span, 1, space::device> spans;      // [batch * lists]
  view<std::uint32_t, 1, space::device> counts;  // [batch * lists]
  flat_budget_rule rule;
  std::uint32_t kv_heads, lists;  // of a slot

  /// How the middle of a slot is attended to: as pqcache::listing().
  __device__ selector::coverage listing(const device_slot& slot, const middle_range& middle) const {
    if (middle.size() == 0) return selector::coverage::nothing;
    if (slot.trained == 0) return selector::coverage::everything;
    if (middle.retrieve == 0) return selector::coverage::nothing;
    return middle.retrieve >= middle.size() ? selector::coverage::everything : selector::coverage::listed;
  }
};

/// The cell of one key, by one CTA of at least c threads, after writing its codes. Every thread returns it.
template <class T>
__device__ std::uint32_t encode_token(const device_cache_views<T>& cache, std::size_t head, std::size_t t) {
  __shared__ float y[max_head_dim + 1];
  __shared__ unsigned long long best;
  __shared__ std::uint32_t cell;
  __shared__ bool usable;
  const auto& book = cache.book;
  const std::size_t m = book.subspaces(), ds = book.sub_dim(), width = book.row_dim(), c = book.size();
  bool finite = true;
  for (std::size_t i = threadIdx.x; i < m * ds; i += blockDim.x) finite &= is_finite(static_cast<float>(cache.keys(head, t, i)));
  const bool key_is_finite = __syncthreads_and(finite) != 0;
  if (threadIdx.x == 0) cell = 0;
  for (std::size_t j = 0; j < m; ++j) {
    __syncthreads();
    for (std::size_t i = threadIdx.x; i < ds; i += blockDim.x)
      y[i] = canonical::sub(static_cast<float>(cache.keys(head, t, j * ds + i)), book.mean(head, j * ds + i));
    __syncthreads();
    if (threadIdx.x == 0) {
      best = ~0ull;
      usable = key_is_finite;
      if (book.metric() == key_metric::inner_product) {
        const float norm = canonical::dot(y, y, 1, ds);
        y[ds] = canonical::sphere_coordinate(book.squared_radius(head, j), norm);
        usable = usable && is_finite(norm);
      }
    }
    __syncthreads();
    if (usable && threadIdx.x < c) {  // distances are not negative, so their bits order them; equal ones go to the lower index
      const float distance = canonical::squared_distance(y, &book.centroids(head, j, 0, threadIdx.x), c, width);
      atomicMin(&best, static_cast<unsigned long long>(float_bits(distance)) << 32 | threadIdx.x);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const auto code = static_cast<std::uint8_t>(usable ? best & 0xffu : 0u);
      cache.codes(head, j, t) = code;
      cell = cell * static_cast<std::uint32_t>(c) + code;
    }
  }
  __syncthreads();
  return cell;
}

/// KV heads are grid.x, slots grid.y, a CTA has max_centroids threads: stores one token's row and lets the oldest leave a full window,
/// encoded.
/// @param active  [batch] or empty
template <class T, class K, class V, class From>
PQKV_HIDDEN __global__ void __launch_bounds__(max_centroids)
    append_token_kernel(device_cache_views<T> cache, view<const K, 3, From> keys, view<const V, 3, From> values,
                        view<const std::uint8_t, 1, space::device> active) {
  const std::size_t slot = blockIdx.y, head = slot * cache.kv_heads + blockIdx.x, d = cache.keys.extent(2);
  if (active.data != nullptr && active(slot) == 0) return;
  device_slot state = cache.slots(head);
  __syncthreads();  // all have read it before one writes it
  if (state.extent.n == cache.keys.extent(1)) {
    if (threadIdx.x == 0) cache.slots(head).refused = state.refused + 1;
    return;
  }
  bool key_finite = true, value_finite = true;
  for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) {
    const T key = static_cast<T>(static_cast<float>(keys(slot, blockIdx.x, i)));
    const T value = static_cast<T>(static_cast<float>(values(slot, blockIdx.x, i)));
    cache.keys(head, state.extent.n, i) = key;
    cache.values(head, state.extent.n, i) = value;
    key_finite &= is_finite(static_cast<float>(key));
    value_finite &= is_finite(static_cast<float>(value));
  }
  state.nonfinite_keys += __syncthreads_and(key_finite) == 0 ? 1 : 0;
  state.nonfinite_values += __syncthreads_and(value_finite) == 0 ? 1 : 0;
  ++state.extent.n;
  std::size_t leaving = state.extent.window_begin > cache.rule.sinks ? state.extent.window_begin : cache.rule.sinks;
  state.extent.slide_window(cache.rule);
  for (; state.trained != 0 && leaving < state.extent.window_begin; ++leaving) {
    const std::uint32_t cell = encode_token(cache, head, leaving);
    if (cache.index.empty() || threadIdx.x != 0) continue;
    if (cache.index.first(head) == cache.index.last(head))
      cache.index.first(head) = cache.index.merged(head) = static_cast<std::uint32_t>(leaving);
    ++cache.index.counts(head, cell);
    cache.index.last(head) = static_cast<std::uint32_t>(leaving) + 1;
  }
  if (threadIdx.x == 0) cache.slots(head) = state;
}

/// A thread is a list of a slot: what attention takes whole, and the range that is ranked.
/// @param active  [batch] or empty; the others attend to nothing
template <class T>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    plan_step_kernel(device_cache_views<T> cache, view<const std::uint8_t, 1, space::device> active) {
  const std::size_t list = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x, slot = list / cache.lists;
  if (list >= cache.spans.extent(0)) return;
  const device_slot state = cache.slots(slot * cache.kv_heads);
  const middle_range middle = state.extent.middle(cache.rule);
  const bool on = active.data == nullptr || active(slot) != 0;
  const selector::coverage covered = on ? cache.listing(state, middle) : selector::coverage::nothing;
  const auto end = static_cast<std::uint32_t>(on ? state.extent.n : 0);
  token_span span{};
  if (on && covered == selector::coverage::everything) span.leading = end;
  if (on && covered != selector::coverage::everything) span = {middle.begin, middle.end, end};
  cache.spans(list) = span;
  cache.counts(list) = 0;
  const std::size_t head = list % cache.lists;
  if (head < cache.kv_heads) cache.ranges(slot * cache.kv_heads + head) = covered == selector::coverage::listed ? middle : middle_range{};
}

/// A thread is a KV head of one slot: where the sequence stands after a prompt, and whether all of its codebook was trained.
/// @param outcome  [h, m] of this slot, or empty: nothing was trained
template <class Slots>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    settle_slot_kernel(Slots slots, slot_extent extent, view<const std::uint8_t, 2, space::device> outcome) {
  const std::size_t head = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (head >= slots.extent(0)) return;
  bool trained = outcome.data != nullptr;
  for (std::size_t i = 0; trained && i < outcome.extent(0); ++i)
    for (std::size_t j = 0; j < outcome.extent(1); ++j)
      trained = trained && outcome(i, j) == static_cast<std::uint8_t>(kmeans_outcome::trained);
  slots(head).extent = extent;
  slots(head).trained = trained ? 1 : 0;
}

/// Lists are grid.x, slots grid.y: the lists of retrieve(), whole middles written out.
template <class T>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    copy_lists_kernel(device_cache_views<T> cache, view<const std::int32_t, 2, space::device> found,
                      view<const std::uint8_t, 1, space::device> active, view<std::int32_t, 3, space::device> indices,
                      view<std::uint32_t, 2, space::device> counts) {
  const std::size_t slot = blockIdx.y, list = blockIdx.x, row = slot * cache.lists + list;
  if (active.data != nullptr && active(slot) == 0) return;
  const device_slot state = cache.slots(slot * cache.kv_heads);
  const middle_range middle = state.extent.middle(cache.rule);
  const bool everything = cache.listing(state, middle) == selector::coverage::everything;
  const std::size_t wanted = everything ? middle.size() : cache.counts(row), room = indices.extent(2);
  const std::size_t count = wanted < room ? wanted : room;
  for (std::size_t i = threadIdx.x; i < room; i += blockDim.x)
    indices(slot, list, i) = i >= count ? -1 : everything ? static_cast<std::int32_t>(middle.begin + i) : found(row, i);
  if (threadIdx.x == 0) counts(slot, list) = static_cast<std::uint32_t>(count);
}

/// Query heads are grid.x, slots grid.y: results of active slots to where the caller wants them.
template <class Active>
PQKV_HIDDEN __global__ void __launch_bounds__(max_head_dim)
    copy_results_kernel(Active active, view<const float, 2, space::device> from, view<const float, 1, space::device> from_lse,
                        view<float, 3, space::device> out, view<float, 2, space::device> lse) {
  const std::size_t slot = blockIdx.y, q = blockIdx.x, row = slot * gridDim.x + q;
  if (active.data != nullptr && active(slot) == 0) return;
  for (std::size_t i = threadIdx.x; i < out.extent(2); i += blockDim.x) out(slot, q, i) = from(row, i);
  if (threadIdx.x == 0 && lse.data != nullptr) lse(slot, q) = from_lse(row);
}

}  // namespace detail
}  // namespace pqkv
