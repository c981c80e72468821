// SPDX-License-Identifier: Apache-2.0
// Decides which blocks of a sequence have their rows in fast memory, while a selector selects different tokens in every step. A block is
// `block_tokens` consecutive tokens. The cache holds no rows: it says which slot of fast memory holds which block, and what to copy where;
// the caller copies. Nothing allocates after construction. On a device a step only enqueues kernels, whose launch shapes are fixed.
//
// A step, in this order:
//   lookup_blocks()    says where each selected token is, and counts the selected tokens of each block
//   admit_blocks()     offers the blocks of the highest counts; those that enter get a slot, which is `filling`
//   the caller         copies the rows of what was admitted
//   fill_blocks()      makes these slots `valid`: only now are they found. After a failed copy abandon_blocks() frees them instead
//
// It is not a general cache for any set of keys: every block of the longest sequence has an entry of 8 bytes, or of 12 with tiny_lfu.
// Source: PQCache, SIGMOD 2025, for blocks, counts and offers.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "../core/slot_parts.hpp"
#include "../exec/memory.hpp"
#include "one_block_cache.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct lookup_blocks {};    // run(policy, cache, block_lookup, places)
struct admit_blocks {};     // run(policy, cache, final_tokens)
struct fill_blocks {};      // run(policy, cache)
struct abandon_blocks {};   // run(policy, cache)
struct truncate_blocks {};  // run(policy, cache, lengths)
}  // namespace op

inline constexpr std::size_t default_admit_blocks = 32;  // offered in a step

/// The sizes of a number of block caches. The caches are independent: one for each sequence, or one for each sequence and KV head.
struct block_cache_shape {
  std::size_t caches = 1;
  std::size_t tokens = 0;                           // of the longest sequence
  std::size_t block_tokens = 1;                     // B
  std::size_t capacity_blocks = 0;                  // slots of one cache; 0: nothing is ever kept
  std::size_t admit_blocks = default_admit_blocks;  // offered in a step at most

  constexpr std::size_t blocks() const { return (tokens + block_tokens - 1) / block_tokens; }
};

/// The bounds of every block cache.
constexpr status can_block_cache(const block_cache_shape& shape) noexcept {
  return detail::checks("block_cache")
      .at_least("caches", shape.caches, 1, "caches")
      .at_most("caches", shape.caches, 2147483647.0, "caches")
      .at_least("tokens", shape.tokens, 1, "of the longest sequence")
      .at_most("tokens", shape.tokens, 2147483647.0, "of the longest sequence")
      .at_least("block_tokens", shape.block_tokens, 1, "tokens of a block")
      .at_most("block_tokens", shape.block_tokens, 256, "tokens of a block")
      .at_most("capacity_blocks", shape.capacity_blocks, 2147483647 / (shape.block_tokens == 0 ? 1 : shape.block_tokens),
               "slots, of fewer than 2^31 tokens in all")
      .at_least("admit_blocks", shape.admit_blocks, 1, "blocks offered in a step")
      .at_most("admit_blocks", shape.admit_blocks, 1024, "blocks offered in a step");
}

/// Block caches over memory of a block_cache or of the caller. It is small and passed to kernels by value; copies refer to the same caches.
template <eviction_policy Eviction = eviction::lfu, class Space = space::host>
struct block_cache_view {
  using eviction_type = Eviction;
  using space_type = Space;

  one_block_cache<Eviction> first{};
  std::size_t count = 0, cache_bytes = 0;  // how many caches; bytes from one to the next

  /// Takes caches from the caller's memory, which must be zero. A counting arena only counts the bytes.
  static block_cache_view place(arena& memory, const block_cache_shape& shape) {
    block_cache_view all;
    auto& one = all.first;
    one.blocks = static_cast<std::uint32_t>(shape.blocks());
    one.capacity = static_cast<std::uint32_t>(shape.capacity_blocks);
    one.admit = static_cast<std::uint32_t>(shape.admit_blocks);
    one.block_tokens = static_cast<std::uint32_t>(shape.block_tokens);
    arena counter;
    one_block_cache<Eviction>(one).carve(counter);
    all.count = shape.caches;
    all.cache_bytes = counter.used_bytes();
    const bool fits = all.cache_bytes <= static_cast<std::size_t>(-1) / shape.caches;
    std::byte* const records = memory.take<std::byte>(fits ? all.cache_bytes * shape.caches : static_cast<std::size_t>(-1));
    if (records == nullptr) return all;
    arena here(records, all.cache_bytes);
    one.carve(here);
    return all;
  }
  static std::size_t required_bytes(const block_cache_shape& shape) {
    arena counter;
    place(counter, shape);
    return counter.used_bytes();
  }

