// SPDX-License-Identifier: Apache-2.0
// The operations that change sequences, on the host. Work that can fail (in the runner or the selector) comes first and writes only past
// the ends of the sequences. Then the sequences are updated in the calling thread, which cannot fail.
#pragma once

#include <cstring>

#include "../../cache/kv_store.hpp"
#include "../../cache/sequence_steps.hpp"
#include "../../exec/host.hpp"
#include "pq_index_learn.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// One element as it is stored. Half to half does not go through float, for which not every level has instructions. Either way a signalling
/// NaN becomes quiet.
template <class To, class From>
To stored_as(From x) {
  if constexpr (std::is_same_v<To, half> && std::is_same_v<From, half>) {
    x.bits = static_cast<std::uint16_t>((x.bits & 0x7fffu) > 0x7c00u ? x.bits | 0x200u : x.bits);
    return x;
  } else {
    return static_cast<To>(static_cast<float>(x));
  }
}

template <class T>
bool is_stored_finite(T x) {
  if constexpr (std::is_same_v<T, half>)
    return (x.bits & 0x7c00u) != 0x7c00u;
  else
    return is_finite(static_cast<float>(x));
}

/// Converts one row to the stored type. Returns whether all stored elements are finite.
template <class Isa, class From, class To>
bool store_row(kv_row<From> from, row_slot<To> to, std::size_t d) {
  const auto store = [&](std::size_t from_stride, std::size_t to_stride) {
    unsigned infinite = 0;
    for (std::size_t i = 0; i < d; ++i) {
      const To stored = stored_as<To>(from.data[i * from_stride]);
      infinite |= is_stored_finite(stored) ? 0u : 1u;  // a finite float may overflow in half
      to.data[i * to_stride] = stored;
    }
    return infinite == 0;
  };
  return from.stride == 1 && to.stride == 1 ? store(1, 1) : store(from.stride, to.stride);
}

/// Stores a row as 8-bit integers and a scale. Returns whether it is finite.
template <class Isa, class From>
bool store_row(kv_row<From> from, row_slot<scaled_int8> to, std::size_t d) {
  return isa::with<Isa, isa::avx2>([&](auto isa) {
    alignas(cache_line_bytes) float copy[max_head_dim];
    *to.scale = simd_kernels<decltype(isa)>::narrow(load_row<simd_kernels<decltype(isa)>>(from, d, copy), d, to.data);
    return is_finite(*to.scale);
  });
}

/// Atomic, since tasks of one call may count at the same time.
inline void add_to(std::uint32_t& counter, std::uint32_t more) {
  if (more != 0) __atomic_fetch_add(&counter, more, __ATOMIC_RELAXED);
}

}  // namespace detail

template <>
struct kernel<op::store_tokens, backend::host> {
  template <class P, class Rows, class K, class V, class From>
  static void run(const P& policy, const Rows& rows, const stored_tokens<space::host>& call, view<K, 3, From> keys,
                  view<V, 3, From> values);
};

template <class P, class Rows, class K, class V, class From>
void kernel<op::store_tokens, backend::host>::run(const P& policy, const Rows& rows, const stored_tokens<space::host>& call,
                                                  view<K, 3, From> keys, view<V, 3, From> values) {
  constexpr std::size_t run_tokens = 512;  // tokens of a task: a prompt with few heads still uses every thread
  const auto store = [](auto... of) { return detail::store_row<typename P::isa_type>(of...); };
  const std::size_t n = keys.extent(1), runs = (n + run_tokens - 1) / run_tokens;
  detail::run_tasks(policy, keys.extent(0) * runs, [&](std::size_t task) {
    const std::size_t head = task / runs, begin = task % runs * run_tokens, end = begin + run_tokens < n ? begin + run_tokens : n;
    std::uint32_t bad_keys = 0, bad_values = 0;
    for (std::size_t t = begin; t < end; ++t) {
      const std::size_t to_head = call.first_head + head, to = call.first_token + t;
      bad_keys += store(row_of(keys, head, t), rows.key_slot(to_head, to), rows.head_dim()) ? 0 : 1;
      bad_values += store(row_of(values, head, t), rows.value_slot(to_head, to), rows.head_dim()) ? 0 : 1;
    }
    detail::add_to(call.nonfinite(0), bad_keys);
    detail::add_to(call.nonfinite(1), bad_values);
  });
}

template <>
struct kernel<op::append_tokens, backend::host> {
  /// @param keys, values  [tokens, h, d]; views without data if the rows are in the store already
  template <class P, class Rows, class Index, class K, class V, class From>
  static void run(const P& policy, const Rows& rows, const Index& index, const appended_tokens<space::host>& call, view<K, 3, From> keys,
                  view<V, 3, From> values);

