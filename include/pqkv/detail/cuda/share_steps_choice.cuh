// SPDX-License-Identifier: Apache-2.0
// The listed tokens that all ranks select, on the device: each rank sends the scores and positions of its best, and keeps those that are
// among the best of all. Stages and messages as in share_steps_agreement.cuh.
#pragma once

#include <algorithm>

#include "block/list_select.cuh"
#include "share_steps_agreement.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The candidates of one list in a message: how many, and the score and position of each. In a gathered message a candidate is one word,
/// and the lowest words are selected first (scale::candidate_of).
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
  /// The same for positions.
  template <unsigned Count>
  __device__ void positions(unsigned rank, std::uint32_t i, std::uint32_t step, std::uint32_t end, std::uint32_t (&found)[Count]) const {
    if constexpr (Mail::travels_in_kernels) {
      mail.take(rank, first + 1 + most + i, step, first + 1 + most + end, found);
    } else {
#pragma unroll
      for (unsigned a = 0; a < Count; ++a) found[a] = i + a * step < end ? position(rank, i + a * step) : 0;
    }
  }
  __device__ std::uint32_t position(unsigned rank, std::uint32_t i) const {
    if constexpr (Mail::travels_in_kernels)
      return mail.take(rank, first + 1 + most + i);
    else
      return static_cast<std::uint32_t>(mail.word(rank, first + 1 + i));
  }
};

/// Writes a list's candidates, whose scores are known. By one CTA.
/// @param keys   of the list's tokens, by their place in its range, which begins at `first`
template <unsigned Threads, class Mail>
__device__ void send_known(unsigned list, const retrieved_lists& found, const share_places& places, const candidate_mail<Mail>& mail,
                           const std::uint32_t* keys, std::uint32_t first) {
  constexpr unsigned at_once = 2;
  const std::uint32_t count = found.counts(list);
  if (threadIdx.x == 0) mail.send_count(count);
  for (std::uint32_t begin = threadIdx.x; begin < count; begin += at_once * Threads) {
    std::uint32_t token[at_once], key[at_once];
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a)
      token[a] = static_cast<std::uint32_t>(found.list(list)[begin + a * Threads < count ? begin + a * Threads : begin]);
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a) key[a] = keys[token[a] - first];
#pragma unroll
    for (unsigned a = 0; a < at_once; ++a)
      if (begin + a * Threads < count) mail.send(begin + a * Threads, key[a], places.position(token[a]));
  }
}

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
    constexpr unsigned planes = 4;  // whose codes are read together
    for (unsigned first_plane = 0; first_plane < call.m; first_plane += planes) {
      std::uint8_t code[planes][at_once];
#pragma unroll
      for (unsigned p = 0; p < planes; ++p)
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a)
          if (first_plane + p < call.m) code[p][a] = codes[(first_plane + p) * stride + static_cast<std::uint32_t>(token[a])];
#pragma unroll
      for (unsigned p = 0; p < planes; ++p)
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a)
          if (first_plane + p < call.m) copied[(first_plane + p) * candidate_tile + a * Threads + threadIdx.x] = code[p][a];
    }
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

