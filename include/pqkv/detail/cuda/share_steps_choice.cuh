// SPDX-License-Identifier: Apache-2.0
// The listed tokens that all ranks select, on the device: each rank sends the scores and positions of its best, and keeps those that are
// among the best of all. Stages and messages as in share_steps_agreement.cuh.
#pragma once

#include <algorithm>

#include "block/list_select.cuh"
#include "share_steps_agreement.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The candidates of one list in a message: how many, and the score and position of each. Gathered, a candidate is one word, whose order
/// is that of selection (scale::candidate_of).
template <class Mail>
struct candidate_mail {
  Mail mail;
  std::size_t first;   // word of the list
  std::uint32_t most;  // candidates of a list

  __device__ candidate_mail(const Mail& of, unsigned list, std::uint32_t room)
      : mail(of), first(Mail::travels_in_kernels ? list * (2 * std::size_t{room} + 1) : 1 + list * (std::size_t{room} + 1)), most(room) {}

  __device__ void send_count(std::uint32_t count) const {
    if constexpr (Mail::travels_in_kernels)
      mail.give_all(first, count);
    else
      mail.own[first] = count;
  }
  __device__ void send(std::uint32_t i, std::uint32_t key, std::uint32_t position) const {
    if constexpr (Mail::travels_in_kernels)
      mail.give_all(first + 1 + i, key), mail.give_all(first + 1 + most + i, position);
    else
      mail.own[first + 1 + i] = std::uint64_t{~key} << 32 | position;
  }
  __device__ std::uint32_t count(unsigned rank) const {
    if constexpr (Mail::travels_in_kernels)
      return mail.take(rank, first);
    else
      return static_cast<std::uint32_t>(mail.word(rank, first));
  }
  __device__ std::uint32_t key(unsigned rank, std::uint32_t i) const {
    if constexpr (Mail::travels_in_kernels)
      return mail.take(rank, first + 1 + i);
    else
      return ~static_cast<std::uint32_t>(mail.word(rank, first + 1 + i) >> 32);
  }
  /// Keys i, i + step, ... below `end`, which are read together.
  template <unsigned Count>
  __device__ void keys(unsigned rank, std::uint32_t i, std::uint32_t step, std::uint32_t end, std::uint32_t (&found)[Count]) const {
    if constexpr (Mail::travels_in_kernels) {
      mail.take(rank, first + 1 + i, step, first + 1 + end, found);
    } else {
#pragma unroll
      for (unsigned a = 0; a < Count; ++a) found[a] = i + a * step < end ? key(rank, i + a * step) : 0;
    }
  }
  __device__ std::uint32_t position(unsigned rank, std::uint32_t i) const {
    if constexpr (Mail::travels_in_kernels)
      return mail.take(rank, first + 1 + most + i);
    else
      return static_cast<std::uint32_t>(mail.word(rank, first + 1 + i));
  }
};

inline constexpr unsigned candidate_tile = 2048;  // tokens whose codes are in shared memory at a time

/// Writes a list's candidates: how many, and each. By one CTA.
/// @param memory  for a tile's keys and codes, then for a scorer
template <unsigned Threads, unsigned Pack, class Mail>
__device__ void send_candidates(const block::scoring& call, scan_shape shape, const retrieved_lists& found, const share_places& places,
                                const candidate_mail<Mail>& mail, block::shared_memory memory) {
  constexpr unsigned at_once = candidate_tile / Threads;
  const unsigned list = blockIdx.x;
  const std::uint32_t count = found.counts(list);
  if (threadIdx.x == 0) mail.send_count(count);
  const std::size_t head = call.head_of(list), stride = call.codes.stride(1);
  const std::uint8_t* const codes = call.codes.data + head * call.codes.stride(0);
  std::uint32_t* const keys = memory.take<std::uint32_t>(candidate_tile);
  std::uint8_t* const copied = memory.take<std::uint8_t>(call.m * candidate_tile);
  for (std::uint32_t first = 0; first < count; first += candidate_tile) {
    const std::uint32_t here = count - first < candidate_tile ? count - first : candidate_tile;
    std::int32_t token[at_once];
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a) {
      const std::uint32_t i = a * Threads + threadIdx.x;
      token[a] = i < here ? found.list(list)[first + i] : 0;
    }
#pragma unroll 4
    for (unsigned j = 0; j < call.m; ++j)
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a)
        copied[j * candidate_tile + a * Threads + threadIdx.x] = codes[j * stride + static_cast<std::uint32_t>(token[a])];
    __syncthreads();
    const block::scored_items sample{copied, candidate_tile, nullptr, here, call.m, call.bits};
    score_items<Threads, Pack>(call, shape, list, sample, memory, first == 0, 0, here, keys);
    __syncthreads();
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a) {
      const std::uint32_t i = a * Threads + threadIdx.x;
      if (i < here) mail.send(first + i, keys[i], places.position(static_cast<std::uint32_t>(token[a])));
    }
    __syncthreads();
  }
}

