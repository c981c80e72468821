// SPDX-License-Identifier: Apache-2.0
// Steps of sequences that several ranks share: plans, rows and lists of a rank's share. What ranks decide together is in the files beside
// this one.
#pragma once

#include "../../scale/share_steps.hpp"
#include "block/cluster.cuh"
#include "kernel.cuh"
#include "sequence_steps.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// token_share in 32 bits: a position has no more, and divisions of 64 bits take long on a device.
struct share_places {
  std::uint32_t ranks, rank, block, run, runs_end, round, first_of_round;

  explicit share_places(const scale::token_share& of)
      : ranks(cut(of.layout.ranks)),
        rank(cut(of.rank)),
        block(cut(of.layout.block)),
        run(cut(of.layout.run)),
        runs_end(cut(of.layout.ranks * of.layout.run)),
        round(cut(of.layout.ranks * of.layout.block)),
        first_of_round(cut(of.rank * of.layout.block)) {}

  __device__ bool owns(std::uint32_t t) const {
    if (t < runs_end) return t / run == rank;
    const std::uint32_t place = (t - runs_end) % round;
    return place >= first_of_round && place - first_of_round < block;
  }
  __device__ std::uint32_t local(std::uint32_t position) const {
    const std::uint32_t begin = rank * run, own = position > begin && run != 0 ? least(position - begin, run) : 0;
    if (position <= runs_end) return own;
    const std::uint32_t dealt = position - runs_end, rounds = dealt / round, rest = dealt - rounds * round;
    return own + rounds * block + (rest > first_of_round ? least(rest - first_of_round, block) : 0);
  }
  __device__ std::uint32_t position(std::uint32_t place) const {
    if (place < run) return rank * run + place;
    const std::uint32_t dealt = place - run, blocks = dealt / block;
    return runs_end + blocks * round + first_of_round + (dealt - blocks * block);
  }
  __device__ middle_range local(const middle_range& range) const { return {local(range.begin), local(range.end), range.retrieve}; }
  __device__ token_span local(const token_span& span) const {
    return {local(span.leading), local(span.window_begin), local(span.window_end)};
  }
  __device__ leaving_tokens local(const leaving_tokens& tokens) const { return {tokens.slot, local(tokens.first), local(tokens.last)}; }
  /// The share of another rank.
  __device__ share_places of(std::uint32_t other) const {
    share_places theirs = *this;
    theirs.rank = other, theirs.first_of_round = cut(std::size_t{other} * block);
    return theirs;
  }

 private:
  PQKV_HD static std::uint32_t cut(std::size_t number) { return number < 0xffffffffu ? static_cast<std::uint32_t>(number) : 0xffffffffu; }
  __device__ static std::uint32_t least(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }
};

/// How many tokens of a share are listed: under selection_mode::local a rank's part of k.
__device__ inline std::uint32_t listed_of_share(std::uint32_t k, scale::selection_mode mode, const share_places& places) {
  if (mode == scale::selection_mode::exact) return k;
  const std::uint64_t whole = k;
  return static_cast<std::uint32_t>(whole * (places.rank + 1) / places.ranks - whole * places.rank / places.ranks);
}

/// A thread takes one list of a query token; tokens follow one another. As plan_step_kernel, and the share's part of each plan.
template <class Call>
PQKV_HIDDEN __global__ void __launch_bounds__(256) plan_share_kernel(Call call, share_places places, unsigned lists, unsigned h) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x, i = at / lists, list = at - i * lists;
  if (at == 0 && call.vote_to != nullptr) *call.vote_to = call.vote;
  if (i >= call.plan.slots.extent(0)) return;
  const auto& queries = call.queries;
  const std::size_t batch = queries.sequences.extent(0);
  const step_token token = locate(queries.step, batch, queries.first + i);
  const bool is_query = token.count != 0 && token.slot < batch;
  query_plan one{};
  if (is_query) one = plan_query(queries.sequences(token.slot), queries.query(token), queries.rule, queries.covers);
  if (!queries.has_own_list(token, i)) one.range = {};
  call.plan.spans(at) = places.local(one.span);
  call.plan.counts(at) = 0;
  if (list < h) {
    call.plan.ranges(i * h + list) = one.range;
    middle_range own = places.local(one.range);
    own.retrieve = listed_of_share(one.range.retrieve, call.mode, places);
    call.own(i * h + list) = own;
  }
  if (list == 0) call.plan.slots(i) = is_query ? token.slot : 0;
}

/// One warp for each row of the sample.
template <class Rows, class T>
__global__ void __launch_bounds__(256) gather_share_kernel(Rows rows, std::size_t first_head, stratified_sample sample, std::uint32_t first,
                                                           share_places places, view<T, 3, space::device> out) {
  const std::size_t row = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32, n = out.extent(1);
  if (row >= out.extent(0) * n) return;
  const std::size_t head = row / n, i = row - head * n;
  const std::uint32_t token = first + static_cast<std::uint32_t>(sample(i));
  const bool is_own = places.owns(token);
  const auto key = rows.key(first_head + head, is_own ? places.local(token) : 0);
  for (std::size_t e = threadIdx.x % 32; e < out.extent(2); e += 32)
    out(head, i, e) = is_own ? static_cast<T>(key[e]) : static_cast<T>(0.0f);
}

