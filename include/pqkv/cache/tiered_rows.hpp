// SPDX-License-Identifier: Apache-2.0
// A cache's rows in two memories. All rows are in slow memory, which is large: a file under the host's memory, or pinned host memory under
// a device's. Fast memory is small and has copies of the rows that attention reads most: sinks, the newest tokens, and the blocks of the
// middle that a block cache chooses. Attention reads each row from where it is, so its result has the same bits as with one memory.
//
// A step has three parts: fetch() updates the copies of sinks and newest tokens and looks up the selected tokens in the block cache;
// attention reads; admit() lets blocks enter the cache and copies their rows. pqcache makes these calls. Everything else that reads or
// writes rows (a prompt, training, a fork, a saved slot) uses slow memory, which always has every row. On a device each part is made of
// kernels whose launch shapes are fixed, so a captured step can be replayed while the sequences grow.
//
// Not for a slow memory that attention cannot read directly. Source: PQCache, SIGMOD 2025.
#pragma once

#include <type_traits>

#include "../exec/host.hpp"
#include "block_cache.hpp"
#include "file_rows.hpp"
#include "sequence_steps.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct fetch_rows {};     // run(policy, tiers, fetched_tokens): before attention reads
struct read_ahead {};     // run(policy, tiers, fetched_tokens, mapped_file): after it, asks the system for rows that are only in the file
struct admit_rows {};     // run(policy, tiers, sequences): after it has read
struct truncate_rows {};  // run(policy, tiers, truncated_tokens): drops copies of tokens that were cut
}  // namespace op

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

/// How attention gets selected rows that are only in a file.
enum class missing_rows {
  touched,   // attention reads them, and waits for the disk at each page that is not in memory
  asked_for  // before attention, the system is asked for all of them, so that it reads many at once. Costs one system call for each run of
             // pages, wasted if they are in memory already
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
/// training copies the keys it reads many times to device memory first. A step that appends one token to a slot also writes the token's
/// copy in device memory.
template <storage_scalar T>
struct bus_rows {
  using value_type = T;
  using space_type = space::pinned;

  strided_rows<T, space::pinned> all;
  view<T, 3, space::device> recent{};                   // the copies of newest tokens: tiered_store::recent
  view<resident_tokens, 1, space::device> residents{};  // tiered_store::residents

  PQKV_HD constexpr std::size_t heads() const { return all.heads(); }
  PQKV_HD constexpr std::size_t tokens() const { return all.tokens(); }
  PQKV_HD constexpr std::size_t head_dim() const { return all.head_dim(); }
  PQKV_HD constexpr kv_row<T> key(std::size_t head, std::size_t token) const { return all.key(head, token); }
  PQKV_HD constexpr kv_row<T> value(std::size_t head, std::size_t token) const { return all.value(head, token); }
  PQKV_HD constexpr row_slot<T> key_slot(std::size_t head, std::size_t token) const { return all.key_slot(head, token); }
  PQKV_HD constexpr row_slot<T> value_slot(std::size_t head, std::size_t token) const { return all.value_slot(head, token); }
};

/// Both memories as one store for attention: a row is read from fast memory if it has a copy there, otherwise from slow memory. Heads are
/// batch * h.
///
/// @tparam Space, Slow  the spaces of fast and slow memory
template <storage_scalar T, eviction_policy Eviction, class Space = space::host, class Slow = Space>
struct tiered_store {
  using value_type = T;
  using space_type = Space;

  strided_rows<T, Slow> slow;                      // [batch * h, capacity, d]
  view<T, 3, Space> sinks, recent, blocks;         // [batch * h, sink, recent, cached tokens, row]: K and V side by side
  view<resident_tokens, 1, Space> residents;       // [batch]
  block_cache_view<Eviction, Space> cache;         // [batch]
  view<std::uint32_t, 1, Space> tickets;           // [batch] how many CTAs of a slot have read its residents; 0 between launches
  view<tier_statistics, 1, space::pinned> counts;  // [batch] on a device only: statistics after the last step, which the host reads
  std::uint32_t kv_heads = 1;

