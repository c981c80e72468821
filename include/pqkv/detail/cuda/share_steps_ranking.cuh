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
      const bool is_short = canonical::needs_recentring(z, tokens_);
      any |= is_short;
      write(mail, 2 * (first_ + q), z);
      if (!is_short) write(mail, 2 * (first_ + q) + 1, 0);
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

/// How the CTAs of one list, which all compute its threshold, exchange with those of other ranks: the counts of their cells, which give
/// every rank the threshold of all, and then the tokens at the threshold, of which the lowest positions are selected. The numbers of
/// messages are counted here, since several CTAs read one.
template <unsigned Threads, class Mail>
class list_exchange {
 public:
  __device__ list_exchange(const Mail& counts, const Mail& equal, const share_places& places, unsigned list, bool sends,
                           std::uint32_t number, std::uint32_t* numbers, std::uint32_t* tickets, unsigned parts, std::size_t room)
      : counts_(counts.open(list, number)),
        equal_(equal.open(list, number)),
        places_(places),
        list_(list),
        sends_(sends),
        numbers_(numbers),
        tickets_(tickets),
        parts_(parts),
        room_(room) {}

  /// Sends the counts of this rank's tokens in each cell.
  __device__ void send_counts(const std::uint32_t* counts, std::uint32_t cells) const {
    for (std::uint32_t i = threadIdx.x; sends_ && i < cells; i += Threads) counts_.give(std::size_t{list_} * cells + i, counts[i]);
  }
  /// Adds the counts of the other ranks. A barrier must follow.
  __device__ void add_counts(std::uint32_t* counts, std::uint32_t cells) const {
    if (threadIdx.x == Threads - 1) {  // this CTA's threads have all read the number
      __threadfence();
      if (atomicAdd(&tickets_[list_], 1u) + 1 == parts_) tickets_[list_] = 0, numbers_[list_] = counts_.number;
    }
    constexpr unsigned at_once = 4;
    const std::size_t begin = std::size_t{list_} * cells;
    for (unsigned rank = 0; rank < counts_.ranks; ++rank)
      for (std::uint32_t i = threadIdx.x; rank != counts_.rank && i < cells; i += at_once * Threads) {
        std::uint32_t more[at_once];
        counts_.take(rank, begin + i, Threads, begin + cells, more);
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a)
          if (i + a * Threads < cells) counts[i + a * Threads] += more[a];
      }
  }
  /// Sends the positions of up to `most` of this rank's tokens whose score equals the threshold, ascending.
  /// @param ids, count  tokens that equal it, ascending, of which those below `first` count
  /// @param first, last  more of these tokens are in [first, last), where is_equal(token) says which
  template <class IsEqual>
  __device__ void send_equal(block::reduction<std::uint32_t, Threads>& scratch, std::uint32_t most, const std::int32_t* ids,
                             std::uint32_t count, std::uint32_t first, std::uint32_t last, IsEqual is_equal) const {
    std::uint32_t sent = 0;
    const auto add = [&](bool is_one, std::uint32_t token) {
      std::uint32_t here = 0;
      const std::uint32_t place = sent + scratch.prefix(is_one ? 1u : 0u, here);
      if (is_one && place < most) equal_.give_all(first_word() + 1 + place, places_.position(token));
      sent += here;
    };
    for (std::uint32_t begin = 0; begin < count && sent < most; begin += Threads) {
      const std::uint32_t i = begin + threadIdx.x, token = i < count ? static_cast<std::uint32_t>(ids[i]) : first;
      add(token < first, token);
    }
    for (std::uint32_t begin = first; begin < last && sent < most; begin += Threads) {
      const std::uint32_t token = begin + threadIdx.x;
      add(token < last && is_equal(token), token);
    }
    if (threadIdx.x == 0) equal_.give_all(first_word(), sent < most ? sent : most);
  }
  /// The place of this rank's first token whose position is behind the `wanted` lowest of those that all ranks have sent.
  /// @param copy  [room] shared memory
  __device__ std::uint32_t end_of_equal(std::uint32_t wanted, std::uint32_t* copy, std::uint32_t room) const {
    __shared__ std::uint32_t end;
    std::uint32_t count[most_ranks], begin[most_ranks], total = 0;
#pragma unroll
    for (unsigned rank = 0; rank < most_ranks; ++rank) {
      begin[rank] = total;
      count[rank] = rank < equal_.ranks ? equal_.take(rank, first_word()) : 0;
      total += count[rank];
    }
    const auto sent = [&](unsigned rank, std::uint32_t i) { return equal_.take(rank, first_word() + 1 + i); };
    const bool fits = total <= room;
#pragma unroll
    for (unsigned rank = 0; rank < most_ranks; ++rank)
      for (std::uint32_t i = threadIdx.x; fits && i < count[rank]; i += Threads) copy[begin[rank] + i] = sent(rank, i);
    if (threadIdx.x == 0) end = 0xffffffffu;
    __syncthreads();
    const auto position_at = [&](unsigned rank, std::uint32_t first, std::uint32_t i) { return fits ? copy[first + i] : sent(rank, i); };
#pragma unroll
    for (unsigned rank = 0; rank < most_ranks; ++rank)
      for (std::uint32_t i = threadIdx.x; i < count[rank]; i += Threads) {
        const std::uint32_t position = position_at(rank, begin[rank], i);
        std::uint32_t below = i;  // of all ranks' positions, how many are lower
#pragma unroll
        for (unsigned other = 0; other < most_ranks; ++other) {
          if (other == rank || count[other] == 0) continue;
          std::uint32_t low = 0, high = count[other];
          while (low < high) {
            const std::uint32_t middle = (low + high) / 2;
            if (position_at(other, begin[other], middle) < position)
              low = middle + 1;
            else
              high = middle;
          }
          below += low;
        }
        if (below + 1 == wanted) end = places_.local(position + 1);
      }
    __syncthreads();
    return end;
  }

 private:
  static constexpr unsigned most_ranks = 8;
  __device__ std::size_t first_word() const { return std::size_t{list_} * (room_ + 1); }

  Mail counts_, equal_;
  const share_places& places_;
  unsigned list_;
  bool sends_;
  std::uint32_t *numbers_, *tickets_;
  unsigned parts_;
  std::size_t room_;
};

