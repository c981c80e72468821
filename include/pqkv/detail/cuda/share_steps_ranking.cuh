// SPDX-License-Identifier: Apache-2.0
// The ranking of a rank's share on the device, to the bits that one rank with all tokens computes: normalisers of all ranks, the best of
// the share, and which of these all ranks select. Messages are written and read by the kernels that need them. Where they travel in kernels,
// one launch does all stages of an operation, and its CTA of a list waits for the same CTA of the other ranks.
#pragma once

#include <algorithm>

#include "block/list_select.cuh"
#include "pq_step.cuh"
#include "retrieve.cuh"
#include "share_steps.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Which stages of an operation a launch does.
struct stage_range {
  unsigned first, last;
  __device__ bool has(unsigned stage) const { return first <= stage && stage <= last; }
};

/// Whether one of the library's kernels is ahead of a launch, and not what a communicator has enqueued.
template <class Mail>
constexpr bool follows_kernel(const stage_range& stages) {
  return Mail::travels_in_kernels || stages.first == 0;
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
      any |= canonical::needs_recentring(z, tokens_);
      write(mail, 2 * (first_ + q), z);
      write(mail, 2 * (first_ + q) + 1, 0);
    }
    if (__syncthreads_or(any ? 1 : 0) != 0)  // a sum over all ranks can have too few bits only if each rank's has
      for_scorers([&](scorer_type& scorer, unsigned first, unsigned queries) {
        const block::scored_items items = call_.items(list_);
        for (unsigned q = first; q < first + queries; ++q) {
          if (!canonical::needs_recentring(call_.totals[std::size_t{first_ + q} * scan_device_runs], tokens_)) continue;
          const std::uint32_t key = scorer.largest(items, q - first);
          if (threadIdx.x == 0) write(mail, 2 * (first_ + q) + 1, key);
        }
      });
    mail.post();
  }
  /// Reads the ranks' sums. Writes this rank's sums around the centres of query heads whose sum has too few bits.
  __device__ void take_sums(const Mail& mail, const Mail& centred) const {
    mail.await();
    bool any = false;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      std::uint64_t z = 0, key = 0;
      for (unsigned rank = 0; rank < mail.ranks; ++rank) {
        const std::uint64_t of_rank = mail.word(rank, 2 + 2 * (first_ + q));
        z += mail.word(rank, 1 + 2 * (first_ + q));
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
    centred.post();
  }
  /// Reads the ranks' sums around the centres.
  __device__ void take_centred(const Mail& mail) const {
    bool any = false;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) any |= normalisers_[first_ + q].largest == to_come;
    if (__syncthreads_or(any ? 1 : 0) == 0) return;
    mail.await();
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      normaliser& own = normalisers_[first_ + q];
      if (own.largest != to_come) continue;
      own.largest = 0;
      for (unsigned rank = 0; rank < mail.ranks; ++rank) own.sum += mail.word(rank, 1 + first_ + q);
    }
  }

 private:
  __device__ static void write(const Mail& mail, std::size_t i, std::uint64_t number) {
    for (unsigned target = 0; target < mail.targets(); ++target) mail.to(target)[1 + i] = number;
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
                 Mail sums, Mail centred, stage_range stages) {
  __shared__ typename block::list_scorer<Threads, Pack>::scratch scratch;
  block::release_dependents();
  block::wait_for_last_kernel();
  const unsigned list = blockIdx.x;
  const std::uint32_t tokens = whole(call.row_head_of(list)).size();
  if (tokens == 0) return;  // on every rank
  const Mail first = sums.open(list), second = centred.open(list);
  const list_agreement<Threads, Pack, Mail> agreement(call, shape, list, tokens, normalisers, scratch);
  if (stages.has(0)) agreement.send_sums(first);
  if (stages.has(1)) agreement.take_sums(first, second);
  __syncthreads();
  if (stages.has(2)) agreement.take_centred(second);
}

/// Query heads of one list, and whether the CTA writes what all CTAs of the list compute.
struct list_heads {
  unsigned first, count;
  bool writes;
};

/// Adds up the sums of all ranks inside a kernel whose CTAs have all items of a list: several CTAs may have the same list.
template <class Mail>
struct sums_over_ranks {
  Mail first, second;
  list_heads heads;
  normaliser* kept;  // [hq] written for later kernels
  canonical::softmax_scale scale;

