// SPDX-License-Identifier: Apache-2.0
// A cache's rows in two memories. All rows are in slow memory, which is large: a file under the host's memory, or pinned host memory under
// a device's. Fast memory is small and has copies of the rows that attention reads most: sinks, the newest tokens, and the blocks of the
// middle that a block cache chooses. Attention reads each row from where it is, so its result has the same bits as with one memory.
//
// A step has three parts: fetch() updates the copies of sinks and newest tokens (on a device append() does); attention reads, and
// look_up() counts what it finds in the block cache; admit() lets blocks enter the cache and copies their rows. On a device attention
// finds each row itself, so the look-ups run beside it; on the host fetch() makes them. pqcache makes these calls. Everything else that
// reads or writes rows (a prompt, training, a fork, a saved slot) uses slow memory, which always has every row. On a device each part is
// made of kernels whose launch shapes are fixed, so a captured step can be replayed while the sequences grow.
//
// Not for a slow memory that attention cannot read directly. Source: PQCache, SIGMOD 2025.
#pragma once

#include <type_traits>

#include "../exec/host.hpp"
#include "file_rows.hpp"
#include "sequence_steps.hpp"
#include "tiered_store.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct fetch_rows {};     // run(policy, tiers, fetched_tokens, and of a file: mapped_file): before attention reads, with the look-ups; on
                          // a device append() does it
struct look_up_rows {};   // run(policy, tiers, fetched_tokens): on a device, beside it
struct read_ahead {};     // run(policy, tiers, fetched_tokens, mapped_file, missing_rows): after it, asks for rows only in the file
struct admit_rows {};     // run(policy, tiers, sequences, passes, and of a file: mapped_file, missing_rows): after it has read
struct truncate_rows {};  // run(policy, tiers, truncated_tokens): drops copies of tokens that were cut
}  // namespace op

/// What a block of the middle has in fast memory.
enum class block_scope {
  layer,  // rows of all KV heads, and one cache for them: what any head selects counts
  head    // rows of one KV head: each head has a cache of its own, as large, whose blocks are those that this head selects most
};

/// How attention gets selected rows that are only in a file.
enum class missing_rows {
  touched,   // attention reads them, and waits for the disk at each page that is not in memory
  asked_for,  // before attention, the system is asked for all of them, so that it reads many at once, and attention waits for each as it
              // comes to it. So are rows of blocks that enter. Costs a system call for each run of pages, wasted if they are in memory
  waited_for  // as asked_for, and then all are waited for: a read that fails is an error of attend(), where attention would have been ended
              // by a signal. Attention then hides nothing of the disk's time. Needs Linux 5.14, else it is asked_for
};

