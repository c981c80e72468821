// SPDX-License-Identifier: Apache-2.0
// Softmax sums of attended tokens on the device. The CTAs of a cluster sum one list, or a few lists side by side: those of a list take
// tiles of 64 tokens in turn; a warp computes the logits of half a tile for four query heads, then the sum of a tile for one. The first CTA
// of a list merges the tiles' sums in their order, so that the bits are the host's.
//
// sum_attended_kernel is a launch of its own. Where a step is ranked in one launch by clusters, some clusters of that launch do the same
// (retrieve_cluster.cuh).
#pragma once

#include "../../core/canonical.hpp"
#include "../../selector/attended_sum.hpp"
#include "../../selector/pq.hpp"
#include "attended_sum_tiles.cuh"
#include "attention.cuh"
#include "block/cluster.cuh"
#include "block/shared.cuh"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

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
  static constexpr bool has_biases = false;
};

/// Lists of a step that is not planned yet: a list's CTAs make its plan. The first one also writes the biases of the tables that the step
/// will make, with the bits of inner_product_table().
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
    const query_plan plan = plan_query(block::read_whole(queries.sequences(at.slot)), queries.query(at), queries.rule, queries.covers);
    if (plan.range.size() != 0) found.span = plan.span;
    return found;
  }
  static constexpr bool has_biases = true;
  /// By a warp.
  /// @param row  of the query
  __device__ void write_bias(const summed_list& found, unsigned row, view<const float, 2, space::device> query) const {
    const unsigned d = static_cast<unsigned>(mean.extent(1)), lane = threadIdx.x % 32;
    constexpr unsigned parts =
        static_cast<unsigned>(max_head_dim) / 32;  // the warp reads 32 terms of the chain at once, and all reads overlap
    float x[parts], y[parts], sum = 0;
#pragma unroll
    for (unsigned part = 0; part < parts; ++part) {
      const unsigned i = part * 32 + lane;
      x[part] = i < d ? axes.of_query(&query(row, 0), found.head, i) : 0.0f, y[part] = i < d ? mean(found.head, i) : 0.0f;
    }
#pragma unroll
    for (unsigned part = 0; part < parts; ++part)
#pragma unroll 8
      for (unsigned term = 0; term < 32 && part * 32 + term < d; ++term)
        sum = canonical::fma(__shfl_sync(block::all_lanes, x[part], static_cast<int>(term)),
                             __shfl_sync(block::all_lanes, y[part], static_cast<int>(term)), sum);
    if (lane == 0) bias(row) = sum;
  }
};

/// The same where the biases are made elsewhere.
struct planned_spans_alone : planned_spans {
  static constexpr bool has_biases = false;
};

/// A call: what is summed, and how.
template <class Store, class Spans>
struct attended_call {
  view<const float, 2, space::device> query;  // [hq, d]
  Store store;
  Spans spans;
  attended_shape shape;
  canonical::softmax_scale scale;
  view<attended_sum, 1, space::device> sums;  // [hq], written
  std::uint32_t* summed;  // [lists] g is added once a list's sums and biases are there; null: nobody waits in the launch
  unsigned lists;

  /// Sums the lists of one cluster, as one of its CTAs. All CTAs of the cluster have called team.arrive(), if they are several. Inlined,
  /// since a function would read the call, a parameter of the kernel, through its address, which is slow.
  template <unsigned Threads>
  __device__ __forceinline__ void run(const block::cluster_team& team, unsigned cluster, unsigned clusters) const;

 private:
  /// Tiles of a list.
  __device__ static unsigned tiles_of(const token_span& span) {
    return attended_tile::count(span.leading) + attended_tile::count(attended_tile::window(span));
  }
  using value_type = typename Store::value_type;