  template <class Scorer>
  __device__ void add_sums(Scorer& scorer, const block::scored_items& items, std::uint32_t tokens) const {
    bool any = false;
    for (unsigned q = threadIdx.x; q < heads.count; q += blockDim.x) {
      any |= canonical::needs_recentring(scorer.total(q), tokens);
      write(first, 2 * (heads.first + q), scorer.total(q));
      write(first, 2 * (heads.first + q) + 1, 0);
    }
    if (__syncthreads_or(any ? 1 : 0) != 0)
      for (unsigned q = 0; q < heads.count; ++q) {
        if (!canonical::needs_recentring(scorer.total(q), tokens)) continue;
        const std::uint32_t key = scorer.largest(items, q);
        if (threadIdx.x == 0) write(first, 2 * (heads.first + q) + 1, key);
      }
    if (heads.writes) first.post();
    first.await();
    for (unsigned q = threadIdx.x; q < heads.count; q += blockDim.x) {
      std::uint64_t z = 0;
      for (unsigned rank = 0; rank < first.ranks; ++rank) z += first.word(rank, 1 + 2 * (heads.first + q));
      scorer.set_total(q, z);
      if (heads.writes) kept[heads.first + q] = {z, 0, 0};
    }
    __syncthreads();
  }
  __device__ std::uint32_t best_of_all(unsigned q, std::uint32_t) const {
    std::uint64_t best = 0;
    for (unsigned rank = 0; rank < first.ranks; ++rank) {
      const std::uint64_t key = first.word(rank, 2 + 2 * (heads.first + q));
      best = key > best ? key : best;
    }
    return static_cast<std::uint32_t>(best);
  }
  template <class Scorer, class IsRecentred>
  __device__ void add_centred(Scorer& scorer, const IsRecentred& is_recentred) const {
    for (unsigned q = threadIdx.x; q < heads.count; q += blockDim.x)
      if (is_recentred(q)) write(second, heads.first + q, scorer.total(q));
    if (heads.writes) second.post();
    second.await();
    for (unsigned q = threadIdx.x; q < heads.count; q += blockDim.x) {
      if (!is_recentred(q)) continue;
      std::uint64_t z = 0;
      for (unsigned rank = 0; rank < second.ranks; ++rank) z += second.word(rank, 1 + heads.first + q);
      scorer.set_total(q, z);
      if (heads.writes) kept[heads.first + q] = {z, canonical::recentring(canonical::from_order_key(best_of_all(q, 0)), scale), 0};
    }
    __syncthreads();
  }

 private:
  __device__ void write(const Mail& mail, std::size_t i, std::uint64_t number) const {
    for (unsigned target = 0; heads.writes && target < mail.targets(); ++target) mail.to(target)[1 + i] = number;
  }
};

/// Where a rank's tokens are, for planned_lists.
template <class Mail>
struct ranked_places {
  share_places share;
  scale::selection_mode mode;
  Mail sums, centred;
  normaliser* kept;
  float* table;  // [hq, m, c] written for later kernels
  canonical::softmax_scale scale;

  __device__ middle_range local(const middle_range& range) const {
    middle_range own = share.local(range);
    own.retrieve = listed_of_share(range.retrieve, mode, share);
    return own;
  }
  __device__ token_span local(const token_span& span) const { return share.local(span); }
  __device__ void keep_table(const float* from, unsigned first, unsigned count, unsigned entries) const {
    for (unsigned i = threadIdx.x; i < count * entries; i += blockDim.x) table[first * entries + i] = from[i];
  }
  /// @param tokens  of the whole sequence that are ranked
  template <class Scorer>
  __device__ std::uint32_t prepare(Scorer& scorer, const block::scored_items& items, const middle_range& range, std::uint32_t tokens,
                                   const list_heads& heads) const {
    if (tokens == 0 || mode == scale::selection_mode::local) return scorer.prepare(items, range.size());
    const unsigned list = heads.first / heads.count;
    return scorer.prepare(items, tokens, sums_over_ranks<Mail>{sums.open(list), centred.open(list), heads, kept, scale});
  }
};

/// A candidate's order: of equal scores the lower position first.
__device__ inline std::uint64_t candidate_word(std::uint32_t score_key, std::uint32_t position) {
  return std::uint64_t{~score_key} << 32 | position;
}

inline constexpr unsigned candidate_tile = 2048;  // tokens whose codes are in shared memory at a time

