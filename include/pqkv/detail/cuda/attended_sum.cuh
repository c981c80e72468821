// SPDX-License-Identifier: Apache-2.0
// Softmax sums of attended tokens on the device. The CTAs of a list form a cluster and take tiles of 64 tokens in turn; a warp has the
// logits of one query head and tile. The first CTA merges the tiles' sums in their order, so that the bits are the host's.
#pragma once

#include "../../core/canonical.hpp"
#include "../../selector/attended_sum.hpp"
#include "../../selector/pq.hpp"
#include "attention.cuh"
#include "block/cluster.cuh"
#include "block/reduce.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// What one list's CTAs sum.
struct summed_list {
  std::size_t head = 0;  // of the store
  token_span span{};     // empty where nothing is ranked
};

/// Lists whose spans are in device memory.
struct given_spans {
  view<const token_span, 1, space::device> spans;     // [lists]
  view<const middle_range, 1, space::device> ranges;  // [h], or empty
  unsigned lists_per_head;

  template <class Store>
  __device__ summed_list find(const Store& store, unsigned list) const {
    const unsigned head = list / lists_per_head;
    const bool is_ranked = ranges.data == nullptr || ranges(head).size() != 0;
    return {mapped_head(store, head), is_ranked ? spans(list) : token_span{}};
  }
  /// By all threads of one CTA of the list.
  __device__ void finish(const summed_list&, unsigned, unsigned, view<const float, 2, space::device>) const {}
};

/// Lists of a step that is not planned yet: a list's CTAs make its plan. The last one writes the biases of the tables that the step will
/// make, with the bits of inner_product_table().
struct planned_spans {
  planned_queries<space::device> queries;
  view<const float, 2, space::device> mean;  // [heads, d] of the codebooks
  pair_axes<space::device> axes;
  view<float, 1, space::device> bias;  // [T * hq], written
  unsigned kv_heads, tokens;

  template <class Store>
  __device__ summed_list find(const Store&, unsigned list) const {
    const unsigned token = tokens == 1 ? 0 : list / kv_heads;
    const std::size_t batch = queries.sequences.extent(0);
    const step_token at = locate(queries.step, batch, queries.first + token);
    const bool is_query = at.count != 0 && at.slot < batch;
    summed_list found{std::size_t{is_query ? at.slot : 0} * kv_heads + (list - token * kv_heads), {}};
    if (!is_query || !queries.has_own_list(at, token)) return found;
    const query_plan plan = plan_query(queries.sequences(at.slot), queries.query(at), queries.rule, queries.covers);
    if (plan.range.size() != 0) found.span = plan.span;
    return found;
  }
  __device__ void finish(const summed_list& found, unsigned first, unsigned count, view<const float, 2, space::device> query) const {
    if (attended_tokens_of(found.span) == 0) return;  // nobody reads the biases
    const unsigned d = static_cast<unsigned>(mean.extent(1)), lane = threadIdx.x % 32;
    for (unsigned q = threadIdx.x / 32; q < count; q += blockDim.x / 32) {  // a warp reads 32 terms of a chain at once
      float sum = 0;
      for (unsigned begin = 0; begin < d; begin += 32) {
        const unsigned i = begin + lane, terms = d - begin < 32 ? d - begin : 32;
        const float x = i < d ? axes.of_query(&query(first + q, 0), found.head, i) : 0.0f, y = i < d ? mean(found.head, i) : 0.0f;
        for (unsigned term = 0; term < terms; ++term)
          sum = canonical::fma(__shfl_sync(block::all_lanes, x, static_cast<int>(term)),
                               __shfl_sync(block::all_lanes, y, static_cast<int>(term)), sum);
      }
      if (lane == 0) bias(first + q) = sum;
    }
  }
};

/// How the CTAs of a list share its tokens, and the shared memory of one.
struct attended_shape {
  static constexpr unsigned threads = 256, tile = op::sum_attended::tile_tokens, most_ctas = 8, rounds = 4;
  static_assert(tile == 64);  // a lane has two tokens of a tile

  unsigned ctas, g, d;
  unsigned tiles_at_once = 2;  // of a CTA

  /// Floats of a row of `d`, and of a tile's: lanes read rows one after the other without conflicts.
  __host__ __device__ unsigned padded() const { return (d + 3) / 4 * 4; }
  __host__ __device__ unsigned stride() const { return padded() + 4; }
  /// Tiles whose sums the first CTA merges at a time.
  __host__ __device__ unsigned merged_at_once() const { return ctas * tiles_at_once * rounds; }
  std::size_t shared_bytes() const {
    using block::shared_memory;
    return shared_memory::bytes<float>(g * padded()) + shared_memory::bytes<float>(tiles_at_once * tile * stride()) +
           shared_memory::bytes<attended_sum>(merged_at_once() * g) + shared_memory::bytes<attended_sum>(g);
  }
};

/// One of a span's tiles. Tiles of the leading tokens come before those of the window.
struct attended_tile {
  std::uint32_t begin = 0, tokens = 0;

