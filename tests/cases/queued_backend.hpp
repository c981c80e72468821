// SPDX-License-Identifier: Apache-2.0
// A device without a device, its second half: the backend `queued`, in device space. Every operation enqueues the host's own on the same
// arguments, with every view's space rebound to the host's, and it runs at sync(). So the life of a cache in device memory is executed and
// compared where there is no GPU: what is read when, what is captured by value, which memory is touched, whether a step allocates.
//
// As on a device a call that brings no scratch has none (the host's heap stands for nothing here), a step is not checked against where
// sequences stand, and op::append_tokens refuses and counts the rows that do not fit.
#pragma once

#include <type_traits>

#include <pqkv/pqkv.hpp>

#include "placed_array.hpp"
#include "queued_memory.hpp"

namespace pqkv_cases {

struct queued_backend {};

/// The policy: a queue, and memory of it for scratch.
struct queued_policy {
  using backend_type = queued_backend;
  using space_type = pqkv::space::device;

  queue* stream{};
  pqkv::arena scratch{};
};

/// The policy that runs the work. Without scratch it has an arena without a byte, where the host's would go to the heap.
inline pqkv::exec::host<> to_host(const queued_policy& policy) {
  alignas(pqkv::cache_line_bytes) static std::byte none[pqkv::cache_line_bytes];
  return {{}, policy.scratch.counting() ? pqkv::arena(none, 0) : policy.scratch};
}

/// The same argument with host views in it. What has no view in it is what it was; a type that is forgotten here does not compile below,
/// since the host's operations take host views alone.
template <class T>
constexpr T to_host(const T& value) {
  return value;
}

template <class T, std::size_t Rank, class Space>
constexpr pqkv::view<T, Rank> to_host(const pqkv::view<T, Rank, Space>& v) {
  pqkv::view<T, Rank> here{v.data, {}, {}};
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    here.extents[axis] = v.extents[axis];
    here.strides[axis] = v.strides[axis];
  }
  return here;
}

// Search and quantizer.
template <class Space>
constexpr pqkv::head_map<> to_host(const pqkv::head_map<Space>& map) {
  return {to_host(map.slots), map.kv_heads};
}
template <class T, class Space>
constexpr pqkv::basic_codebook_view<T> to_host(const pqkv::basic_codebook_view<T, Space>& book) {
  return {to_host(book.centroids), to_host(book.mean), to_host(book.squared_radius)};
}
template <bool Const, class Space>
constexpr pqkv::basic_cell_index_view<Const> to_host(const pqkv::basic_cell_index_view<Const, Space>& index) {
  return {to_host(index.counts), to_host(index.offsets), to_host(index.ids),       to_host(index.first),
          to_host(index.merged), to_host(index.last),    to_host(index.cell_codes)};
}
template <class T, class Space>
constexpr pqkv::basic_distance_table_view<T> to_host(const pqkv::basic_distance_table_view<T, Space>& table) {
  return {to_host(table.entries), to_host(table.bias)};
}
template <class Space>
constexpr pqkv::pair_axes<> to_host(const pqkv::pair_axes<Space>& axes) {
  return {to_host(axes.energy), to_host(axes.weight), to_host(axes.source), to_host(axes.is_dealt), axes.otherwise};
}
template <class Space>
constexpr pqkv::pq_index_view<> to_host(const pqkv::pq_index_view<Space>& index) {
  return {to_host(index.book),       to_host(index.codes), to_host(index.index), to_host(index.fine_book),
          to_host(index.fine_codes), index.kv_heads,       index.axes,           to_host(index.pairs)};
}

// Stores.
template <class T, class Space>
constexpr pqkv::strided_store<T> to_host(const pqkv::strided_store<T, Space>& store) {
  return {to_host(store.keys), to_host(store.values)};
}
template <class T, class Space>
constexpr pqkv::strided_rows<T> to_host(const pqkv::strided_rows<T, Space>& rows) {
  return {to_host(rows.keys), to_host(rows.values)};
}
template <class Space>
constexpr pqkv::quantized_store<> to_host(const pqkv::quantized_store<Space>& rows) {
  return {rows.data, rows.count, rows.capacity, rows.dims};
}
template <class T, class Space>
constexpr pqkv::paged_store<T> to_host(const pqkv::paged_store<T, Space>& pages) {
  return {pages.key_pool,    pages.value_pool, pages.strides, to_host(pages.table),
          pages.page_tokens, pages.kv_heads,   pages.dims,    pages.capacity};
}
template <class T>
constexpr auto to_host(const pqkv::bus_rows<T>& rows) {
  return to_host(rows.all);
}
template <class T, class E, class Space, class Slow>
constexpr pqkv::tiered_store<T, E> to_host(const pqkv::tiered_store<T, E, Space, Slow>& tiers) {
  return {to_host(tiers.slow),
          to_host(tiers.sinks),
          to_host(tiers.recent),
          to_host(tiers.blocks),
          to_host(tiers.residents),
          {tiers.cache.first, tiers.cache.count, tiers.cache.cache_bytes},
          to_host(tiers.tickets),
          to_host(tiers.looked_up),
          tiers.counts,
          tiers.kv_heads,
          tiers.cache_heads};
}
template <class Store>
constexpr auto to_host(const pqkv::mapped_store<Store>& mapped) {
  return pqkv::mapped_store<decltype(to_host(mapped.store))>{to_host(mapped.store), to_host(mapped.map), mapped.count};
}