/// Writes a list's candidates: how many, and each. By one CTA.
/// @param memory  for a tile's keys and codes, then for a scorer
template <unsigned Threads, unsigned Pack, class Mail>
__device__ void send_candidates(const block::scoring& call, scan_shape shape, const retrieved_lists& found, const share_places& places,
                                const Mail& mail, std::size_t base, block::shared_memory memory) {
  const unsigned list = blockIdx.x;
  const std::uint32_t count = found.counts(list);
  const std::size_t head = call.head_of(list), stride = call.codes.stride(1);
  const std::uint8_t* const codes = call.codes.data + head * call.codes.stride(0);
  std::uint32_t* const keys = memory.take<std::uint32_t>(candidate_tile);
  std::uint8_t* const copied = memory.take<std::uint8_t>(call.m * candidate_tile);
  for (std::uint32_t first = 0; first < count; first += candidate_tile) {
    const std::uint32_t here = count - first < candidate_tile ? count - first : candidate_tile;
    for (std::uint32_t i = threadIdx.x; i < here; i += Threads) {
      const std::size_t t = static_cast<std::size_t>(found.list(list)[first + i]);
      for (unsigned j = 0; j < call.m; ++j) copied[j * candidate_tile + i] = codes[j * stride + t];
    }
    __syncthreads();
    const block::scored_items sample{copied, candidate_tile, nullptr, here, call.m, call.bits};
    score_items<Threads, Pack>(call, shape, list, sample, memory, first == 0, 0, here, keys);
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; i < here; i += Threads) {
      const std::uint64_t word = candidate_word(keys[i], places.position(static_cast<std::uint32_t>(found.list(list)[first + i])));
      for (unsigned target = 0; target < mail.targets(); ++target) mail.to(target)[base + 1 + first + i] = word;
    }
    __syncthreads();
  }
  if (threadIdx.x < mail.targets()) mail.to(threadIdx.x)[base] = count;
  mail.post();
}

/// Keeps those of a list's tokens that are among the k best candidates of all ranks. By one CTA.
/// @param cached  how many candidates' keys shared memory has room for
template <unsigned Threads, class Mail>
__device__ void keep_chosen(const retrieved_lists& found, std::uint32_t k, const Mail& mail, std::size_t base, std::uint32_t most,
                            std::uint32_t cached) {
  __shared__ block::list_select<Threads> select;
  __shared__ block::reduction<std::uint32_t, Threads> sums;
  __shared__ std::uint32_t sent[64];
  const unsigned list = blockIdx.x, ranks = mail.ranks;
  mail.await();
  std::uint32_t total = 0;
  for (unsigned rank = 0; rank < ranks; ++rank) {
    const std::uint32_t count = static_cast<std::uint32_t>(mail.word(rank, base));
    total += count;
    if (threadIdx.x == 0 && rank < 64) sent[rank] = count;
  }
  if (total <= k) return;  // all are kept
  __syncthreads();
  const auto is_sent = [&](std::uint32_t i) {
    const std::uint32_t rank = i / most;
    return i - rank * most < (rank < 64 ? sent[rank] : static_cast<std::uint32_t>(mail.word(rank, base)));
  };
  const auto word_at = [&](std::uint32_t i) {
    const std::uint32_t rank = i / most;
    return mail.word(rank, base + 1 + (i - rank * most));
  };
  const std::uint32_t items = ranks * most;
  std::uint32_t* const keys = block::shared_memory().take<std::uint32_t>(cached);
  std::uint32_t ceiling = 0;
  for (std::uint32_t i = threadIdx.x; i < items; i += Threads) {
    const std::uint32_t key = is_sent(i) ? ~static_cast<std::uint32_t>(word_at(i) >> 32) : 0;
    if (i < cached) keys[i] = key;
    ceiling = key > ceiling ? key : ceiling;
  }
  ceiling = sums.max(ceiling);
  const auto key_at = [&](std::uint32_t i) {
    return i < cached ? keys[i] : is_sent(i) ? ~static_cast<std::uint32_t>(word_at(i) >> 32) : 0u;
  };
  const auto weight_at = [&](std::uint32_t i) { return is_sent(i) ? 1u : 0u; };
  const block::threshold limit = select.find(items, k, ceiling, select.wide_shift, key_at, weight_at);
  const bool all_equal = select.takes_all_equal();
  __syncthreads();
  std::uint32_t last = 0xffffffffu;  // the highest position that is selected among equal scores
  if (!all_equal) {
    const auto place_at = [&](std::uint32_t i) { return is_sent(i) ? ~static_cast<std::uint32_t>(word_at(i)) : 0u; };
    const auto is_equal = [&](std::uint32_t i) { return is_sent(i) && key_at(i) == limit.key ? 1u : 0u; };
    last = ~select.find(items, limit.of_equal, 0xffffffffu, 22, place_at, is_equal).key;
  }
  const std::uint32_t count = found.counts(list);
  std::int32_t* const tokens = found.list(list);
  std::uint32_t kept = 0;
  for (std::uint32_t first = 0; first < count; first += Threads) {
    const std::uint32_t i = first + threadIdx.x;
    std::int32_t token = 0;
    bool is_kept = false;
    if (i < count) {
      const std::uint64_t word = mail.word(mail.rank, base + 1 + i);
      const std::uint32_t key = ~static_cast<std::uint32_t>(word >> 32);
      is_kept = key > limit.key || (key == limit.key && static_cast<std::uint32_t>(word) <= last);
      token = tokens[i];
    }
    std::uint32_t here = 0;
    const std::uint32_t before = sums.prefix(is_kept ? 1u : 0u, here);
    if (is_kept) tokens[kept + before] = token;
    kept += here;
  }
  __syncthreads();
  if (threadIdx.x == 0) found.counts(list) = kept;
}