  /// Begins to copy the rows of tiles [first, first + here) into shared memory. Neighbouring lanes copy runs of one row.
  template <unsigned Threads>
  __device__ void copy_keys(const summed_list& list, unsigned first, unsigned here, unsigned char* keys, float* scales) const {
    constexpr unsigned tile = attended_shape::tile;
    const unsigned runs = shape.runs(),
                   log_lanes = runs > 16  ? 5
                               : runs > 8 ? 4
                               : runs > 4 ? 3
                               : runs > 2 ? 2
                                          : runs - 1,
                   lanes = 1u << log_lanes;
    const auto row_at = [&](unsigned row) {
      const attended_tile of(list.span, first + row / tile);
      const std::uint32_t t = row % tile < of.tokens ? row % tile : of.tokens - 1;  // a short tile repeats its last token
      return mapped(store).key(list.head, of.begin + t);
    };
    constexpr unsigned rows_at_once = 4;  // a store may read where a row is: these reads overlap
    const unsigned step = Threads >> log_lanes, rows = here * tile;
    for (unsigned base = threadIdx.x >> log_lanes; base < rows; base += rows_at_once * step) {
      kv_row<value_type> from[rows_at_once];
#pragma unroll
      for (unsigned a = 0; a < rows_at_once; ++a) from[a] = row_at(base + a * step < rows ? base + a * step : base);
#pragma unroll
      for (unsigned a = 0; a < rows_at_once; ++a) {
        const unsigned row = base + a * step;
        for (unsigned i = threadIdx.x & (lanes - 1); row < rows && i < runs; i += lanes)
          attended_run<value_type>::copy(from[a], shape.d, i * shape.run, keys + row * shape.row_bytes() + i * 16);
        if constexpr (std::is_same_v<value_type, scaled_int8>)
          if (row < rows && (threadIdx.x & (lanes - 1)) == 0) block::copy_word_async(block::shared_address(scales + row), from[a].scale);
      }
    }
    block::end_copies();
  }
};

template <class Store, class Spans>
template <unsigned Threads>
__device__ __forceinline__ void attended_call<Store, Spans>::run(const block::cluster_team& team, unsigned cluster,
                                                                 unsigned clusters) const {
  constexpr unsigned warps = Threads / 32, tile = attended_shape::tile;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = shape.g, lists_here = shape.side_by_side;
  const unsigned own_list = lists_here == 1 ? 0 : team.rank() % lists_here,
                 member = lists_here == 1 ? team.rank() : team.rank() / lists_here, members = shape.members(own_list),
                 groups = g == 1 ? 1 : shape.padded_heads() / attended_shape::heads_at_once;
  block::shared_memory memory;
  summed_list* const found = memory.take<summed_list>(lists_here);
  float* const queries = memory.take<float>(shape.padded_heads() * shape.padded());
  unsigned char* const keys = memory.take<unsigned char>(shape.tiles_at_once * tile * shape.row_bytes());
  float* const scales = memory.take<float>(shape.tiles_at_once * tile);
  float* const logits = memory.take<float>(shape.tiles_at_once * shape.padded_heads() * tile);  // [tiles, heads, tile]
  attended_sum* const of_tile = memory.take<attended_sum>(shape.merged_at_once(shape.members(0)) * g);  // [tiles, g] of the first CTA
  attended_sum* const own = memory.take<attended_sum>(g);
  bool may_write = team.size() == 1;  // to the shared memory of other CTAs: they have begun
  for (unsigned base = cluster * lists_here; base < lists; base += clusters * lists_here) {
    if (threadIdx.x < lists_here) found[threadIdx.x] = base + threadIdx.x < lists ? spans.find(store, base + threadIdx.x) : summed_list{};
    const unsigned list = base + own_list;
    const bool is_list = list < lists;
    for (unsigned i = threadIdx.x; i < shape.padded_heads() * shape.padded(); i += Threads) {
      const unsigned q = i / shape.padded(), e = i - q * shape.padded();
      queries[i] = is_list && q < g && e < shape.d ? query(list * g + q, e) : 0.0f;
    }
    for (unsigned q = threadIdx.x; q < g; q += Threads) own[q] = {};
    __syncthreads();
    const summed_list mine = found[own_list];
    const unsigned tiles = tiles_of(mine.span), most = shape.merged_at_once(members);
    unsigned rounds = 0;  // of the list that needs most: all CTAs meet at the same barriers
    for (unsigned other = 0; other < lists_here; ++other) {
      const unsigned merged = shape.merged_at_once(shape.members(other)), needed = (tiles_of(found[other].span) + merged - 1) / merged;
      rounds = needed > rounds ? needed : rounds;
    }
    if (!may_write) team.wait(), may_write = true;
    for (unsigned round = 0; round < rounds; ++round) {
      const unsigned begin = round * most < tiles ? round * most : tiles, last = tiles - begin < most ? tiles : begin + most;
      const unsigned even = (last - begin + members - 1) / members, at_once = even < shape.tiles_at_once ? even : shape.tiles_at_once;
      for (unsigned first = begin + member * at_once; first < last; first += members * at_once) {
        const unsigned here = last - first < at_once ? last - first : at_once;
        copy_keys<Threads>(mine, first, here, keys, scales);
        if constexpr (Spans::has_biases)  // while the keys are under way
          for (unsigned q = warp; first == 0 && q < g; q += warps) spans.write_bias(mine, list * g + q, query);
        block::wait_copies<0>();
        __syncthreads();
        for (unsigned item = warp; item < 2 * here * groups; item += warps) {
          const unsigned of_tile_and_group = item / 2, which = of_tile_and_group / groups, half = item % 2 * (tile / 2),
                         from = (of_tile_and_group - which * groups) * attended_shape::heads_at_once, row = which * tile + half;
          const float* const of_heads = queries + from * shape.padded();
          float* const to = logits + (which * shape.padded_heads() + from) * tile + half;
          if (g == 1)
            logits_of_half<1, value_type>(of_heads, keys + row * shape.row_bytes(), scales + row, shape, to);
          else
            logits_of_half<attended_shape::heads_at_once, value_type>(of_heads, keys + row * shape.row_bytes(), scales + row, shape, to);
        }
        __syncthreads();
        for (unsigned item = warp; item < here * g; item += warps) {
          const unsigned which = item / g, q = item - which * g;
          const attended_sum sum = sum_of_logits(logits + (which * shape.padded_heads() + q) * tile,
                                                 attended_tile(mine.span, first + which).tokens, scale);
          if (lane == 0) *team.remote(&of_tile[(first + which - begin) * g + q], own_list) = sum;
        }
        __syncthreads();
      }
      team.sync();
      for (unsigned q = warp; member == 0 && q < g; q += warps) {
        attended_sum merged = own[q];
        for (unsigned which = begin; which < last; which += 32)
          merged = merged_in_order(merged, which + lane < last ? of_tile[(which + lane - begin) * g + q] : attended_sum{}, scale);
        __syncwarp();
        if (lane == 0) own[q] = merged;
      }
      if (round + 1 < rounds) team.sync();  // the sums are about to be overwritten
    }
    for (unsigned q = warp; member == 0 && is_list && q < g; q += warps)
      if (lane == 0) {  // of the warp that merged this query head
        sums(list * g + q) = own[q];
        if (summed != nullptr) block::add_released(&summed[list], 1);
      }
    if (base + clusters * lists_here < lists) team.sync();  // the sums, and what was found, are about to be overwritten
  }
  if (!may_write) team.wait();
}

