// SPDX-License-Identifier: Apache-2.0
// Normalisers over the tokens of all ranks, on the device: integers, so that the sums have the bits that one rank with all tokens computes.
// Where messages travel in kernels, one launch does all stages, and its CTA of a list waits for the same CTA of the other ranks.
#pragma once

#include <algorithm>

#include "retrieve.cuh"
#include "share_steps.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Which stages of an operation a launch does.
struct stage_range {
  unsigned first, last;
  __device__ bool has(unsigned stage) const { return first <= stage && stage <= last; }
};

/// Whether the work enqueued just before a launch is a kernel of the library, and not an exchange of the communicator's.
template <class Mail>
constexpr bool follows_kernel(const stage_range& stages) {
  return Mail::travels_in_kernels || stages.first == 0;
}

/// A rank's ranking as the kernels of retrieve() take it.
inline block::scoring scoring_of(const scale::ranked_share<space::device>& call) {
  block::scoring of(call.table, call.codes, call.how.reduction, call.how.head_dim, call.how.scale, call.map);
  of.ranges = call.own;
  of.path = call.how.path;
  of.given = block::uses_probabilities(of.reduction) ? call.normalisers.data : nullptr;
  if (call.how.path != search_path::scan) of.index = call.index;
  const list_items most(of);  // removes an index that no list can use
  return of;
}

/// The normalisers of one list's query heads, from the sums of all ranks. One CTA for each list.
template <unsigned Threads, unsigned Pack, class Mail>
class list_agreement {
  using scorer_type = block::list_scorer<Threads, Pack>;
  static constexpr float to_come = 1.0f;  // in `largest`, which is at most 0: the sum around the centre is not there yet

 public:
  __device__ list_agreement(const block::scoring& call, scan_shape shape, unsigned list, std::uint32_t tokens, normaliser* normalisers,
                            typename scorer_type::scratch& scratch)
      : call_(call), shape_(shape), list_(list), tokens_(tokens), first_(list * call.g), normalisers_(normalisers), scratch_(scratch) {}

  /// Writes this rank's sums, from the sums of runs.
  __device__ void send_sums(const Mail& mail) const {
    bool any = false;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      std::uint64_t* const runs = call_.totals + std::size_t{first_ + q} * scan_device_runs;
      std::uint64_t z = 0;
#pragma unroll 8
      for (unsigned run = 0; run < shape_.runs; ++run) z += runs[run];
      runs[0] = z;
      const bool is_short = canonical::needs_recentring(z, tokens_);
      any |= is_short;
      write(mail, 2 * (first_ + q), z);
      if (!is_short) write(mail, 2 * (first_ + q) + 1, 0);
    }
    if (__syncthreads_or(any ? 1 : 0) != 0)  // a sum over all ranks can have too few bits only if each rank's has
      for_scorers([&](scorer_type& scorer, unsigned first, unsigned queries) {
        const auto is_short = [&](unsigned q) {
          return canonical::needs_recentring(call_.totals[std::size_t{first_ + first + q} * scan_device_runs], tokens_);
        };
        scorer.stage_sums([&](unsigned q) { return is_short(q) && scorer.is_usable(q); });
        scorer.find_largest(call_.items(list_));
        for (unsigned q = threadIdx.x; q < queries; q += Threads)
          if (is_short(q)) write(mail, 2 * (first_ + first + q) + 1, scorer.is_usable(q) ? scorer.total(q) : 0);
      });
  }
  /// Reads the ranks' sums. Writes this rank's sums around the centres of query heads whose sum has too few bits.
  __device__ void take_sums(const Mail& mail, const Mail& centred) const {
    bool any = false;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      std::uint64_t z = 0, key = 0;
      for (unsigned rank = 0; rank < mail.ranks; ++rank) {
        const std::uint64_t of_rank = read(mail, rank, 2 * (first_ + q) + 1);
        z += read(mail, rank, 2 * (first_ + q));
        key = of_rank > key ? of_rank : key;
      }
      normaliser own{z, 0, 0};
      if (canonical::needs_recentring(z, tokens_)) {
        own = {};
        if (key != 0) own = {0, canonical::recentring(canonical::from_order_key(static_cast<std::uint32_t>(key)), call_.scale), to_come};
      }
      normalisers_[first_ + q] = own;
      any |= own.largest == to_come;
    }
    if (__syncthreads_or(any ? 1 : 0) == 0) return;
    for_scorers([&](scorer_type& scorer, unsigned first, unsigned queries) {
      const block::scored_items items = call_.items(list_);
      scorer.resume(nullptr);
      scorer.add_up(items, 0, items.n);
      for (unsigned q = threadIdx.x; q < queries; q += Threads)
        if (normalisers_[first_ + first + q].largest == to_come) write(centred, first_ + first + q, scorer.total(q));
    });
  }
  /// Reads the ranks' sums around the centres.
  __device__ void take_centred(const Mail& mail) const {
    bool any = false;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) any |= normalisers_[first_ + q].largest == to_come;
    if (__syncthreads_or(any ? 1 : 0) == 0) return;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      normaliser& own = normalisers_[first_ + q];
      if (own.largest != to_come) continue;
      own.largest = 0;
      for (unsigned rank = 0; rank < mail.ranks; ++rank) own.sum += read(mail, rank, first_ + q);
    }
  }

 private:
  /// Number i of this rank's message, and of a rank's.
  __device__ static void write(const Mail& mail, std::size_t i, std::uint64_t number) {
    if constexpr (Mail::travels_in_kernels)
      mail.give_all(2 * i, static_cast<std::uint32_t>(number)), mail.give_all(2 * i + 1, static_cast<std::uint32_t>(number >> 32));
    else
      mail.own[1 + i] = number;
  }
  __device__ static std::uint64_t read(const Mail& mail, unsigned rank, std::size_t i) {
    if constexpr (Mail::travels_in_kernels)
      return mail.take(rank, 2 * i) | std::uint64_t{mail.take(rank, 2 * i + 1)} << 32;
    else
      return mail.word(rank, 1 + i);
  }
  /// Calls take(scorer, first query head, how many) for chunks of the list's query heads, with their exponentials in shared memory.
  template <class Take>
  __device__ void for_scorers(Take take) const {
    for (unsigned first = 0; first < call_.g; first += shape_.chunk) {
      const unsigned queries = shape_.queries(call_.g, first);
      block::shared_memory memory;
      scorer_type scorer(call_, list_, first, queries, scratch_, memory);
      __syncthreads();
      scorer.stage(nullptr);
      __syncthreads();
      take(scorer, first, queries);
    }
  }

  const block::scoring& call_;
  scan_shape shape_;
  unsigned list_;
  std::uint32_t tokens_;
  unsigned first_;
  normaliser* normalisers_;
  typename scorer_type::scratch& scratch_;
};