// Steps.
template <class Space>
constexpr pqkv::token_set<> to_host(const pqkv::token_set<Space>& tokens) {
  return {to_host(tokens.spans), to_host(tokens.indices), to_host(tokens.counts)};
}
template <class Space>
constexpr pqkv::cache_step to_host(const pqkv::basic_step<Space>& step) {
  return {to_host(step.slots), to_host(step.counts)};
}
template <class Space>
constexpr pqkv::slot_table<pqkv::space::host> to_host(const pqkv::slot_table<Space>& slots) {
  return {to_host(slots.sequences), to_host(slots.statistics), to_host(slots.tickets),
          to_host(slots.leaving),   to_host(slots.nonfinite),  slots.rule};
}
template <class Space>
constexpr pqkv::step_plan<pqkv::space::host> to_host(const pqkv::step_plan<Space>& plan) {
  return {to_host(plan.slots), to_host(plan.spans), to_host(plan.ranges), to_host(plan.counts)};
}
template <class Space>
constexpr pqkv::planned_queries<pqkv::space::host> to_host(const pqkv::planned_queries<Space>& q) {
  return {to_host(q.sequences), to_host(q.step), q.first, q.rule, q.covers, q.selection};
}
template <class Space>
constexpr pqkv::stored_tokens<pqkv::space::host> to_host(const pqkv::stored_tokens<Space>& call) {
  return {call.first_head, call.first_token, to_host(call.nonfinite)};
}
template <class Space>
constexpr pqkv::appended_tokens<pqkv::space::host> to_host(const pqkv::appended_tokens<Space>& call) {
  return {to_host(call.slots), to_host(call.step), call.tokens, call.capacity};
}
template <class Space>
constexpr pqkv::committed_prompt<pqkv::space::host> to_host(const pqkv::committed_prompt<Space>& call) {
  return {call.slot, call.after, call.tried, to_host(call.outcomes), to_host(call.nonfinite), call.due_again, call.codes};
}
template <class Space>
constexpr pqkv::truncated_tokens<pqkv::space::host> to_host(const pqkv::truncated_tokens<Space>& call) {
  return {to_host(call.slots), to_host(call.which), to_host(call.lengths), call.slot, call.length};
}
template <class Space>
constexpr pqkv::attended_queries<pqkv::space::host> to_host(const pqkv::attended_queries<Space>& call) {
  return {to_host(call.plan), call.first, to_host(call.step), to_host(call.query), call.lists, call.row_bytes, call.attends};
}

template <class Space>
constexpr pqkv::fetched_tokens<pqkv::space::host> to_host(const pqkv::fetched_tokens<Space>& wanted) {
  return {to_host(wanted.plan), to_host(wanted.indices)};
}

// Block caches.
template <class E, class Space>
constexpr pqkv::block_cache_view<E> to_host(const pqkv::block_cache_view<E, Space>& cache) {
  return {cache.first, cache.count, cache.cache_bytes};
}
template <class Space>
constexpr pqkv::block_lookup<pqkv::space::host> to_host(const pqkv::block_lookup<Space>& tokens) {
  return {to_host(tokens.indices), to_host(tokens.counts), to_host(tokens.sequences), tokens.caches_of_sequence};
}

