// SPDX-License-Identifier: Apache-2.0
// The plan of a step, the tables of its queries and the selection of their tokens in one launch: each was a launch of its own, and they
// waited for each other longer than they worked. Every CTA of a list makes the list's plan and table for itself.
#pragma once

#include "../../core/canonical.hpp"
#include "../../selector/pq.hpp"
#include "attended_sum_beside.cuh"
#include "retrieve_cluster.cuh"
#include "retrieve_filter.cuh"
#include "retrieve_fused.cuh"
#include "sequence_steps_append.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Lists of a step that is not planned yet. A CTA makes the list's plan in one warp while the others copy what the list's table is made of
/// into shared memory; the first CTA of each list writes the plan.
///
/// @tparam Places  where the sequences' tokens are among the cache's rows: whole_sequence, or a rank's share of them; and whether the lists
///                 of all ranks are selected together
template <unsigned Threads, unsigned Pack, class Places = whole_sequence>
struct planned_lists {
  static constexpr bool exchanges = Places::exchanges, plans = true;
  using pack = block::query_pack<Pack>;

  planned_queries<space::device> queries;
  step_plan<space::device> plan;
  view<const float, 2, space::device> query;  // [T * hq, d]
  codebook_view<space::device> book;
  pair_axes<space::device> axes;
  Places places;
  unsigned kv_heads, tokens, packs, d, ds;  // packs of a list's query heads; no division of 64 bits on the device

  planned_lists(const ranked_step<space::device>& step, unsigned g, const Places& of = {})
      : queries(step.queries),
        plan(step.plan),
        query(step.query),
        book(step.index.book),
        axes(step.index.pairs),
        places(of),
        kv_heads(static_cast<unsigned>(step.index.kv_heads)),
        tokens(static_cast<unsigned>(step.plan.slots.extent(0))),
        packs((g + Pack - 1) / Pack),
        d(static_cast<unsigned>(book.head_dim())),
        ds(static_cast<unsigned>(book.sub_dim())) {}

  std::size_t shared_bytes(const block::scoring& call) const {
    using block::shared_memory;
    return shared_memory::bytes<float>(std::size_t{call.g} * call.m * call.c) + shared_memory::bytes<pack>(packs * d) +
           shared_memory::bytes<middle_range>(2) + shared_memory::bytes<float>(d) + shared_memory::bytes<float>(call.g);
  }
  /// Of the centroids, which are needed until the tables are there.
  std::size_t centroid_bytes(const block::scoring& call) const {
    return block::shared_memory::bytes<std::uint32_t>(std::size_t{d} * call.c);
  }

  /// The entries of a list's query heads, [g, m, c].
  struct entries {
    float* table;
    pack* rows;                // [packs, d] the queries, whose axes are in order
    std::uint32_t* centroids;  // [m, ds, c] bits of floats
    middle_range* range;       // [2] of the rows; of the whole sequence
    float *mean, *biases;      // [d] of the keys; [g] of the table, where sums over attended tokens need them

    __device__ const float* operator()(const block::scoring& call, unsigned, unsigned q, unsigned j) const {
      return table + ((q * call.m + j) << call.bits);
    }
  };

  struct one {
    const planned_lists& all;
    const block::scoring& call;
    unsigned list, row_head, token, part, parts;
    bool writes, is_query;
    std::uint32_t number = 0;  // of this exchange
    step_token at;

    /// @param own_part  of the CTAs of a list
    __device__ one(const planned_lists& lists, const block::scoring& of, unsigned which, unsigned own_part, unsigned all_parts)
        : all(lists),
          call(of),
          list(which),
          row_head(of.row_head_of(which)),
          token(lists.tokens == 1 ? 0 : row_head / lists.kv_heads),
          part(own_part),
          parts(all_parts),
          writes(own_part == 0) {
      if (!is_early()) block::wait_for_last_kernel();
      if constexpr (exchanges) number = all.places.next_number(list, part);
      const std::size_t batch = all.queries.sequences.extent(0);
      at = locate(all.queries.step, batch, all.queries.first + token);
      is_query = at.count != 0 && at.slot < batch;
    }
    __device__ std::size_t head() const { return std::size_t{is_query ? at.slot : 0} * all.kv_heads + (row_head - token * all.kv_heads); }

