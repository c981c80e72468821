// SPDX-License-Identifier: Apache-2.0
// Moves rows between slow and fast memory on the host. The calling thread copies the few rows that attention is about to read; the runner
// copies the rows of blocks, with one task for each head.
#pragma once

#include <algorithm>
#include <cstring>

#include "../../cache/tiered_rows.hpp"
#include "block_cache.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

template <class E>
void copy_row(const tiered_store<scaled_int8, E>& tiers, std::size_t head, std::size_t token, std::byte* to) {
  std::memcpy(to, tiers.slow.key(head, token).data, tiers.row_bytes());
}
template <class T, class E>
void copy_row(const tiered_store<T, E>& tiers, std::size_t head, std::size_t token, T* to) {
  const kv_row<T> key = tiers.slow.key(head, token), value = tiers.slow.value(head, token);
  for (std::size_t i = 0; i < tiers.head_dim(); ++i) to[i] = key.data[i * key.stride];
  for (std::size_t i = 0; i < tiers.head_dim(); ++i) to[tiers.head_dim() + i] = value.data[i * value.stride];
}

/// Where a token's row begins in slow memory: its key, then its value and scales.
template <class T, class E>
const std::byte* slow_row(const tiered_store<T, E>& tiers, std::size_t head, std::size_t token) {
  return reinterpret_cast<const std::byte*>(tiers.slow.key(head, token).data);
}

/// Bytes from the first row of a block of one head to the end of its last: rows follow one another, in slow memory as in fast memory.
template <class T, class E>
std::size_t block_bytes(const tiered_store<T, E>& tiers, std::size_t block_tokens) {
  return (block_tokens - 1) * tiers.blocks.stride(1) * sizeof(typename tiered_store<T, E>::element_type) + tiers.row_bytes();
}

/// Copies a token's row. From a file it is read, and not through the mapping, so that a failed read is an error.
/// @param file  that has the rows, or null
/// @return 0, or the error of the file
template <class T, class E>
int fetch_row(const tiered_store<T, E>& tiers, std::size_t head, std::size_t token, typename tiered_store<T, E>::element_type* to,
              const mapped_file* file) {
  if (file != nullptr) return file->read(to, slow_row(tiers, head, token), tiers.row_bytes());
  copy_row(tiers, head, token, to);
  return 0;
}

/// Copies the sinks and newest tokens that fast memory lacks for a sequence of this length; nothing if it has them already. Copies whose
/// places are taken are forgotten first, so that none is wrong if a read fails.
/// @return 0, or the error of the file
template <class T, class E>
int refresh_residents(const tiered_store<T, E>& tiers, std::size_t slot, std::uint32_t tokens, const mapped_file* file) {
  resident_tokens& now = tiers.residents(slot);
  const resident_update update = tiers.update_of(now, tokens);
  now.first = std::min(std::max(now.first, update.after.first), now.last);
  for (std::size_t head = slot * tiers.kv_heads; head < (slot + 1) * tiers.kv_heads; ++head)
    for (std::uint32_t i = 0; i < update.count(); ++i)
      if (const int error = fetch_row(tiers, head, update.token(i), tiers.resident_row(update, head, i), file); error != 0) return error;
  now = update.after;
  now.slow_rows += std::uint64_t{update.count()} * tiers.kv_heads;
  return 0;
}

/// How many tokens of [first, last) are not in fast memory.
/// @param one  the list's block cache
template <class T, class E>
std::uint64_t slow_tokens(const tiered_store<T, E>& tiers, std::size_t slot, const one_block_cache<E>& one, std::uint32_t first,
                          std::uint32_t last) {
  std::uint64_t count = 0;
  for (std::uint32_t block = first / one.block_tokens; std::uint64_t{block} * one.block_tokens < last; ++block)
    count += tiers.slow_tokens(one, tiers.residents(slot), block, first, last);
  return count;
}