  PQKV_HD constexpr std::size_t heads() const { return slow.heads(); }
  PQKV_HD constexpr std::size_t tokens() const { return slow.tokens(); }
  PQKV_HD constexpr std::size_t head_dim() const { return slow.head_dim(); }
  PQKV_HD constexpr std::size_t row_bytes() const { return 2 * head_dim() * sizeof(T); }
  PQKV_HD kv_row<T> key(std::size_t head, std::size_t token) const {
    const T* const row = fast_row(head, token);
    return row != nullptr ? kv_row<T>{row, 1} : slow.key(head, token);
  }
  PQKV_HD kv_row<T> value(std::size_t head, std::size_t token) const {
    const T* const row = fast_row(head, token);
    return row != nullptr ? kv_row<T>{row + head_dim(), 1} : slow.value(head, token);
  }

  /// Whether a row has a copy in fast memory.
  PQKV_HD bool has_copy(std::size_t head, std::size_t token) const { return fast_row(head, token) != nullptr; }
  PQKV_HD T* recent_row(std::size_t head, std::uint32_t token) const {
    return &recent(head, token % static_cast<std::uint32_t>(recent.extent(1)), 0);
  }
  /// The row of fast memory for a copy of the i-th token of an update.
  PQKV_HD T* resident_row(const resident_update& update, std::size_t head, std::uint32_t i) const {
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
/// @tparam Slow      the store of all rows. If fast memory is the host's: file_rows, or dense_rows for comparison. If it is a device's:
///                   dense_rows<T, space::pinned>
/// @tparam Fast      the space of fast memory: the host's or the device's
/// @tparam Eviction  which block leaves: eviction::lfu, lru, tiny_lfu
template <class Slow = file_rows<float>, class Fast = space::host, eviction_policy Eviction = eviction::lfu>
class tiered_rows {
  static constexpr bool is_on_host = std::is_same_v<Fast, space::host>;
  static_assert(is_on_host ? std::is_same_v<typename Slow::space_type, space::host>
                           : std::is_same_v<Slow, dense_rows<typename Slow::value_type, space::pinned>>,
                "pqkv: tiered_rows exists for slow and fast memory that the host reads, and for dense_rows<T, space::pinned> under "
                "space::device");

 public:
  using value_type = typename Slow::value_type;
  using space_type = Fast;
  using view_type = std::conditional_t<is_on_host, typename Slow::view_type, bus_rows<value_type>>;
  using tiers_type = tiered_store<value_type, Eviction, Fast, typename Slow::space_type>;

  /// Sizes of fast memory, in tokens of a slot. Each token has rows of all KV heads.
  struct params {
    typename Slow::params slow{};                     // e.g. the file's folder
    std::size_t sink_tokens = 32;                     // copies of the first tokens
    std::size_t recent_tokens = 512;                  // copies of the newest tokens; window tokens beyond these are read from slow memory
    std::size_t cache_tokens = 4096;                  // tokens in blocks of the middle; 0: none
    std::size_t block_tokens = 16;                    // B
    std::size_t admit_blocks = default_admit_blocks;  // offered in a step
    missing_rows missing = missing_rows::touched;     // only where Slow is a file
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
  /// Bytes of fast memory, plus Slow::required_bytes(), which is 0 for files.
  static std::size_t required_bytes(const cache_shape& shape, const params& p) {
    arena count;
    place(count, shape, p);
    return count.used_bytes() + Slow::required_bytes(shape, p.slow);
  }

  /// @pre can_construct(shape, p)
  /// @throws std::bad_alloc, and what Slow throws: storage_error; on a device cuda_error
  template <exec::policy P>
  tiered_rows(const P& policy, const cache_shape& shape, const params& p)
      : missing_(p.missing), slow_(policy, shape, p.slow), memory_(make_owner<std::byte>(policy, fast_bytes(shape, p))) {
    arena memory(memory_);
    tiers_ = place(memory, shape, p);
    tiers_.slow = slow_.view();
    if constexpr (!is_on_host) {
      counts_ = make_owner<tier_statistics, space::pinned>(policy, shape.batch);
      tiers_.counts = make_view<space::pinned>(counts_.data(), shape.batch);
    }
  }

  /// All rows, in slow memory.
  view_type view() const {
    if constexpr (is_on_host)
      return slow_.view();
    else
      return {slow_.view(), tiers_.recent, tiers_.residents};
  }
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

  /// The counts of a slot, without waiting for a device. Those of a device are from the last attend() that has ended; if another is just
  /// ending, some counts may already include it. @pre slot < batch
  tier_statistics statistics(std::size_t slot) const {
    if constexpr (is_on_host)
      return tier_statistics::of(*tiers_.cache.one(slot).statistics, tiers_.residents(slot), tiers_.row_bytes());
    else
      return counts_[slot];
  }

  /// pqcache calls these: fetch() before a pass attends, admit() after the last pass, abandon() when a call has failed. After a call that
  /// failed on a device, its look-ups stay counted, and the next admission takes them into account.
  /// @throws fetch: what Slow throws; fetch and admit: what the runner throws; on a device cuda_error
  /// @{
  template <exec::policy P>
  void fetch(const P& policy, const fetched_tokens<Fast>& wanted) const {
    detail::run_operation<op::fetch_rows>(policy, tiers_, wanted);
    if constexpr (requires { slow_.file(); })
      if (missing_ == missing_rows::asked_for) detail::run_operation<op::read_ahead>(policy, tiers_, wanted, slow_.file());
  }
  template <exec::policy P>
  void admit(const P& policy, pqkv::view<const sequence, 1, Fast> sequences) const {
    detail::run_operation<op::admit_rows>(policy, tiers_, sequences);
  }
  template <exec::policy P>
  void abandon(const P& policy) const noexcept {
    if constexpr (is_on_host) abandon_blocks(policy, tiers_.cache);
  }
  /// @}

  /// pqcache calls these when slots were cut, copied or emptied. On the host they do not fail.
  /// @throws on a device cuda_error
  /// @{
  template <exec::policy P>
  void truncated(const P& policy, const truncated_tokens<Fast>& call) const noexcept(is_on_host) {
    detail::run_operation<op::truncate_rows>(policy, tiers_, call);
  }
  template <exec::policy P>
  void copied(const P& policy, std::size_t from, std::size_t to) const noexcept(is_on_host) {
    const auto copy = [&](const pqkv::view<value_type, 3, Fast>& rows) {
      const std::size_t size = tiers_.kv_heads * rows.stride(0);
      copy_bytes(policy, rows.data + to * size, rows.data + from * size, size * sizeof(value_type));
    };
    copy(tiers_.sinks), copy(tiers_.recent), copy(tiers_.blocks);
    copy_bytes(policy, &tiers_.residents.data[to], &tiers_.residents.data[from], sizeof(resident_tokens));
    copy_blocks(policy, tiers_.cache, from, to);
  }
  template <exec::policy P>
  void cleared(const P& policy, std::size_t slot) const noexcept(is_on_host) {
    zero_bytes(policy, &tiers_.residents.data[slot], sizeof(resident_tokens));
    reset_blocks(policy, tiers_.cache.slice(slot, 1));
    if constexpr (!is_on_host) zero_bytes(policy, &counts_[slot], sizeof(tier_statistics));
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
      return make_view<Fast>(memory.take<value_type>(fits ? heads * tokens * row : most), heads, tokens, row);
    };
    tiers_type all{};
    all.sinks = rows(p.sink_tokens);
    all.recent = rows(p.recent_tokens);
    all.blocks = rows(blocks.capacity_blocks * blocks.block_tokens);
    all.residents = make_view<Fast>(memory.take<resident_tokens>(shape.batch), shape.batch);
    all.cache = block_cache_view<Eviction, Fast>::place(memory, blocks);
    all.tickets = make_view<Fast>(memory.take<std::uint32_t>(shape.batch), shape.batch);
    all.kv_heads = static_cast<std::uint32_t>(shape.kv_heads);
    return all;
  }

  missing_rows missing_;
  Slow slow_;
  owner<std::byte, Fast> memory_;
  owner<tier_statistics, space::pinned> counts_;  // on a device only
  tiers_type tiers_{};
};

}  // namespace pqkv