/// A cache's rows in slow memory, and copies of some in fast memory. Not thread-safe; its views end with it.
///
/// @tparam Slow      the store of all rows. If fast memory is the host's: file_rows, or dense_rows or quantized_rows for comparison. If it
///                   is a device's: dense_rows<T, space::pinned> or quantized_rows<space::pinned>
/// @tparam Fast      the space of fast memory: the host's or the device's
/// @tparam Eviction  which block leaves: eviction::lfu, lru, tiny_lfu
template <class Slow = file_rows<float>, class Fast = space::host, eviction_policy Eviction = eviction::lfu>
class tiered_rows {
  static constexpr bool is_on_host = std::is_same_v<Fast, space::host>;
  static_assert(std::is_same_v<typename Slow::space_type, std::conditional_t<is_on_host, space::host, space::pinned>>,
                "pqkv: tiered_rows exists for slow and fast memory that the host reads, and for dense_rows<T, space::pinned> and "
                "quantized_rows<space::pinned> under space::device");

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
    block_scope scope = block_scope::layer;           // whose rows a block has
    std::size_t admit_blocks = default_admit_blocks;  // offered by each cache in a step
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
      return {slow_.view(), tiers_.sinks, tiers_.recent, tiers_.residents};
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
      return tier_statistics::of(tiers_.counted_blocks(slot), tiers_.residents(slot), tiers_.row_bytes());
    else
      return counts_[slot];
  }

  /// pqcache calls these: fetch() before a pass attends, look_up() once its attention is enqueued, admit() after the last pass, abandon()
  /// when a call has failed; `passes` is how many calls of look_up() there were. After a call that failed on a device, its look-ups stay
  /// counted, and the next admission takes them into account.
  /// @throws fetch: what Slow throws; fetch and admit: what the runner throws; on a device cuda_error
  /// @{
  template <exec::policy P>
  void fetch(const P& policy, const fetched_tokens<Fast>& wanted) const {
    if constexpr (requires { slow_.file(); }) {
      detail::run_operation<op::fetch_rows>(policy, tiers_, wanted, &slow_.file());
      if (missing_ != missing_rows::touched) detail::run_operation<op::read_ahead>(policy, tiers_, wanted, slow_.file(), missing_);
    } else {
      detail::run_operation<op::fetch_rows>(policy, tiers_, wanted);
    }
  }
  template <exec::policy P>
  void look_up(const P& policy, const fetched_tokens<Fast>& wanted) const {
    if constexpr (!is_on_host) detail::run_operation<op::look_up_rows>(policy, tiers_, wanted);
  }
  template <exec::policy P>
  void admit(const P& policy, pqkv::view<const sequence, 1, Fast> sequences, std::uint32_t passes) const {
    if constexpr (requires { slow_.file(); })
      detail::run_operation<op::admit_rows>(policy, tiers_, sequences, passes, &slow_.file(), missing_);
    else
      detail::run_operation<op::admit_rows>(policy, tiers_, sequences, passes);
  }
  template <exec::policy P>
  void abandon(const P& policy) const noexcept {
    if constexpr (is_on_host) {
      abandon_blocks(policy, tiers_.cache);
    } else {
      try {
        zero_bytes(policy, tiers_.looked_up.data, 3 * sizeof(std::uint32_t));
      } catch (...) {  // the device is lost, which the call has reported
      }
    }
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
    const auto copy = [&](const pqkv::view<element_type, 3, Fast>& rows) {
      const std::size_t size = tiers_.kv_heads * rows.stride(0);
      copy_bytes(policy, rows.data + to * size, rows.data + from * size, size * sizeof(element_type));
    };
    copy(tiers_.sinks), copy(tiers_.recent), copy(tiers_.blocks);
    copy_bytes(policy, &tiers_.residents.data[to], &tiers_.residents.data[from], sizeof(resident_tokens));
    const std::size_t each = tiers_.caches_of_slot();
    for (std::size_t c = 0; c < each; ++c) copy_blocks(policy, tiers_.cache, from * each + c, to * each + c);
  }
  template <exec::policy P>
  void cleared(const P& policy, std::size_t slot) const noexcept(is_on_host) {
    zero_bytes(policy, &tiers_.residents.data[slot], sizeof(resident_tokens));
    reset_blocks(policy, tiers_.cache.slice(slot * tiers_.caches_of_slot(), tiers_.caches_of_slot()));
    if constexpr (!is_on_host) zero_bytes(policy, &counts_[slot], sizeof(tier_statistics));
  }
  /// @}

 private:
  using element_type = typename tiers_type::element_type;

  static constexpr block_cache_shape blocks_of(const cache_shape& shape, const params& p) {
    const std::size_t b = p.block_tokens == 0 ? 1 : p.block_tokens;
    const std::size_t caches = p.scope == block_scope::head ? shape.batch * shape.kv_heads : shape.batch;
    return {caches, shape.capacity, p.block_tokens, p.cache_tokens / b, p.admit_blocks};
  }
  static std::size_t fast_bytes(const cache_shape& shape, const params& p) {
    arena count;
    place(count, shape, p);
    return count.used_bytes();
  }
  static tiers_type place(arena& memory, const cache_shape& shape, const params& p) {
    const block_cache_shape blocks = blocks_of(shape, p);
    const std::size_t heads = shape.batch * shape.kv_heads, row = token_row<value_type>::elements(shape.head_dim);
    const auto rows = [&](std::size_t tokens) {
      constexpr std::size_t most = static_cast<std::size_t>(-1);
      const bool fits = tokens == 0 || heads <= most / row / tokens;
      return make_view<Fast>(memory.take<element_type>(fits ? heads * tokens * row : most), heads, tokens, row);
    };
    tiers_type all{};
    all.sinks = rows(p.sink_tokens);
    all.recent = rows(p.recent_tokens);
    all.blocks = rows(blocks.capacity_blocks * blocks.block_tokens);
    all.residents = make_view<Fast>(memory.take<resident_tokens>(shape.batch), shape.batch);
    all.cache = block_cache_view<Eviction, Fast>::place(memory, blocks);
    all.tickets = make_view<Fast>(memory.take<std::uint32_t>(shape.batch), shape.batch);
    all.looked_up = make_view<Fast>(memory.take<std::uint32_t>(3), 3);
    all.kv_heads = static_cast<std::uint32_t>(shape.kv_heads);
    all.cache_heads = p.scope == block_scope::head ? 1 : all.kv_heads;
    return all;
  }

  missing_rows missing_;
  Slow slow_;
  owner<std::byte, Fast> memory_;
  owner<tier_statistics, space::pinned> counts_;  // on a device only
  tiers_type tiers_{};
};

}  // namespace pqkv