    /// Whether the codebook and the axes may be read before the kernel ahead of this one has ended: the slot is known without reading, and
    /// whatever writes them lets no kernel begin before it has ended.
    __device__ bool is_early() const { return !exchanges && all.queries.step.is_in_order(); }

    /// Begins to copy the head's centroids and the list's queries. From here on, what the kernel ahead has written may be read.
    /// @param centroids_at  memory for the centroids; null: to be taken
    __device__ entries begin(block::shared_memory& memory, std::uint32_t* centroids_at = nullptr) const {
      entries own;
      own.table = memory.take<float>(call.g * call.m * call.c);
      own.rows = memory.take<pack>(all.packs * all.d);
      own.centroids = centroids_at != nullptr ? centroids_at : memory.take<std::uint32_t>(all.d * call.c);
      own.range = memory.take<middle_range>(2);
      own.mean = memory.take<float>(all.d);
      own.biases = memory.take<float>(call.g);
      static_assert(Threads >= max_head_dim);
      const auto axis = all.axes.at(head(), threadIdx.x < all.d ? threadIdx.x : 0);
      if (call.attended != nullptr && threadIdx.x < all.d)
        block::copy_word_async(block::shared_address(own.mean + threadIdx.x), &all.book.mean(head(), threadIdx.x));
      const float* centroids = &all.book.centroids(head(), 0, 0, 0);
      const std::size_t step = all.book.centroids.stride(1);
      const unsigned of_subspace = all.ds * call.c, runs = step == of_subspace ? 1 : call.m;  // a lifted metric has one row more in memory
#pragma unroll 1
      for (unsigned j = 0; j < runs; ++j)
        copy_words<Threads>(own.centroids + j * of_subspace, reinterpret_cast<const std::uint32_t*>(centroids + j * step),
                            runs == 1 ? call.m * of_subspace : of_subspace);
      float inverse = axis.inverse();
      asm volatile("" : "+f"(inverse));  // here, not after the wait
      if (is_early()) block::wait_for_last_kernel();
      if (threadIdx.x >= all.d) return own;
#pragma unroll 1
      for (unsigned first = 0; first < call.g; first += Pack) {
        pack x;
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q)
          x.of[q] = first + q < call.g ? canonical::mul(all.query(list * call.g + first + q, axis.source), inverse) : 0.0f;
        own.rows[first / Pack * all.d + threadIdx.x] = x;
      }
      return own;
    }
    /// Makes the plan while the copies run, then the same numbers as inner_product_table(). Ends with a barrier.
    /// @param planned  called in between by all threads, with the list's range: all copies are there
    template <class Planned>
    __device__ void finish(const entries& own, Planned planned) const {
      if (threadIdx.x >= Threads - 32) make_plan(own.range);
      block::wait_copies<0>();
      __syncthreads();
      planned(*own.range);
      if (call.attended != nullptr && threadIdx.x / 32 == Threads / 32 - 1) make_biases(own);
      if (2 * Threads <= all.packs * call.m << call.bits)
        multiply<Pack, 2>(own);
      else
        multiply<Pack / 2, 1>(own);
      __syncthreads();
    }
    __device__ void finish(const entries& own) const {
      finish(own, [](const middle_range&) {});
    }
    /// What is added to a query head's normaliser.
    __device__ block::attended_head beside(const entries& own, unsigned q) const {
      return call.attended == nullptr ? block::attended_head{} : block::attended_head{call.attended[list * call.g + q], own.biases[q]};
    }
    /// The list's range, after finish().
    __device__ middle_range range(const entries& own) const { return *own.range; }
    /// Where the ranges of all ranks are one.
    __device__ middle_range whole(const entries& own) const { return own.range[1]; }
    __device__ auto exchange() const { return all.places.template exchange<Threads>(list, part, parts, number); }
    __device__ void count_exchange() const { all.places.count(list, part, parts, number); }