/// grid.x: lists; grid.y: query tokens. Writes the lists of retrieve(), by positions in the whole sequence.
template <class Call>
PQKV_HIDDEN __global__ void __launch_bounds__(256)
    write_share_lists_kernel(Call call, share_places places, view<const std::int32_t, 2, space::device> found,
                             view<std::int32_t, 3, space::device> indices, view<std::uint32_t, 2, space::device> counts) {
  const std::size_t i = blockIdx.y, list = blockIdx.x, row = i * gridDim.x + list;
  const auto& queries = call.queries;
  const std::size_t batch = queries.sequences.extent(0);
  const step_token token = locate(queries.step, batch, queries.first + i);
  const bool is_asked = token.count != 0 && token.slot < batch;
  const middle_range whole = places.local(
      is_asked ? whole_middle(queries.sequences(token.slot), queries.query(token), queries.rule, queries.covers) : middle_range{});
  const std::size_t listed = whole.size() != 0 ? whole.size()
                             : is_asked        ? call.plan.counts(row)
                                               : 0,
                    room = indices.extent(2), count = listed < room ? listed : room;
  if (threadIdx.x == 0) counts(i, list) = static_cast<std::uint32_t>(count);
  for (std::size_t k = threadIdx.x; k < room; k += blockDim.x) {
    const std::uint32_t place = k >= count          ? 0u
                                : whole.size() != 0 ? whole.begin + static_cast<std::uint32_t>(k)
                                                    : static_cast<std::uint32_t>(found(row, k));
    indices(i, list, k) = k < count ? static_cast<std::int32_t>(places.position(place)) : -1;
  }
}

}  // namespace detail

template <>
struct kernel<op::plan_share, backend::cuda> {
  template <class P>
  static void run(const P& policy, const scale::planned_share<space::device>& call) {
    const std::size_t tokens = call.plan.slots.extent(0), all = call.plan.spans.extent(0);
    if (tokens == 0) return;
    const auto kernel = detail::plan_share_kernel<scale::planned_share<space::device>>;
    const detail::launcher launch(policy, "plan_share");
    launch("plan_share_kernel", kernel,
           {.grid = dim3(detail::ceil_div(all, 256)), .threads = 256, .early = launch.is_built_for_hopper(kernel)}, call,
           detail::share_places(call.share), static_cast<unsigned>(all / tokens), static_cast<unsigned>(call.own.extent(0) / tokens));
  }
};

template <>
struct kernel<op::append_share, backend::cuda> {
  template <class P, class Rows, class Index, class K, class V, class From>
  static void run(const P& policy, const Rows& rows, const Index& index, const appended_tokens<space::device>& call,
                  const scale::token_share& share, view<K, 3, From> keys, view<V, 3, From> values) {
    detail::append_step(policy, rows, index, call, keys, values, detail::share_places(share));
  }
};

template <>
struct kernel<op::truncate_share, backend::cuda> {
  template <class P, class Index>
  static void run(const P& policy, const Index& index, const truncated_tokens<space::device>& call, const scale::token_share& share) {
    detail::launcher(policy, "truncate")("truncate_tokens_kernel", detail::truncate_tokens_kernel<Index, detail::share_places>,
                                         {dim3(static_cast<unsigned>(call.rows())), 256}, index, call, detail::share_places(share));
  }
};

template <>
struct kernel<op::gather_share, backend::cuda> {
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  const scale::token_share& share, view<T, 3, space::device> out) {
    detail::launcher(policy, "prefill")("gather_share_kernel", detail::gather_share_kernel<Rows, T>,
                                        {dim3(detail::ceil_div(out.extent(0) * out.extent(1), 8)), 256}, rows, head, sample,
                                        static_cast<std::uint32_t>(first), detail::share_places(share), out);
  }
};

template <>
struct kernel<op::write_share_lists, backend::cuda> {
  template <class P>
  static void run(const P& policy, const scale::planned_share<space::device>& call, view<const std::int32_t, 2, space::device> found,
                  const view<std::int32_t, 3, space::device>& indices, const view<std::uint32_t, 2, space::device>& counts) {
    detail::launcher(policy, "retrieve")("write_share_lists_kernel", detail::write_share_lists_kernel<scale::planned_share<space::device>>,
                                         {dim3(static_cast<unsigned>(indices.extent(1)), static_cast<unsigned>(indices.extent(0))), 256},
                                         call, detail::share_places(call.share), found, indices, counts);
  }
};

}  // namespace pqkv
