// SPDX-License-Identifier: Apache-2.0
// Block caches on the host. A task is one cache. One pass finds the offers and one the victims; each keeps the few lowest of many numbers.
#pragma once

#include <algorithm>
#include <bit>

#include "../../cache/block_cache.hpp"
#include "../../exec/host.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Keeps the lowest of the numbers it is given, at most `room` of them. A heap with the highest on top: most numbers are rejected there.
class lowest_blocks {
 public:
  lowest_blocks(ranked_block* kept, std::size_t room) : kept_(kept), room_(room) {}

  /// Numbers at or above this are not kept.
  std::uint64_t bound() const { return bound_; }
  void add(std::uint64_t order, std::uint32_t number) {
    if (order >= bound_) return;
    if (count_ == room_) std::pop_heap(kept_, kept_ + count_--, is_lower);
    kept_[count_++] = {order, number, 0};
    std::push_heap(kept_, kept_ + count_, is_lower);
    if (count_ == room_) bound_ = kept_[0].order;
  }
  /// Sorts them. @return how many there are
  std::size_t sort() {
    std::sort_heap(kept_, kept_ + count_, is_lower);
    return count_;
  }

 private:
  static bool is_lower(const ranked_block& a, const ranked_block& b) { return a.order < b.order; }

  ranked_block* kept_;
  std::size_t room_, count_ = 0;
  std::uint64_t bound_ = ~std::uint64_t{0};
};

/// Looks up one list in one cache. The loop has no branch on whether a block hits or is new, since a branch predictor could not guess
/// either.
/// @param block_of  the block of a token
/// @param place     place(i, row) is told the row of token i, or -1
template <class E, class BlockOf, class Place>
void lookup_list(const one_block_cache<E>& cache, const std::int32_t* tokens, std::size_t count, BlockOf block_of, Place place) {
  std::uint32_t* const counts = cache.counts;
  std::uint32_t touched = cache.progress->touched;
  std::uint64_t hits = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto token = static_cast<std::uint32_t>(tokens[i]), block = block_of(token);
    PQKV_ASSERT(block < cache.blocks);
    const std::int32_t slot = cache.found(block), hit = slot >= 0 ? 1 : 0;
    const auto row =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(slot) * cache.block_tokens + (token - block * cache.block_tokens));
    place(i, hit != 0 ? row : -1);
    hits += static_cast<std::uint64_t>(hit);
    const std::uint32_t counted = counts[block];
    cache.touched[touched] = block;
    touched += counted == 0 ? 1 : 0;
    counts[block] = counted + 1;
  }
  cache.progress->touched = touched;
  cache.statistics->hits += hits;
  cache.statistics->misses += count - hits;
}
/// @param places  [count] or null
template <class E>
void lookup_list(const one_block_cache<E>& cache, const std::int32_t* tokens, std::size_t count, std::int32_t* places) {
  const auto look = [&](auto block_of) {
    if (places != nullptr)
      lookup_list(cache, tokens, count, block_of, [places](std::size_t i, std::int32_t row) { places[i] = row; });
    else
      lookup_list(cache, tokens, count, block_of, [](std::size_t, std::int32_t) {});
  };
  const std::uint32_t b = cache.block_tokens;
  if (std::has_single_bit(b))
    look([shift = std::countr_zero(b)](std::uint32_t token) { return token >> shift; });
  else
    look([b](std::uint32_t token) { return token / b; });
}

/// Offers the best blocks of a step. Afterwards ranked [0, waited) are those that wait for a slot, best first.
template <class E>
auto offer_blocks(const one_block_cache<E>& cache, std::uint32_t final_tokens, std::uint64_t first_stamp) {
  typename one_block_cache<E>::step_totals step{};
  lowest_blocks best(cache.ranked, cache.admit);
  for (std::size_t i = 0; i < cache.progress->touched; ++i) {
    const std::uint32_t block = cache.touched[i];
    best.add(cache.offer_order(block), block);
    cache.counts[block] = 0;
  }
  step.offered = static_cast<std::uint32_t>(best.sort());
  for (std::uint32_t rank = 0; rank < step.offered; ++rank) {
    const std::uint32_t block = cache.ranked[rank].number;
    cache.offer(block, first_stamp + (step.offered - 1 - rank));
    if (cache.slots[block] == 0 && cache.is_final(block, final_tokens)) cache.ranked[step.waited++] = {0, block, rank};
  }
  return step;
}