/// What a device does with rows of a step that have no room: nothing, and counts their tokens. The other rows are appended.
template <class Rows, class Index, class K, class V>
void append_what_fits(const pqkv::exec::host<>& here, const Rows& rows, const Index& index,
                      const pqkv::appended_tokens<pqkv::space::host>& call, pqkv::view<K, 3> keys, pqkv::view<V, 3> values) {
  using append = pqkv::kernel<pqkv::op::append_tokens, pqkv::backend::host>;
  const std::size_t count = call.step.rows(call.slots.sequences.extent(0));
  const auto fits = [&](std::size_t row, std::size_t first) {
    const pqkv::sequence& now = call.slots.sequences(call.step.slot(row));
    const std::size_t more = call.step.count(row);
    return now.prefilling == 0 && now.n + more <= call.capacity && first + more <= call.tokens;
  };
  std::size_t first = 0;
  bool all_fit = true;
  for (std::size_t row = 0; row < count; first += call.step.count(row), ++row) all_fit = all_fit && fits(row, first);
  if (all_fit) return append::run(here, rows, index, call, keys, values);
  first = 0;
  for (std::size_t row = 0; row < count; ++row) {
    const std::uint32_t slot = call.step.slot(row), more = call.step.count(row);
    if (fits(row, first)) {
      auto one = call;
      one.step = {pqkv::make_view(&slot, 1), pqkv::make_view(&more, 1)};
      const bool given = keys.data != nullptr;
      append::run(here, rows, index, one, given ? keys.slice(0, first, more) : keys, given ? values.slice(0, first, more) : values);
    } else {
      call.slots.statistics(slot).refused += more;
    }
    first += more;
  }
}

}  // namespace pqkv_cases

namespace pqkv {

/// Every operation: the host's, later.
template <class Op>
struct kernel<Op, pqkv_cases::queued_backend> {
  template <class Sizes>
  static constexpr std::size_t scratch_bytes(const Sizes& sizes) {
    return kernel<Op, backend::host>::scratch_bytes(sizes);
  }
  template <class... Argument>
  static void run(const pqkv_cases::queued_policy& policy, const Argument&... argument) {
    using pqkv_cases::to_host;
    policy.stream->push(
        [here = to_host(policy), ... given = to_host(argument)] { kernel<Op, backend::host>::run(here.erased(), given...); });
  }
};

/// The host's fetch_rows makes the look-ups.
template <>
struct kernel<op::look_up_rows, pqkv_cases::queued_backend> {
  template <class... Argument>
  static void run(const pqkv_cases::queued_policy&, const Argument&...) {}
};

template <>
struct kernel<op::sync, pqkv_cases::queued_backend> {
  static void run(const pqkv_cases::queued_policy& policy) { policy.stream->sync(); }
};

template <>
struct kernel<op::allocate, pqkv_cases::queued_backend> {
  static memory_block run(const pqkv_cases::queued_policy& policy, std::size_t bytes) { return policy.stream->allocate(bytes); }
};

/// Memory of the queue too: stricter than pinned memory, which the host may read.
template <>
struct kernel<op::allocate_pinned, pqkv_cases::queued_backend> {
  static memory_block run(const pqkv_cases::queued_policy& policy, std::size_t bytes) { return policy.stream->allocate(bytes); }
};

template <>
struct kernel<op::copy_bytes, pqkv_cases::queued_backend> {
  static void run(const pqkv_cases::queued_policy& policy, void* to, const void* from, std::size_t bytes) {
    policy.stream->refuse_in_capture("copy_bytes");
    if (!policy.stream->holds(to) || !policy.stream->holds(from)) policy.stream->note_wait();
    policy.stream->push([=] { std::memmove(to, from, bytes); });
  }
};

/// Whether there is anything to select is known at sync() alone.
template <>
struct kernel<op::plan_step, pqkv_cases::queued_backend> {
  static bool run(const pqkv_cases::queued_policy& policy, const planned_queries<space::device>& queries,
                  const step_plan<space::device>& plan) {
    using pqkv_cases::to_host;
    policy.stream->push([here = to_host(policy), queries = to_host(queries), plan = to_host(plan)] {
      kernel<op::plan_step, backend::host>::run(here, queries, plan);
    });
    return true;
  }
};

template <>
struct kernel<op::append_tokens, pqkv_cases::queued_backend> {
  template <class Rows, class Index, class K, class V, class From>
  static void run(const pqkv_cases::queued_policy& policy, const Rows& rows, const Index& index, const appended_tokens<space::device>& call,
                  view<K, 3, From> keys, view<V, 3, From> values) {
    using pqkv_cases::to_host;
    policy.stream->push([here = to_host(policy), rows = to_host(rows), index = to_host(index), call = to_host(call), keys = to_host(keys),
                         values = to_host(values)] { pqkv_cases::append_what_fits(here, rows, index, call, keys, values); });
  }
};

}  // namespace pqkv

namespace pqkv_cases {

/// An array in the queue's memory, for a test's own inputs and outputs.
template <class T>
class queued_array : public placed_array<T, queued_policy> {
 public:
  using placed_array<T, queued_policy>::placed_array;
};

}  // namespace pqkv_cases
