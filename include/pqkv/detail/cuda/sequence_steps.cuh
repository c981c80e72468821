// SPDX-License-Identifier: Apache-2.0
// The operations that change sequences and their statistics, on the device. Every kernel reads the sequences' lengths from device memory,
// so a captured step can be replayed while the sequences grow.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../../cache/sequence_steps.hpp"
#include "block/cluster.cuh"
#include "block/reduce.cuh"
#include "kernel.cuh"
#include "pq_index.cuh"
#include "sequence_steps_append.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Where rows are in host memory: brings their copies up to date after a step with several tokens a row.
template <class Rows>
void refresh_residents(const launcher&, const Rows&, const appended_tokens<space::device>&, unsigned, unsigned) {}
template <class T>
void refresh_residents(const launcher& launch, const bus_rows<T>& rows, const appended_tokens<space::device>& call, unsigned h,
                       unsigned all) {
  launch("refresh_residents_kernel", refresh_residents_kernel<T>, {dim3(h, all, tuning::tier_refresh_ctas), 256}, rows, call);
}

/// The launches of append().
/// @param index  pq_index_view or no_index
/// @param keys, values  [tokens, h, d]; views without data if the rows are in the store already
template <class P, class Rows, class Index, class K, class V, class From, class Places>
void append_step(const P& policy, const Rows& rows, const Index& index, const appended_tokens<space::device>& call, view<K, 3, From> keys,
                 view<V, 3, From> values, const Places& places) {
  const launcher launch(policy, "append");
  const std::size_t batch = call.slots.sequences.extent(0), count = call.step.rows(batch);
  const unsigned h = static_cast<unsigned>(rows.heads() / batch), all = static_cast<unsigned>(count);
  if (!call.step.has_counts()) {
    const auto kernel = append_token_kernel<Rows, Index, K, V, From, Places>;
    unsigned encoders = 0;
    std::size_t centroid_bytes = 0;
    if constexpr (!std::is_same_v<Index, no_index>) {
      const unsigned m = static_cast<unsigned>(index.book.subspaces()), most = subspace_share::most(m, tuning::encode_step_ctas);
      encoders = index.index.empty() ? ceil_div(m, most) : 1;  // a cell is made of all codes
      centroid_bytes = key_encoder::shared_bytes(index.book, subspace_share::most(m, encoders), launch.shared_limit(kernel));
    }
    const unsigned shares = std::max((keys.data != nullptr ? 1 : 0) + encoders, 1u);
    launch("append_token_kernel", kernel, {dim3(h, all, shares), max_centroids, centroid_bytes}, rows, index, call, centroid_bytes != 0,
           keys, values, places);
    return;
  }
  const std::size_t warps = 8, a_row = count == 0 ? 1 : call.tokens / count / warps + 1;
  if (keys.data != nullptr)
    launch("store_step_kernel", store_step_kernel<Rows, K, V, From, Places>,
           {dim3(h, all, static_cast<unsigned>(std::min<std::size_t>(a_row, 64))), static_cast<unsigned>(warps * 32)}, rows, call, keys,
           values, places);
  if constexpr (!std::is_same_v<Index, no_index>)
    encode_leaving(launch, index, rows, step_leaving<Places>{call, places}, count, call.tokens);
  launch("commit_step_kernel", commit_step_kernel<Index, Places>, {dim3(all), 256}, index, call, places);
  refresh_residents(launch, rows, call, h, all);
}

/// Records the outcome of a prompt or a training. One thread.
template <class Slots, class Call>
PQKV_HIDDEN __global__ void commit_prompt_kernel(Slots slots, Call call) {
  bool learned = true;
  for (std::size_t h = 0; call.tried && h < call.outcomes.extent(0); ++h)
    for (std::size_t j = 0; j < call.outcomes.extent(1); ++j) learned &= call.outcomes(h, j) == 0;
  slots.sequences(call.slot) = call.tried ? after_learning(call.after, learned, call.due_again) : call.after;
  if (call.tried && learned) ++slots.statistics(call.slot).trainings, slots.statistics(call.slot).codes_trained += call.codes;
  if (call.nonfinite.data == nullptr) return;
  slots.statistics(call.slot).nonfinite_keys += call.nonfinite(0);
  slots.statistics(call.slot).nonfinite_values += call.nonfinite(1);
  call.nonfinite(0) = call.nonfinite(1) = 0;
}