  __device__ static unsigned count(std::uint32_t tokens) { return (tokens + attended_shape::tile - 1) / attended_shape::tile; }
  __device__ static std::uint32_t window(const token_span& span) {
    return span.window_begin < span.window_end ? span.window_end - span.window_begin : 0;
  }
  __device__ attended_tile(const token_span& span, unsigned which) {
    const unsigned leading = count(span.leading), at = (which < leading ? which : which - leading) * attended_shape::tile;
    const std::uint32_t left = (which < leading ? span.leading : window(span)) - at;
    begin = (which < leading ? 0 : span.window_begin) + at;
    tokens = left < attended_shape::tile ? left : attended_shape::tile;
  }
};

/// Four elements of a row, in one lane.
template <class T>
struct attended_part {
  using element = typename kv_row<T>::element_type;
  struct alignas(4 * sizeof(element)) run {
    element of[4];
  };
  run all{};
  float scale = 1;

  /// Elements [first, first + 4) of a row of d; zeros after the row.
  __device__ void load(kv_row<T> row, unsigned d, unsigned first) {
    if constexpr (std::is_same_v<T, scaled_int8>) scale = *row.scale;
    if (row.stride == 1 && first + 4 <= d && reinterpret_cast<std::uintptr_t>(row.data + first) % alignof(run) == 0) {
      all = *reinterpret_cast<const run*>(row.data + first);
    } else {
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) all.of[e] = first + e < d ? row.data[(first + e) * row.stride] : element{};
    }
  }
  __device__ float4 values() const { return {value(0), value(1), value(2), value(3)}; }

 private:
  __device__ float value(unsigned e) const {
    const float x = static_cast<float>(all.of[e]);
    if constexpr (std::is_same_v<T, scaled_int8>) return canonical::mul(x, scale);
    return x;
  }
};

/// The sum over one tile for one query head, by a warp.
/// @param query  [d], then zeros; @param keys  the tile's rows
__device__ inline attended_sum sum_of_tile(const float* query, const float* keys, const attended_shape& shape, std::uint32_t tokens,
                                           canonical::softmax_scale scale) {
  const unsigned lane = threadIdx.x % 32;
  const float *first = keys + lane * shape.stride(), *second = first + 32 * shape.stride();
  float logit[2] = {};
#pragma unroll 4
  for (unsigned i = 0; i < shape.padded(); i += 4) {
    const float4 q = *reinterpret_cast<const float4*>(query + i), a = *reinterpret_cast<const float4*>(first + i),
                 b = *reinterpret_cast<const float4*>(second + i);
    logit[0] = canonical::fma(q.x, a.x, logit[0]), logit[1] = canonical::fma(q.x, b.x, logit[1]);
    logit[0] = canonical::fma(q.y, a.y, logit[0]), logit[1] = canonical::fma(q.y, b.y, logit[1]);
    logit[0] = canonical::fma(q.z, a.z, logit[0]), logit[1] = canonical::fma(q.z, b.z, logit[1]);
    logit[0] = canonical::fma(q.w, a.w, logit[0]), logit[1] = canonical::fma(q.w, b.w, logit[1]);
  }
  std::uint32_t best = 0;  // as an order key; 0: none
#pragma unroll
  for (unsigned a = 0; a < 2; ++a)
    if (a * 32 + lane < tokens && is_finite(logit[a])) {
      const std::uint32_t key = canonical::order_key(logit[a]);
      best = key > best ? key : best;
    }
  best = __reduce_max_sync(block::all_lanes, best);
  if (best == 0) return {};
  const float top = canonical::from_order_key(best);
  std::uint64_t weight = 0;
#pragma unroll
  for (unsigned a = 0; a < 2; ++a)
    if (a * 32 + lane < tokens && is_finite(logit[a]))
      weight += canonical::to_fixed(canonical::exponential(canonical::sub(logit[a], top), scale));
  return {top, block::warp_sum(weight)};
}