/// Where a rank's tokens are, for planned_lists whose lists are each rank's own.
struct local_places {
  static constexpr bool exchanges = false;
  share_places share;

  __device__ middle_range local(const middle_range& range) const {
    middle_range own = share.local(range);
    own.retrieve = listed_of_share(range.retrieve, scale::selection_mode::local, share);
    return own;
  }
  __device__ token_span local(const token_span& span) const { return share.local(span); }
};

/// The same where the lists of all ranks are selected together.
template <class Mail>
struct exact_places {
  static constexpr bool exchanges = true;
  share_places share;
  Mail counts, equal;
  std::uint32_t *numbers, *tickets;  // [lists] messages exchanged so far; zeros
  std::size_t room;                  // for a list's tokens in a message of `equal`

  __device__ middle_range local(const middle_range& range) const { return share.local(range); }
  __device__ token_span local(const token_span& span) const { return share.local(span); }
  template <unsigned Threads>
  __device__ list_exchange<Threads, Mail> exchange(unsigned list, bool sends, std::uint32_t number, unsigned parts) const {
    return {counts, equal, share, list, sends, number, numbers, tickets, parts, room};
  }
};

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
                  share_places places, Mail given, std::uint32_t most, std::uint32_t cached, stage_range stages) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const middle_range range = whole(call.row_head_of(blockIdx.x));
  if (range.size() == 0) return;  // on every rank
  const candidate_mail<Mail> mail(given.open(blockIdx.x), blockIdx.x, most);
  if (stages.has(0)) send_candidates<Threads, Pack>(call, shape, found, places, mail, block::shared_memory());
  __syncthreads();
  if (stages.has(1)) keep_chosen<Threads>(found, range.selected() < most ? range.selected() : most, mail, cached);
  if constexpr (Mail::travels_in_kernels) {
    __syncthreads();
    mail.mail.taken();
  }
}

