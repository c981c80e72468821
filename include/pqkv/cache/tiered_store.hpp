// SPDX-License-Identifier: Apache-2.0
// What kernels see of a cache's rows in two memories: where each row is, which copies fast memory has, what they must copy next, and what
// was counted. tiered_rows.hpp owns the memory and says what it is for; users need only that header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "block_cache.hpp"
#include "quantized_rows.hpp"

namespace pqkv::inline PQKV_MODE {

/// Which sinks and newest tokens of a slot have copies in fast memory, and how much was read from slow memory.
struct resident_tokens {
  std::uint32_t sinks = 0;            // tokens [0, sinks)
  std::uint32_t first = 0, last = 0;  // newest tokens [first, last); token t is in row t modulo recent_tokens
  std::uint32_t unused = 0;
  std::uint64_t slow_rows = 0;    // read from slow memory for one head, K and V: for copies, and by attention outside the lists
  std::uint64_t near_misses = 0;  // misses of the block cache whose tokens were among the newest

  PQKV_HD constexpr bool has(std::uint32_t token) const { return token < sinks || (token >= first && token < last); }
  /// Forgets the copies of tokens that are cut off when the sequence is cut to its first `length` tokens.
  PQKV_HD constexpr void truncate(std::uint32_t length) {
    sinks = sinks < length ? sinks : length;
    last = last < length ? last : length;
    first = first < last ? first : last;
  }
  /// How many of tokens [begin, end) have no copy among sinks and newest tokens.
  PQKV_HD constexpr std::uint32_t missing(std::uint32_t begin, std::uint32_t end) const {
    begin = begin > sinks ? begin : sinks;
    if (begin >= end) return 0;
    const std::uint32_t from = begin > first ? begin : first, to = end < last ? end : last;
    return end - begin - (from < to ? to - from : 0);
  }
};

/// The sinks and newest tokens that must be copied to fast memory, for a sequence of a given length.
struct resident_update {
  resident_tokens after{};                   // the state once they have been copied
  std::uint32_t sinks_begin = 0, sinks = 0;  // copy tokens [sinks_begin, sinks_begin + sinks)
  std::uint32_t older_begin = 0, older = 0;  // tokens that are among the newest again, since the sequence was cut
  std::uint32_t newer_begin = 0, newer = 0;

  /// @param sink_room, recent_room  tokens that fast memory has room for
  PQKV_HD static constexpr resident_update of(resident_tokens now, std::uint32_t tokens, std::uint32_t sink_room,
                                              std::uint32_t recent_room) {
    const std::uint32_t length = tokens > now.last ? tokens : now.last, oldest = length > recent_room ? length - recent_room : 0;
    if (now.first == now.last) now.first = now.last = oldest;
    const std::uint32_t sinks = sink_room < length ? sink_room : length, before = now.first < length ? now.first : length,
                        behind = now.last > oldest ? now.last : oldest;
    resident_update all;
    all.sinks_begin = now.sinks, all.sinks = sinks > now.sinks ? sinks - now.sinks : 0;
    all.older_begin = oldest, all.older = before > oldest ? before - oldest : 0;
    all.newer_begin = behind, all.newer = length > behind ? length - behind : 0;
    now.sinks += all.sinks;
    now.first = oldest, now.last = length;
    all.after = now;
    return all;
  }
  PQKV_HD constexpr std::uint32_t count() const { return sinks + older + newer; }
  PQKV_HD constexpr bool is_sink(std::uint32_t i) const { return i < sinks; }
  /// The i-th token to copy: sinks first.
  PQKV_HD constexpr std::uint32_t token(std::uint32_t i) const {
    if (i < sinks) return sinks_begin + i;
    i -= sinks;
    return i < older ? older_begin + i : newer_begin + (i - older);
  }
};

/// The result of pqcache_state::rows().statistics(slot). A token is counted once for every list that selected it.
struct tier_statistics {
  std::uint64_t hits = 0;        // selected tokens whose rows were in fast memory
  std::uint64_t misses = 0;      // selected tokens whose rows attention read from slow memory
  std::uint64_t slow_bytes = 0;  // read from slow memory: by attention, and for the copies in fast memory
  std::uint64_t admissions = 0;  // blocks that entered
  std::uint64_t evictions = 0;   // admissions that replaced another block
  std::uint64_t kept_out = 0;    // overflow: offers of complete blocks that were not in fast memory and got no place there