/// One CTA for each list. @param most  room for candidates of a list in a message
template <unsigned Threads, unsigned Pack, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    choose_kernel(block::scoring call, scan_shape shape, view<const middle_range, 1, space::device> whole, retrieved_lists found,
                  share_places places, Mail given, std::uint32_t most, std::uint32_t cached, stage_range stages) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const middle_range range = whole(call.row_head_of(blockIdx.x));
  if (range.size() == 0) return;  // on every rank
  const Mail mail = given.open(blockIdx.x);
  const std::size_t base = 1 + std::size_t{blockIdx.x} * (most + 1);
  if (stages.has(0)) send_candidates<Threads, Pack>(call, shape, found, places, mail, base, block::shared_memory());
  __syncthreads();
  if (stages.has(1)) keep_chosen<Threads>(found, range.selected() < most ? range.selected() : most, mail, base, most, cached);
}

/// One CTA for each query head.
template <class Call, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(128) merge_shares_kernel(Call call, Mail given, stage_range stages) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const Mail mail = given.open(blockIdx.x);
  const std::size_t q = blockIdx.x, rows = call.out.extent(0), d = call.out.extent(1);
  if (stages.has(0)) {
    for (unsigned target = 0; target < mail.targets(); ++target) {
      float* const to = reinterpret_cast<float*>(mail.to(target) + 1);
      for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) to[rows + q * d + i] = call.own_out(q, i);
      if (threadIdx.x == 0) to[q] = call.own_lse(q);
      if (threadIdx.x == 0 && q == 0) *mail.to(target) = call.vote;
    }
    mail.post();
  }
  if (!stages.has(1)) return;
  mail.await();
  if (q == 0 && threadIdx.x == 0)
    for (unsigned rank = 1; rank < mail.ranks; ++rank)
      if (mail.word(rank, 0) != mail.word(0, 0)) *call.disagreed = 1;
  float lse = 0;
  for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = mail.value(0, rows + q * d + i);
    lse = mail.value(0, q);
    for (unsigned rank = 1; rank < mail.ranks; ++rank) {
      const merge_weights weights = merge_weights::of(lse, mail.value(rank, q));
      sum = weights(sum, mail.value(rank, rows + q * d + i));
      lse = weights.lse;
    }
    call.out(q, i) = sum;
  }
  if (threadIdx.x == 0) call.lse(q) = lse;
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

}  // namespace detail

template <>
struct kernel<op::agree_normalisers, backend::cuda> {
  template <class P, class Mail>
  static void run(const P& policy, const scale::ranked_share<space::device>& call, const Mail& sums, const Mail& centred, unsigned first,
                  unsigned last) {
    detail::block::scoring scoring = detail::scoring_of(call);
    const detail::launcher launch(policy, "agree_normalisers");
    if (detail::spread_launches<4>::takes(launch, scoring))
      spread<4>(policy, launch, scoring, call, sums, centred, {first, last});
    else
      spread<1>(policy, launch, scoring, call, sums, centred, {first, last});
  }