/// One CTA for each row.
template <class Index, class Places>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    truncate_tokens_kernel(Index index, truncated_tokens<space::device> call, Places places) {
  const std::uint32_t slot = call.slot_of(blockIdx.x), length = call.length_of(blockIdx.x);
  if (slot >= call.slots.sequences.extent(0)) return;
  const sequence now = call.slots.sequences(slot);
  if (length > now.n || now.prefilling != 0) {
    if (threadIdx.x == 0) ++call.slots.statistics(slot).refused;
    return;
  }
  const sequence after = now.truncated(length);
  if constexpr (!std::is_same_v<Index, no_index>)
    if (now.learned != 0) change_ranking<ranking::ends>(index, places.local(leaving_between(slot, after, now, call.slots.rule)));
  __syncthreads();  // all threads have read the sequence
  if (threadIdx.x == 0) call.slots.sequences(slot) = after;
}

/// grid.x: `splits` CTAs for each segment of each part, segments in order.
template <class Slots>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    copy_slot_kernel(slot_parts parts, Slots slots, std::size_t from, std::size_t to, unsigned splits) {
  std::size_t which = blockIdx.x / splits, i = 0;
  for (; which >= parts.part[i].segments; ++i) which -= parts.part[i].segments;
  const slot_part& part = parts.part[i];
  const std::byte* source = part.segment(from, which);
  std::byte* target = part.segment(to, which);
  const std::size_t bytes = part.bytes(slots.sequences(from).longest), thread = blockIdx.x % splits * blockDim.x + threadIdx.x,
                    threads = std::size_t{splits} * blockDim.x;
  const bool is_aligned = (reinterpret_cast<std::uintptr_t>(source) | reinterpret_cast<std::uintptr_t>(target)) % sizeof(uint4) == 0;
  const std::size_t packs = is_aligned ? bytes / sizeof(uint4) : 0;
#pragma unroll 4
  for (std::size_t at = thread; at < packs; at += threads)
    reinterpret_cast<uint4*>(target)[at] = reinterpret_cast<const uint4*>(source)[at];
  for (std::size_t at = packs * sizeof(uint4) + thread; at < bytes; at += threads) target[at] = source[at];
}

/// One thread; runs after copy_slot_kernel.
template <class Slots>
PQKV_HIDDEN __global__ void copy_sequence_kernel(Slots slots, std::size_t from, std::size_t to) {
  slots.sequences(to) = slots.sequences(from);
  slots.statistics(to) = slots.statistics(from);
}

/// Counts what one query token attended to. By a CTA; each warp takes some of its query heads.
template <class Call, class Traffic>
__device__ void count_query(const slot_table<space::device>& slots, const Call& call, const Traffic& traffic, unsigned hq, unsigned h) {
  __shared__ unsigned nonfinite;
  const std::size_t i = blockIdx.x, batch = slots.sequences.extent(0);
  const step_token token = locate(call.step, batch, call.first + i);
  if (token.count == 0 || token.slot >= batch) return;
  if (threadIdx.x == 0) nonfinite = 0;
  __syncthreads();
  for (std::size_t q = i * hq + threadIdx.x / 32; q < (i + 1) * hq; q += blockDim.x / 32) {
    bool finite = true;
    for (std::size_t e = threadIdx.x % 32; e < call.query.extent(1); e += 32) finite &= is_finite(call.query(q, e));
    if (__all_sync(block::all_lanes, finite) == 0 && threadIdx.x % 32 == 0) atomicAdd(&nonfinite, 1u);
  }
  std::uint64_t attended = 0;  // only the first warp has the complete sum
  for (std::size_t list = threadIdx.x; call.attends && threadIdx.x < 32 && list < call.lists; list += 32)
    attended += attended_tokens_of(call.plan.spans(i * call.lists + list)) + call.plan.counts(i * call.lists + list);
  attended = block::warp_sum(attended);
  __syncthreads();
  if (threadIdx.x != 0) return;
  slot_statistics& of = slots.statistics(token.slot);
  add_to(of.nonfinite_queries, nonfinite);
  if (!call.attends) return;
  add_to(of.steps, 1);
  add_to(of.tokens_attended, attended / call.lists);
  add_to(of.attended_bytes, attended * call.row_bytes);
  const middle_range range = call.plan.ranges(i * h);
  if (range.size() == 0) return;
  const auto read = traffic(range);
  add_to(of.index_bytes, read.index_bytes);
  add_to(of.selector_bytes, read.selector_bytes);
}