  /// What was counted since `before`, an earlier result for the same slot.
  constexpr tier_statistics since(const tier_statistics& before) const {
    return {hits - before.hits,           misses - before.misses,    slow_bytes - before.slow_bytes, admissions - before.admissions,
            evictions - before.evictions, kept_out - before.kept_out};
  }
  constexpr tier_statistics& operator+=(const tier_statistics& other) {
    hits += other.hits, misses += other.misses, slow_bytes += other.slow_bytes;
    admissions += other.admissions, evictions += other.evictions, kept_out += other.kept_out;
    return *this;
  }
  /// Share of the selected tokens whose rows were in fast memory; 0 where none was selected.
  constexpr double hit_rate() const { return hits + misses != 0 ? static_cast<double>(hits) / static_cast<double>(hits + misses) : 0; }

  /// @param row_bytes  K and V of one token and head
  PQKV_HD static constexpr tier_statistics of(const block_statistics& blocks, const resident_tokens& resident, std::size_t row_bytes) {
    const std::uint64_t misses = blocks.misses - resident.near_misses;
    return {blocks.hits + resident.near_misses,
            misses,
            (resident.slow_rows + misses) * row_bytes,
            blocks.admissions,
            blocks.evictions,
            blocks.kept_out};
  }
};

/// Rows in pinned host memory, read and written by a device's kernels. Unlike strided_rows it offers no strided keys: the bus is slow, so
/// training copies the keys it reads many times to device memory first. append() also keeps the copies in device memory up to date.
template <row_scalar T>
struct bus_rows {
  using value_type = T;
  using space_type = space::pinned;

  typename owned_rows<T, space::pinned>::view_type all;
  view<typename token_row<T>::element_type, 3, space::device> sinks{}, recent{};  // tiered_store::sinks and recent
  view<resident_tokens, 1, space::device> residents{};                            // tiered_store::residents

  PQKV_HD constexpr std::size_t heads() const { return all.heads(); }
  PQKV_HD constexpr std::size_t tokens() const { return all.tokens(); }
  PQKV_HD constexpr std::size_t head_dim() const { return all.head_dim(); }
  PQKV_HD constexpr kv_row<T> key(std::size_t head, std::size_t token) const { return all.key(head, token); }
  PQKV_HD constexpr kv_row<T> value(std::size_t head, std::size_t token) const { return all.value(head, token); }
  PQKV_HD constexpr row_slot<T> key_slot(std::size_t head, std::size_t token) const { return all.key_slot(head, token); }
  PQKV_HD constexpr row_slot<T> value_slot(std::size_t head, std::size_t token) const { return all.value_slot(head, token); }
  PQKV_HD typename token_row<T>::element_type* recent_row(std::size_t head, std::uint32_t token) const {
    return &recent(head, token % static_cast<std::uint32_t>(recent.extent(1)), 0);
  }
  /// The copies that device memory lacks for a sequence of `length` tokens, and the row there of the i-th.
  /// @{
  PQKV_HD resident_update update_of(const resident_tokens& now, std::uint32_t length) const {
    return resident_update::of(now, length, static_cast<std::uint32_t>(sinks.extent(1)), static_cast<std::uint32_t>(recent.extent(1)));
  }
  PQKV_HD typename token_row<T>::element_type* resident_row(const resident_update& update, std::size_t head, std::uint32_t i) const {
    return update.is_sink(i) ? &sinks(head, update.token(i), 0) : recent_row(head, update.token(i));
  }
  /// @}
};

/// Both memories as one store for attention: a row is read from fast memory if it has a copy there, otherwise from slow memory. Copies are
/// of the same type as what they copy. Heads are batch * h.
///
/// @tparam Space, Slow  the spaces of fast and slow memory
template <row_scalar T, eviction_policy Eviction, class Space = space::host, class Slow = Space>
struct tiered_store {
  using value_type = T;
  using space_type = Space;
  using row_type = token_row<T>;
  using element_type = typename row_type::element_type;

  typename owned_rows<T, Slow>::view_type slow;        // [batch * h, capacity, d]
  view<element_type, 3, Space> sinks, recent, blocks;  // [batch * h, sink, recent, cached tokens, row]: K and V side by side
  view<resident_tokens, 1, Space> residents;       // [batch]
  block_cache_view<Eviction, Space> cache;         // [batch] or [batch * h]
  view<std::uint32_t, 1, Space> tickets;           // [batch] how many CTAs of a slot have read its residents; 0 between launches
  view<std::uint32_t, 1, Space> looked_up;  // [3] on a device only: passes whose look-ups have ended; CTAs of such a pass; CTAs that have
                                            // seen them. 0 between calls
  view<tier_statistics, 1, space::pinned> counts;  // [batch] on a device only: statistics after the last step, which the host reads
  std::uint32_t kv_heads = 1;
  std::uint32_t cache_heads = 1;  // KV heads that share a block cache: all of a slot, or one