/// The candidates of all ranks for one list, in the order of the ranks. The keys and positions of the first `room` candidates are copied
/// into shared memory; those of the others are read from the message each time.
template <unsigned Threads, class Mail>
class all_candidates {
 public:
  /// Bytes of dynamic shared memory.
  static std::size_t shared_bytes(std::size_t ranks, std::size_t room) {
    return 2 * block::shared_memory::bytes<std::uint32_t>(room) + block::shared_memory::bytes<std::uint32_t>(ranks);
  }
  /// Waits until every rank has said how many candidates it has. @param room  how many candidates fit into shared memory
  __device__ all_candidates(const candidate_mail<Mail>& mail, std::uint32_t room) : mail_(mail), room_(room) {
    block::shared_memory memory;
    keys_ = memory.take<std::uint32_t>(room), positions_ = memory.take<std::uint32_t>(room);
    counts_ = memory.take<std::uint32_t>(mail.mail.ranks);
    for (unsigned rank = threadIdx.x; rank < mail.mail.ranks; rank += Threads) counts_[rank] = mail.count(rank);
    __syncthreads();
    for (unsigned rank = 0; rank < mail.mail.ranks; ++rank) {
      if (rank == mail.mail.rank) own_begin_ = total_;
      total_ += counts_[rank];
    }
  }
  __device__ std::uint32_t total() const { return total_; }
  /// The number of this rank's first candidate.
  __device__ std::uint32_t own_begin() const { return own_begin_; }
  /// Copies them. @return the thread's highest key and its lowest one, inverted. A barrier must follow
  __device__ uint2 copy() {
    constexpr unsigned at_once = 2;
    uint2 ends{0, 0};
    std::uint32_t begin = 0;
    for (unsigned rank = 0; rank < mail_.mail.ranks; ++rank) {
      const std::uint32_t count = counts_[rank];
      for (std::uint32_t i = threadIdx.x; i < count; i += at_once * Threads) {
        std::uint32_t key[at_once], position[at_once];
        mail_.keys(rank, i, Threads, count, key);
        mail_.positions(rank, i, Threads, count, position);
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) {
          const std::uint32_t at = begin + i + a * Threads;
          if (i + a * Threads >= count) continue;
          if (at < room_) keys_[at] = key[a], positions_[at] = position[a];
          ends.x = key[a] > ends.x ? key[a] : ends.x;
          ends.y = ~key[a] > ends.y ? ~key[a] : ends.y;
        }
      }
      begin += count;
    }
    return ends;
  }
  __device__ std::uint32_t key(std::uint32_t i) const {
    return i < room_ ? keys_[i] : at(i, [&](unsigned rank, std::uint32_t j) { return mail_.key(rank, j); });
  }
  __device__ std::uint32_t position(std::uint32_t i) const {
    return i < room_ ? positions_[i] : at(i, [&](unsigned rank, std::uint32_t j) { return mail_.position(rank, j); });
  }

 private:
  template <class Read>
  __device__ std::uint32_t at(std::uint32_t i, Read read) const {
    unsigned rank = 0;
    for (; i >= counts_[rank]; ++rank) i -= counts_[rank];
    return read(rank, i);
  }

  const candidate_mail<Mail>& mail_;
  std::uint32_t room_, total_ = 0, own_begin_ = 0;
  std::uint32_t *keys_, *positions_, *counts_;  // counts: [ranks]
};

