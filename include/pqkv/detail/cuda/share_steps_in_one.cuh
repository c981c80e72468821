// SPDX-License-Identifier: Apache-2.0
// The selection of all ranks in one launch, where lists have few items (the cells of a joint-code index) and messages travel in kernels. A
// token's score depends on its cell alone, so the counts of all ranks' cells give every rank the normalisers and the threshold of all. They
// are sent before the tables are computed, and have come when they are needed. Of tokens at the threshold the ranks exchange positions.
#pragma once

#include "pq_step.cuh"
#include "share_steps.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// How the CTAs of one list, which all compute its threshold, exchange with those of other ranks: the counts of their cells, which give
/// every rank the threshold of all, and then the tokens at the threshold, of which the lowest positions are selected.
template <unsigned Threads, class Message>
class list_exchange {
 public:
  __device__ list_exchange(const Message& counts, const Message& equal, const share_places& places, unsigned list, unsigned part,
                           unsigned parts, std::size_t room)
      : counts_(counts), equal_(equal), places_(places), list_(list), part_(part), parts_(parts), room_(room) {}

  /// Sends the counts of this rank's tokens in each cell; each CTA of the list sends a part of them.
  __device__ void send_counts(const std::uint32_t* counts, std::uint32_t cells) const {
    for (std::uint32_t i = part_ * Threads + threadIdx.x; i < cells; i += parts_ * Threads)
      counts_.give(std::size_t{list_} * cells + i, counts[i]);
  }
  /// Adds the counts of the other ranks. A barrier must follow.
  __device__ void add_counts(std::uint32_t* counts, std::uint32_t cells) const {
    constexpr unsigned at_once = 8;
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
  /// Sends the positions of this rank's tokens whose score equals the threshold, ascending: `most` numbers, the last ones `none` if there
  /// are fewer tokens.
  /// @param ids, count  tokens that equal it, ascending, of which those below `first` count
  /// @param first, last  more of these tokens are in [first, last), where is_equal(token) says which
  template <class IsEqual>
  __device__ void send_equal(block::reduction<std::uint32_t, Threads>& scratch, std::uint32_t most, const std::int32_t* ids,
                             std::uint32_t count, std::uint32_t first, std::uint32_t last, IsEqual is_equal) const {
    std::uint32_t sent = 0;
    count = count < most ? count : most;
    for (std::uint32_t begin = 0; begin < count; begin += Threads) {
      const std::uint32_t i = begin + threadIdx.x, token = i < count ? static_cast<std::uint32_t>(ids[i]) : first;
      if (token < first) send(i, places_.position(token));  // those from `first` on are the last ones
      sent += static_cast<std::uint32_t>(__syncthreads_count(token < first ? 1 : 0));
    }
    for (std::uint32_t begin = first; begin < last && sent < most; begin += Threads) {
      const std::uint32_t token = begin + threadIdx.x;
      const bool is_one = token < last && is_equal(token);
      std::uint32_t here = 0;
      const std::uint32_t place = sent + scratch.prefix(is_one ? 1u : 0u, here);
      if (is_one && place < most) send(place, places_.position(token));
      sent += here;
    }
    end_equal(sent, most);
  }
  /// The same by the CTAs of the list together, each for its own tokens: bit i of `map` is token first + i.
  /// @param at  how many of this rank's tokens earlier CTAs send
  __device__ void send_marked(block::reduction<std::uint32_t, Threads>& scratch, std::uint32_t most, const std::uint32_t* map,
                              std::uint32_t words, std::uint32_t first, std::uint32_t at) const {
    const std::uint32_t share = (words + Threads - 1) / Threads, begin = threadIdx.x * share,
                        end = begin + share < words ? begin + share : words;
    std::uint32_t own = 0, all = 0;
    for (std::uint32_t w = begin; w < end; ++w) own += static_cast<std::uint32_t>(__popc(map[w]));
    std::uint32_t place = at + scratch.prefix(own, all);
    if (own == 0) return;
    for (std::uint32_t w = begin; w < end; ++w)
      for (std::uint32_t bits = map[w]; bits != 0 && place < most; bits &= bits - 1, ++place)
        send(place, places_.position(first + w * 32 + static_cast<std::uint32_t>(__ffs(static_cast<int>(bits)) - 1)));
  }
  /// Says that this rank has no more than `count` of these tokens. By one CTA.
  __device__ void end_equal(std::uint32_t count, std::uint32_t most) const {
    for (std::uint32_t i = count + threadIdx.x; i < most; i += Threads) send(i, none);
  }
  /// The place of this rank's first token whose position is above the `wanted` lowest positions that all ranks have sent.
  /// @param wanted  `most` of every rank's send_equal()
  /// @param copy    [room] shared memory; has the positions of every rank afterwards, [ranks, wanted], if there is room
  __device__ std::uint32_t end_of_equal(std::uint32_t wanted, std::uint32_t* copy, std::uint32_t room) const {
    __shared__ std::uint32_t end;
    if (threadIdx.x == 0) end = 0xffffffffu;
    const std::uint32_t all = equal_.ranks * wanted;
    const bool fits = has_room(wanted, room);
    constexpr unsigned at_once = 2;
#pragma unroll 1
    for (std::uint32_t first = threadIdx.x; fits && first < all; first += at_once * Threads) {
      std::uint32_t positions[at_once];
      equal_.take([&](unsigned a) { return place_of(first + a * Threads, wanted); }, positions);
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a)
        if (first + a * Threads < all) copy[first + a * Threads] = positions[a];
    }
    __syncthreads();
    const auto position_at = [&](unsigned rank, std::uint32_t i) {
      return fits ? copy[rank * wanted + i] : equal_.take(rank, first_word() + i);
    };
#pragma unroll 1
    for (std::uint32_t which = threadIdx.x; which < all; which += Threads) {
      const unsigned rank = which / wanted;
      const std::uint32_t i = which - rank * wanted, position = position_at(rank, i);
      if (position == none) continue;
      std::uint32_t below = i;  // of all ranks' positions, how many are lower
#pragma unroll 1
      for (unsigned other = 0; other < equal_.ranks; ++other) {
        std::uint32_t low = 0, high = other == rank ? 0 : wanted;
#pragma unroll 1
        while (low < high) {
          const std::uint32_t middle = (low + high) / 2;
          if (position_at(other, middle) < position)
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
  /// After end_of_equal(): how many of this rank's tokens that were sent are below place `end`. By all threads.
  __device__ std::uint32_t equal_below(block::reduction<std::uint32_t, Threads>& scratch, std::uint32_t wanted, std::uint32_t end,
                                       const std::uint32_t* copy, std::uint32_t room) const {
    std::uint32_t own = 0;
    for (std::uint32_t i = threadIdx.x; i < wanted; i += Threads) {
      const std::uint32_t position = has_room(wanted, room) ? copy[equal_.rank * wanted + i] : equal_.take(equal_.rank, first_word() + i);
      own += position != none && places_.local(position) < end ? 1 : 0;
    }
    return scratch.sum(own);
  }

 private:
  static constexpr std::uint32_t none = 0xffffffffu;  // above every position
  __device__ std::size_t first_word() const { return std::size_t{list_} * room_; }
  __device__ bool has_room(std::uint32_t wanted, std::uint32_t room) const { return wanted <= room / equal_.ranks; }
  /// The rank, and the word of its message, that have number `which` of all ranks' positions; no rank after the last one.
  __device__ auto place_of(std::uint32_t which, std::uint32_t wanted) const {
    struct {
      unsigned rank;
      std::size_t word;
    } place{which / wanted, 0};
    place.word = first_word() + (which - place.rank * wanted);
    return place;
  }
  __device__ void send(std::uint32_t i, std::uint32_t position) const { equal_.give_all(first_word() + i, position); }

  Message counts_, equal_;
  const share_places& places_;
  unsigned list_, part_, parts_;
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
  std::uint32_t* numbers;  // [lists, scale::rank_share_parts] messages exchanged so far, counted by each CTA of a list for itself
  std::size_t room;        // for a list's tokens in a message of `equal`

  __device__ middle_range local(const middle_range& range) const { return share.local(range); }
  __device__ token_span local(const token_span& span) const { return share.local(span); }
  __device__ std::uint32_t next_number(unsigned list, unsigned part) const { return numbers[list * scale::rank_share_parts + part] + 1; }
  /// Counts the exchange, once the CTA's threads have all called next_number(). A later launch may have more CTAs for a list: this one also
  /// counts for those of them that have its number modulo `parts`.
  __device__ void count(unsigned list, unsigned part, unsigned parts, std::uint32_t number) const {
    const unsigned own = part + threadIdx.x * parts;
    if (own < scale::rank_share_parts) numbers[list * scale::rank_share_parts + own] = number;
  }
  template <unsigned Threads>
  __device__ list_exchange<Threads, typename Mail::message> exchange(unsigned list, unsigned part, unsigned parts,
                                                                     std::uint32_t number) const {
    return {counts.open(list, number), equal.open(list, number), share, list, part, parts, room};
  }
};

}  // namespace detail
}  // namespace pqkv