  PQKV_HD constexpr std::size_t heads() const { return slow.heads(); }
  PQKV_HD constexpr std::size_t tokens() const { return slow.tokens(); }
  PQKV_HD constexpr std::size_t head_dim() const { return slow.head_dim(); }
  PQKV_HD constexpr std::size_t row_bytes() const { return row_type::bytes(head_dim()); }
  PQKV_HD kv_row<T> key(std::size_t head, std::size_t token) const { return of_head(head).key(head, token); }
  PQKV_HD kv_row<T> value(std::size_t head, std::size_t token) const { return of_head(head).value(head, token); }
  /// Where a row is written: in slow memory.
  /// @{
  PQKV_HD constexpr row_slot<T> key_slot(std::size_t head, std::size_t token) const { return slow.key_slot(head, token); }
  PQKV_HD constexpr row_slot<T> value_slot(std::size_t head, std::size_t token) const { return slow.value_slot(head, token); }
  /// @}

  /// The rows of one head, with what does not depend on the token.
  struct rows_of_head {
    const tiered_store& store;
    resident_tokens resident;
    one_block_cache<Eviction> cache;

    PQKV_HD kv_row<T> key(std::size_t head, std::size_t token) const {
      const element_type* const row = fast_row(head, token);
      return row != nullptr ? row_type::key(row, store.head_dim()) : store.slow.key(head, token);
    }
    PQKV_HD kv_row<T> value(std::size_t head, std::size_t token) const {
      const element_type* const row = fast_row(head, token);
      return row != nullptr ? row_type::value(row, store.head_dim()) : store.slow.value(head, token);
    }
    /// The row's copy in fast memory, or null.
    PQKV_HD const element_type* fast_row(std::size_t head, std::size_t at) const {
      const auto token = static_cast<std::uint32_t>(at);
      if (token < resident.sinks) return &store.sinks(head, token, 0);
      if (token >= resident.first && token < resident.last) return store.recent_row(head, token);
      const std::uint32_t block = token / cache.block_tokens;
      const std::int32_t held = cache.found(block);
      if (held < 0) return nullptr;
      return &store.blocks(head, static_cast<std::uint32_t>(held) * cache.block_tokens + (token - block * cache.block_tokens), 0);
    }
  };
  PQKV_HD rows_of_head of_head(std::size_t head) const {
    return {*this, residents(static_cast<std::uint32_t>(head) / kv_heads), cache_of_head(head)};
  }

  PQKV_HD constexpr std::size_t caches_of_slot() const { return kv_heads / cache_heads; }
  PQKV_HD one_block_cache<Eviction> cache_of_head(std::size_t head) const { return cache.one(head / cache_heads); }
  /// The block cache of one of a query's `lists` lists.
  PQKV_HD one_block_cache<Eviction> cache_of_list(std::size_t slot, std::size_t list, std::size_t lists) const {
    return cache.one(slot * caches_of_slot() + list * caches_of_slot() / lists);
  }
  /// The counts of all block caches of a slot.
  PQKV_HD block_statistics counted_blocks(std::size_t slot) const {
    block_statistics sum;
    for (std::size_t c = 0; c < caches_of_slot(); ++c) sum += *cache.one(slot * caches_of_slot() + c).statistics;
    return sum;
  }
  /// Whether a row has a copy in fast memory.
  PQKV_HD bool has_copy(std::size_t head, std::size_t token) const { return of_head(head).fast_row(head, token) != nullptr; }
  PQKV_HD element_type* recent_row(std::size_t head, std::uint32_t token) const {
    return &recent(head, token % static_cast<std::uint32_t>(recent.extent(1)), 0);
  }
  /// The row of fast memory for a copy of the i-th token of an update.
  PQKV_HD element_type* resident_row(const resident_update& update, std::size_t head, std::uint32_t i) const {
    const std::uint32_t token = update.token(i);
    return update.is_sink(i) ? &sinks(head, token, 0) : recent_row(head, token);
  }
  /// The copies that fast memory lacks for a sequence of `length` tokens.
  PQKV_HD resident_update update_of(const resident_tokens& now, std::uint32_t length) const {
    return resident_update::of(now, length, static_cast<std::uint32_t>(sinks.extent(1)), static_cast<std::uint32_t>(recent.extent(1)));
  }
  /// How many of the block's tokens within [first, last) are in slow memory only.
  PQKV_HD std::uint32_t slow_tokens(const one_block_cache<Eviction>& one, const resident_tokens& resident, std::uint32_t block,
                                    std::uint32_t first, std::uint32_t last) const {
    if (one.found(block) >= 0) return 0;
    const std::uint64_t begin = std::uint64_t{block} * one.block_tokens, end = begin + one.block_tokens;
    return resident.missing(begin > first ? static_cast<std::uint32_t>(begin) : first, end < last ? static_cast<std::uint32_t>(end) : last);
  }
};

}  // namespace pqkv