/// Keeps those of a list's tokens that are among the k best candidates of all ranks. By one CTA.
/// @param cached  how many candidates' keys shared memory has room for; further ones are read again
template <unsigned Threads, class Mail>
__device__ void keep_chosen(const retrieved_lists& found, std::uint32_t k, const candidate_mail<Mail>& mail, std::uint32_t cached) {
  __shared__ block::list_select<Threads> select;
  __shared__ block::reduction<std::uint32_t, Threads> sums;
  const unsigned list = blockIdx.x, ranks = mail.mail.ranks;
  std::uint32_t total = 0, own_begin = 0;
  for (unsigned rank = 0; rank < ranks; ++rank) {
    if (rank == mail.mail.rank) own_begin = total;
    total += mail.count(rank);
  }
  if (total <= k) return;  // all are kept
  // The candidates of all ranks, one rank behind the other.
  const auto at = [&](std::uint32_t i, auto read) {
    unsigned rank = 0;
    for (std::uint32_t count = 0; i >= (count = mail.count(rank)); ++rank) i -= count;
    return read(rank, i);
  };
  const auto position_at = [&](std::uint32_t i) { return at(i, [&](unsigned rank, std::uint32_t j) { return mail.position(rank, j); }); };
  std::uint32_t* const keys = block::shared_memory().take<std::uint32_t>(cached);
  std::uint32_t high = 0, low = 0;  // low: inverted
  std::uint32_t begin = 0;
  for (unsigned rank = 0; rank < ranks; ++rank) {
    constexpr unsigned at_once = 2;
    const std::uint32_t count = mail.count(rank);
    for (std::uint32_t i = threadIdx.x; i < count; i += at_once * Threads) {
      std::uint32_t found[at_once];
      mail.keys(rank, i, Threads, count, found);
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        const std::uint32_t at_a = i + a * Threads;
        if (at_a >= count) continue;
        if (begin + at_a < cached) keys[begin + at_a] = found[a];
        high = found[a] > high ? found[a] : high;
        low = ~found[a] > low ? ~found[a] : low;
      }
    }
    begin += count;
  }
  high = sums.max(high);
  low = ~sums.max(low);
  const auto key_at = [&](std::uint32_t i) {
    return i < cached ? keys[i] : at(i, [&](unsigned rank, std::uint32_t j) { return mail.key(rank, j); });
  };
  const block::threshold limit =
      select.find(total, k, high, block::list_select<Threads>::shift_of(low, high), key_at, [](std::uint32_t) { return 1u; });
  const bool all_equal = select.takes_all_equal();
  __syncthreads();
  std::uint32_t last = 0xffffffffu;  // the highest position that is selected among equal scores
  if (!all_equal)
    last = ~select
                .find(
                    total, limit.of_equal, 0xffffffffu, 22, [&](std::uint32_t i) { return ~position_at(i); },
                    [&](std::uint32_t i) { return key_at(i) == limit.key ? 1u : 0u; })
                .key;
  const std::uint32_t count = found.counts(list);
  std::int32_t* const tokens = found.list(list);
  std::uint32_t kept = 0;
  for (std::uint32_t first = 0; first < count; first += Threads) {
    const std::uint32_t i = first + threadIdx.x;
    std::int32_t token = 0;
    bool is_kept = false;
    if (i < count) {
      const std::uint32_t key = key_at(own_begin + i);
      is_kept = key > limit.key || (key == limit.key && (all_equal || position_at(own_begin + i) <= last));
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
                  share_places places, const __grid_constant__ Mail given, std::uint32_t most, std::uint32_t cached, stage_range stages) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const middle_range range = whole(call.row_head_of(blockIdx.x));
  if (range.size() == 0) return;  // on every rank
  const candidate_mail<typename Mail::message> mail(given.open(blockIdx.x), blockIdx.x, most);
  if (stages.has(0)) send_candidates<Threads, Pack>(call, shape, found, places, mail, block::shared_memory());
  __syncthreads();
  if (stages.has(1)) keep_chosen<Threads>(found, range.selected() < most ? range.selected() : most, mail, cached);
  if constexpr (Mail::travels_in_kernels) {
    __syncthreads();
    mail.mail.taken();
  }
}

}  // namespace detail

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
    const std::size_t room = launch.shared_limit(kernel),
                      cached = std::min(call.share.layout.ranks * call.k, room / sizeof(std::uint32_t) - 64);
    launch("choose_kernel", kernel,
           {.grid = dim3(scoring.lists),
            .threads = threads,
            .shared_bytes = std::max(tile, shared_memory::bytes<std::uint32_t>(cached)),
            .early = all.is_early_after_first() && detail::follows_kernel<Mail>(stages)},
           scoring, all.shape(), call.whole, detail::retrieved_lists{call.found.indices, call.found.counts},
           detail::share_places(call.share), mail, static_cast<std::uint32_t>(call.k), static_cast<std::uint32_t>(cached), stages);
  }
};

}  // namespace pqkv
