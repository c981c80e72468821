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

/// Copies the sinks and newest tokens that fast memory lacks for a sequence of this length; nothing if it has them already.
template <class T, class E>
void refresh_residents(const tiered_store<T, E>& tiers, std::size_t slot, std::uint32_t tokens) {
  const resident_update update = tiers.update_of(tiers.residents(slot), tokens);
  for (std::size_t head = slot * tiers.kv_heads; head < (slot + 1) * tiers.kv_heads; ++head)
    for (std::uint32_t i = 0; i < update.count(); ++i) copy_row(tiers, head, update.token(i), tiers.resident_row(update, head, i));
  tiers.residents(slot) = update.after;
  tiers.residents(slot).slow_rows += std::uint64_t{update.count()} * tiers.kv_heads;
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
  template <class P, class T, class E>
  static void run(const P& policy, const tiered_store<T, E>& tiers, const fetched_tokens<space::host>& wanted) {
    const step_plan<space::host>& plan = wanted.plan;
    const std::size_t tokens = wanted.tokens(), lists = tokens == 0 ? 0 : wanted.lists();
    if (lists == 0) return;
    for (std::size_t i = 0; i < tokens; ++i)
      if (wanted.is_last_of_slot(i)) detail::refresh_residents(tiers, plan.slots(i), wanted.length(i));
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
  template <class P, class T, class E>
  static void run(const P&, const tiered_store<T, E>& tiers, const fetched_tokens<space::host>& wanted, const mapped_file& file) noexcept {
    const std::size_t tokens = wanted.tokens(), lists = tokens == 0 ? 0 : wanted.lists(), h = tiers.kv_heads;
    const std::byte *first = nullptr, *last = nullptr;  // of rows that follow one another
    const auto ask = [&] {
      if (first != last) file.read_ahead(first, static_cast<std::size_t>(last - first));
    };
    for (std::size_t list = 0; list < tokens * lists; ++list) {
      const std::size_t head = wanted.plan.slots(list / lists) * h + list % lists * h / lists;
      for (std::size_t i = 0; i < wanted.plan.counts(list); ++i) {
        const auto token = static_cast<std::size_t>(wanted.indices(list, i));
        if (tiers.has_copy(head, token)) continue;
        const auto* const key = reinterpret_cast<const std::byte*>(tiers.slow.key(head, token).data);
        const auto* const end = key + tiers.row_bytes();  // the value, and scales, follow the key
        if (key < last || key - last >= page_bytes) {
          ask();
          first = key;
        }
        last = end;
      }
    }
    ask();
  }

 private:
  static constexpr std::ptrdiff_t page_bytes = 4096;  // rows no further apart are asked for with what is between them
};

template <>
struct kernel<op::admit_rows, backend::host> {
  template <class P, class T, class E>
  static void run(const P& policy, const tiered_store<T, E>& tiers, view<const sequence, 1> sequences, std::uint32_t) {
    const std::size_t batch = sequences.extent(0), h = tiers.kv_heads, caches = tiers.cache.caches(), each = tiers.caches_of_slot();
    policy.runner.run(caches, [&](std::size_t c) { detail::admit_one(tiers.cache.one(c), sequences(c / each).n); });
    std::size_t admitted = 0;
    for (std::size_t c = 0; c < caches; ++c) admitted += tiers.cache.one(c).progress->admitted;
    if (admitted == 0) return;
    policy.runner.run(batch * h, [&](std::size_t head) {
      const one_block_cache<E> one = tiers.cache_of_head(head);
      const std::size_t b = one.block_tokens;
      for (std::size_t i = 0; i < one.progress->admitted; ++i)
        for (std::size_t t = 0; t < b; ++t)
          detail::copy_row(tiers, head, one.admitted[i].block * b + t, &tiers.blocks(head, one.admitted[i].slot * b + t, 0));
    });
    for (std::size_t c = 0; c < caches; ++c) {
      const one_block_cache<E> one = tiers.cache.one(c);
      tiers.residents(c / each).slow_rows += std::uint64_t{one.progress->admitted} * one.block_tokens * tiers.cache_heads;
    }
    fill_blocks(policy, tiers.cache);
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