 private:
  template <unsigned Pack, class P, class Mail>
  static void spread(const P& policy, const detail::launcher& launch, detail::block::scoring& scoring,
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

template <>
struct kernel<op::rank_share, backend::cuda> {
  template <class P, class Mail>
  static bool run(const P& policy, const scale::planned_share<space::device>& plan, const scale::ranked_share<space::device>& call,
                  const pq_index_view<space::device>& index, view<const float, 2, space::device> query, const Mail& sums,
                  const Mail& centred) {
    const ranked_step<space::device> step{plan.queries, plan.plan, query, index, call.found.indices, call.how};
    const detail::ranked_places<Mail> places{detail::share_places(call.share),
                                             plan.mode,
                                             sums,
                                             centred,
                                             call.normalisers.data,
                                             const_cast<float*>(call.table.entries.data),
                                             canonical::softmax_scale::of(call.how.head_dim, call.how.scale)};
    return detail::rank_step_in_one(policy, step, places);
  }
};

template <>
struct kernel<op::retrieve_share, backend::cuda> {
  template <class P>
  static void run(const P& policy, const scale::ranked_share<space::device>& call) {
    const bool uses = detail::block::uses_probabilities(call.how.reduction);
    kernel<op::retrieve, backend::cuda>::run(policy, call.table, call.codes, call.index, call.own, call.found.indices, call.found.counts,
                                             call.how, {}, call.map, uses ? call.normalisers.data : nullptr);
  }
};

template <>
struct kernel<op::choose_tokens, backend::cuda> {
  template <class P, class Mail>
  static void run(const P& policy, const scale::ranked_share<space::device>& call, const Mail& mail, unsigned first, unsigned last) {
    detail::block::scoring scoring = detail::scoring_of(call);
    scoring.index = {};  // listed tokens are scored by their codes
    const detail::launcher launch(policy, "choose_tokens");
    if (detail::spread_launches<4>::takes(launch, scoring))
      go<4>(launch, scoring, call, mail, {first, last});
    else
      go<1>(launch, scoring, call, mail, {first, last});
  }

 private:
  template <unsigned Pack, class Mail>
  static void go(const detail::launcher& launch, const detail::block::scoring& scoring, const scale::ranked_share<space::device>& call,
                 const Mail& mail, detail::stage_range stages) {
    using detail::block::shared_memory;
    constexpr unsigned threads = detail::tuning::select_threads;
    const detail::spread_launches<Pack> all(launch, scoring, scoring.codes.extent(2));
    const auto kernel = detail::choose_kernel<threads, Pack, Mail>;
    const std::size_t tile = shared_memory::bytes<std::uint32_t>(detail::candidate_tile) +
                             shared_memory::bytes<std::uint8_t>(scoring.m * detail::candidate_tile) + all.table_bytes();
    const std::size_t room = launch.shared_limit(kernel), cached = std::min(call.share.layout.ranks * call.k, room / sizeof(std::uint32_t) - 64);
    launch("choose_kernel", kernel,
           {.grid = dim3(scoring.lists),
            .threads = threads,
            .shared_bytes = std::max(tile, shared_memory::bytes<std::uint32_t>(cached)),
            .early = all.is_early_after_first() && detail::follows_kernel<Mail>(stages)},
           scoring, all.shape(), call.whole, detail::retrieved_lists{call.found.indices, call.found.counts},
           detail::share_places(call.share), mail, static_cast<std::uint32_t>(call.k), static_cast<std::uint32_t>(cached), stages);
  }
};

template <>
struct kernel<op::merge_shares, backend::cuda> {
  template <class P, class Mail>
  static void run(const P& policy, const scale::merged_shares<space::device>& call, const Mail& mail, unsigned first, unsigned last) {
    if (!Mail::travels_in_kernels && last == 0) return;  // attention has written the message
    const detail::launcher launch(policy, "merge_shares");
    const auto kernel = detail::merge_shares_kernel<scale::merged_shares<space::device>, Mail>;
    launch("merge_shares_kernel", kernel,
           {.grid = dim3(static_cast<unsigned>(call.out.extent(0))),
            .threads = 128,
            .early = launch.is_built_for_hopper(kernel) && detail::follows_kernel<Mail>({first, last})},
           call, mail, detail::stage_range{first, last});
  }
};

}  // namespace pqkv