/// One CTA for each query token, small enough to have room beside attention's CTAs. It may begin while attention is still being
/// merged, since it does not read attention's results. It ends after the merge, so later kernels run after both.
template <class Call, class Traffic>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    count_attended_kernel(slot_table<space::device> slots, Call call, Traffic traffic, unsigned hq, unsigned h) {
  block::release_dependents();
  count_query(slots, call, traffic, hq, h);
  block::wait_for_last_kernel();
}

/// grid.x: lists; grid.y: query tokens. A query without its own list gets the list of its row's first query, or, if that query is in an
/// earlier pass, of the plan's first query.
template <class Queries, class Plan>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    share_lists_kernel(Queries queries, Plan plan, view<std::int32_t, 2, space::device> found) {
  const std::size_t i = blockIdx.y;
  const step_token token = locate(queries.step, queries.sequences.extent(0), queries.first + i);
  if (queries.has_own_list(token, i)) return;
  const std::size_t back = token.index < i ? token.index : i, to = i * gridDim.x + blockIdx.x, from = to - back * gridDim.x;
  const std::uint32_t count = plan.counts(from);
  for (std::uint32_t k = threadIdx.x; k < count; k += blockDim.x) found(to, k) = found(from, k);
  if (threadIdx.x == 0) plan.counts(to) = count;
}

/// grid.x: lists; grid.y: query tokens. Writes the lists of retrieve(). A middle that is selected as a whole is listed in full. Every list
/// is cut to the length of `indices`.
template <class Queries, class Plan>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    write_lists_kernel(Queries queries, Plan plan, view<const std::int32_t, 2, space::device> found,
                       view<std::int32_t, 3, space::device> indices, view<std::uint32_t, 2, space::device> counts) {
  const std::size_t i = blockIdx.y, list = blockIdx.x, row = i * gridDim.x + list, batch = queries.sequences.extent(0);
  const step_token token = locate(queries.step, batch, queries.first + i);
  const bool is_asked = token.count != 0 && token.slot < batch;  // a query after the last row gets empty lists
  const middle_range whole =
      is_asked ? whole_middle(queries.sequences(token.slot), queries.query(token), queries.rule, queries.covers) : middle_range{};
  const std::size_t listed = whole.size() != 0 ? whole.size()
                             : is_asked        ? plan.counts(row)
                                               : 0,
                    room = indices.extent(2), count = listed < room ? listed : room;
  if (threadIdx.x == 0) counts(i, list) = static_cast<std::uint32_t>(count);
  for (std::size_t k = threadIdx.x; k < room; k += blockDim.x)
    indices(i, list, k) = k >= count ? -1 : whole.size() != 0 ? static_cast<std::int32_t>(whole.begin + k) : found(row, k);
}

}  // namespace detail

template <>
struct kernel<op::store_tokens, backend::cuda> {
  template <class P, class Rows, class K, class V, class From>
  static void run(const P& policy, const Rows& rows, const stored_tokens<space::device>& call, view<K, 3, From> keys,
                  view<V, 3, From> values) {
    detail::launcher(policy, "prefill")("store_tokens_kernel", detail::store_tokens_kernel<Rows, K, V, From>,
                                        {dim3(detail::ceil_div(keys.extent(0) * keys.extent(1), 8)), 256}, rows, call, keys, values);
  }
};

template <>
struct kernel<op::append_tokens, backend::cuda> {
  template <class P, class Rows, class Index, class K, class V, class From>
  static void run(const P& policy, const Rows& rows, const Index& index, const appended_tokens<space::device>& call, view<K, 3, From> keys,
                  view<V, 3, From> values) {
    detail::append_step(policy, rows, index, call, keys, values, detail::whole_sequence{});
  }
};

