// SPDX-License-Identifier: Apache-2.0
// A cache's rows in two memories. All rows are in slow memory, which is large: a file. Fast memory is small and has copies of those that
// attention reads most: sinks, the newest tokens, and the blocks of the middle that a block cache chooses. Attention reads each row from
// where it is, so its result has the same bits as with one memory.
//
// A step: fetch() updates the copies of sinks and newest tokens and asks the block cache for the selected ones; attention reads; admit()
// lets blocks enter and copies their rows. pqcache makes these calls. Everything else that reads or writes rows (a prompt, training, a
// fork, a saved slot) uses slow memory, which always has every row.
//
// Not for a slow memory that attention cannot read directly. Source: PQCache, SIGMOD 2025.
#pragma once

#include <cstring>
#include <type_traits>

#include "../exec/host.hpp"
#include "block_cache.hpp"
#include "file_rows.hpp"
#include "sequence_steps.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct fetch_rows {};  // run(policy, tiers, fetched_tokens): before attention reads
struct admit_rows {};  // run(policy, tiers, sequences): after it has read
}  // namespace op

/// Which copies of a slot are in fast memory besides its blocks, and what was read from slow memory.
struct resident_tokens {
  std::uint32_t sinks = 0;            // tokens [0, sinks)
  std::uint32_t first = 0, last = 0;  // the newest: tokens [first, last), token t in row t modulo recent_tokens
  std::uint32_t unused = 0;
  std::uint64_t slow_rows = 0;    // of one head, K and V, read from slow memory: copies, and what attention takes whole
  std::uint64_t near_misses = 0;  // of the block cache's misses, those that were among the newest
};

/// The result of pqcache_state::rows().statistics(slot). A token is counted once for every list that selected it.
struct tier_statistics {
  std::uint64_t hits = 0;        // selected tokens whose rows were in fast memory
  std::uint64_t misses = 0;      // selected tokens whose rows attention read from slow memory
  std::uint64_t slow_bytes = 0;  // read from slow memory: by attention, and for the copies in fast memory
  std::uint64_t admissions = 0;  // blocks that entered
  std::uint64_t evictions = 0;   // admissions that replaced another block
};

/// The two memories as attention sees them: it gets a row from fast memory if it is there, else from slow memory. Heads are batch * h.
template <storage_scalar T, eviction_policy Eviction>
struct tiered_store {
  using value_type = T;
  using space_type = space::host;

  strided_rows<T> slow;                // [batch * h, capacity, d]
  view<T, 3> sinks, recent, blocks;    // [batch * h, sink, recent, cached tokens, row]: K and V side by side
  view<resident_tokens, 1> residents;  // [batch]
  block_cache_view<Eviction> cache;    // [batch]
  view<std::uint32_t, 1> lengths;      // [batch] scratch
  std::uint32_t kv_heads = 1;

  PQKV_HD constexpr std::size_t heads() const { return slow.heads(); }
  PQKV_HD constexpr std::size_t tokens() const { return slow.tokens(); }
  PQKV_HD constexpr std::size_t head_dim() const { return slow.head_dim(); }
  PQKV_HD kv_row<T> key(std::size_t head, std::size_t token) const {
    const T* const row = fast_row(head, token);
    return row != nullptr ? kv_row<T>{row, 1} : slow.key(head, token);
  }
  PQKV_HD kv_row<T> value(std::size_t head, std::size_t token) const {
    const T* const row = fast_row(head, token);
    return row != nullptr ? kv_row<T>{row + head_dim(), 1} : slow.value(head, token);
  }

  /// Whether a token is among the sinks or newest tokens that a slot has in fast memory.
  PQKV_HD bool is_resident(const resident_tokens& of, std::uint32_t token) const {
    return token < of.sinks || (token >= of.first && token < of.last);
  }
  PQKV_HD T* recent_row(std::size_t head, std::uint32_t token) const {
    return &recent(head, token % static_cast<std::uint32_t>(recent.extent(1)), 0);
  }

 private:
  PQKV_HD const T* fast_row(std::size_t head, std::size_t at) const {
    const auto token = static_cast<std::uint32_t>(at), slot = static_cast<std::uint32_t>(head) / kv_heads;
    const resident_tokens& resident = residents(slot);
    if (token < resident.sinks) return &sinks(head, token, 0);
    if (token >= resident.first && token < resident.last) return recent_row(head, token);
    const one_block_cache<Eviction> one = cache.one(slot);
    const std::uint32_t block = token / one.block_tokens;
    const std::int32_t held = one.found(block);
    return held < 0 ? nullptr : &blocks(head, static_cast<std::uint32_t>(held) * one.block_tokens + (token - block * one.block_tokens), 0);
  }
};