 private:
  template <class P, class Rows, class K, class V, class From>
  static void store(const P& policy, const Rows& rows, const appended_tokens<space::host>& call, view<K, 3, From> keys,
                    view<V, 3, From> values, std::size_t h, std::size_t count) {
    const auto& slots = call.slots;
    const auto stored = [](auto... of) { return detail::store_row<typename P::isa_type>(of...); };
    // A task is one head of one row. The tokens of all rows follow each other in K and V, so each row of the step begins where the row
    // before it ends.
    detail::run_tasks(policy, count * h, [&](std::size_t task) {
      const std::size_t row = task / h, head = task % h;
      std::size_t first = 0;
      for (std::size_t before = 0; before < row; ++before) first += call.step.count(before);
      const std::uint32_t slot = call.step.slot(row), n = slots.sequences(slot).n;
      std::uint32_t bad_keys = 0, bad_values = 0;
      for (std::uint32_t i = 0; i < call.step.count(row); ++i) {
        bad_keys += stored(row_of(keys, first + i, head), rows.key_slot(slot * h + head, n + i), rows.head_dim()) ? 0 : 1;
        bad_values += stored(row_of(values, first + i, head), rows.value_slot(slot * h + head, n + i), rows.head_dim()) ? 0 : 1;
      }
      detail::add_to(slots.nonfinite(0, row), bad_keys);
      detail::add_to(slots.nonfinite(1, row), bad_values);
    });
  }
};

template <class P, class Rows, class Index, class K, class V, class From>
void kernel<op::append_tokens, backend::host>::run(const P& policy, const Rows& rows, const Index& index,
                                                   const appended_tokens<space::host>& call, view<K, 3, From> keys,
                                                   view<V, 3, From> values) {
  const auto& slots = call.slots;
  const std::size_t batch = slots.sequences.extent(0), count = call.step.rows(batch), h = rows.heads() / batch;
  for (std::size_t row = 0; row < count; ++row) {
    const std::uint32_t slot = call.step.slot(row);
    const sequence& before = slots.sequences(slot);
    const sequence after = before.grown(before.learned != 0 ? call.step.count(row) : 0);
    slots.leaving(row) = leaving_between(slot, before, after, slots.rule);
    slots.nonfinite(0, row) = slots.nonfinite(1, row) = 0;
  }
  if (keys.data != nullptr) store(policy, rows, call, keys, values, h, count);
  index.encode(policy, rows, as_const(slots.leaving.slice(0, 0, count)));
  for (std::size_t row = 0; row < count; ++row) {
    index.commit(slots.leaving(row));
    const std::uint32_t slot = call.step.slot(row);
    slots.sequences(slot) = slots.sequences(slot).grown(call.step.count(row));
    slots.statistics(slot).nonfinite_keys += slots.nonfinite(0, row);
    slots.statistics(slot).nonfinite_values += slots.nonfinite(1, row);
  }
}

template <>
struct kernel<op::commit_prompt, backend::host> {
  template <class P>
  static void run(const P&, const slot_table<space::host>& slots, const committed_prompt<space::host>& call) noexcept {
    bool learned = call.after.learned != 0;
    if (call.tried) {
      learned = true;
      for (std::size_t h = 0; h < call.outcomes.extent(0); ++h)
        for (std::size_t j = 0; j < call.outcomes.extent(1); ++j) learned = learned && call.outcomes(h, j) == 0;
    }
    slots.sequences(call.slot) = call.tried ? after_learning(call.after, learned, call.due_again) : call.after;
    if (call.tried && learned) ++slots.statistics(call.slot).trainings, slots.statistics(call.slot).codes_trained += call.codes;
    if (call.nonfinite.data == nullptr) return;
    slots.statistics(call.slot).nonfinite_keys += call.nonfinite(0);
    slots.statistics(call.slot).nonfinite_values += call.nonfinite(1);
    call.nonfinite(0) = call.nonfinite(1) = 0;
  }
};

template <>
struct kernel<op::truncate_tokens, backend::host> {
  template <class P, class Index>
  static void run(const P&, const Index& index, const truncated_tokens<space::host>& call) noexcept {
    for (std::size_t row = 0; row < call.rows(); ++row) {
      const std::uint32_t slot = call.slot_of(row);
      sequence& now = call.slots.sequences(slot);
      if (call.length_of(row) > now.n || now.prefilling != 0) {
        ++call.slots.statistics(slot).refused;
        continue;
      }
      const sequence after = now.truncated(call.length_of(row));
      if (now.learned != 0) index.forget(leaving_between(slot, after, now, call.slots.rule), after);
      now = after;
    }
  }
};

template <>
struct kernel<op::copy_slot, backend::host> {
  /// If `to` is empty, the runner copies, and `to` is still empty if that fails. If `to` holds a sequence, the copy must not fail, so the
  /// calling thread makes it.
  template <class P>
  static void run(const P& policy, const slot_parts& parts, const slot_table<space::host>& slots, std::size_t from, std::size_t to);
};