/// One CTA for each query head. Gathered messages are in memory; others are sent and taken here, an element by each thread.
template <class Call, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(128) merge_shares_kernel(Call call, Mail given) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const Mail mail = given.open(blockIdx.x);
  const std::size_t q = blockIdx.x, rows = call.out.extent(0), d = call.out.extent(1), first = 1 + q * (d + 1);
  if constexpr (Mail::travels_in_kernels) {
    if (threadIdx.x == 0) mail.give(first, float_bits(call.own_lse(q)));
    for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) mail.give(first + 1 + i, float_bits(call.own_out(q, i)));
    if (q == 0 && threadIdx.x == 0) mail.give(0, static_cast<std::uint32_t>(call.vote >> 32));
  }
  const auto lse_of = [&](unsigned rank) {
    if constexpr (Mail::travels_in_kernels)
      return rank == mail.rank ? call.own_lse(q) : float_from_bits(mail.take(rank, first));
    else
      return mail.value(rank, q);
  };
  const auto element_of = [&](unsigned rank, std::size_t i) {
    if constexpr (Mail::travels_in_kernels)
      return rank == mail.rank ? call.own_out(q, i) : float_from_bits(mail.take(rank, first + 1 + i));
    else
      return mail.value(rank, rows + q * d + i);
  };
  float lse = 0;
  for (std::size_t i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = element_of(0, i);
    lse = lse_of(0);
    for (unsigned rank = 1; rank < mail.ranks; ++rank) {
      const merge_weights weights = merge_weights::of(lse, lse_of(rank));
      sum = weights(sum, element_of(rank, i));
      lse = weights.lse;
    }
    call.out(q, i) = sum;
  }
  if (q == 0 && threadIdx.x == 0)
    for (unsigned rank = 0; rank < mail.ranks; ++rank) {
      bool is_same = true;
      if constexpr (Mail::travels_in_kernels)
        is_same = rank == mail.rank || mail.take(rank, 0) == static_cast<std::uint32_t>(call.vote >> 32);
      else
        is_same = mail.word(rank, 0) == call.vote;
      if (!is_same) *call.disagreed = 1;
    }
  __syncthreads();  // own_lse may be where lse is written
  if (threadIdx.x == 0) call.lse(q) = lse;
  if constexpr (Mail::travels_in_kernels) mail.taken();
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
                  const pq_index_view<space::device>& index, view<const float, 2, space::device> query, const Mail& counts,
                  const Mail& equal, std::uint32_t* numbers, std::uint32_t* tickets) {
    const ranked_step<space::device> step{plan.queries, plan.plan, query, index, call.found.indices, call.how};
    if (call.index.cells() > most_cells) return false;
    if (plan.mode == scale::selection_mode::local)
      return detail::rank_step_in_one(policy, step, detail::local_places{detail::share_places(call.share)});
    return detail::rank_step_in_one(
        policy, step, detail::exact_places<Mail>{detail::share_places(call.share), counts, equal, numbers, tickets, call.k});
  }

 private:
  static constexpr std::size_t most_cells = detail::block::reached_cells<detail::tuning::select_threads>::most;  // collected at once
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
    if (last == 0) return;  // gathered, and attention has written the message
    const detail::launcher launch(policy, "merge_shares");
    const auto kernel = detail::merge_shares_kernel<scale::merged_shares<space::device>, Mail>;
    launch("merge_shares_kernel", kernel,
           {.grid = dim3(static_cast<unsigned>(call.out.extent(0))),
            .threads = 128,
            .early = launch.is_built_for_hopper(kernel) && detail::follows_kernel<Mail>({first, last})},
           call, mail);
  }
};

}  // namespace pqkv