/// A cache's rows in slow memory, and copies of some in fast memory. Not thread-safe; its views end with it.
///
/// @tparam Slow      where all rows are: file_rows, or dense_rows for comparison
/// @tparam Fast      the space of fast memory: the host's
/// @tparam Eviction  which block leaves: eviction::lfu, lru, tiny_lfu
template <class Slow = file_rows<float>, class Fast = space::host, eviction_policy Eviction = eviction::lfu>
class tiered_rows {
  static_assert(std::is_same_v<Fast, space::host> && std::is_same_v<typename Slow::space_type, space::host>,
                "pqkv: tiered_rows exists for slow and fast memory that the host reads");

 public:
  using value_type = typename Slow::value_type;
  using space_type = Fast;
  using view_type = typename Slow::view_type;
  using tiers_type = tiered_store<value_type, Eviction>;

  /// Sizes of fast memory, in tokens of a slot. Each token has rows of all KV heads.
  struct params {
    typename Slow::params slow{};     // e.g. the file's folder
    std::size_t sink_tokens = 32;     // copies of the first tokens
    std::size_t recent_tokens = 512;  // copies of the newest tokens; with fewer than the window has, the rest of the window is read slowly
    std::size_t cache_tokens = 4096;  // tokens in blocks of the middle; 0: none
    std::size_t block_tokens = 16;    // B
    std::size_t admit_blocks = default_admit_blocks;  // offered in a step
  };

  static constexpr status can_construct(const cache_shape& shape, const params& p) noexcept {
    if (const status s = Slow::can_construct(shape, p.slow); !s.ok()) return s;
    const status sizes = detail::checks("pqcache")
                             .at_least("rows.recent_tokens", p.recent_tokens, 1, "newest tokens in fast memory")
                             .at_most("rows.recent_tokens", p.recent_tokens, 2147483647.0, "newest tokens in fast memory")
                             .at_most("rows.sink_tokens", p.sink_tokens, 2147483647.0, "first tokens in fast memory")
                             .at_most("rows.cache_tokens", p.cache_tokens, 2147483647.0, "tokens of blocks in fast memory");
    return sizes.ok() ? can_block_cache(blocks_of(shape, p)) : sizes;
  }
  /// Bytes of fast memory. Slow accounts for slow memory.
  static std::size_t required_bytes(const cache_shape& shape, const params& p) {
    arena count;
    place(count, shape, p);
    return count.used_bytes() + Slow::required_bytes(shape, p.slow);
  }

  /// @pre can_construct(shape, p)
  /// @throws std::bad_alloc, and what Slow throws: storage_error
  template <exec::policy P>
  tiered_rows(const P& policy, const cache_shape& shape, const params& p)
      : slow_(policy, shape, p.slow), memory_(make_owner<std::byte>(policy, fast_bytes(shape, p))) {
    arena memory(memory_);
    tiers_ = place(memory, shape, p);
    tiers_.slow = slow_.view();
  }

  /// All rows, in slow memory.
  view_type view() const { return slow_.view(); }
  auto store() const { return slow_.store(); }
  /// The rows as attention reads them.
  const tiers_type& tiers() const { return tiers_; }
  const Slow& slow() const { return slow_; }
  std::size_t size_bytes() const { return memory_.size_bytes() + slow_.size_bytes(); }
  std::size_t room(std::size_t slot) const { return slow_.room(slot); }
  status can_hold(const char* function, std::size_t slot, std::size_t first, std::size_t last) const noexcept {
    return slow_.can_hold(function, slot, first, last);
  }
  slot_parts parts() const { return slow_.parts(); }
  /// Every verb calls this before it touches rows. @throws what Slow throws: storage_error
  void ensure_readable(const char* function) const {
    if constexpr (requires { slow_.ensure_readable(function); }) slow_.ensure_readable(function);
  }