template <class P>
void kernel<op::copy_slot, backend::host>::run(const P& policy, const slot_parts& parts, const slot_table<space::host>& slots,
                                               std::size_t from, std::size_t to) {
  const std::size_t n = slots.sequences(from).longest;
  std::size_t segments = 0;
  for (std::size_t i = 0; i < parts.count; ++i) segments += parts.part[i].segments;
  const auto copy = [&](std::size_t task) {
    std::size_t i = 0;
    for (; task >= parts.part[i].segments; ++i) task -= parts.part[i].segments;
    std::memcpy(parts.part[i].segment(to, task), parts.part[i].segment(from, task), parts.part[i].bytes(n));
  };
  if (slots.sequences(to).n == 0)
    policy.runner.run(segments, copy);
  else
    exec::serial{}.run(segments, copy);
  slots.sequences(to) = slots.sequences(from);
  slots.statistics(to) = slots.statistics(from);
}

template <>
struct kernel<op::count_attended, backend::host> {
  template <class P, class Traffic>
  static void run(const P&, const slot_table<space::host>& slots, const attended_queries<space::host>& call,
                  const Traffic& traffic) noexcept {
    const std::size_t tokens = call.plan.slots.extent(0), hq = tokens == 0 ? 0 : call.query.extent(0) / tokens;
    const std::size_t live = count_live(slots, call.step, call.first, tokens);
    for (std::size_t i = 0; i < live; ++i) {
      slot_statistics& s = slots.statistics(call.plan.slots(i));
      for (std::size_t q = i * hq; q < (i + 1) * hq; ++q) {
        bool finite = true;
        for (std::size_t e = 0; e < call.query.extent(1); ++e) finite &= is_finite(call.query(q, e));
        s.nonfinite_queries += finite ? 0 : 1;
      }
      if (!call.attends) continue;
      std::uint64_t attended = 0;
      for (std::size_t list = i * call.lists; list < (i + 1) * call.lists; ++list)
        attended += attended_tokens_of(call.plan.spans(list)) + call.plan.counts(list);
      ++s.steps;
      s.tokens_attended += attended / call.lists;
      s.attended_bytes += attended * call.row_bytes;
      const std::size_t h = call.plan.ranges.extent(0) / tokens;
      const middle_range& middle = call.plan.ranges(i * h);
      if constexpr (!requires { traffic(middle, call.plan.spans(i * call.lists)); })
        if (middle.size() == 0) continue;
      const auto read = traffic_of(traffic, middle, call.plan.spans(i * call.lists));
      s.index_bytes += read.index_bytes;
      s.selector_bytes += read.selector_bytes;
    }
  }

 private:
  template <class Traffic>
  static auto traffic_of(const Traffic& traffic, const middle_range& middle, const token_span& span) noexcept {
    if constexpr (requires { traffic(middle, span); })
      return traffic(middle, span);
    else
      return traffic(middle);
  }
  static std::size_t count_live(const slot_table<space::host>& slots, const cache_step& of, std::size_t first,
                                std::size_t tokens) noexcept {
    std::size_t all = 0;
    const std::size_t rows = of.rows(slots.sequences.extent(0));
    for (std::size_t row = 0; row < rows; ++row) all += of.count(row);
    return all <= first ? 0 : all - first < tokens ? all - first : tokens;
  }
};

template <>
struct kernel<op::share_lists, backend::host> {
  template <class P>
  static void run(const P&, const planned_queries<space::host>& queries, const step_plan<space::host>& plan,
                  view<std::int32_t, 2> found) noexcept {
    const std::size_t tokens = plan.slots.extent(0), lists = tokens == 0 ? 0 : plan.counts.extent(0) / tokens;
    for (std::size_t i = 1; i < tokens; ++i) {
      const step_token token = locate(queries.step, queries.sequences.extent(0), queries.first + i);
      if (queries.has_own_list(token, i)) continue;
      for (std::size_t list = 0; list < lists; ++list) {
        const std::size_t to = i * lists + list, from = to - lists;  // the token before already has the row's list
        plan.counts(to) = plan.counts(from);
        for (std::size_t k = 0; k < plan.counts(from); ++k) found(to, k) = found(from, k);
      }
    }
  }
};