/// How many of one list's misses in the block cache are among the newest tokens.
template <class T, class E>
std::uint64_t near_misses(const tiered_store<T, E>& tiers, std::size_t slot, const one_block_cache<E>& one, const std::int32_t* list,
                          std::size_t count) {
  const resident_tokens& of = tiers.residents(slot);
  std::uint64_t near = 0;
  for (std::size_t i = count; i-- > 0 && static_cast<std::uint32_t>(list[i]) >= of.first;)
    near += static_cast<std::uint32_t>(list[i]) < of.last && one.found(static_cast<std::uint32_t>(list[i]) / one.block_tokens) < 0 ? 1 : 0;
  for (std::size_t i = 0; i < count && static_cast<std::uint32_t>(list[i]) < of.sinks; ++i)
    near += static_cast<std::uint32_t>(list[i]) < of.first && one.found(static_cast<std::uint32_t>(list[i]) / one.block_tokens) < 0 ? 1 : 0;
  return near;
}

}  // namespace detail

template <>
struct kernel<op::fetch_rows, backend::host> {
  /// @param file  that has the rows, or null
  template <class P, class T, class E>
  static void run(const P& policy, const tiered_store<T, E>& tiers, const fetched_tokens<space::host>& wanted,
                  const mapped_file* file = nullptr) {
    const step_plan<space::host>& plan = wanted.plan;
    const std::size_t tokens = wanted.tokens(), lists = tokens == 0 ? 0 : wanted.lists();
    if (lists == 0) return;
    for (std::size_t i = 0; i < tokens; ++i)
      if (wanted.is_last_of_slot(i))
        if (const int error = detail::refresh_residents(tiers, plan.slots(i), wanted.length(i), file); error != 0)
          file->fail_reading("attend", error);
    lookup_blocks(policy, tiers.cache,
                  block_lookup<space::host>{wanted.indices, as_const(plan.counts), as_const(plan.slots), tiers.caches_of_slot()});
    for (std::size_t list = 0; list < tokens * lists; ++list) {
      const std::size_t slot = plan.slots(list / lists), count = plan.counts(list);
      const token_span& span = plan.spans(list);
      resident_tokens& of = tiers.residents(slot);
      const one_block_cache<E> one = tiers.cache_of_list(slot, list % lists, lists);
      const std::uint64_t near = count == 0 ? 0 : detail::near_misses(tiers, slot, one, &wanted.indices(list, 0), count);
      of.near_misses += near;
      of.slow_rows += detail::slow_tokens(tiers, slot, one, 0, span.leading);
      of.slow_rows += detail::slow_tokens(tiers, slot, one, span.window_begin, span.window_end);
    }
  }
};

template <>
struct kernel<op::read_ahead, backend::host> {
  /// Asks for all rows that are only in the file, and with missing_rows::waited_for waits for them.
  template <class P, class T, class E>
  static void run(const P&, const tiered_store<T, E>& tiers, const fetched_tokens<space::host>& wanted, const mapped_file& file,
                  missing_rows how) {
    for_missing(tiers, wanted, [&](const std::byte* first, std::size_t bytes) { file.read_ahead(first, bytes); });
    if (how != missing_rows::waited_for) return;
    int error = 0;
    for_missing(tiers, wanted, [&](const std::byte* first, std::size_t bytes) {
      if (error == 0) error = file.wait_for(first, bytes);
    });
    if (error != 0) file.fail_reading("attend", error);
  }

 private:
  static constexpr std::ptrdiff_t page_bytes = 4096;  // rows no further apart are asked for with what is between them

  /// Calls f(first, bytes) for the bytes of selected rows that are only in the file; rows close to each other in one call.
  template <class T, class E, class F>
  static void for_missing(const tiered_store<T, E>& tiers, const fetched_tokens<space::host>& wanted, F f) {
    const std::size_t tokens = wanted.tokens(), lists = tokens == 0 ? 0 : wanted.lists(), h = tiers.kv_heads;
    const std::byte *first = nullptr, *last = nullptr;  // of rows that follow one another
    const auto end_run = [&] {
      if (first != last) f(first, static_cast<std::size_t>(last - first));
    };
    for (std::size_t list = 0; list < tokens * lists; ++list) {
      const std::size_t head = wanted.plan.slots(list / lists) * h + list % lists * h / lists;
      for (std::size_t i = 0; i < wanted.plan.counts(list); ++i) {
        const auto token = static_cast<std::size_t>(wanted.indices(list, i));
        if (tiers.has_copy(head, token)) continue;
        const std::byte* const key = detail::slow_row(tiers, head, token);
        const std::byte* const end = key + tiers.row_bytes();  // the value, and scales, follow the key
        if (key < last || key - last >= page_bytes) {
          end_run();
          first = key;
        }
        last = end;
      }
    }
    end_run();
  }
};