  /// The counts of a slot. @pre slot < batch
  tier_statistics statistics(std::size_t slot) const {
    const block_statistics& of_blocks = *tiers_.cache.one(slot).statistics;
    const resident_tokens& resident = tiers_.residents(slot);
    const std::size_t row_bytes = 2 * tiers_.head_dim() * sizeof(value_type);
    const std::uint64_t misses = of_blocks.misses - resident.near_misses;
    return {of_blocks.hits + resident.near_misses, misses, (resident.slow_rows + misses) * row_bytes, of_blocks.admissions,
            of_blocks.evictions};
  }

  /// pqcache calls these: before a pass attends, after the last pass, and when a call has failed.
  /// @throws fetch: what Slow throws; both: what the runner throws
  /// @{
  template <exec::policy P>
  void fetch(const P& policy, const fetched_tokens<Fast>& wanted) const {
    detail::run_operation<op::fetch_rows>(policy, tiers_, wanted);
  }
  template <exec::policy P>
  void admit(const P& policy, pqkv::view<const sequence, 1, Fast> sequences) const {
    detail::run_operation<op::admit_rows>(policy, tiers_, sequences);
  }
  void abandon() const noexcept { abandon_blocks(exec::host<>{}, tiers_.cache); }
  /// @}

  /// pqcache calls these when slots were cut, copied or emptied.
  /// @{
  void truncated(const truncated_tokens<Fast>& call) const noexcept {
    for (std::size_t row = 0; row < call.rows(); ++row) truncated(call.slot_of(row), call.length_of(row));
  }
  void truncated(std::size_t slot, std::uint32_t length) const noexcept {
    resident_tokens& resident = tiers_.residents(slot);
    resident.sinks = resident.sinks < length ? resident.sinks : length;
    resident.last = resident.last < length ? resident.last : length;
    resident.first = resident.first < resident.last ? resident.first : resident.last;
    truncate_blocks(exec::host<>{}, tiers_.cache.slice(slot, 1), make_view(static_cast<const std::uint32_t*>(&length), 1));
  }
  void copied(std::size_t from, std::size_t to) const noexcept {
    const auto copy = [&](const pqkv::view<value_type, 3>& rows) {
      const std::size_t size = tiers_.kv_heads * rows.stride(0);
      if (size != 0) std::memcpy(rows.data + to * size, rows.data + from * size, size * sizeof(value_type));
    };
    copy(tiers_.sinks), copy(tiers_.recent), copy(tiers_.blocks);
    tiers_.residents(to) = tiers_.residents(from);
    copy_blocks(exec::host<>{}, tiers_.cache, from, to);
  }
  void cleared(std::size_t slot) const noexcept {
    tiers_.residents(slot) = {};
    reset_blocks(exec::host<>{}, tiers_.cache.slice(slot, 1));
  }
  /// @}

 private:
  static constexpr block_cache_shape blocks_of(const cache_shape& shape, const params& p) {
    const std::size_t b = p.block_tokens == 0 ? 1 : p.block_tokens;
    return {shape.batch, shape.capacity, p.block_tokens, p.cache_tokens / b, p.admit_blocks};
  }
  static std::size_t fast_bytes(const cache_shape& shape, const params& p) {
    arena count;
    place(count, shape, p);
    return count.used_bytes();
  }
  static tiers_type place(arena& memory, const cache_shape& shape, const params& p) {
    const block_cache_shape blocks = blocks_of(shape, p);
    const std::size_t heads = shape.batch * shape.kv_heads, row = dense_rows<value_type>::row_elements(shape.head_dim);
    const auto rows = [&](std::size_t tokens) {
      constexpr std::size_t most = static_cast<std::size_t>(-1);
      const bool fits = tokens == 0 || heads <= most / row / tokens;
      return make_view(memory.take<value_type>(fits ? heads * tokens * row : most), heads, tokens, row);
    };
    tiers_type all{};
    all.sinks = rows(p.sink_tokens);
    all.recent = rows(p.recent_tokens);
    all.blocks = rows(blocks.capacity_blocks * blocks.block_tokens);
    all.residents = make_view(memory.take<resident_tokens>(shape.batch), shape.batch);
    all.cache = block_cache_view<Eviction>::place(memory, blocks);
    all.lengths = make_view(memory.take<std::uint32_t>(shape.batch), shape.batch);
    all.kv_heads = static_cast<std::uint32_t>(shape.kv_heads);
    return all;
  }

  Slow slow_;
  owner<std::byte, Fast> memory_;
  tiers_type tiers_{};
};

}  // namespace pqkv