template <>
struct kernel<op::commit_prompt, backend::cuda> {
  template <class P>
  static void run(const P& policy, const slot_table<space::device>& slots, const committed_prompt<space::device>& call) {
    detail::launcher(policy, "prefill")("commit_prompt_kernel",
                                        detail::commit_prompt_kernel<slot_table<space::device>, committed_prompt<space::device>>,
                                        {dim3(1), 1}, slots, call);
  }
};

template <>
struct kernel<op::truncate_tokens, backend::cuda> {
  template <class P, class Index>
  static void run(const P& policy, const Index& index, const truncated_tokens<space::device>& call) {
    detail::launcher(policy, "truncate")("truncate_tokens_kernel", detail::truncate_tokens_kernel<Index, detail::whole_sequence>,
                                         {dim3(static_cast<unsigned>(call.rows())), 256}, index, call, detail::whole_sequence{});
  }
};

template <>
struct kernel<op::copy_slot, backend::cuda> {
  template <class P>
  static void run(const P& policy, const slot_parts& parts, const slot_table<space::device>& slots, std::size_t from, std::size_t to) {
    constexpr std::size_t share = 65536;  // about this many bytes for a CTA; not measured
    const detail::launcher launch(policy, "fork");
    std::size_t segments = 0, longest = 0;
    for (std::size_t i = 0; i < parts.count; ++i) {
      segments += parts.part[i].segments;
      longest = std::max(longest, parts.part[i].segment_bytes);
    }
    const std::size_t splits = std::clamp<std::size_t>(longest / share, 1, 64);
    launch("copy_slot_kernel", detail::copy_slot_kernel<slot_table<space::device>>, {dim3(static_cast<unsigned>(segments * splits)), 256},
           parts, slots, from, to, static_cast<unsigned>(splits));
    launch("copy_sequence_kernel", detail::copy_sequence_kernel<slot_table<space::device>>, {dim3(1), 1}, slots, from, to);
  }
};

template <>
struct kernel<op::count_attended, backend::cuda> {
  template <class P, class Traffic>
  static void run(const P& policy, const slot_table<space::device>& slots, const attended_queries<space::device>& call,
                  const Traffic& traffic) {
    const std::size_t tokens = call.plan.slots.extent(0);
    if (tokens == 0) return;
    const detail::launcher launch(policy, call.attends ? "attend" : "retrieve");
    const auto kernel = detail::count_attended_kernel<attended_queries<space::device>, Traffic>;
    const unsigned hq = static_cast<unsigned>(call.query.extent(0) / tokens), warps = std::clamp(hq, 1u, 8u);
    launch("count_attended_kernel", kernel,
           {.grid = dim3(static_cast<unsigned>(tokens)), .threads = warps * 32, .early = launch.is_built_for_hopper(kernel)}, slots, call,
           traffic, hq, static_cast<unsigned>(call.plan.ranges.extent(0) / tokens));
  }
};

template <>
struct kernel<op::share_lists, backend::cuda> {
  template <class P>
  static void run(const P& policy, const planned_queries<space::device>& queries, const step_plan<space::device>& plan,
                  view<std::int32_t, 2, space::device> found) {
    const std::size_t tokens = plan.slots.extent(0), lists = tokens == 0 ? 0 : plan.counts.extent(0) / tokens;
    detail::launcher(policy, "attend")("share_lists_kernel",
                                       detail::share_lists_kernel<planned_queries<space::device>, step_plan<space::device>>,
                                       {dim3(static_cast<unsigned>(lists), static_cast<unsigned>(tokens)), 256}, queries, plan, found);
  }
};

template <>
struct kernel<op::write_lists, backend::cuda> {
  template <class P>
  static void run(const P& policy, const planned_queries<space::device>& queries, const step_plan<space::device>& plan,
                  view<const std::int32_t, 2, space::device> found, const view<std::int32_t, 3, space::device>& indices,
                  const view<std::uint32_t, 2, space::device>& counts) {
    detail::launcher(policy, "retrieve")("write_lists_kernel",
                                         detail::write_lists_kernel<planned_queries<space::device>, step_plan<space::device>>,
                                         {dim3(static_cast<unsigned>(indices.extent(1)), static_cast<unsigned>(indices.extent(0))), 256},
                                         queries, plan, found, indices, counts);
  }
};

}  // namespace pqkv