   private:
    /// The biases of the table, with the bits of inner_product_table(). By one warp.
    __device__ void make_biases(const entries& own) const {
      for (unsigned q = threadIdx.x % 32; q < call.g; q += 32) {
        const pack* row = own.rows + q / Pack * all.d;
        float sum = 0;
#pragma unroll 16
        for (unsigned k = 0; k < all.d; ++k) sum = canonical::fma(row[k].of[q % Pack], own.mean[k], sum);
        own.biases[q] = sum;
      }
    }
    /// Makes the table's entries. What limits it is reading shared memory, so a thread makes several entries, unless other threads would
    /// then have nothing to do.
    /// @tparam Heads    query heads of a thread
    /// @tparam Columns  centroids of a thread
    template <unsigned Heads, unsigned Columns>
    __device__ void multiply(const entries& own) const {
      using some = block::query_pack<Heads>;
      constexpr unsigned parts = Pack / Heads;  // of a pack
      const unsigned apart = call.c / Columns;  // a thread's centroids
#pragma unroll 1
      for (unsigned i = threadIdx.x; i < parts * all.packs * call.m * apart; i += Threads) {
        const unsigned x = i & (apart - 1), row = i / apart, of_part = row / call.m, j = row - of_part * call.m, first = of_part * Heads;
        const some* y = reinterpret_cast<const some*>(own.rows + of_part / parts * all.d + j * all.ds) + of_part % parts;
        const std::uint32_t* centroid = own.centroids + j * all.ds * call.c + x;
        float sum[Columns][Heads] = {};
#pragma unroll 8
        for (unsigned k = 0; k < all.ds; ++k) {
          const some of_query = y[parts * k];
#pragma unroll
          for (unsigned a = 0; a < Columns; ++a) {
            const float of_centroid = float_from_bits(centroid[k * call.c + a * apart]);
#pragma unroll
            for (unsigned q = 0; q < Heads; ++q) sum[a][q] = canonical::fma(of_query.of[q], of_centroid, sum[a][q]);
          }
        }
#pragma unroll
        for (unsigned a = 0; a < Columns; ++a)
#pragma unroll
          for (unsigned q = 0; q < Heads; ++q)
            if (first + q < call.g) own.table[(((first + q) * call.m + j) << call.bits) + x + a * apart] = sum[a][q];
      }
    }
    /// By one warp. The first CTA of a list writes the plan.
    __device__ void make_plan(middle_range* found) const {
      query_plan made{};
      if (is_query)
        made = plan_query(block::read_whole(all.queries.sequences(at.slot)), all.queries.query(at), all.queries.rule, all.queries.covers);
      if (!all.queries.has_own_list(at, token)) made.range = {};
      if (threadIdx.x % 32 != 0) return;
      found[0] = call.limited(all.places.local(made.range));
      found[1] = made.range;
      if (!writes) return;
      all.plan.spans(list) = all.places.local(made.span);
      if (list != row_head * call.lists_per_head) return;
      all.plan.ranges(row_head) = made.range;
      if (row_head == token * all.kv_heads) all.plan.slots(token) = is_query ? at.slot : 0;
    }
  };
};

}  // namespace detail