/// Keeps those of a list's tokens that are among the k best candidates of all ranks. By one CTA.
/// @param room  how many candidates fit into shared memory
template <unsigned Threads, class Mail>
__device__ void keep_chosen(unsigned list, const retrieved_lists& found, std::uint32_t k, const candidate_mail<Mail>& mail,
                            std::uint32_t room, block::list_select<Threads>& select, block::reduction<std::uint32_t, Threads>& sums) {
  all_candidates<Threads, Mail> all(mail, room);
  if (all.total() <= k) return;  // all are kept
  const uint2 ends = all.copy();
  const std::uint32_t high = sums.max(ends.x), low = ~sums.max(ends.y);
  const block::threshold limit = select.find(
      all.total(), k, high, block::list_select<Threads>::shift_of(low, high), [&](std::uint32_t i) { return all.key(i); },
      [](std::uint32_t) { return 1u; });
  const bool all_equal = select.takes_all_equal();
  __syncthreads();
  std::uint32_t last = 0xffffffffu;  // the highest position that is selected among equal scores
  if (!all_equal)
    last = ~select
                .find(
                    all.total(), limit.of_equal, 0xffffffffu, 22, [&](std::uint32_t i) { return ~all.position(i); },
                    [&](std::uint32_t i) { return all.key(i) == limit.key ? 1u : 0u; })
                .key;
  const std::uint32_t count = found.counts(list);
  std::int32_t* const tokens = found.list(list);
  std::uint32_t kept = 0;
  for (std::uint32_t first = 0; first < count; first += Threads) {
    const std::uint32_t i = first + threadIdx.x;
    std::int32_t token = 0;
    bool is_kept = false;
    if (i < count) {
      const std::uint32_t key = all.key(all.own_begin() + i);
      is_kept = key > limit.key || (key == limit.key && (all_equal || all.position(all.own_begin() + i) <= last));
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

/// One CTA for each list.
/// @param keys  the tokens' scores where retrieve() has kept them
/// @param most  room for candidates of a list in a message
template <unsigned Threads, unsigned Pack, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    choose_kernel(block::scoring call, scan_shape shape, view<const middle_range, 1, space::device> whole, retrieved_lists found,
                  share_places places, view<const std::uint32_t, 2, space::device> keys, const __grid_constant__ Mail given,
                  std::uint32_t most, std::uint32_t cached, stage_range stages) {
  __shared__ block::list_select<Threads> select;
  __shared__ block::reduction<std::uint32_t, Threads> sums;
  block::release_dependents();
  block::wait_for_last_kernel();
  const middle_range range = whole(call.row_head_of(blockIdx.x));
  if (range.size() == 0) return;  // on every rank
  const candidate_mail<typename Mail::message> mail(given.open(blockIdx.x), blockIdx.x, most);
  if (stages.has(0)) {
    const middle_range own = call.range(blockIdx.x);
    if (keys.data != nullptr && found.selected(own) != own.size())
      send_known<Threads>(blockIdx.x, found, places, mail, &keys(blockIdx.x, 0), own.begin);
    else
      send_candidates<Threads, Pack>(call, shape, found, places, mail, block::shared_memory());
  }
  __syncthreads();
  if (stages.has(1)) keep_chosen<Threads>(blockIdx.x, found, range.selected() < most ? range.selected() : most, mail, cached, select, sums);
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
    const auto keys = kernel<op::retrieve, backend::cuda>::kept_keys(policy.scratch, scoring);
    scoring.index = {};  // listed tokens are scored by their codes
    const detail::launcher launch(policy, "choose_tokens");
    if (detail::spread_launches<4>::takes(launch, scoring))
      go<4>(launch, scoring, call, keys, mail, {first, last});
    else
      go<1>(launch, scoring, call, keys, mail, {first, last});
  }

 private:
  template <unsigned Pack, class Mail>
  static void go(const detail::launcher& launch, const detail::block::scoring& scoring, const scale::ranked_share<space::device>& call,
                 view<const std::uint32_t, 2, space::device> keys, const Mail& mail, detail::stage_range stages) {
    using detail::block::shared_memory;
    constexpr unsigned threads = detail::tuning::select_threads;
    const detail::spread_launches<Pack> all(launch, scoring, scoring.codes.extent(2));
    const auto kernel = detail::choose_kernel<threads, Pack, Mail>;
    const std::size_t tile = shared_memory::bytes<std::uint32_t>(detail::candidate_tile) +
                             shared_memory::bytes<std::uint8_t>(scoring.m * detail::candidate_tile) + all.table_bytes();
    const std::size_t room = launch.shared_limit(kernel), ranks = call.share.layout.ranks,
                      cached = std::min(ranks * call.k, (room / sizeof(std::uint32_t) - ranks) / 2 - 64);
    launch("choose_kernel", kernel,
           {.grid = dim3(scoring.lists),
            .threads = threads,
            .shared_bytes = std::max(tile, detail::all_candidates<threads, Mail>::shared_bytes(ranks, cached)),
            .early = all.is_early_after_first() && detail::follows_kernel<Mail>(stages)},
           scoring, all.shape(), call.whole, detail::retrieved_lists{call.found.indices, call.found.counts},
           detail::share_places(call.share), keys, mail, static_cast<std::uint32_t>(call.k), static_cast<std::uint32_t>(cached), stages);
  }
};

}  // namespace pqkv