template <>
struct kernel<op::admit_rows, backend::host> {
  /// @param file  that has the rows, or null. They are read from it, and not through its mapping, so that a failed read is an error
  /// @param how   unless `touched`, the system is asked for all of them before the first is copied
  template <class P, class T, class E>
  static void run(const P& policy, const tiered_store<T, E>& tiers, view<const sequence, 1> sequences, std::uint32_t,
                  const mapped_file* file = nullptr, missing_rows how = missing_rows::touched) {
    const std::size_t batch = sequences.extent(0), h = tiers.kv_heads, caches = tiers.cache.caches(), each = tiers.caches_of_slot();
    policy.runner.run(caches, [&](std::size_t c) { detail::admit_one(tiers.cache.one(c), sequences(c / each).n); });
    std::size_t admitted = 0;
    for (std::size_t c = 0; c < caches; ++c) admitted += tiers.cache.one(c).progress->admitted;
    if (admitted == 0) return;
    if (file != nullptr && how != missing_rows::touched)
      for (std::size_t head = 0; head < batch * h; ++head) ask(tiers, head, *file);
    int error = 0;
    policy.runner.run(batch * h, [&](std::size_t head) {
      if (const int failed = copy(tiers, head, file); failed != 0) __atomic_store_n(&error, failed, __ATOMIC_RELAXED);
    });
    if (error != 0) file->fail_reading("attend", error);
    for (std::size_t c = 0; c < caches; ++c) {
      const one_block_cache<E> one = tiers.cache.one(c);
      tiers.residents(c / each).slow_rows += std::uint64_t{one.progress->admitted} * one.block_tokens * tiers.cache_heads;
    }
    fill_blocks(policy, tiers.cache);
  }

 private:
  template <class T, class E>
  static void ask(const tiered_store<T, E>& tiers, std::size_t head, const mapped_file& file) noexcept {
    const one_block_cache<E> one = tiers.cache_of_head(head);
    const std::size_t b = one.block_tokens;
    for (std::size_t i = 0; i < one.progress->admitted; ++i)
      file.read_ahead(detail::slow_row(tiers, head, one.admitted[i].block * b), detail::block_bytes(tiers, b));
  }
  /// Copies a head's rows of the blocks that enter. @return 0, or the error of the file
  template <class T, class E>
  static int copy(const tiered_store<T, E>& tiers, std::size_t head, const mapped_file* file) {
    const one_block_cache<E> one = tiers.cache_of_head(head);
    const std::size_t b = one.block_tokens;
    for (std::size_t i = 0; i < one.progress->admitted; ++i) {
      const std::size_t from = one.admitted[i].block * b, to = one.admitted[i].slot * b;
      if (file != nullptr) {
        const int error = file->read(&tiers.blocks(head, to, 0), detail::slow_row(tiers, head, from), detail::block_bytes(tiers, b));
        if (error != 0) return error;
        continue;
      }
      for (std::size_t t = 0; t < b; ++t) detail::copy_row(tiers, head, from + t, &tiers.blocks(head, to + t, 0));
    }
    return 0;
  }
};

template <>
struct kernel<op::truncate_rows, backend::host> {
  template <class P, class T, class E>
  static void run(const P& policy, const tiered_store<T, E>& tiers, const truncated_tokens<space::host>& call) noexcept {
    for (std::size_t row = 0; row < call.rows(); ++row) {
      const std::uint32_t slot = call.slot_of(row), length = call.length_of(row);
      tiers.residents(slot).truncate(length);
      for (std::size_t c = 0, each = tiers.caches_of_slot(); c < each; ++c)
        truncate_blocks(policy, tiers.cache.slice(slot * each + c, 1), make_view(&length, 1));
    }
  }
};

}  // namespace pqkv