/// grid.x: CTAs of a cluster; grid.y: lists. Not PQKV_HIDDEN: an engine's store may be a type without linkage.
template <class Store, class Spans>
__global__ void __launch_bounds__(attended_shape::threads)
    sum_attended_kernel(view<const float, 2, space::device> query, Store store, Spans spans, attended_shape shape,
                        canonical::softmax_scale scale, view<attended_sum, 1, space::device> sums) {
  constexpr unsigned threads = attended_shape::threads, warps = threads / 32, tile = attended_shape::tile, rows_at_once = 8;
  __shared__ summed_list found;
  const block::cluster_team team(shape.ctas);
  if (team.size() > 1) team.arrive();  // once all have begun, their shared memory may be written
  block::release_dependents();
  block::wait_for_last_kernel();
  const unsigned list = blockIdx.y, warp = threadIdx.x / 32, g = shape.g, at_once = shape.tiles_at_once;
  block::shared_memory memory;
  float* const queries = memory.take<float>(g * shape.padded());
  float* const keys = memory.take<float>(at_once * tile * shape.stride());
  attended_sum* const of_tile = memory.take<attended_sum>(shape.merged_at_once() * g);  // [tiles, g] of the first CTA
  attended_sum* const own = memory.take<attended_sum>(g);
  if (threadIdx.x == 0) found = spans.find(store, list);
  for (unsigned i = threadIdx.x; i < g * shape.padded(); i += threads) {
    const unsigned q = i / shape.padded(), e = i - q * shape.padded();
    queries[i] = e < shape.d ? query(list * g + q, e) : 0.0f;
  }
  for (unsigned q = threadIdx.x; q < g; q += threads) own[q] = {};
  __syncthreads();
  const token_span span = found.span;
  const unsigned tiles = attended_tile::count(span.leading) + attended_tile::count(attended_tile::window(span));
  if (team.size() > 1) team.wait();
  for (unsigned base = 0; base < tiles; base += shape.merged_at_once()) {
    const unsigned last = tiles - base < shape.merged_at_once() ? tiles : base + shape.merged_at_once();
    for (unsigned first = base + team.rank() * at_once; first < last; first += team.size() * at_once) {
      const unsigned here = last - first < at_once ? last - first : at_once;
      for (unsigned e = threadIdx.x % 32 * 4; e < shape.padded(); e += 128)
        for (unsigned row = warp; row < here * tile; row += warps * rows_at_once) {
          attended_part<typename Store::value_type> part[rows_at_once];  // their loads overlap
#pragma unroll
          for (unsigned a = 0; a < rows_at_once; ++a) {
            const unsigned which = row + a * warps;
            if (which >= here * tile) continue;
            const attended_tile of(span, first + which / tile);
            const std::uint32_t t = which % tile < of.tokens ? which % tile : of.tokens - 1;  // a short tile repeats its last token
            part[a].load(mapped(store).key(found.head, of.begin + t), shape.d, e);
          }
#pragma unroll
          for (unsigned a = 0; a < rows_at_once; ++a)
            if (row + a * warps < here * tile) *reinterpret_cast<float4*>(keys + (row + a * warps) * shape.stride() + e) = part[a].values();
        }
      __syncthreads();
      for (unsigned item = warp; item < here * g; item += warps) {
        const unsigned which = item / g, q = item - which * g;
        const attended_sum sum = sum_of_tile(queries + q * shape.padded(), keys + which * tile * shape.stride(), shape,
                                             attended_tile(span, first + which).tokens, scale);
        if (threadIdx.x % 32 == 0) *team.remote(&of_tile[(first + which - base) * g + q], 0) = sum;
      }
      __syncthreads();
    }
    team.sync();
    if (team.rank() == 0)
      for (unsigned q = threadIdx.x; q < g; q += threads)
        for (unsigned which = base; which < last; ++which) own[q] = own[q].merged(of_tile[(which - base) * g + q], scale);
    if (last < tiles) team.sync();  // the sums are about to be overwritten
  }
  if (team.rank() == 0)
    for (unsigned q = threadIdx.x; q < g; q += threads) sums(list * g + q) = own[q];
  if (team.rank() == team.size() - 1) spans.finish(found, list * g, g, query);
}

/// @param lists  of `sums`
template <class Store, class Spans>
void sum_attended_lists(const launcher& launch, view<const float, 2, space::device> query, const Store& store, const Spans& spans,
                        std::size_t lists, view<attended_sum, 1, space::device> sums, float scale) {
  static_assert(std::is_trivially_copyable_v<Store>, "pqkv: a kv_store goes into kernels by value; make it trivially copyable");
  if (lists == 0) return;
  const std::size_t d = store.head_dim();
  attended_shape shape{1, static_cast<unsigned>(query.extent(0) / lists), static_cast<unsigned>(d)};
  const auto kernel = sum_attended_kernel<Store, Spans>;
  const bool is_hopper = launch.is_built_for_hopper(kernel);
  while (is_hopper && shape.ctas < attended_shape::most_ctas && 2 * shape.ctas * lists <= tuning::multiprocessors) shape.ctas *= 2;
  const std::size_t room = launch.shared_limit(kernel);
  while (shape.shared_bytes() > room && shape.ctas > 1) shape.ctas /= 2;
  if (shape.shared_bytes() > room) shape.tiles_at_once = 1;  // hundreds of query heads a KV head
  launch("sum_attended_kernel", kernel,
         {.grid = dim3(shape.ctas, static_cast<unsigned>(lists)),
          .threads = attended_shape::threads,
          .shared_bytes = shape.shared_bytes(),
          .cluster = shape.ctas,
          .early = is_hopper},
         query, store, spans, shape, canonical::softmax_scale::of(d, scale), sums);
}

}  // namespace detail

template <>
struct kernel<op::sum_attended, backend::cuda> {
  template <class P, class Store>
  static void run(const P& policy, view<const float, 2, space::device> query, const Store& store,
                  view<const token_span, 1, space::device> spans, view<attended_sum, 1, space::device> sums, float scale,
                  view<const middle_range, 1, space::device> ranges) {
    const std::size_t lists = spans.extent(0);
    detail::sum_attended_lists({policy, "sum_attended"}, query, store,
                               detail::given_spans{spans, ranges, static_cast<unsigned>(lists / store.heads())}, lists, sums, scale);
  }
};

}  // namespace pqkv