namespace detail {
/// A step's call of retrieve(), whose tables are not there yet.
inline block::scoring planned_call(const ranked_step<space::device>& step) {
  const codebook_view<space::device> book = step.index.book;
  const distance_table_view<space::device> no_table{
      make_view<space::device>(static_cast<const float*>(nullptr), step.query.extent(0), book.subspaces(), book.size()),
      as_const(step.bias)};
  const head_map<space::device> map{as_const(step.plan.slots), static_cast<std::uint32_t>(step.index.kv_heads)};
  block::scoring call(no_table, as_const(step.index.codes), step.how.reduction, step.how.head_dim, step.how.scale, map);
  call.path = step.how.path;
  call.attended = step.attended.data;
  if (step.how.path != search_path::scan) call.index = step.index.index;
  return call;
}
/// Whether a step can be planned and ranked in one launch: without query heads together, look-ups would be of one query head.
inline bool can_plan_in_one(const ranked_step<space::device>& step, const block::scoring& call) {
  return step.plan.slots.extent(0) != 0 && block::uses_probabilities(step.how.reduction) && call.g > 1;
}

/// Ranks a step in one launch, by the cells of an index or a short range. @return false, and nothing is enqueued, where it needs more
/// @param before  called right before the launch
template <class P, class Places, class Before = no_work>
bool rank_step_in_one(const P& policy, const ranked_step<space::device>& step, const Places& places, const Before& before = {}) {
  constexpr unsigned together = 4;
  block::scoring call = planned_call(step);
  if (!can_plan_in_one(step, call)) return false;
  const list_items most(call);
  const launcher launch(policy, "rank_step");
  const planned_lists<tuning::fused_threads, together, Places> lists(step, call.g, places);
  return retrieve_in_one<together>(launch, call, lists, {step.indices, step.plan.counts}, nullptr, most.items, most.cells, before);
}
/// The same by the tokens of long ranges. @param policy  with scratch for retrieve()
/// @param beside  what some clusters do beside it
template <class P, class Places, class Beside = nothing_beside>
bool rank_step_in_clusters(const P& policy, const ranked_step<space::device>& step, const Places& places, const Beside& beside = {}) {
  constexpr unsigned together = 4;
  block::scoring call = planned_call(step);
  call.summed = step.summed.data;
  if (!can_plan_in_one(step, call)) return false;
  const list_items most(call);
  if (most.cells != 0) return false;
  const std::size_t n = call.codes.extent(2);
  arena memory = device_scratch(
      policy.scratch, retrieve_device_scratch_bytes({.lists = call.lists, .query_heads = call.query_heads(), .tokens = n}), "rank_step");
  const launcher launch(policy, "rank_step");
  const planned_lists<tuning::cluster_threads, together, Places> lists(step, call.g, places);
  const filter_memory own(memory, call);
  return rank_in_clusters<together>(launch, call, lists, {step.indices, step.plan.counts}, nullptr, own.keys,
                                    own.spread(step.arrived.data), no_work{}, beside);
}
}  // namespace detail

template <>
struct kernel<op::rank_step, backend::cuda> {
  /// @param policy  with scratch for retrieve()
  /// @param rows    of all slots, where the step's `attended` are to be computed
  /// @return false, and nothing is enqueued, where the selection needs more than one launch
  template <class P, class Rows>
  static bool run(const P& policy, const ranked_step<space::device>& step, const Rows& rows) {
    static_assert(std::is_trivially_copyable_v<Rows>, "pqkv: a cache's rows go into kernels by value; make them trivially copyable");
    const bool has_sums = step.attended.data != nullptr;
    const std::size_t lists = step.plan.slots.extent(0) * step.index.kv_heads;
    const detail::planned_spans spans{step.queries,
                                      as_const(step.index.book.mean),
                                      step.index.pairs,
                                      step.bias,
                                      static_cast<unsigned>(step.index.kv_heads),
                                      static_cast<unsigned>(step.plan.slots.extent(0))};
    const auto launch_sums = [&] {
      if (has_sums) detail::sum_attended_lists({policy, "sum_attended"}, step.query, rows, spans, lists, step.attended, step.how.scale);
    };
    if (detail::rank_step_in_one(policy, step, detail::whole_sequence{}, launch_sums)) return true;
    const auto shape =
        detail::attended_shape::of<typename Rows::value_type>(1, lists == 0 ? 1 : step.query.extent(0) / lists, rows.head_dim());
    const detail::sums_beside<Rows, detail::planned_spans_alone> beside{
        {step.query, rows, {spans}, shape, canonical::softmax_scale::of(rows.head_dim(), step.how.scale), step.attended, step.summed.data,
         static_cast<unsigned>(has_sums ? lists : 0)}};
    return detail::rank_step_in_clusters(policy, step, detail::whole_sequence{}, beside);
  }
};

}  // namespace pqkv