  PQKV_HD std::size_t caches() const { return count; }
  /// Cache c. @pre c < caches()
  PQKV_HD one_block_cache<Eviction> one(std::size_t c) const { return first.moved(c * cache_bytes); }
  /// The caches [begin, begin + size).
  PQKV_HD block_cache_view slice(std::size_t begin, std::size_t size) const {
    return {first.moved(begin * cache_bytes), size, cache_bytes};
  }
  /// All parts of a cache, for copies.
  slot_parts parts() const {
    slot_parts all;
    all.add_fixed(reinterpret_cast<std::byte*>(first.slots), 1, cache_bytes);
    return all;
  }
};

/// The tokens that a step selected: lists for queries, and the sequence of each query.
template <class Space>
struct block_lookup {
  view<const std::int32_t, 2, Space> indices;     // [lists, k_max] positions; if they ascend, each block is looked up once
  view<const std::uint32_t, 1, Space> counts;     // [lists] how many positions each list has
  view<const std::uint32_t, 1, Space> sequences;  // [queries] the sequence of each query; empty: query i is of sequence i
  std::size_t caches_of_sequence = 1;             // 1, or the number of KV heads where each has its own cache

  PQKV_HD constexpr std::size_t lists() const { return counts.extent(0); }
  /// @param caches  how many there are in all
  PQKV_HD constexpr std::size_t queries(std::size_t caches) const {
    return sequences.data != nullptr ? sequences.extent(0) : caches / caches_of_sequence;
  }
  PQKV_HD constexpr std::size_t cache_of(std::size_t list, std::size_t caches) const {
    const std::size_t of_query = lists() / queries(caches), query = list / of_query;
    const std::size_t sequence = sequences.data != nullptr ? sequences(query) : query;
    return sequence * caches_of_sequence + (list - query * of_query) / (of_query / caches_of_sequence);
  }
};

/// The checks of lookup_blocks().
template <eviction_policy E, class Space>
constexpr status can_lookup_blocks(const block_cache_view<E, Space>& cache, const block_lookup<Space>& tokens,
                                   const view<std::int32_t, 2, Space>& places) noexcept {
  const std::size_t lists = tokens.lists(), each = tokens.caches_of_sequence == 0 ? 1 : tokens.caches_of_sequence;
  const std::size_t queries = tokens.sequences.data != nullptr ? tokens.sequences.extent(0) : cache.caches() / each;
  return detail::checks("lookup_blocks")
      .at_least("tokens.caches_of_sequence", tokens.caches_of_sequence, 1, "caches of a sequence")
      .that(cache.caches() % each == 0, status::code::shape, "cache.caches()", relation::multiple_of, "caches of a sequence", each,
            cache.caches())
      .that(lists == 0 || (queries != 0 && lists % (queries * each) == 0), status::code::shape, "tokens.counts.extent(0)",
            relation::multiple_of, "queries times caches of a sequence", queries * each, lists)
      .extent("tokens.indices.extent(0)", tokens.indices.extent(0), lists, "lists, from tokens.counts")
      .extent("tokens.indices.stride(1)", lists == 0 ? 1 : tokens.indices.stride(1), 1, "last axis contiguous")
      .that(places.data == nullptr || places.extent(0) == lists, status::code::shape, "places.extent(0)", relation::equal,
            "lists, from tokens.counts", lists, places.extent(0))
      .that(places.data == nullptr || places.extent(1) >= tokens.indices.extent(1), status::code::shape, "places.extent(1)",
            relation::at_least, "k_max, from tokens.indices", tokens.indices.extent(1), places.extent(1))
      .extent("places.stride(1)", places.data == nullptr || lists == 0 ? 1 : places.stride(1), 1, "last axis contiguous");
}

/// Finds where selected tokens are in fast memory, and counts them for the admission at the end of the step. A step may make several calls.
///
/// @param cache   [caches]
/// @param tokens  positions below the shape's tokens (not checked: hot path)
/// @param places  [lists, k_max] int32, written if given: row of the cache, slot * B + the token's place in its block; -1 for a miss
/// @throws shape_error, value_error; then nothing is changed
/// @cost   reads and writes the lists once, and an entry for every block they touch; no allocation
template <exec::policy P, eviction_policy E>
void lookup_blocks(const P& policy, const block_cache_view<E, typename P::space_type>& cache,
                   const block_lookup<typename P::space_type>& tokens, view<std::int32_t, 2, typename P::space_type> places = {}) {
  require_ok(can_lookup_blocks(cache, tokens, places));
  detail::run_operation<op::lookup_blocks>(policy, cache, tokens, places);
}