template <>
struct kernel<op::write_lists, backend::host> {
  template <class P, class Indices, class Counts>
  static void run(const P&, const planned_queries<space::host>& queries, const step_plan<space::host>& plan,
                  view<const std::int32_t, 2> found, const Indices& indices, const Counts& counts) noexcept {
    const std::size_t lists = indices.extent(1);
    for (std::size_t i = 0; i < indices.extent(0); ++i) {
      const step_token token = locate(queries.step, queries.sequences.extent(0), queries.first + i);
      const bool is_asked = token.count != 0 && token.slot < queries.sequences.extent(0);  // a query after the last row has no slot
      const middle_range whole =
          is_asked ? whole_middle(queries.sequences(token.slot), queries.query(token), queries.rule, queries.covers) : middle_range{};
      for (std::size_t list = 0; list < lists; ++list) {
        const std::size_t row = i * lists + list, room = indices.extent(2);
        const std::size_t all = whole.size() != 0 ? whole.size() : is_asked ? plan.counts(row) : 0;
        const std::size_t listed = all < room ? all : room;  // never cut: calls with too little room were refused
        counts(i, list) = static_cast<std::uint32_t>(listed);
        for (std::size_t k = 0; k < room; ++k)
          indices(i, list, k) = k >= listed ? -1 : whole.size() != 0 ? static_cast<std::int32_t>(whole.begin + k) : found(row, k);
      }
    }
  }
};

PQKV_HOST_OPERATION(op::learn_codebook, const pq_index_view<>&, std::size_t, view<const float, 3>, const kmeans_params&,
                    view<std::uint8_t, 2>)
PQKV_HOST_OPERATION(op::learn_codebook, const pq_index_view<>&, std::size_t, view<const half, 3>, const kmeans_params&,
                    view<std::uint8_t, 2>)
PQKV_HOST_OPERATION(op::learn_codebook, const pq_index_view<>&, std::size_t, view<const bfloat16, 3>, const kmeans_params&,
                    view<std::uint8_t, 2>)
// The index operations on rows in dense memory. Keys in half are copied as floats, so that their axes can be weighted.
PQKV_HOST_OPERATION(op::encode_leaving, const pq_index_view<>&, const strided_rows<float>&, view<const leaving_tokens, 1>)
PQKV_HOST_OPERATION(op::replace_centroids, const strided_rows<float>&, std::size_t, const pq_index_view<>&, const replaced_centroids&)
PQKV_HOST_OPERATION(op::renew_codebook, const strided_rows<float>&, std::size_t, const pq_index_view<>&, const replaced_centroids&,
                    view<const float, 3>, const kmeans_params&, view<std::uint8_t, 2>)
PQKV_HOST_OPERATION(op::renew_replaced, const strided_rows<float>&, std::size_t, const pq_index_view<>&, const replaced_centroids&,
                    view<const float, 3>, std::size_t, std::uint64_t*)
PQKV_HOST_OPERATION(op::gather_keys, const strided_rows<float>&, std::size_t, const stratified_sample&, std::size_t, const pair_axes<>&,
                    view<float, 3>)
PQKV_HOST_OPERATION(op::encode_leaving, const pq_index_view<>&, const strided_rows<half>&, view<const leaving_tokens, 1>)
PQKV_HOST_OPERATION(op::replace_centroids, const strided_rows<half>&, std::size_t, const pq_index_view<>&, const replaced_centroids&)
PQKV_HOST_OPERATION(op::renew_codebook, const strided_rows<half>&, std::size_t, const pq_index_view<>&, const replaced_centroids&,
                    view<const float, 3>, const kmeans_params&, view<std::uint8_t, 2>)
PQKV_HOST_OPERATION(op::renew_replaced, const strided_rows<half>&, std::size_t, const pq_index_view<>&, const replaced_centroids&,
                    view<const float, 3>, std::size_t, std::uint64_t*)
PQKV_HOST_OPERATION(op::gather_keys, const strided_rows<half>&, std::size_t, const stratified_sample&, std::size_t, const pair_axes<>&,
                    view<float, 3>)
PQKV_HOST_OPERATION(op::encode_leaving, const pq_index_view<>&, const strided_rows<bfloat16>&, view<const leaving_tokens, 1>)
PQKV_HOST_OPERATION(op::replace_centroids, const strided_rows<bfloat16>&, std::size_t, const pq_index_view<>&, const replaced_centroids&)
PQKV_HOST_OPERATION(op::renew_codebook, const strided_rows<bfloat16>&, std::size_t, const pq_index_view<>&, const replaced_centroids&,
                    view<const bfloat16, 3>, const kmeans_params&, view<std::uint8_t, 2>)
PQKV_HOST_OPERATION(op::renew_replaced, const strided_rows<bfloat16>&, std::size_t, const pq_index_view<>&, const replaced_centroids&,
                    view<const bfloat16, 3>, std::size_t, std::uint64_t*)
PQKV_HOST_OPERATION(op::gather_keys, const strided_rows<bfloat16>&, std::size_t, const stratified_sample&, std::size_t, const pair_axes<>&,
                    view<bfloat16, 3>)

}  // namespace pqkv