template <class E>
void admit_one(const one_block_cache<E>& cache, std::uint32_t final_tokens) {
  const std::uint64_t first = cache.first_stamp();
  auto step = offer_blocks(cache, final_tokens, first);
  if (step.waited != 0) {
    ranked_block* const slot = cache.ranked + cache.admit;
    lowest_blocks leaving(slot, step.waited);
    for (std::uint32_t i = 0; i < cache.capacity; ++i)  // leave_order() is never below order[]
      if (cache.order[i] < leaving.bound()) leaving.add(cache.leave_order(i, first), i);
    const std::size_t slots = leaving.sort();
    for (std::size_t i = 0; i < step.waited && step.admitted < slots; ++i) {
      const ranked_block& one = cache.ranked[i];
      const std::uint32_t to = slot[step.admitted].number;
      if (!cache.may_enter(cache.newcomer_frequency(one.number), cache.leaving_frequency(to))) continue;
      step.evicted += cache.enter(step.admitted++, one.number, to, first + (step.offered - 1 - one.rank)) ? 1 : 0;
    }
  }
  if (!cache.end_step(step)) return;
  for (std::uint32_t i = 0; i < cache.capacity; ++i) cache.order[i] = eviction_order::halved(cache.order[i]);
}

}  // namespace detail

template <>
struct kernel<op::lookup_blocks, backend::host> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E>& cache, const block_lookup<space::host>& tokens,
                  view<std::int32_t, 2> places) {
    if (tokens.lists() == 0) return;
    policy.runner.run(cache.caches(), [&](std::size_t c) {
      const one_block_cache<E> one = cache.one(c);
      for (std::size_t list = 0; list < tokens.lists(); ++list)
        if (tokens.counts(list) != 0 && tokens.cache_of(list, cache.caches()) == c)
          detail::lookup_list(one, &tokens.indices(list, 0), tokens.counts(list), places.data == nullptr ? nullptr : &places(list, 0));
    });
  }
};

template <>
struct kernel<op::admit_blocks, backend::host> {
  template <class P, class E>
  static void run(const P& policy, const block_cache_view<E>& cache, view<const std::uint32_t, 1> lengths) {
    policy.runner.run(cache.caches(), [&](std::size_t c) { detail::admit_one(cache.one(c), lengths(c)); });
  }
};

template <>
struct kernel<op::fill_blocks, backend::host> {
  template <class P, class E>
  static void run(const P&, const block_cache_view<E>& cache) noexcept {
    for (std::size_t c = 0; c < cache.caches(); ++c) {
      const one_block_cache<E> one = cache.one(c);
      for (std::size_t i = 0; i < one.progress->admitted; ++i) one.fill(i);
    }
  }
};

template <>
struct kernel<op::abandon_blocks, backend::host> {
  template <class P, class E>
  static void run(const P&, const block_cache_view<E>& cache) noexcept {
    for (std::size_t c = 0; c < cache.caches(); ++c) {
      const one_block_cache<E> one = cache.one(c);
      for (std::size_t i = 0; i < one.progress->touched; ++i) one.counts[one.touched[i]] = 0;
      one.progress->touched = one.progress->admitted = 0;
      for (std::uint32_t slot = 0; slot < one.capacity; ++slot)
        if (one.states[slot] == block_state::filling) one.release(slot);
    }
  }
};

template <>
struct kernel<op::truncate_blocks, backend::host> {
  template <class P, class E>
  static void run(const P&, const block_cache_view<E>& cache, view<const std::uint32_t, 1> lengths) noexcept {
    for (std::size_t c = 0; c < cache.caches(); ++c) {
      const one_block_cache<E> one = cache.one(c);
      for (std::uint32_t slot = 0; slot < one.capacity; ++slot)
        if (one.held[slot] != 0 && !one.is_final(one.held[slot] - 1, lengths(c))) one.release(slot);
      if constexpr (E::remembers)
        for (std::uint32_t block = lengths(c) / one.block_tokens; block < one.blocks; ++block) one.remembered[block] = {};
    }
  }
};

}  // namespace pqkv