/// grid.x: CTAs of a cluster; grid.y: clusters. Not PQKV_HIDDEN: an engine's store may be a type without linkage.
template <class Store, class Spans>
__global__ void __launch_bounds__(attended_shape::threads) sum_attended_kernel(const __grid_constant__ attended_call<Store, Spans> call) {
  const block::cluster_team team(call.shape.ctas);
  if (team.size() > 1) team.arrive();  // once all have begun, their shared memory may be written
  block::release_dependents();
  block::wait_for_last_kernel();
  call.template run<attended_shape::threads>(team, blockIdx.y, gridDim.y);
}

/// @param lists  of `sums`
template <class Store, class Spans>
void sum_attended_lists(const launcher& launch, view<const float, 2, space::device> query, const Store& store, const Spans& spans,
                        std::size_t lists, view<attended_sum, 1, space::device> sums, float scale) {
  static_assert(std::is_trivially_copyable_v<Store>, "pqkv: a kv_store goes into kernels by value; make it trivially copyable");
  if (lists == 0) return;
  const std::size_t d = store.head_dim();
  attended_shape shape = attended_shape::of<typename Store::value_type>(1, query.extent(0) / lists, d);
  const auto kernel = sum_attended_kernel<Store, Spans>;
  const bool is_hopper = launch.is_built_for_hopper(kernel);
  while (is_hopper && shape.ctas < attended_shape::most_ctas && 2 * shape.ctas * lists <= tuning::multiprocessors) shape.ctas *= 2;
  const std::size_t room = launch.shared_limit(kernel);
  while (!shape.fit(room) && shape.ctas > 1) shape.ctas /= 2;  // hundreds of query heads a KV head
  launch("sum_attended_kernel", kernel,
         {.grid = dim3(shape.ctas, static_cast<unsigned>(lists)),
          .threads = attended_shape::threads,
          .shared_bytes = shape.shared_bytes(),
          .cluster = shape.ctas,
          .early = is_hopper},
         attended_call<Store, Spans>{query, store, spans, shape, canonical::softmax_scale::of(d, scale), sums, nullptr,
                                     static_cast<unsigned>(lists)});
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