/// The checks of admit_blocks() and of truncate_blocks().
template <eviction_policy E, class Space>
constexpr status can_have_lengths(const char* function, const block_cache_view<E, Space>& cache,
                                  const view<const std::uint32_t, 1, Space>& lengths) noexcept {
  return detail::checks(function).extent("lengths.extent(0)", lengths.extent(0), cache.caches(), "caches, from cache");
}

/// Ends a step's lookups. In each cache it offers the `admit_blocks` blocks with the highest counts (ties: the lower block), but never a
/// block without a selected token. Offered blocks that have a slot move up in the policy's order; the one with the highest count moves
/// highest. Offered blocks without a slot enter, that with the highest count first. They take empty slots, lowest first, then the slots of
/// the blocks lowest in that order. No block leaves in the step that offers it. Afterwards one(c).admitted says what to copy; then call
/// fill_blocks().
///
/// @param lengths  [caches] uint32, tokens of each sequence whose rows are final. A block with other tokens is offered but does not enter
/// @throws shape_error; then nothing is changed
/// @cost   O(blocks with a selected token); if a block enters, also O(slots); no allocation
template <exec::policy P, eviction_policy E>
void admit_blocks(const P& policy, const block_cache_view<E, typename P::space_type>& cache,
                  view<const std::uint32_t, 1, typename P::space_type> lengths) {
  require_ok(can_have_lengths("admit_blocks", cache, lengths));
  detail::run_operation<op::admit_blocks>(policy, cache, lengths);
}

/// Call once the rows of the last admission have been copied: lookups find them from now on.
template <exec::policy P, eviction_policy E>
void fill_blocks(const P& policy, const block_cache_view<E, typename P::space_type>& cache) {
  detail::run_operation<op::fill_blocks>(policy, cache);
}

/// Ends the step without the admitted rows, for example after a failed copy. Filling slots become empty and counts are forgotten;
/// statistics stay.
template <exec::policy P, eviction_policy E>
void abandon_blocks(const P& policy, const block_cache_view<E, typename P::space_type>& cache) {
  detail::run_operation<op::abandon_blocks>(policy, cache);
}

/// Drops every block, filling ones too, that has a token at or after the end of its sequence, and what the policy remembers of that block,
/// because other tokens will take its place. These are not counted as evictions.
///
/// @param lengths  [caches] uint32
/// @throws shape_error; then nothing is changed
/// @cost   O(slots), with tiny_lfu also O(blocks)
template <exec::policy P, eviction_policy E>
void truncate_blocks(const P& policy, const block_cache_view<E, typename P::space_type>& cache,
                     view<const std::uint32_t, 1, typename P::space_type> lengths) {
  require_ok(can_have_lengths("truncate_blocks", cache, lengths));
  detail::run_operation<op::truncate_blocks>(policy, cache, lengths);
}

/// Empties every cache of the view: slots, counts, statistics.
template <exec::policy P, eviction_policy E>
void reset_blocks(const P& policy, const block_cache_view<E, typename P::space_type>& cache) {
  zero_bytes(policy, cache.first.slots, cache.caches() * cache.cache_bytes);
}

/// Makes cache `to` a copy of cache `from`, statistics included. The caller copies the rows of its slots. @pre both < caches()
template <exec::policy P, eviction_policy E>
void copy_blocks(const P& policy, const block_cache_view<E, typename P::space_type>& cache, std::size_t from, std::size_t to) {
  if (from != to) copy_bytes(policy, cache.one(to).slots, cache.one(from).slots, cache.cache_bytes);
}

/// Owner of block caches in the memory of a space. Not thread-safe; its views end with it.
template <eviction_policy Eviction = eviction::lfu, class Space = space::host>
class block_cache {
 public:
  block_cache() = default;
  /// @throws value_error as can_block_cache() says; std::bad_alloc; on a device cuda_error
  template <exec::policy P>
  requires std::same_as<typename P::space_type, Space> block_cache(const P& policy, const block_cache_shape& shape)
      : shape_((require_ok(can_block_cache(shape)), shape)),
        memory_(make_owner<std::byte>(policy, block_cache_view<Eviction, Space>::required_bytes(shape))) {}

  const block_cache_shape& shape() const { return shape_; }
  std::size_t size_bytes() const { return memory_.size_bytes(); }
  block_cache_view<Eviction, Space> view() const {
    arena memory(memory_);
    return block_cache_view<Eviction, Space>::place(memory, shape_);
  }

 private:
  block_cache_shape shape_{};
  owner<std::byte, Space> memory_;
};

}  // namespace pqkv