/// One CTA for each list.
template <unsigned Threads, unsigned Pack, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    agree_kernel(block::scoring call, scan_shape shape, view<const middle_range, 1, space::device> whole, normaliser* normalisers,
                 const __grid_constant__ Mail sums, const __grid_constant__ Mail centred, stage_range stages) {
  using message = typename Mail::message;
  __shared__ typename block::list_scorer<Threads, Pack>::scratch scratch;
  block::release_dependents();
  block::wait_for_last_kernel();
  const unsigned list = blockIdx.x;
  const std::uint32_t tokens = whole(call.row_head_of(list)).size();
  if (tokens == 0) return;  // on every rank
  const message first = sums.open(list), second = centred.open(list);
  const list_agreement<Threads, Pack, message> agreement(call, shape, list, tokens, normalisers, scratch);
  if (stages.has(0)) agreement.send_sums(first);
  if (stages.has(1)) agreement.take_sums(first, second);
  __syncthreads();
  if (stages.has(2)) agreement.take_centred(second);
}

}  // namespace detail

template <>
struct kernel<op::agree_normalisers, backend::cuda> {
  template <class P, class Mail>
  static void run(const P& policy, const scale::ranked_share<space::device>& call, const Mail& sums, const Mail& centred, unsigned first,
                  unsigned last) {
    detail::block::scoring scoring = detail::scoring_of(call);
    const detail::launcher launch(policy, "agree_normalisers");
    if (detail::spread_launches<4>::takes(launch, scoring))
      dispatch<4>(policy, launch, scoring, call, sums, centred, {first, last});
    else
      dispatch<1>(policy, launch, scoring, call, sums, centred, {first, last});
  }

 private:
  template <unsigned Pack, class P, class Mail>
  static void dispatch(const P& policy, const detail::launcher& launch, detail::block::scoring& scoring,
                       const scale::ranked_share<space::device>& call, const Mail& sums, const Mail& centred, detail::stage_range stages) {
    constexpr unsigned threads = detail::tuning::select_threads;
    arena memory = detail::device_scratch(policy.scratch, detail::scan_device_scratch_bytes(scoring.query_heads()), "agree_normalisers");
    scoring.carve(memory);
    const std::size_t items = scoring.index.empty() ? scoring.codes.extent(2) : std::max(scoring.index.cells(), std::size_t{1});
    const detail::spread_launches<Pack> all(launch, scoring, items);
    const bool sums_now = stages.first == 0;
    if (sums_now) all.sums();
    const auto kernel = detail::agree_kernel<threads, Pack, Mail>;
    launch("agree_kernel", kernel,
           {.grid = dim3(scoring.lists),
            .threads = threads,
            .shared_bytes = all.table_bytes(),
            .early = all.is_early_after_first() && detail::follows_kernel<Mail>(stages)},
           scoring, all.shape(), call.whole, call.normalisers.data, sums, centred, stages);
  }
};

}  // namespace pqkv
